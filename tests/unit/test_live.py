"""Live transcription: in the end the file's, stable text that only grows, drafts that are in nobody's way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canvas_asr import AudioError, OptionError, Segment, Transcriber, Transcript, load_audio
from canvas_asr.live import (
    BEHIND_S,
    DraftChanged,
    LiveAudio,
    LiveEvent,
    LiveTranscriber,
    StableGrown,
)
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.scheduling.jobs import Failed, Finished, JobCancelled, Progressed, SegmentReady
from canvas_asr.scheduling.scheduler import Busy, Scheduler

RATE_HZ = 16_000
EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = DecodingOptions(steps=0, init="draft")  # quick: texts of a random model fill its canvas


@pytest.fixture(scope="module")
def asr(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    """Takes clips of 5 s, and of longer audio chunks of 4 s."""
    transcriber = Transcriber(model, processor)
    transcriber.max_audio_s = 5.0
    return transcriber


@pytest.fixture(scope="module")
def scheduler(asr: Transcriber) -> Iterator[Scheduler]:
    scheduler = Scheduler(asr, max_batch=4)
    scheduler.start()
    yield scheduler
    scheduler.close(0.0)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two sentences with pauses around them, 16-bit."""
    sentence, pause = load_audio(EXAMPLES / "en.flac"), np.zeros(RATE_HZ, np.float32)
    joined = np.concatenate([pause, sentence, pause, pause, sentence, pause])
    return (joined * 32767).astype(np.int16)


def listen(
    scheduler: Scheduler,
    samples: np.ndarray,
    seed: int = 0,
    options: DecodingOptions = OPTIONS,
    longest: int = 4000,
    **settings: Any,
) -> list[LiveEvent]:
    """Feed samples in pieces of any length, and give what is told of them."""
    rng = np.random.default_rng(seed)
    events: queue.Queue[LiveEvent] = queue.Queue()
    live = LiveTranscriber(scheduler, options, events.put, **settings)
    at = 0
    while at < len(samples):
        n_samples = int(rng.integers(1, longest))
        live.feed(samples[at : at + n_samples])
        at += n_samples
    live.finish()
    told = []
    while not told or not isinstance(told[-1], (Finished, Failed)):
        told.append(events.get(timeout=60))
    return told


def stable_text(events: list[LiveEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, StableGrown))


def ending(events: list[LiveEvent]) -> Transcript:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].transcript


def read(transcript: Transcript) -> list[object]:
    """All but confidences and seconds: a batch of other shape rounds otherwise."""
    segments = [(one.start, one.end, one.text, one.passes) for one in transcript.segments]
    tokens = [token.id for token in transcript.tokens]
    return [transcript.text, transcript.language, transcript.audio_s, transcript.draft, tokens, segments]


# The same as a file


@pytest.mark.parametrize("vad", [None, True, False])
@pytest.mark.parametrize("seconds", [3.0, 5.0, 9.5])
def test_the_result_is_the_files(
    asr: Transcriber, scheduler: Scheduler, speech: np.ndarray, seconds: float, vad: bool | None
) -> None:
    samples = speech[: round(seconds * RATE_HZ)]
    steps, init = (1, "noise") if seconds == 5.0 else (0, "draft")
    file = asr.transcribe((samples, RATE_HZ), steps=steps, init=init, vad=vad)
    events = listen(scheduler, samples, options=DecodingOptions(steps=steps, init=init), vad=vad)
    live = ending(events)
    assert read(live) == read(file)
    assert stable_text(events) == live.text
    assert [event.segment for event in events if isinstance(event, StableGrown)] == list(live.segments)
    assert live.text


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_it_is_at_every_rate(asr: Transcriber, scheduler: Scheduler, rate_hz: int) -> None:
    noise = np.random.default_rng(0).normal(0, 3000, 6 * rate_hz).astype(np.int16)
    file = asr.transcribe((noise, rate_hz), steps=0, init="draft", vad=False)
    assert ending(listen(scheduler, noise, sample_rate_hz=rate_hz, vad=False)).tokens == file.tokens


