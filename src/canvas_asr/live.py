"""Live transcription: audio comes piece by piece, and text goes out while it is still spoken.

    with Scheduler(asr) as scheduler:
        live = LiveTranscriber(scheduler, DecodingOptions(language="en"), print, sample_rate_hz=48_000)
        for piece in microphone:
            live.feed(piece)
        live.finish()
        print(live.wait().text)

The text has a stable part, which only grows, and behind it a draft, which changes with every reading. The
audio goes the way of a file of unknown length: what the model can take at once is transcribed at its end,
longer audio in chunks of speech, each as soon as it is complete. So the stable text is, at the end, the
file's. The draft is the CTC reading of the audio that is in no stable text yet: it costs no pass.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .audio_files import SAMPLE_RATE_HZ, Samples, check_rate, to_16k_mono
from .errors import OptionError
from .options import DecodingOptions
from .result import Gap, Segment, Transcript
from .scheduling.jobs import Event, Failed, Finished, JobCancelled, Progressed, SegmentReady
from .scheduling.scheduler import Busy
from .transcripts import separator

if TYPE_CHECKING:
    from .scheduling.scheduler import Job, Scheduler

NAME = "the live audio"  # what errors call it
DRAFT_INTERVAL_S = 0.5  # between two drafts
DRAFT_SHARE = 1 / 3  # of the time that the drafts of all streams may take, however slow they are
LONGEST_DRAFT_S = 60.0  # of audio; so much without a stable text means that the model is behind
MIN_NEW_SAMPLES = SAMPLE_RATE_HZ // 10  # since the last draft
BEHIND_S = 1.0  # of audio that waits to be read
MOST_WAITING_S = 30.0  # with more of it, those who feed should wait
TICK_S = 0.1  # of waiting for audio, after which a draft may be due


@dataclass(frozen=True)
class DraftChanged:
    """Another reading of what is not stable yet; it takes the place of the one before.

    Attributes:
        text: What follows the stable text; empty where nothing is heard.
        start: Of the audio that was read, in seconds from the beginning.
        end: Likewise.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class StableGrown:
    """More text that will not change any more; the draft before it is void.

    Attributes:
        text: To be added to the stable text as it is: a space before it where one is due.
        segment: The same with times and confidences.
    """

    text: str
    segment: Segment


LiveEvent: TypeAlias = "DraftChanged | StableGrown | Finished | Failed"
OnLiveEvent: TypeAlias = Callable[[LiveEvent], None]


