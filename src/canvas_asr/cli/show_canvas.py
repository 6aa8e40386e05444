"""``canvas-asr transcribe --show-canvas``: the denoising of every clip, pass by pass, on stderr.

In a terminal the canvas is drawn over itself: the noise or draft that a pass reads in grey, then what the
pass predicts, coloured by confidence. Elsewhere every pass is a line. Results go to stdout, as without it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from canvas_asr.canvas_view import CanvasView
from canvas_asr.errors import AudioError, DataError

from .terminal import Piece, fit, is_terminal, n_columns, printable, terminal_size, wants_colour, wrap

if TYPE_CHECKING:
    from canvas_asr.result import Transcript
    from canvas_asr.transcriber import Transcriber

PAUSE_S = 0.12
HOLD = 5  # pauses that the finished text stays
NOISE = "90"  # grey
# Least confidence, style and meaning; colours of the terminal's own scheme, which suit its background.
LEVELS = ((0.95, "", "≥ 95 %"), (0.8, "36", "≥ 80 %"), (0.5, "33", "≥ 50 %"), (0.0, "31", "less"))


def pause_seconds(text: str) -> float:
    """Read a number of seconds, at least 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return seconds


def add_show_options(parser: Any) -> None:
    """Add whether the passes are shown."""
    parser.add_argument(
        "--show-canvas",
        action="store_true",
        help="show on stderr how noise turns into text, a clip at a time, in 8 passes if neither --steps nor "
        "--init is given; plain lines if stderr is no terminal",
    )
    parser.add_argument(
        "--canvas-pause",
        type=pause_seconds,
        default=PAUSE_S,
        metavar="SECONDS",
        help=f"between two pictures of --show-canvas (default {PAUSE_S})",
    )


def shown_transcripts(
    transcriber: Transcriber,
    paths: Iterable[str],
    options: argparse.Namespace,
    *,
    steps: int,
    **decoding: Any,
) -> Iterator[Transcript | AudioError]:
    """Transcribe files one after the other as :meth:`Transcriber.transcribe_files` does, and show how.

    Args:
        transcriber: The model.
        paths: Audio files.
        options: What :func:`add_show_options` added.
        steps: Most passes of a clip.
        decoding: Further options of decoding.
    """
    show = make_show(sys.stderr, steps, options.canvas_pause)
    for path in paths:
        show.start(path)
        result: Transcript | AudioError
        is_whole = False
        try:
            result = transcriber.transcribe(path, steps=steps, on_canvas=show.draw, batch_size=1, **decoding)
            is_whole = True
        except AudioError as error:
            result = error
        except DataError as error:  # speaker turns of the other files may be there
            result = AudioError(f"{path}: who speaks cannot be told: {error}")
        finally:
            show.finish(hold=is_whole)
        yield result


class CanvasShow(Protocol):
    """Shows canvases of one clip after the other."""

    def start(self, name: str) -> None:
        """Begin a clip."""

    def draw(self, view: CanvasView) -> None:
        """Show what a pass has made of it."""

    def finish(self, *, hold: bool = True) -> None:
        """End it; ``hold``: leave time to read what it ended with."""


def make_show(
    stream: TextIO, steps: int, pause_s: float, environ: Mapping[str, str] = os.environ
) -> CanvasShow:
    """Choose what a stream can show.

    Args:
        stream: Where to.
        steps: Most passes of a clip.
        pause_s: Seconds that a picture stays.
        environ: ``TERM`` and ``NO_COLOR`` are read.
    """
    if is_terminal(stream, environ):
        return CanvasAnimation(stream, steps, pause_s, colour=wants_colour(environ))
    return CanvasLines(stream, steps)


class CanvasLines:
    """A line for every pass, without colours, cursor movements or pauses."""

    def __init__(self, stream: TextIO, steps: int) -> None:
        """Begin.

        Args:
            stream: Where to.
            steps: Most passes of a clip.
        """
        self.stream = stream
        self.steps = steps
        self.name = ""

    def start(self, name: str) -> None:
        """See :class:`CanvasShow`."""
        self.name = printable(name, self.stream.encoding)

    def draw(self, view: CanvasView) -> None:
        """See :class:`CanvasShow`."""
        text = printable(view.text, self.stream.encoding)
        sure = 100 * sum(token.confidence for token in view.tokens) / max(1, len(view.tokens))
        print(
            f"{self.name}  {pass_name(view.step, self.steps)}  {sure:3.0f} %  {text}",
            file=self.stream,
            flush=True,
        )

    def finish(self, *, hold: bool = True) -> None:
        """See :class:`CanvasShow`."""


