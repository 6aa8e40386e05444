"""Transcribes jobs with one model, which one thread owns.

scheduler = Scheduler(canvas_asr.load("tiny"))
scheduler.start()
job = scheduler.submit(samples, DecodingOptions(), print)
scheduler.close(drain_s=30.0)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..audio_files import SAMPLE_RATE_HZ
from ..options import DecodingOptions
from .jobs import Failed, Finished, JobCancelled, OnEvent, PassShown, SampleSource, SegmentReady

if TYPE_CHECKING:
    from ..audio_files import Samples
    from ..transcriber import Transcriber


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
        queued: Jobs that wait for their turn.
        working: Jobs that are being read or transcribed.
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


@dataclass(eq=False)
class Job:
    """What :meth:`Scheduler.submit` gives.

    Attributes:
        id: Number of the job, from 1.
        is_done: Whether its last event was told.
    """

    id: int
    is_done: bool = False
    is_cancelled: bool = field(default=False, repr=False)

    def cancel(self) -> None:
        """Stop: the job's rows are free before the next pass, and its last event is a failure."""
        self.is_cancelled = True


class Scheduler:
    """One model and its jobs."""

    def __init__(self, transcriber: Transcriber, *, max_batch: int = 8, max_queue: int = 32) -> None:
        """Prepare; :meth:`start` begins to work.

        Args:
            transcriber: With the model.
            max_batch: Clips and chunks that share a pass.
            max_queue: Jobs that may wait.
        """
        self._transcriber = transcriber
        self._capacity = max_batch + max_queue
        self._changed = threading.Condition()
        self._jobs: deque[
            tuple[Job, SampleSource | Samples, DecodingOptions, OnEvent, dict[str, bool | None]]
        ]
        self._jobs = deque()
        self._n_submitted = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="canvas-asr-model", daemon=True)
        self.stats = SchedulerStats()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(
        self,
        source: SampleSource | Samples,
        options: DecodingOptions,
        on_event: OnEvent,
        *,
        vad: bool | None = None,
        shows_passes: bool = False,
        wants_segments: bool = False,
    ) -> Job:
        """Take a job; see :class:`Scheduler`. Returns at once.

        Raises:
            Busy: If the queue is full.
            OptionError: If the model cannot follow the options.
        """
        self._transcriber.decoder.open(options)
        with self._changed:
            if self._is_closed or len(self._jobs) >= self._capacity:
                raise Busy(1)
            self._n_submitted += 1
            job = Job(self._n_submitted)
            flags = {"vad": vad, "shows_passes": shows_passes, "wants_segments": wants_segments}
            self._jobs.append((job, source, options, on_event, flags))
            self._changed.notify_all()
        return job

    def close(self, drain_s: float) -> bool:
        """Take no new jobs and wait for those in work; whether all were done in time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._jobs, drain_s)
            for job, *_ in self._jobs:
                job.cancel()
        self._thread.join()
        return done

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if not self._jobs:
                    return
                job, source, options, on_event, flags = self._jobs[0]
            try:
                for event in self._run(job, source, options, flags):
                    on_event(event)
            except Exception as error:
                on_event(Failed(error))
            job.is_done = True
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()

    def _run(
        self,
        job: Job,
        source: SampleSource | Samples,
        options: DecodingOptions,
        flags: dict[str, bool | None],
    ) -> Iterator[PassShown | SegmentReady | Finished]:
        samples = source if isinstance(source, np.ndarray) else np.concatenate(list(source))
        if job.is_cancelled:
            raise JobCancelled("the job was cancelled.")
        views: list[PassShown] = []
        given = {name: getattr(options, name) for name in DecodingOptions.__dataclass_fields__}
        audio_s = len(samples) / SAMPLE_RATE_HZ
        transcript = self._transcriber.transcribe(
            (samples, SAMPLE_RATE_HZ),
            vad=flags["vad"],
            on_canvas=lambda view: views.append(PassShown(0.0, audio_s, view)),
            **given,
        )
        if flags["shows_passes"]:
            yield from views
        if flags["wants_segments"]:
            yield from map(SegmentReady, transcript.segments)
        yield Finished(transcript)
