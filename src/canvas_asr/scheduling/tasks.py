"""A job from the inside: its reading, the pieces that wait for the model, and what is told of it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..audio_files import SAMPLE_RATE_HZ
from ..errors import AudioError
from ..read_ahead import ReadAhead
from .jobs import Event, Failed, Finished, OnEvent, Progressed, SegmentReady
from .turns import TurnedSource

if TYPE_CHECKING:
    from ..audio_files import Samples
    from ..audio_stream import SampleSource
    from ..options import DecodingOptions
    from ..recording_reader import RecordingReader
    from ..recordings import Piece, Recording, Stretch
    from .turns import Turns

BLOCKS_AHEAD = 8  # of every recording, 32 s in 2 MB, that are read beside the model
PIECES_AHEAD = 8  # of every recording, that wait for the model
LIVE_LEAD_S = 10.0  # by which live audio may be ahead of the clock: more comes no more at the pace of speech

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """What :meth:`~canvas_asr.scheduling.scheduler.Scheduler.submit` gives.

    Attributes:
        id: Number of the job, from 1.
        is_done: Whether it has ended, and its last event is told.
        is_cancelled: Whether it is to end.
    """

    id: int
    _wake: Callable[[], None] = field(repr=False)
    is_done: bool = False
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Stop: the job's rows are free before the next pass, and its last event is a failure."""
        self.is_cancelled = True
        self._wake()


