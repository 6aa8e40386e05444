"""``canvas-asr plot``: a picture of how a clip was transcribed, such as ``plot talk.mp3 -o talk.png``."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Any

from canvas_asr.errors import OptionError

from .decoding_options import add_decoding_options, decoding_arguments
from .messages import complain
from .model_options import add_model_options, add_place_options, load_arguments

KINDS = (".png", ".svg", ".pdf")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser(
        "plot", help="a picture of how a clip was transcribed, pass by pass", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument("file", metavar="FILE", help="audio, no longer than the model takes at once")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PICTURE",
        help="png, svg or pdf, by its suffix (default: FILE's name with .png, in this folder)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that is there")
    parser.add_argument("--model", default="tiny", help="as for transcribe (default tiny)")
    add_decoding_options(parser, watched=True)
    add_place_options(parser.add_argument_group("where it runs"))
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    """Transcribe a clip, draw it, and print where the picture is."""
    from canvas_asr.plotting import draw, load_matplotlib, watch

    output = options.output or Path(Path(options.file).stem + KINDS[0])
    check_output(output, overwrite=options.overwrite)
    load_matplotlib()  # what is missing is said before the model is loaded
    decoding = decoding_arguments(options, watched=True)
    from canvas_asr.transcriber import load

    transcriber = load(options.model, **load_arguments(options))
    missing = draw(watch(transcriber, options.file, **decoding), output)
    if missing:
        complain(
            f"warning: no installed font has {' '.join(sorted(missing)[:8])}: boxes stand in their place; "
            "install one, say Debian's fonts-lohit-deva for Devanagari or fonts-noto-cjk for Chinese"
        )
    print(output)
    return 0


def check_output(output: Path, *, overwrite: bool) -> None:
    """Say before any work what keeps a picture from being written.

    Raises:
        OptionError: If its suffix is unknown, or it is there and must not be replaced.
        OSError: If its folder is missing or cannot be written to.
    """
    if output.suffix.lower() not in KINDS:
        raise OptionError(f"{output}: a picture is {', '.join(KINDS)}; give --output one of these suffixes.")
    if not output.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(output.parent))
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output.parent))
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(output))
    if not overwrite and os.path.lexists(output):
        raise OptionError(f"{output} exists; --overwrite replaces it, --output names another.")
