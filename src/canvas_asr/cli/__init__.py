"""The command ``canvas-asr``: transcribe, listen, plot, serve, train, synth, evaluate, convert, info, push.

    canvas-asr transcribe talk.mp3 --language de --json
    canvas-asr listen --language en
    canvas-asr plot talk.mp3 -o talk.png
    canvas-asr serve --port 8000
    canvas-asr train recipes/tiny/adapter.yaml --set training.max_steps=100
    canvas-asr evaluate tiny --set data/german.jsonl --out runs/evaluation
    canvas-asr convert diffusion_asr_small.pt adapter/
    canvas-asr info tiny
    canvas-asr push runs/mine/checkpoint me/my-adapter --private

Results go to stdout, everything else to stderr. The exit code is 0 if all went well, 1 if something could not
be done, 2 for wrong usage, 130 after Ctrl-C. What is heavy is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from canvas_asr import __version__

from . import convert, evaluate, info, listen, plot, push, serve, synth, train, transcribe
from .messages import PROGRAM, exit_code


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Speech recognition by parallel denoising.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    transcribe.add_parser(commands)
    listen.add_parser(commands)
    plot.add_parser(commands)
    serve.add_parser(commands)
    train.add_parser(commands)
    synth.add_parser(commands)
    evaluate.add_parser(commands)
    convert.add_parser(commands)
    info.add_parser(commands)
    push.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its arguments; None takes the process's.

    Returns:
        The exit code. Wrong usage raises SystemExit(2), as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    return int(options.run(options))
