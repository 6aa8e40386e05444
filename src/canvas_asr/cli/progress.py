"""The progress bar of ``canvas-asr transcribe``, on a terminal only: files, audio, speed, time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from .terminal import is_terminal

DELAY_S = 2.0  # what takes no longer needs no bar


class Progress:
    """What is done, shown if there is a terminal."""

    def __init__(self, paths: Sequence[str], stream: TextIO | None = None, *, shown: bool = True) -> None:
        """Begin.

        Args:
            paths: Of all files; how long they are is found out beside the work.
            stream: Where to; None: stderr.
            shown: Whether there is to be a bar, if that is a terminal.
        """
        self.n_files = len(paths)
        self.n_done = 0
        self.n_failed = 0
        self.audio_s = 0.0  # of finished files
        self._under_way: dict[int, float] = {}  # seconds that each worker has done
        self._total_s: float | None = None
        self._started = time.monotonic()
        stream = stream or sys.stderr
        self._bar: Any = None
        self._stop = threading.Event()
        if shown and is_terminal(stream):
            self._bar = _make_bar(stream)
            threading.Thread(target=self._measure, args=(tuple(paths),), daemon=True).start()

    def _measure(self, paths: Sequence[str]) -> None:
        """Add up how long the files are, as their headers say."""
        from canvas_asr.audio_stream import header_seconds

        total_s = 0.0
        for path in paths:
            if self._stop.is_set():
                return
            total_s += header_seconds(path) or 0.0
        self._total_s = total_s

    @property
    def seconds(self) -> float:
        """Wall-clock time since the first audio was begun."""
        return time.monotonic() - self._started

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second."""
        return self.done_s / max(self.seconds, 1e-9)

    @property
    def done_s(self) -> float:
        """Seconds of audio that are done, in unfinished files too."""
        return max(self.audio_s, sum(self._under_way.values()))

    def start(self) -> None:
        """Count time from here: the model is loaded."""
        self._started = time.monotonic()

    def advance(self, done_s: float, worker: int = 0) -> None:
        """Tell how many seconds of audio a worker has done since it began."""
        self._under_way[worker] = max(done_s, self._under_way.get(worker, 0.0))
        self._draw()

    def finish(self, audio_s: float, *, failed: bool = False) -> None:
        """Count a file.

        Args:
            audio_s: Length of its audio.
            failed: Whether it has no transcript.
        """
        self.n_done += 1
        self.n_failed += failed
        self.audio_s += audio_s
        self._draw()

    def _draw(self) -> None:
        if self._bar is None:
            return
        self._bar.total = max(self._total_s, self.done_s) if self._total_s else None
        self._bar.n = self.done_s
        self._bar.set_description_str(self.text(), refresh=False)
        self._bar.update(0)

    def text(self) -> str:
        """What stands beside the bar."""
        total = f"/{clock(self._total_s)}" if self._total_s else ""
        parts = [f"{self.n_done}/{self.n_files} files", f"{clock(self.done_s)}{total} of audio"]
        if self.done_s:
            parts.append(f"{self.rtfx:.1f}× real time")
            if self._total_s:
                parts.append(f"{clock(max(0.0, self._total_s - self.done_s) / self.rtfx)} left")
        if self.n_failed:
            parts.append(f"{self.n_failed} failed")
        return ", ".join(parts)

    def summary(self, n_written: int) -> str:
        """What was done, for the end; of how many files there are outputs."""
        files = "1 file" if n_written == 1 else f"{n_written} files"
        return (
            f"{files}, {clock(self.audio_s)} of audio in {clock(self.seconds)} "
            f"({self.audio_s / max(self.seconds, 1e-9):.1f}× real time)"
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something is printed; it comes back with the next news."""
        if self._bar is not None:
            self._bar.clear()
        yield

    def close(self) -> None:
        """End the bar."""
        self._stop.set()
        if self._bar is not None:
            self._bar.close()


def _make_bar(stream: TextIO) -> Any:
    from tqdm import tqdm

    layout = "{percentage:3.0f}% |{bar}| {desc}"
    return tqdm(
        total=None, file=stream, bar_format=layout, dynamic_ncols=True, delay=DELAY_S, miniters=0, leave=False
    )


def clock(seconds: float) -> str:
    """Write a duration as ``4:05`` or ``1:02:03``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
