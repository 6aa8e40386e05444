"""``canvas-asr evaluate``: error rates of models over sets of clips."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from canvas_asr.evaluation.options import add_options

from .messages import PROGRAM, complain, ctrl_c


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser(
        "evaluate",
        help="error rates and speed of models over sets of clips",
        description="Have models read sets of clips in several settings, and report how well. A run that was "
        "stopped goes on where it was. docs/evaluation.md says what the scores mean.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add_options(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the overview, and say where the rest is."""
    from canvas_asr.evaluation.evaluate import run as evaluate

    evaluate(options, f"{PROGRAM} {shlex.join(options.arguments)}", check=ctrl_c.check)
    print((options.out / "evaluation.md").read_text(encoding="utf-8"))
    complain(f"{options.out / 'evaluation.html'}: the same with plots")
    return 0