class CanvasAnimation:
    """The canvas of a clip, drawn over itself and wiped at the end: what is printed next takes its place.

    Nothing outlasts a picture but its text: no setting of the terminal is left changed between two of them.
    """

    def __init__(self, stream: TextIO, steps: int, pause_s: float, *, colour: bool) -> None:
        """Begin.

        Args:
            stream: A terminal.
            steps: Most passes of a clip.
            pause_s: Seconds that a picture stays.
            colour: Whether confidence is shown by colour; without, noise is shown as blocks.
        """
        self.stream = stream
        self.steps = steps
        self.pause_s = pause_s
        self.colour = colour
        self._name = ""
        self._before: CanvasView | None = None
        self._n_lines = 0
        self._block = printable("░", stream.encoding)

    def start(self, name: str) -> None:
        """See :class:`CanvasShow`."""
        self._name = printable(name, self.stream.encoding)
        self._before = None

    def draw(self, view: CanvasView) -> None:
        """See :class:`CanvasShow`."""
        if self._before is not None and self._before.kept is None:  # the clip begins anew
            self._before = None
        self._show(self._title(self._before), self._noise(view))
        text = [self._piece(token.text, self._style(token.confidence)) for token in view.tokens]
        self._show(self._title(view), text)
        self._before = view

    def finish(self, *, hold: bool = True) -> None:
        """See :class:`CanvasShow`."""
        if not self._n_lines:
            return
        if hold:
            time.sleep((HOLD - 1) * self.pause_s)
        self._write("")
        self._n_lines = 0

    def _piece(self, text: str, style: str) -> Piece:
        return Piece(printable(text, self.stream.encoding), style if self.colour else "")

    def _style(self, confidence: float) -> str:
        return next(style for least, style, _ in LEVELS if confidence >= least)

    def _noise(self, view: CanvasView) -> list[Piece]:
        """What the pass has read: of the pass before what was kept, and noise."""
        if self._before is None or self._before.kept is None:
            return [self._noisy(text) for text in view.before]
        before, kept = self._before, self._before.kept
        pieces = []
        for place, text in enumerate(view.before[: len(kept) + 1]):
            if place == len(kept):  # the end of the text, or noise in its place
                pieces += [self._noisy(text)] if text else []
            elif kept[place]:
                pieces.append(self._piece(text, self._style(before.tokens[place].confidence)))
            else:
                pieces.append(self._noisy(text))
        return pieces

    def _noisy(self, text: str) -> Piece:
        shown = printable(text, self.stream.encoding)
        if not shown.strip() or not self.colour:
            shown = self._block * max(1, n_columns(shown))
        return self._piece(shown, NOISE)

    def _title(self, view: CanvasView | None) -> str:
        if view is None:
            return "start"
        language = f"  [{view.language}]" if view.language else ""
        return f"{pass_name(view.step, self.steps)}{language}"

    def _show(self, title: str, text: list[Piece]) -> None:
        """Draw one picture and let it stay."""
        columns, n_lines = terminal_size(self.stream)
        title = f"  {title}"
        lines = [[Piece(fit(self._name, max(1, columns - 1 - n_columns(title))) + title)]]
        lines += wrap(text, max(2, columns - 1))[: max(1, n_lines - 3)]
        lines.append(self._legend())
        self._write("\n".join("".join(map(str, line)) for line in lines[: max(1, n_lines - 1)]))
        self._n_lines = min(len(lines), max(1, n_lines - 1))
        time.sleep(self.pause_s)

    def _legend(self) -> list[Piece]:
        if not self.colour:
            return [Piece(f"{self._block} noise")]
        levels = [self._piece(f"  {meaning}", style) for _, style, meaning in LEVELS]
        return [Piece("confidence"), *levels, self._piece("  noise", NOISE)]

    def _write(self, picture: str) -> None:
        """Put a picture where the last one was; lines that are too long are cut, not broken."""
        up = f"\x1b[{self._n_lines - 1}A" if self._n_lines > 1 else ""
        self.stream.write(f"\r{up}\x1b[J\x1b[?7l{picture}\x1b[?7h")
        self.stream.flush()


def pass_name(step: int, steps: int) -> str:
    """Say which pass it is; a clip that needed a longer canvas takes more than were asked for."""
    return f"pass {step} of {steps}" if step <= steps else f"pass {step}"
