"""Options of decoding on the command line: those of :class:`~canvas_asr.options.DecodingOptions`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from canvas_asr.errors import OptionError
from canvas_asr.options import ACCEPTANCES, AUTO, RISKS, SELF_CONDITIONING, STARTS, DecodingOptions


def canvas_length(text: str) -> int | str:
    """Read ``auto`` or a number of tokens."""
    try:
        return text if text == AUTO else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {AUTO} nor a number of tokens") from error


def add_decoding_options(parser: Any, *, watched: bool = False) -> None:
    """Add how clips are decoded; names and defaults are those of the Python interface.

    Args:
        parser: Of a command.
        watched: Whether the command shows the passes, as for :func:`decoding_arguments`.
    """
    defaults = "noise and 8 passes" if watched else "the model's, which canvas-asr info tells"
    parser.add_argument(
        "--language", default=AUTO, help="code such as de; auto: detected, clip by clip (default auto)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=f"most denoising passes, from noise unless --init says otherwise (default: {defaults})",
    )
    parser.add_argument(
        "--init", metavar="NAME", help=f"what the canvas starts from: {', '.join(STARTS)} (default: likewise)"
    )
    parser.add_argument(
        "--canvas",
        type=canvas_length,
        metavar="TOKENS",
        help="length of the canvas; auto: as the draft needs (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--word-timestamps", action="store_true", help="start, end and confidence of every word too"
    )
    _add_bias(parser.add_argument_group("what it is told to expect"))
    group = parser.add_argument_group("how it is decoded")
    for name, kind, text in (
        ("self_conditioning", str, f"what the first pass is told: {', '.join(SELF_CONDITIONING)}"),
        ("draft_threshold", float, "draft tokens of a lower CTC posterior are replaced by noise"),
        ("acceptance", str, f"which predictions a pass keeps: {', '.join(ACCEPTANCES)}"),
        ("entropy_bound", float, "nats that the kept predictions may have, for entropy-bound"),
        ("accept_threshold", float, "probability from which a prediction is kept, for threshold"),
        ("stop_entropy", float, "a stable text of a lower mean entropy in nats takes no further pass"),
        ("stability", int, "passes in a row with the same text that make it stable"),
        ("fusion", float, "weight of the CTC log posteriors in every pass"),
        ("gate", float, "clips whose CTC frames are all this certain get their draft, in no pass"),
        ("candidates", int, "canvases a clip; the answer is that of minimum Bayes risk"),
        ("risk", str, f"what candidates are compared by: {', '.join(RISKS)}"),
    ):
        default = getattr(DecodingOptions(), name)
        shown = "off" if default in (None, 0.0) else default
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=default,
            metavar="NAME" if kind is str else "N",
            help=f"{text} (default {shown})",
        )


def _add_bias(group: Any) -> None:
    default = DecodingOptions()
    group.add_argument(
        "--hotword",
        action="append",
        default=[],
        metavar="TEXT",
        help="word or phrase that the reading is bent towards, as it is to be written; may be repeated",
    )
    group.add_argument("--hotwords", type=Path, metavar="FILE", help="the same from a UTF-8 file, one a line")
    group.add_argument(
        "--hotword-boost",
        type=float,
        default=default.hotword_boost,
        metavar="N",
        help=f"nats that they gain for each token (default {default.hotword_boost:g})",
    )
    group.add_argument(
        "--prompt", metavar="TEXT", help="text to go by, for a model that was trained with such"
    )


def read_hotwords(path: Path) -> list[str]:
    """Read a list of words and phrases, one a line; empty lines count for nothing.

    Raises:
        OptionError: If the file cannot be read, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read as a UTF-8 list of hotwords ({error}).") from error
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise OptionError(f"{path}: no hotwords in it; write one a line.")
    return words


def decoding_arguments(options: argparse.Namespace, *, watched: bool = False) -> dict[str, Any]:
    """Give what was parsed as arguments of ``transcribe``.

    Args:
        options: What :func:`add_decoding_options` added.
        watched: Whether the passes are shown. Where neither start nor passes are given they are then chosen
            as in the released system, not by the model: one pass from a draft shows little of denoising.

    Raises:
        OptionError: If the file of hotwords cannot be used, or an option is out of range.
    """
    found = {field.name: getattr(options, field.name) for field in fields(DecodingOptions)}
    listed = [] if options.hotwords is None else read_hotwords(options.hotwords)
    language = None if options.language == AUTO else options.language
    found |= {"language": language, "hotwords": [*options.hotword, *listed]}
    if watched:
        chosen = DecodingOptions(**found).resolved()
        found |= {"init": chosen.init, "steps": chosen.steps}
    return found