class LiveAudio:
    """Audio that arrives piece by piece, as a job reads it (a ``SampleSource``).

    One thread feeds, and the job's reads. What was read is kept until it is in a stable text.
    """

    def __init__(self, sample_rate_hz: int, on_tick: Callable[[], None]) -> None:
        """Start without audio.

        Args:
            sample_rate_hz: Of what will be fed.
            on_tick: Called by the reading thread, when something was read and while there is nothing to read.

        Raises:
            AudioError: If the rate is none that speech is recorded at.
        """
        self.sample_rate_hz = check_rate(sample_rate_hz, NAME)
        self.duration_s: float | None = None
        self.gaps: list[Gap] = []
        self._on_tick = on_tick
        self._arrived = threading.Condition()
        self._waiting: deque[npt.NDArray[Any]] = deque()
        self._n_waiting = self._n_fed = 0
        self._is_finished = False
        self._lock = threading.Lock()  # of what was read
        self._open: deque[Samples] = deque()
        self._first = 0  # sample at which what is kept begins
        self._n_read = 0

    @property
    def fed_s(self) -> float:
        """Seconds of audio that have come."""
        return self._n_fed / self.sample_rate_hz

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that have come and are not read yet."""
        return self._n_waiting / self.sample_rate_hz

    @property
    def n_read(self) -> int:
        """Samples read, at 16 kHz."""
        return self._n_read

    def feed(self, samples: npt.NDArray[Any]) -> None:
        """Take the next samples, (n,), int16 or float32; does not wait."""
        with self._arrived:
            self._waiting.append(samples)
            self._n_waiting += len(samples)
            self._n_fed += len(samples)
            self._arrived.notify()

    def finish(self, *, discard: bool = False) -> None:
        """Say that no more will come; ``discard``: nor is what waits of any use."""
        with self._arrived:
            self._is_finished = True
            if discard:
                self._waiting.clear()
                self._n_waiting = 0
            self._arrived.notify()

    def __iter__(self) -> Iterator[Samples]:
        """Give 16 kHz mono samples as they come, until the end.

        Raises:
            AudioError: If a sample is NaN or infinite.
        """
        blocks = ((piece[:, None], self.sample_rate_hz) for piece in self._pieces())
        for samples in to_16k_mono(blocks, NAME):
            with self._lock:
                self._open.append(samples)
                self._n_read += len(samples)
            yield samples

    def _pieces(self) -> Iterator[npt.NDArray[Any]]:
        while True:
            self._on_tick()
            with self._arrived:
                if not self._waiting and not self._is_finished:
                    self._arrived.wait(TICK_S)
                if not self._waiting:
                    if self._is_finished:
                        return
                    continue
                piece = self._waiting.popleft()
                self._n_waiting -= len(piece)
            yield piece

    def forget(self, n_samples: int) -> None:
        """Keep nothing of the first samples."""
        with self._lock:
            while self._open and self._first + len(self._open[0]) <= n_samples:
                self._first += len(self._open.popleft())
            if self._open and self._first < n_samples:
                self._open[0] = self._open[0][n_samples - self._first :]
                self._first = n_samples

    def kept(self) -> tuple[int, Samples]:
        """Give what is kept, and the place of its first sample."""
        with self._lock:
            joined = np.concatenate([np.zeros(0, np.float32), *self._open])
            return self._first, joined


@dataclass(eq=False)
class _Draft:
    """A draft that is being read.

    Attributes:
        start: Sample at which its audio begins.
        end: The one behind it.
        n_stable: Segments that were stable when it was asked for.
        began: Time at which that was.
        job: That reads it, as soon as it is known.
    """

    start: int
    end: int
    n_stable: int
    began: float
    job: Job | None = None


class LiveTranscriber:
    """Transcribes one stream of audio while it comes."""

    def __init__(
        self,
        scheduler: Scheduler,
        options: DecodingOptions,
        on_event: OnLiveEvent,
        *,
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        vad: bool | None = None,
    ) -> None:
        """Begin.

        Args:
            scheduler: Of the model; others may use it too.
            options: Of decoding.
            on_event: Called in other threads, one call at a time, and must return at once. The last event is
                ``Finished`` or ``Failed``.
            sample_rate_hz: Of the audio.
            vad: As for a file: whether only speech is transcribed; None: where the audio is longer than the
                model takes at once. With True text is stable at every longer pause from the beginning on.

        Raises:
            AudioError: If the rate is none that speech is recorded at.
            Busy: If the scheduler takes no more jobs.
            OptionError: If an option is out of range, or the model cannot follow it.
        """
        self._scheduler = scheduler
        self._on_event = on_event
        self._draft_vad = vad is not False  # silence has no draft, even where it will be transcribed
        self._draft_options = replace(
            options, steps=0, init="draft", gate=None, candidates=1, word_timestamps=False
        )
        self._lock = threading.Lock()  # never held while the scheduler is called, which has locks of its own
        self._wants_drafts = True
        self._is_over = False  # nothing is told any more
        self._ended = threading.Event()
        self._last: Finished | Failed = Failed(JobCancelled("the live transcription was closed."))
        self._n_stable = 0
        self._language: str | None = None  # of the last segment
        self._draft: _Draft | None = None  # that is being read
        self._draft_text = ""
        self._drafted = 0  # samples that were read when the last draft was asked for
        self._next_draft = 0.0  # time before which none is due
        self.audio = LiveAudio(sample_rate_hz, self._tick)
        self._job = scheduler.submit(
            self.audio, options, self._take, vad=vad, wants_segments=True, is_live=True
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be told."""
        return self._is_over

    def feed(self, samples: npt.NDArray[Any]) -> None:
        """Take the next samples, (n,), int16 or float32.

        It does not wait: who is faster than speech should, while ``audio.waiting_s`` is above MOST_WAITING_S.
        """
        self.audio.feed(samples)

    def finish(self) -> None:
        """Say that no more will come; the rest of the stable text and ``Finished`` follow."""
        self._stop_drafts()
        self.audio.finish()

    def wait(self, timeout_s: float | None = None) -> Transcript:
        """Wait for the whole transcript, behind :meth:`finish`.

        Raises:
            TimeoutError: If it takes longer than this many seconds.
            Exception: What has gone wrong, ``AudioError`` for samples that are no numbers.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError(f"no transcript within {timeout_s} s")
        if isinstance(self._last, Failed):
            raise self._last.error
        return self._last.transcript

    def close(self) -> None:
        """Break off: nothing more is told, and the model is free for others."""
        with self._lock:
            self._is_over = True
        self._ended.set()
        self._stop_drafts()
        self._job.cancel()
        self.audio.finish(discard=True)

    def _take(self, event: Event) -> None:
        """Take what the scheduler tells of the whole."""
        with self._lock:
            if self._is_over:
                return
            if isinstance(event, Progressed):
                self.audio.forget(int(event.done_s * SAMPLE_RATE_HZ))
            elif isinstance(event, SegmentReady):
                segment = event.segment
                text = separator(self._language, segment.language) + segment.text
                self._language = segment.language
                self._n_stable += 1
                self._draft_text, self._next_draft, self._drafted = "", 0.0, 0  # another is due at once
                self.audio.forget(int(segment.end * SAMPLE_RATE_HZ))
                self._on_event(StableGrown(text, segment))
            elif isinstance(event, (Finished, Failed)):
                self._is_over = True
                self._wants_drafts = False
                self._last = event
                self._on_event(event)
                self._ended.set()

    def _tick(self) -> None:
        """Ask for a draft if one is due."""
        draft, samples = self._due_draft()
        if draft is None:
            return
        try:
            job = self._scheduler.submit(
                samples, self._draft_options, partial(self._take_draft, draft), vad=self._draft_vad
            )
        except OptionError:  # the model has no draft
            with self._lock:
                self._wants_drafts, self._draft = False, None
            return
        except Busy:
            self._end_draft(draft)
            return
        with self._lock:
            draft.job = job
            is_wanted = self._wants_drafts
        if not is_wanted:
            job.cancel()

    def _due_draft(self) -> tuple[_Draft | None, Samples]:
        now = time.monotonic()
        with self._lock:
            n_read = self.audio.n_read
            is_due = now >= self._next_draft and n_read - self._drafted >= MIN_NEW_SAMPLES
            is_free = self._wants_drafts and self._draft is None and self.audio.waiting_s <= BEHIND_S
            start, samples = self.audio.kept() if is_due and is_free else (0, np.zeros(0, np.float32))
            if not 0 < len(samples) <= LONGEST_DRAFT_S * SAMPLE_RATE_HZ:
                return None, samples
            self._drafted = n_read
            self._draft = _Draft(start, start + len(samples), self._n_stable, now)
            return self._draft, samples

    def _take_draft(self, draft: _Draft, event: Event) -> None:
        """Take what the scheduler tells of a draft."""
        if not isinstance(event, (Finished, Failed)):
            return
        self._end_draft(draft)
        with self._lock:
            is_valid = self._wants_drafts and draft.n_stable == self._n_stable
            if isinstance(event, Failed) or not is_valid or event.transcript.text == self._draft_text:
                return
            self._draft_text = event.transcript.text
            self._on_event(
                DraftChanged(self._draft_text, draft.start / SAMPLE_RATE_HZ, draft.end / SAMPLE_RATE_HZ)
            )

    def _end_draft(self, draft: _Draft) -> None:
        """Make room for the next draft, which is due the later the longer this one has taken."""
        now, n_streams = time.monotonic(), max(1, self._scheduler.n_live)
        with self._lock:
            self._draft = None
            if draft.n_stable == self._n_stable:
                wait_s = max(DRAFT_INTERVAL_S, n_streams * (now - draft.began) / DRAFT_SHARE)
                self._next_draft = draft.began + wait_s

    def _stop_drafts(self) -> None:
        with self._lock:
            self._wants_drafts = False
            job = None if self._draft is None else self._draft.job
        if job is not None:
            job.cancel()