@pytest.mark.parametrize("seed", range(4))
def test_stable_text_only_grows_and_nothing_comes_behind_the_end(
    scheduler: Scheduler, speech: np.ndarray, seed: int
) -> None:
    events = listen(scheduler, speech, seed, longest=[50_000, 300, 12_000, 100_000][seed])
    whole = ending(events)
    assert sum(isinstance(event, (Finished, Failed)) for event in events) == 1
    grown, last_s = "", 0.0
    for event in events:
        if isinstance(event, StableGrown):
            grown += event.text
            assert whole.text.startswith(grown)
            assert event.segment.start >= last_s
            last_s = event.segment.end
        elif isinstance(event, DraftChanged):
            assert event.end > event.start >= last_s - 1e-6  # drafts are of what is not stable
    assert grown == whole.text


def test_no_audio_and_silence_have_no_text(scheduler: Scheduler) -> None:
    assert ending(listen(scheduler, np.zeros(0, np.int16))).text == ""
    events = listen(scheduler, np.zeros(8 * RATE_HZ, np.int16), longest=1000, vad=True)
    assert len(events) == 1
    assert ending(events).text == ""


def test_streams_at_once_do_not_mix(asr: Transcriber, scheduler: Scheduler, speech: np.ndarray) -> None:
    parts = [speech[: 4 * RATE_HZ], speech[RATE_HZ : 4 * RATE_HZ], speech[5 * RATE_HZ :]]
    found: dict[int, Transcript] = {}

    def run(place: int) -> None:
        found[place] = ending(listen(scheduler, parts[place], seed=place))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [asr.transcribe((part, RATE_HZ), steps=0, init="draft").text for part in parts]
    assert [found[place].text for place in range(len(parts))] == texts


def test_floats_that_are_no_numbers_fail(scheduler: Scheduler) -> None:
    events = listen(scheduler, np.full(1000, np.nan, np.float32))
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, AudioError)


def test_what_cannot_be_is_said_at_once(scheduler: Scheduler) -> None:
    with pytest.raises(AudioError, match="the live audio: a sample rate of 16 Hz"):
        LiveTranscriber(scheduler, OPTIONS, print, sample_rate_hz=16)
    with pytest.raises(OptionError, match="language is 'xx'"):
        LiveTranscriber(scheduler, DecodingOptions(language="xx"), print)


# Drafts, with a scheduler whose jobs do what the test says


class Jobs:
    """In the place of a scheduler: keeps what it is given."""

    def __init__(self) -> None:
        self.sources: list[Any] = []
        self.options: list[DecodingOptions] = []
        self.tell: list[Any] = []
        self.cancelled: list[int] = []
        self.refusal: Exception | None = None
        self.n_live = 1

    def submit(self, source: Any, options: DecodingOptions, on_event: Any, **_: Any) -> Any:
        if self.sources and self.refusal is not None:
            raise self.refusal
        self.sources.append(source)
        self.options.append(options)
        self.tell.append(on_event)
        return _Job(self, len(self.sources) - 1)


class _Job:
    def __init__(self, jobs: Jobs, place: int) -> None:
        self.jobs, self.place = jobs, place

    def cancel(self) -> None:
        self.jobs.cancelled.append(self.place)


def segment(start: float, end: float, text: str, language: str = "en") -> SegmentReady:
    return SegmentReady(Segment(start, end, text, language, 1.0, (), 1.0, 1))


def finished(text: str) -> Finished:
    return Finished(Transcript(text, "", 0.0, (), 0.0, 0, 1.0, 0.0))


