"""Which pieces the model works on next: batches that requests and chunks of long files share.

Jobs whose options differ in more than language, seed and word times cannot share a pass: each kind has a lane
of its own, and the lanes take turns. The rows of all lanes together are bounded.

A job that is longer than the model takes at once is *bulk*, unless it comes at the pace of speech. While
short jobs wait or run, bulk jobs hold few rows: the others are set aside as they are, and go on afterwards.
At all times they work in steps of little time, for a short job that comes has to wait for the step to end.
But one that is alone, and read to its end before the model has begun with it, is begun with like a short one:
all of it at once. A short job that needs no pass, a draft, takes no row and holds no bulk job back: they are
encoded by turns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..clip_batch import shared_options
from .jobs import PassShown
from .tasks import Task

if TYPE_CHECKING:
    from ..options import DecodingOptions
    from ..piece_batch import PieceBatch
    from ..recordings import Piece

STEP_S = 0.5  # that a step of short jobs may take, as far as that can be foreseen
BULK_STEP_S = 0.1  # likewise of bulk jobs, or as long as a short one takes alone
SHORT_S = 5.0  # of audio in a short job
BULK_SHARE = 8  # of the batch's rows, bulk jobs hold one in so many while there are short ones
BULK_PASSES = 4  # passes between two pieces of bulk jobs, while there are short ones
KEPT_PACE = 0.7  # weight of what was known of the pace before

logger = logging.getLogger(__name__)


@dataclass
class Pace:
    """Seconds that a unit of work takes here, smoothed; 0 until something is known."""

    unit_s: float = 0.0

    def learn(self, seconds: float, n_units: float) -> None:
        """Take in how long some work took."""
        new = seconds / max(n_units, 1e-9)
        self.unit_s = KEPT_PACE * self.unit_s + (1 - KEPT_PACE) * new if self.unit_s else new

    def fits(self, n_units: float, seconds: float) -> bool:
        """Whether work is done in some seconds."""
        return n_units * self.unit_s <= seconds


@dataclass
class _Lane:
    """Pieces that share passes.

    Attributes:
        batch: They are in.
        owners: The job of each.
    """

    batch: PieceBatch
    owners: dict[Piece, Task] = field(default_factory=dict)

    def forget(self, pieces: Iterable[Piece]) -> None:
        """Take pieces out that are not done."""
        gone = set(pieces)
        self.batch.remove(gone)
        self.settle()

    def settle(self) -> None:
        """Forget the pieces that have left the batch."""
        held = {*self.batch.pieces, *self.batch.paused}
        self.owners = {piece: task for piece, task in self.owners.items() if piece in held}


class Lanes:
    """All that is in the model's hands.

    Attributes:
        n_passes: Passes that were run.
        n_full: Of these, with as many rows as may be.
        n_row_passes: Rows summed over the passes.
    """

    def __init__(self, open_batch: Callable[[DecodingOptions], PieceBatch], max_batch: int) -> None:
        """Start without work.

        Args:
            open_batch: Gives an empty batch of a kind.
            max_batch: Rows of all lanes together; as many more may be set aside.
        """
        self._open_batch = open_batch
        self._max_batch = max_batch
        self._lanes: dict[DecodingOptions, _Lane] = {}  # the next to have a pass first
        self._encoding, self._passing = Pace(), Pace()  # units are seconds of audio, and rows
        self._fresh: set[Piece] = set()  # were encoded since the last pass
        self._n_encodings = 0  # since the last pass
        self._bulk_wait = 0  # passes until a piece of a bulk job may be encoded beside short ones
        self._is_bulk_turn = False  # and not that of drafts
        self.n_passes = self.n_full = self.n_row_passes = 0

    @property
    def n_rows(self) -> int:
        """Pieces that passes are run for."""
        return sum(len(lane.batch) for lane in self._lanes.values())

    @property
    def has_rows(self) -> bool:
        """Whether there are pieces, set aside or not."""
        return bool(self._lanes)

    def waits(self, tasks: Sequence[Task]) -> bool:
        """Whether there is nothing but a job that gathers its first pieces: its reading goes on meanwhile."""
        return len(tasks) == 1 and not self.has_rows and tasks[0].gathers

    def remove(self, task: Task) -> None:
        """Free the rows of a job."""
        for lane in self._lanes.values():
            pieces = [piece for piece, owner in lane.owners.items() if owner is task]
            self._fresh -= set(pieces)
            lane.forget(pieces)
        self._drop_empty()

    def clear(self) -> None:
        """Forget everything."""
        self._lanes.clear()
        self._fresh.clear()
        self._n_encodings = 0

    def step(self, tasks: Sequence[Task]) -> None:
        """Encode some pieces, or run a pass, unless the jobs' pieces :meth:`wait <waits>`.

        Rows that wait for their next pass wait for one encoding at most.

        Args:
            tasks: The jobs that are not done, in the order they came.
        """
        if self.waits(tasks):
            return
        owners = [owner for lane in self._lanes.values() for owner in lane.owners.values()]
        has_short = any(not task.is_bulk for task in owners)
        has_short = has_short or any(task.waiting and task.needs_pass and not task.is_bulk for task in tasks)
        self._balance(has_short)
        has_begun = any(
            piece not in self._fresh for lane in self._lanes.values() for piece in lane.batch.pieces
        )
        n_most = max(1, self._max_batch // 4) if has_begun else self._max_batch
        if self.n_rows and self._n_encodings:  # that go first, but for others which will go with them
            is_full = has_begun or self._n_encodings >= self._max_batch
            tasks = [] if is_full else [task for task in tasks if task.needs_pass]
        if new := self._choose(tasks, has_short, n_most):
            self._encode(new)
        elif self.n_rows:
            key = next(key for key, lane in self._lanes.items() if len(lane.batch))
            self._run_pass(key)
        self._drop_empty()

    def _bulk_rows(self, *, paused: bool) -> list[tuple[_Lane, Piece]]:
        return [
            (lane, piece)
            for lane in self._lanes.values()
            for piece in (lane.batch.paused if paused else lane.batch.pieces)
            if lane.owners[piece].is_bulk
        ]

    def _bulk_quota(self, has_short: bool) -> int:
        """Rows that bulk jobs may have in passes."""
        if has_short:
            return max(1, self._max_batch // BULK_SHARE)
        n_rows = self._max_batch
        while n_rows > 1 and not self._passing.fits(n_rows, self._bulk_step_s()):
            n_rows -= 1
        return n_rows

    def _bulk_step_s(self) -> float:
        """Seconds that a step of bulk jobs may take: no longer than a short one has to take anyway."""
        return max(BULK_STEP_S, SHORT_S * self._encoding.unit_s + self._passing.unit_s)

    def _balance(self, has_short: bool) -> None:
        """Set rows of bulk jobs aside, or let them go on."""
        running, quota = self._bulk_rows(paused=False), self._bulk_quota(has_short)
        surplus = running[quota:] if has_short else []
        n_more = max(0, min(quota - len(running), self._max_batch - self.n_rows))
        again = self._bulk_rows(paused=True)[:n_more]
        for lane in self._lanes.values():
            if pieces := {piece for its, piece in surplus if its is lane}:
                lane.batch.pause(pieces)
            if pieces := {piece for its, piece in again if its is lane}:
                lane.batch.resume(pieces)

    def _choose(self, tasks: Sequence[Task], has_short: bool, n_most: int) -> list[tuple[Task, Piece]]:
        """Take pieces of one lane that are to be encoded: in the order they came, those of short jobs first.

        Args:
            tasks: The jobs.
            has_short: Whether there are short jobs.
            n_most: Most pieces.
        """
        if len(tasks) == 1 and tasks[0].is_read and not tasks[0].has_begun and not self.has_rows:
            return self._take(tasks, n_most, STEP_S)
        waiting = sorted((task for task in tasks if task.waiting), key=lambda task: task.waits_since)
        bulk = [task for task in waiting if task.is_bulk]
        n_free = self._max_batch - self.n_rows
        n_bulk = len(self._bulk_rows(paused=False)) + len(self._bulk_rows(paused=True))
        # A row is kept for bulk jobs, which would starve; of one row they have a turn.
        is_kept = bool(bulk) and not n_bulk and (self._max_batch > 1 or self._bulk_wait <= 0)
        n_short = max(0, n_free - is_kept)
        short = [task for task in waiting if not task.is_bulk and (n_short or not task.needs_pass)]
        n_free = min(n_free, self._bulk_quota(has_short) - n_bulk, 1 if has_short else n_most)
        if n_free <= 0 or (has_short and self._bulk_wait > 0):
            bulk = []
        has_room = any(task.needs_pass for task in short)
        is_bulk_turn = self._bulk_wait <= -BULK_PASSES if has_room else self._is_bulk_turn
        if short and not (bulk and is_bulk_turn):
            self._is_bulk_turn = True
            return self._take(short, min(n_short, n_most) if short[0].needs_pass else n_most, STEP_S)
        if not bulk:
            return []
        self._is_bulk_turn = False
        self._bulk_wait = BULK_PASSES
        return self._take(bulk, n_free, self._bulk_step_s())

    def _take(self, tasks: Sequence[Task], n_most: int, seconds: float) -> list[tuple[Task, Piece]]:
        """Take pieces of the first job's lane, one a job in turn, as many as fit some seconds."""
        key = shared_options(tasks[0].options)
        in_turn = [task for task in tasks if shared_options(task.options) == key]
        taken: list[tuple[Task, Piece]] = []
        audio_s = 0.0
        while len(taken) < n_most and (waiting := [task for task in in_turn if task.waiting]):
            for task in waiting[: n_most - len(taken)]:
                audio_s += task.waiting[0].chunk.audio_s
                if taken and not self._encoding.fits(audio_s, seconds):
                    return taken
                task.waits_since = time.monotonic()
                taken.append((task, task.waiting.popleft()))
        return taken

    def _encode(self, new: Sequence[tuple[Task, Piece]]) -> None:
        key = shared_options(new[0][0].options)
        pieces = [piece for _, piece in new]
        self._n_encodings += 1
        started = time.perf_counter()
        try:
            if key not in self._lanes:
                self._lanes[key] = _Lane(self._open_batch(key))
            lane = self._lanes[key]
            lane.owners |= {piece: task for task, piece in new}
            halves = lane.batch.encode(pieces, [task.options for task, _ in new])
        except Exception as error:
            logger.exception("%d pieces could not be encoded", len(new))
            for task in {task for task, _ in new}:
                task.fail(error)
                self.remove(task)
            return
        for task, _ in new:
            task.has_begun = True
        self._encoding.learn(time.perf_counter() - started, sum(piece.chunk.audio_s for piece in pieces))
        self._give_back(lane, halves)
        self._fresh |= lane.owners.keys() & set(pieces)

    def _run_pass(self, key: DecodingOptions) -> None:
        lane = self._lanes.pop(key)
        n_rows = len(lane.batch)
        self.n_passes += 1
        self.n_full += n_rows == self._max_batch
        self.n_row_passes += n_rows
        self._fresh.clear()
        self._n_encodings = 0
        self._bulk_wait -= 1
        started = time.perf_counter()
        try:
            halves = lane.batch.run_pass()
        except Exception as error:
            logger.exception("a pass of %d rows failed", n_rows)
            for task in set(lane.owners.values()):
                task.fail(error)
            return
        self._lanes[key] = lane  # behind the others
        self._passing.learn(time.perf_counter() - started, n_rows)
        watched = {piece for piece, task in lane.owners.items() if task.shows_passes}
        for piece, view in lane.batch.views(watched) if watched else ():
            chunk = piece.chunk
            lane.owners[piece].emit(PassShown(chunk.start_s, chunk.start_s + chunk.audio_s, view))
        self._give_back(lane, halves)

    def _give_back(self, lane: _Lane, halves: Sequence[Piece]) -> None:
        """Let the halves of pieces wait in their place, and forget the pieces that are done."""
        tasks = {task.recording: task for task in lane.owners.values()}
        for half in reversed(halves):
            tasks[half.recording].waiting.appendleft(half)
        lane.settle()

    def _drop_empty(self) -> None:
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.owners}
