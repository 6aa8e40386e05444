"""Options that say where transcripts go, and in which format."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas_asr.errors import OptionError
from canvas_asr.formats import FORMATS
from canvas_asr.outputs import OutputFolder
from canvas_asr.subtitles import Layout

STDOUT = "-"
ALL = "all"
_LAID_OUT = ("srt", "vtt")
TIMED = (*_LAID_OUT, "tsv")  # made of cues, which are made of words that have times


def formats(text: str) -> tuple[str, ...]:
    """Read names of formats with commas between them, or ``all``."""
    names = tuple(FORMATS) if text == ALL else tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        known = ", ".join([*FORMATS, ALL])
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no format; choose of {known}")
    return names


def shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, 1 <= i <= n."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n, such as 2/4")
    return int(first), int(last)


def at_least_one(text: str) -> int:
    """Read a whole number, 1 or more."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def add_output_options(parser: Any) -> None:
    """Add where transcripts go."""
    group = parser.add_argument_group("where the text goes", "Without these, a line a file on stdout.")
    group.add_argument(
        "-o",
        "--output-dir",
        metavar="DIR",
        help="write files there; - : to stdout (default with a format: .)",
    )
    group.add_argument(
        "--output-format",
        type=formats,
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}, several with commas between, or all (default all; txt with -o -)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace outputs that are there")
    group.add_argument("--resume", action="store_true", help="pass over files whose outputs are there")
    group.add_argument(
        "--max-line-width", type=at_least_one, metavar="N", help="characters of a line of srt and vtt"
    )
    group.add_argument(
        "--max-line-count", type=at_least_one, metavar="N", help="lines of a cue, with --max-line-width"
    )


@dataclass(frozen=True)
class OutputPlan:
    """Where transcripts go.

    Attributes:
        folder: To files in it.
        printed: To stdout in this format.
        needs_words: Whether words without times will not do.
        likes_words: Whether times of words make it better.
    """

    folder: OutputFolder | None = None
    printed: str | None = None
    layout: Layout = field(default_factory=Layout)
    needs_words: bool = False
    likes_words: bool = False


def output_plan(options: argparse.Namespace, n_files: int) -> OutputPlan:
    """Make sense of the options.

    Args:
        options: What was parsed.
        n_files: That will be transcribed.

    Raises:
        OptionError: If two of them contradict each other, or one has no effect.
    """
    layout = Layout(options.max_line_width, options.max_line_count)
    where, names = options.output_dir, options.output_format
    to_files = where != STDOUT and not (where is None and names is None)
    if options.json and (where is not None or names is not None):
        raise OptionError("--json prints a line a file; for JSON files give --output-format json without it.")
    if options.overwrite and options.resume:
        raise OptionError("--overwrite and --resume contradict each other; give one of them.")
    if (options.overwrite or options.resume) and not to_files:
        raise OptionError("--overwrite and --resume are for files; give --output-dir too.")
    if names is None:
        names = ("txt",) if where == STDOUT else tuple(FORMATS) if to_files else ()
    if layout != Layout() and not set(_LAID_OUT) & set(names):
        raise OptionError("--max-line-width is for subtitles; give --output-format srt or vtt too.")
    needs_words, likes_words = layout.max_line_count is not None, bool(set(TIMED) & set(names))
    if to_files:
        folder = OutputFolder(Path(where or "."), names, layout, options.overwrite, options.resume)
        return OutputPlan(folder, None, layout, needs_words, likes_words)
    if len(names) > 1:
        raise OptionError(f"--output-dir {STDOUT} prints one format; choose one with --output-format.")
    if names and names[0] in TIMED and n_files > 1:
        raise OptionError(
            f"--output-dir {STDOUT} prints the {names[0]} of one file, not of {n_files}; give a folder."
        )
    return OutputPlan(None, names[0] if names else None, layout, needs_words, likes_words)
