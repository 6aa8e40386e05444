"""What ``canvas-asr listen`` shows: stable text on stdout, the draft on the last line of a terminal."""

from __future__ import annotations

import io
import queue
import sys
import threading

from canvas_asr.live import DraftChanged, LiveEvent, StableGrown

from .sinks import shown_text
from .terminal import Piece, fit, is_terminal, printable, terminal_size, wants_colour

DIM = "2"  # of terminals


class Screen:
    """Shows what is told of the speech, in a thread of its own: a slow terminal keeps nobody waiting."""

    def __init__(self, *, shows_segments: bool) -> None:
        """Begin.

        Args:
            shows_segments: Whether they are printed as they come.
        """
        if isinstance(sys.stdout, io.TextIOWrapper):  # one that cannot show a letter gets its number
            sys.stdout.reconfigure(errors="backslashreplace")
        self._error: OSError | None = None
        self._shows_segments = shows_segments
        self._shows_drafts = is_terminal(sys.stderr)
        self._dim = DIM if wants_colour() else ""
        self._draft = ""
        self._events: queue.Queue[LiveEvent | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="canvas-asr-screen", daemon=True)
        self._thread.start()

    def take(self, event: LiveEvent) -> None:
        """Take an event, in any thread."""
        self._events.put(event)

    def check(self) -> None:
        """Raise OSError if nothing can be shown any more."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Show what has come, and nothing more."""
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._show_draft(event.text if isinstance(event, DraftChanged) else "")
                if isinstance(event, StableGrown) and self._shows_segments:
                    print(shown_text(event.segment.text), flush=True)
        except OSError as error:  # nobody reads any more
            self._error = error

    def _show_draft(self, text: str) -> None:
        """Put a draft on the last line in place of the one before: its end, if it is too long."""
        if not self._shows_drafts or text == self._draft:
            return
        columns, _ = terminal_size(sys.stderr)
        shown = fit(printable(text, sys.stderr.encoding), max(1, columns - 1))
        sys.stderr.write(f"\r\x1b[K{Piece(shown, self._dim)}")
        sys.stderr.flush()
        self._draft = text