class Live:
    """A live transcription whose clock and reading thread are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("canvas_asr.live.time.monotonic", lambda: self.now)
        monkeypatch.setattr("canvas_asr.live.TICK_S", 0.0)
        self.jobs, self.events = Jobs(), []
        self.live = LiveTranscriber(self.jobs, OPTIONS, self.events.append)  # type: ignore[arg-type]
        self._reading = iter(self.live.audio)

    def hear(self, seconds: float, after_s: float = 0.0) -> None:
        """Feed and read this much, and look whether a draft is due."""
        self.live.feed(np.ones(round(seconds * RATE_HZ), np.int16))
        next(self._reading)
        self.now += after_s
        self.live._tick()

    @property
    def drafts(self) -> list[float]:
        """Seconds of audio of every draft that was asked for."""
        return [len(source) / RATE_HZ for source in self.jobs.sources[1:]]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Live:
    return Live(monkeypatch)


def test_drafts_are_read_one_at_a_time_and_not_too_often(live: Live) -> None:
    live.hear(0.05)
    assert live.drafts == []  # too little
    live.hear(0.5)
    live.hear(0.5, after_s=9.0)
    assert live.drafts == [0.55]  # the first is not done
    live.jobs.tell[1](finished("ab"))
    live.hear(0.5)
    assert live.drafts == [0.55]  # it took 9 s: a third of the time is theirs
    live.hear(0.5, after_s=18.1)
    assert live.drafts == [0.55, 2.05]
    assert live.events == [DraftChanged("ab", 0.0, 0.55)]
    assert live.jobs.options[1].steps == 0


def test_streams_that_are_open_share_the_time_for_drafts(live: Live) -> None:
    live.jobs.n_live = 8
    live.hear(0.5)
    live.hear(0.5, after_s=9.0)
    live.jobs.tell[1](finished("ab"))
    live.hear(0.5, after_s=8 * 27.0 - 9.1)
    assert live.drafts == [0.5]
    live.hear(0.5, after_s=0.2)
    assert live.drafts == [0.5, 2.0]


def test_a_draft_is_told_when_it_has_changed(live: Live) -> None:
    for text in ("a", "a", "ab", ""):
        live.hear(0.5, after_s=1.0)
        live.jobs.tell[-1](finished(text))
    assert [event.text for event in live.events] == ["a", "ab", ""]


def test_a_draft_begins_where_the_stable_text_ends(live: Live) -> None:
    live.hear(3.0)
    live.jobs.tell[0](segment(0.0, 1.0, "one"))
    live.jobs.tell[1](finished("one two"))  # was asked for before: void
    live.hear(0.5)
    live.jobs.tell[2](finished("two"))
    live.jobs.tell[0](Progressed(2.0, None))  # silence
    live.hear(0.5, after_s=1.0)
    live.jobs.tell[0](segment(2.0, 4.0, "two", "zh"))
    live.jobs.tell[0](segment(4.0, 4.5, "three", "zh"))
    assert live.drafts == [3.0, 2.0, 2.0]
    texts = [event.text for event in live.events]
    assert texts == ["one", "two", " two", "three"]


def test_where_the_model_is_behind_there_are_no_drafts(live: Live) -> None:
    live.live.feed(np.ones(round((BEHIND_S + 0.1) * RATE_HZ), np.int16))
    live.live.feed(np.ones(round((BEHIND_S + 0.1) * RATE_HZ), np.int16))
    next(live._reading)
    live.live._tick()
    assert live.drafts == []
    live.hear(0.1)  # the second is read, what came now waits
    assert len(live.drafts) == 1
    live.jobs.tell[1](finished("a"))
    live.hear(100.0, after_s=9.0)
    live.hear(100.0, after_s=9.0)
    assert len(live.drafts) == 1


@pytest.mark.parametrize("refusal", [Busy(1), OptionError("no draft head")])
def test_a_draft_that_is_refused_is_left_out(live: Live, refusal: Exception) -> None:
    live.jobs.refusal = refusal
    live.hear(0.5)
    live.jobs.refusal = None
    live.hear(0.5, after_s=9.0)
    assert len(live.drafts) == isinstance(refusal, Busy)


def test_behind_the_end_there_are_no_drafts(live: Live) -> None:
    live.hear(0.5)
    live.live.finish()
    assert live.jobs.cancelled == [1]
    live.jobs.tell[1](finished("late"))
    live.live._tick()
    with pytest.raises(TimeoutError):
        live.live.wait(0.0)
    live.jobs.tell[0](finished("all"))
    live.jobs.tell[0](Progressed(1.0, None))
    assert live.live.wait(0.0).text == "all"
    assert [type(event) for event in live.events] == [Finished]


def test_after_close_nothing_is_told_and_the_reading_ends(live: Live) -> None:
    live.hear(0.5)
    live.live.feed(np.ones(100, np.int16))
    live.live.close()
    live.live.close()
    assert set(live.jobs.cancelled) == {0, 1}
    for tell in live.jobs.tell:
        tell(finished("late"))
    assert live.events == []
    with pytest.raises(JobCancelled):
        live.live.wait()
    assert sum(map(len, live._reading)) == 0


def test_what_is_stable_or_silent_is_not_kept() -> None:
    audio = LiveAudio(RATE_HZ, lambda: None)
    reading, most = iter(audio), 0
    for second in range(1, 601):
        audio.feed(np.zeros(RATE_HZ, np.int16))
        next(reading)
        audio.forget((second - 2) * RATE_HZ + 7)
        most = max(most, len(audio.kept()[1]))
    assert most <= 2 * RATE_HZ
    assert audio.fed_s == 600
    assert audio.kept()[0] == 598 * RATE_HZ + 7
