"""``canvas-asr card`` and ``canvas-asr push``: the model card of a checkpoint, and its upload to the hub."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from canvas_asr.errors import OptionError

from .messages import complain


def add_parser(commands: Any) -> None:
    """Add both commands to the subparsers of the program."""
    _add_card(commands)
    _add_push(commands)


def _add_card(commands: Any) -> None:
    parser = commands.add_parser(
        "card",
        help="model card of a checkpoint, from its training run and evaluations",
        description=(
            "Write README.md of a checkpoint folder: parts and licences, data hours and languages, training, "
            "and every score of the evaluations."
        ),
        allow_abbrev=False,
    )
    parser.set_defaults(run=write_card)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the checkpoint")
    parser.add_argument(
        "--run",
        type=Path,
        dest="run_folder",
        metavar="FOLDER",
        help="of the training run, with data.json and log.jsonl (default: where the checkpoint lies)",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="evaluation.json of canvas-asr evaluate; may be several",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a card that was written by hand")


def _add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="upload a checkpoint to the hub",
        description=(
            "Check that a checkpoint loads, say what of its folder is uploaded, and upload it. Frozen parts "
            "that the checkpoint names by their place on the hub are not uploaded."
        ),
        allow_abbrev=False,
    )
    parser.set_defaults(run=push)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the checkpoint")
    parser.add_argument("repository", metavar="OWNER/NAME", help="made if there is none")
    parser.add_argument("--private", action="store_true", help="only the owner sees it")
    parser.add_argument(
        "--token-from-env",
        metavar="VARIABLE",
        help="environment variable with a token (default: the one that `hf auth login` stored, or HF_TOKEN)",
    )
    parser.add_argument("--revision", help="branch, made if there is none")
    parser.add_argument("--create-pr", action="store_true", help="propose the change instead of making it")
    parser.add_argument("--message", help="first line of the commit")
    parser.add_argument("--dry-run", action="store_true", help="check and list, but upload nothing")


def write_card(options: argparse.Namespace) -> int:
    """Write the card of a checkpoint."""
    from canvas_asr.card import CARD_NAME, CardFacts, write_model_card
    from canvas_asr.configuration import load_configuration

    config = load_configuration(options.folder)
    run_folder = options.run_folder or options.folder.resolve().parent
    if options.run_folder and not run_folder.is_dir():
        raise OptionError(f"--run {run_folder}: no such folder.")
    facts = CardFacts.read(run_folder, options.evaluation)
    write_model_card(options.folder, config, facts, overwrite=options.overwrite)
    print(options.folder / CARD_NAME)
    for what, told in (
        ("training data (no data.json in the run's folder; give --run)", facts.data),
        ("scores (give --evaluation)", facts.evaluations),
    ):
        if not told:
            complain(f"note: the card does not state {what}.")
    return 0


def push(options: argparse.Namespace) -> int:
    """Check, list and upload a checkpoint."""
    from canvas_asr.publishing import pack, publish

    token = _token(options.token_from_env)
    shipment = pack(options.folder)
    audience = "private" if options.private else "public if it is new"
    print(f"to {options.repository} ({audience}):")
    for name, n_bytes in shipment.files.items():
        print(f"  {n_bytes / 1e6:>10.3f} MB  {name}")
    print(f"  {shipment.n_bytes / 1e6:>10.3f} MB  in all")
    if shipment.left_out:
        print(f"not uploaded: {', '.join(shipment.left_out)}")
    if options.dry_run:
        return 0
    address = publish(
        shipment,
        options.repository,
        token=token,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
        message=options.message,
    )
    print(f"uploaded: {address}")
    return 0


def _token(variable: str | None) -> str | None:
    """Take a token from an environment variable, so that it stands in no command line or history."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise OptionError(f"--token-from-env {variable}: this environment variable is not set, or is empty.")
    return token
