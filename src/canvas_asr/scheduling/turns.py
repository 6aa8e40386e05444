"""Threads that take turns at work for the processor, first come first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..audio_files import Samples
    from ..audio_stream import SampleSource
    from ..result import Gap


class Turns:
    """A semaphore at which who came first goes first: ``threading.Semaphore`` lets others overtake."""

    def __init__(self, n_threads: int) -> None:
        """Let so many threads work at once."""
        self._lock = threading.Lock()
        self._n_free = n_threads
        self._waiting: deque[threading.Lock] = deque()

    def take(self) -> None:
        """Wait for a turn."""
        with self._lock:
            if self._n_free:
                self._n_free -= 1
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until somebody hands the turn on

    def hand_on(self) -> None:
        """Hand the turn on."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._n_free += 1


class TurnedSource:
    """A source that is read by a thread which has a turn: while it waits for samples, others have it."""

    def __init__(self, source: SampleSource, turns: Turns) -> None:
        """Wrap a source."""
        self._source = source
        self._turns = turns

    @property
    def duration_s(self) -> float | None:
        """Seconds of audio, as far as the source knows."""
        return self._source.duration_s

    @property
    def gaps(self) -> Sequence[Gap]:
        """What of the source could not be decoded so far."""
        return self._source.gaps

    def __iter__(self) -> Iterator[Samples]:
        """Give the source's blocks."""
        blocks = iter(self._source)
        while True:
            self._turns.hand_on()
            try:
                samples = next(blocks, None)
            finally:
                self._turns.take()
            if samples is None:
                return
            yield samples