class Task:
    """A job on its way. All but its reading happens in the thread of the model.

    Attributes:
        job: The job.
        options: Of decoding, resolved.
        shows_passes: Whether every pass is to be told.
        wants_segments: Whether segments are to be told as they are ready.
        recording: What is read; None until it is known what that is.
        is_long: Whether its source says that it is longer than the model takes at once.
        is_live: Whether its source gives audio while it is spoken.
        is_bulk: Whether it is longer than that as far as is known by now, and not live.
        has_started: Whether its reading has begun, and perhaps ended.
        waiting: Pieces that wait for the model, in order.
        has_begun: Whether the model has seen some of it.
        done_s: Seconds of audio that are done, and told of.
        waits_since: Time since which its next piece waits, or is to stand behind those of others.
    """

    def __init__(
        self,
        job: Job,
        source: SampleSource | Samples,
        options: DecodingOptions,
        on_event: OnEvent,
        *,
        reader: RecordingReader,
        turns: Turns,
        shows_passes: bool,
        wants_segments: bool,
        is_live: bool,
    ) -> None:
        """Prepare to read.

        Args:
            job: The job.
            source: Its audio.
            options: Of decoding, resolved.
            on_event: Is told of it.
            reader: Opens the recording.
            turns: Of the threads that read: live audio has no time to wait for one.
            shows_passes: Whether every pass is to be told.
            wants_segments: Whether segments are to be told as they are ready.
            is_live: Whether the source gives audio while it is spoken.
        """
        self.job = job
        self.options = options
        self.shows_passes = shows_passes
        self.wants_segments = wants_segments
        self.recording: Recording | None = None
        self.waiting: deque[Piece] = deque()
        self.has_begun = False
        self.waits_since = 0.0
        self.is_live = is_live
        self._source: SampleSource | Samples | None = source
        self._on_event = on_event
        self._reader = reader
        self._turns = None if is_live else turns
        seconds = len(source) / SAMPLE_RATE_HZ if isinstance(source, np.ndarray) else source.duration_s
        self.is_long = self.is_bulk = seconds is not None and seconds > reader.max_clip_s
        self.has_started = False
        self._reading: ReadAhead[Stretch] | None = None
        self._opened: Recording | None = None  # in the reading thread, before the first stretch
        self._began = 0.0  # time at which the reading did
        self._n_told = 0  # segments
        self.done_s = 0.0

    @property
    def is_being_read(self) -> bool:
        """Whether there is a thread that reads it."""
        return self._reading is not None

    @property
    def is_read(self) -> bool:
        """Whether no further pieces will come."""
        return self.recording is not None and self.recording.is_read

    @property
    def needs_pass(self) -> bool:
        """Whether encoding its pieces is not all."""
        return not self.options.draft_alone

    @property
    def gathers(self) -> bool:
        """Whether its first pieces are to wait for each other, to share steps, where nobody else waits.

        That is how ``Transcriber.transcribe`` begins. Who wants segments wants the first of them soon, and a
        source that does not tell its length may make it wait for its end.
        """
        is_file = self.is_long and self.is_bulk and not self.is_live
        is_patient = is_file and not self.wants_segments and not self.has_begun
        return is_patient and not self.is_read and len(self.waiting) < PIECES_AHEAD

    def start(self, on_ready: Callable[[], None]) -> None:
        """Read in a thread; ``on_ready`` is called there whenever there is more."""
        self.has_started = True
        self._began = time.monotonic()
        try:
            stretches = self._stretches() if self._turns is None else self._in_turn(self._turns)
            self._reading = ReadAhead(stretches, BLOCKS_AHEAD, on_ready)
        except RuntimeError as error:  # the system gives no further thread
            logger.exception("job %d could not be started", self.job.id)
            self.fail(error)

    def _stretches(self) -> Generator[Stretch, None, None]:
        source, self._source = self._source, None  # a clip's samples are kept by its recording alone
        if source is not None:
            self._opened = self._reader.open_stream(0, source)
            del source
            yield from self._opened.stretches()

    def _in_turn(self, turns: Turns) -> Generator[Stretch, None, None]:
        """Read with a turn, which others have while there is nothing to do."""
        if self._source is not None and not isinstance(self._source, np.ndarray):
            self._source = TurnedSource(self._source, turns)
        with closing(self._stretches()) as stretches:
            while True:
                turns.take()
                try:
                    stretch = next(stretches, None)
                finally:
                    turns.hand_on()
                if stretch is None:
                    return
                yield stretch

    def receive(self) -> None:
        """Take in what was read, as far as the model can do with more."""
        while self._reading is not None and len(self.waiting) < PIECES_AHEAD and self._reading.is_ready:
            try:
                stretch = next(self._reading, None)
            except Exception as error:
                if not isinstance(error, AudioError):
                    logger.exception("job %d could not be read", self.job.id)
                self.fail(error)
                return
            if stretch is None:
                self._reading.close()
                self._reading = None
                break
            recording = self.recording = self._opened
            if recording is not None:  # it is, once there is a stretch of it
                if not self.waiting:
                    self.waits_since = time.monotonic()
                self.waiting += recording.receive(stretch)
                if stretch.n_samples is not None:
                    recording.end()
                is_short = 0 < recording.audio_s <= self._reader.max_clip_s
                self.is_bulk = not is_short and not self._is_at_pace(stretch)

    def _is_at_pace(self, stretch: Stretch) -> bool:
        """Whether this comes about when it is spoken."""
        lead_s = stretch.settled / SAMPLE_RATE_HZ - (time.monotonic() - self._began)
        return self.is_live and lead_s <= LIVE_LEAD_S

    def tell(self) -> None:
        """Tell what is new, and at the end the transcript."""
        recording = self.recording
        if recording is None or self.job.is_done:
            return
        recording.settle()
        if recording.done_s > self.done_s:
            self.done_s = recording.done_s
            total_s = max(recording.audio_s, self.done_s) if recording.audio_s else None
            self.emit(Progressed(self.done_s, total_s))
        if self.wants_segments:
            for segment in recording.segments[self._n_told :]:
                self.emit(SegmentReady(segment))
            self._n_told = len(recording.segments)
        if recording.is_done:
            result = recording.result(self.options)
            self._end(Failed(result) if isinstance(result, AudioError) else Finished(result))

    def fail(self, error: Exception) -> None:
        """End without a transcript; pieces in a batch have to be removed by who knows it."""
        if not self.job.is_done:
            self._end(Failed(error))

    def _end(self, event: Event) -> None:
        if self._reading is not None:
            self._reading.close(wait=False)  # its source may make it wait
            self._reading = None
        self.waiting.clear()
        self.job.is_done = True
        self.emit(event)

    def emit(self, event: Event) -> None:
        """Tell of an event."""
        try:
            self._on_event(event)
        except Exception:
            logger.exception("job %d: what is told of its events failed", self.job.id)
