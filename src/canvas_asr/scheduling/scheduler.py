"""Transcribes jobs with one model, which one thread owns; requests and chunks of long files share passes.

::

    with Scheduler(canvas_asr.load("tiny")) as scheduler:
        job = scheduler.submit(samples, DecodingOptions(), print)

Every recording is read in a thread of its own, a bounded way ahead of the model. Between two steps of the
model, each a pass or the encoding of a few new pieces, jobs come and go (:mod:`canvas_asr.scheduling.lanes`).
What a job gives does not depend on the others: it is token for token that of ``Transcriber.transcribe``.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import OptionError
from ..options import DecodingOptions
from ..piece_batch import PieceBatch
from .jobs import JobCancelled, OnEvent, SampleSource
from .lanes import Lanes
from .tasks import Job, Task
from .turns import Turns

if TYPE_CHECKING:
    from ..audio_files import Samples
    from ..transcriber import Transcriber

MOST_RETRY_S = 60
READERS = 2  # threads that look for speech at once, beside the model's

logger = logging.getLogger(__name__)

__all__ = ["Busy", "Job", "Scheduler", "SchedulerStats"]


class Busy(Exception):  # noqa: N818 - not an error of anybody
    """The queue is full, or the scheduler is closing.

    Attributes:
        retry_after_s: Seconds after which a place may be free.
    """

    def __init__(self, retry_after_s: int) -> None:
        """Say when to come again."""
        super().__init__(f"the queue is full; try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class SchedulerStats:
    """What the scheduler holds now and has done so far.

    Attributes:
        queued: Jobs that the model has not begun with.
        working: Jobs that the model has begun with.
        rows: Clips and chunks in the batch.
        passes: Passes that were run.
        full_passes: Of these, with as many rows as the batch may hold.
        row_passes: Rows summed over the passes.
        audio_s: Seconds of audio that are done.
    """

    queued: int = 0
    working: int = 0
    rows: int = 0
    passes: int = 0
    full_passes: int = 0
    row_passes: int = 0
    audio_s: float = 0.0


class Scheduler:
    """One model and its jobs."""

    def __init__(self, transcriber: Transcriber, *, max_batch: int = 8, max_queue: int = 32) -> None:
        """Prepare; :meth:`start` begins to work.

        Args:
            transcriber: With the model, which nobody else should use meanwhile.
            max_batch: Clips and chunks that share a pass.
            max_queue: Jobs that may wait beside as many as a batch has rows.

        Raises:
            OptionError: If there is no row, or fewer than no job may wait.
        """
        for name, value, least in (("max_batch", max_batch, 1), ("max_queue", max_queue, 0)):
            if value < least:
                raise OptionError(f"{name} is {value}; give at least {least}.")
        self._transcriber = transcriber
        self._lanes = Lanes(self._open, max_batch)
        self._n_places = max_batch + max_queue
        self._n_long = max(1, max_batch // 2)  # jobs that are read at a time, of those known to be long
        self._changed = threading.Condition()
        self._turns = Turns(READERS)
        self._opening = threading.Lock()  # a tokenizer encodes for one thread at a time
        self._tasks: list[Task] = []
        self._n_submitted = 0
        self._n_rows = 0
        self._audio_s = 0.0  # of jobs that have ended
        self._ended: deque[float] = deque(maxlen=20)  # times at which the last jobs did
        self._has_news = self._has_work = self._is_closed = self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="canvas-asr-model", daemon=True)
        self._has_processors = threading.Event()

    def __enter__(self) -> Scheduler:
        """Begin to work."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Break off what is not done."""
        self.close(0.0)

    def start(self) -> None:
        """Begin to work; the model keeps the number of threads that torch has now, whatever is set later."""
        self._thread.start()
        self._has_processors.wait()

    @property
    def stats(self) -> SchedulerStats:
        """What the scheduler holds now and has done so far."""
        with self._changed:
            begun = [task for task in self._tasks if task.has_begun]
            return SchedulerStats(
                queued=len(self._tasks) - len(begun),
                working=len(begun),
                rows=self._n_rows,
                passes=self._lanes.n_passes,
                full_passes=self._lanes.n_full,
                row_passes=self._lanes.n_row_passes,
                audio_s=self._audio_s + sum(task.done_s for task in self._tasks),
            )

    @property
    def n_live(self) -> int:
        """Jobs whose audio comes while it is spoken."""
        with self._changed:
            return sum(task.is_live for task in self._tasks)

    def retry_after_s(self) -> int:
        """In how many seconds a quarter of the jobs are likely to be done."""
        with self._changed:
            if len(self._ended) < 2:
                return 1
            interval_s = (time.monotonic() - self._ended[0]) / len(self._ended)
            return min(MOST_RETRY_S, max(1, math.ceil(interval_s * len(self._tasks) / 4)))

    def submit(
        self,
        source: SampleSource | Samples,
        options: DecodingOptions,
        on_event: OnEvent,
        *,
        vad: bool | None = None,
        shows_passes: bool = False,
        wants_segments: bool = False,
        is_live: bool = False,
    ) -> Job:
        """Take a job, and return at once.

        Args:
            source: The audio, 16 kHz mono float32.
            options: Of decoding.
            on_event: Called in the scheduler's thread, and must return at once. The last event is
                ``Finished`` or ``Failed``.
            vad: Whether only speech is transcribed; None: where the audio is longer than the model takes at
                once.
            shows_passes: Whether every pass is told.
            wants_segments: Whether segments are told as they are ready.
            is_live: Whether the source gives audio while it is spoken: its chunks go like short jobs then,
                however long it gets.

        Raises:
            Busy: If the queue is full, or the scheduler closed.
            OptionError: If the model cannot follow the options.
        """
        reader = self._transcriber.reader(options, vad)
        options = self._open(options).options
        with self._changed:
            if self._is_closed or len(self._tasks) >= self._n_places:
                raise Busy(self.retry_after_s())
            self._n_submitted += 1
            job = Job(self._n_submitted, self._wake)
            task = Task(
                job,
                source,
                options,
                on_event,
                reader=reader,
                turns=self._turns,
                shows_passes=shows_passes,
                wants_segments=wants_segments,
                is_live=is_live,
            )
            self._tasks.append(task)
            self._has_news = True
            self._changed.notify_all()
        return job

    def close(self, drain_s: float) -> bool:
        """Take no new jobs, wait for those in work, and stop.

        Args:
            drain_s: Seconds to wait; what is not done then is cancelled.

        Returns:
            Whether all were done in time.
        """
        with self._changed:
            self._is_closed = True
            is_drained = self._changed.wait_for(lambda: not self._tasks, drain_s)
            for task in self._tasks:
                task.job.is_cancelled = True
            self._is_stopped = self._has_news = True
            self._changed.notify_all()
        if self._thread.ident is None:  # never started
            self._turn()
        else:
            self._thread.join()
        return is_drained

    def _open(self, options: DecodingOptions) -> PieceBatch:
        """Give an empty batch.

        Raises:
            OptionError: If the model cannot follow the options.
        """
        with self._opening:
            return PieceBatch(self._transcriber.decoder, options)

    def _wake(self) -> None:
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def _work(self) -> None:
        """Take turns until the end."""
        torch.get_num_threads()  # which is then what this thread has
        self._has_processors.set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_news or self._has_work or self._is_stopped)
                self._has_news = False
                if self._is_stopped and not self._tasks:
                    return
            self._turn()

    def _turn(self) -> None:
        """See what has come, run one step of the model, and tell what it gave."""
        with self._changed:
            tasks = list(self._tasks)
        try:
            self._receive(tasks)
            at_work = [task for task in tasks if not task.job.is_done]
            self._lanes.step(at_work)
            for task in at_work:
                task.tell()
        except Exception as error:  # nothing that a job gives should lead here
            logger.exception("the scheduler failed; its jobs end")
            self._lanes.clear()
            for task in tasks:
                task.fail(error)
        with self._changed:
            ended = [task for task in self._tasks if task.job.is_done]
            self._tasks = [task for task in self._tasks if not task.job.is_done]
            self._audio_s += sum(task.done_s for task in ended)
            self._ended.extend(time.monotonic() for _ in ended)
            self._n_rows = self._lanes.n_rows
            has_waiting = any(task.waiting for task in self._tasks) and not self._lanes.waits(self._tasks)
            self._has_work = self._lanes.has_rows or has_waiting
            if ended:
                self._changed.notify_all()

    def _receive(self, tasks: Sequence[Task]) -> None:
        """End jobs that are cancelled, let others be read, and take in what was read."""
        n_long = sum(task.is_long and task.is_being_read for task in tasks)
        for task in tasks:
            if task.job.is_cancelled:
                task.fail(JobCancelled("the job was cancelled."))
            elif not task.has_started and (not task.is_long or n_long < self._n_long):
                n_long += task.is_long
                task.start(self._wake)
            task.receive()
            if task.job.is_done:  # cancelled, or it cannot be read on
                self._lanes.remove(task)
