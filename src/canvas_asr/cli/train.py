"""``canvas-asr train``: one stage of a recipe."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from typing import Any

from canvas_asr.errors import OptionError

# What `accelerate launch` sets for ways of sharding that cannot work here, and why they cannot.
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP needs every weight within one of its groups, and this backbone's encoder "
    "and decoder share theirs layer by layer",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed keeps optimiser and checkpoints in a form of its own, which a "
    "recipe's exact resumption does not have",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM has models of its own",
}


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser(
        "train", help="one stage of a recipe; resumes where it stopped", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the recipe, as in training.max_steps=100; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Run the stage of a recipe; its module is named like the stage.

    Raises:
        OptionError: If the process was launched in a way that a stage cannot run in.
    """
    for variable, reason in _SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise OptionError(f"{reason}; launch with DDP: accelerate launch --multi_gpu.")
    from canvas_asr.training.recipe import load_recipe

    recipe = load_recipe(options.recipe, _overrides(options.set))
    importlib.import_module(f"canvas_asr.training.{recipe.stage}").run(recipe)
    return 0


def _overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Values by key of ``key=value`` settings, the values read as YAML.

    Raises:
        OptionError: If one has no ``=``, or its value is not YAML.
    """
    import yaml

    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise OptionError(f"--set {setting}: give key=value, as in training.max_steps=100.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OptionError(f"--set {setting}: the value is not valid YAML.") from error
        if isinstance(value, str) and value[:1] in "+-.0123456789":
            try:
                value = float(value)  # YAML takes 1e-3 for a string
            except ValueError:
                pass
        overrides[key] = value
    return overrides
