"""Jobs for tests of the scheduler: who takes their events, and a record of what the model did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from made_up_clips import tones
from numpy.typing import NDArray

from canvas_asr import Transcriber
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.piece_batch import PieceBatch
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.recordings import Piece
from canvas_asr.result import Gap, Transcript
from canvas_asr.scheduling.jobs import Event, Failed, Finished
from canvas_asr.scheduling.scheduler import Job, Scheduler

RATE_HZ = 16_000
Samples = NDArray[np.float32]
CLIPS = [tones(duration_s, seed) for seed, duration_s in enumerate((0.7, 1.1, 0.3, 0.9, 0.5))]
LONG = np.concatenate([tones(4.0, 7), tones(3.0, 8)])  # for a model that takes 1 s


def short_transcriber(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    """Takes 1.2 s at once."""
    transcriber = Transcriber(model, processor)
    transcriber.max_audio_s = 1.2
    return transcriber


class Recorded(PieceBatch):
    """Writes down every step of all batches, and fails when it is told to.

    Attributes:
        steps: The pieces of each, and what was done with them.
        before: Called before every step.
    """

    steps: list[tuple[str, list[Piece]]]
    before: Callable[[str, list[Piece]], None]

    def encode(self, new: Any, options: Any = None) -> list[Piece]:
        self.steps.append(("encode", list(new)))
        self.before("encode", list(new))
        return super().encode(new, options)

    def run_pass(self) -> list[Piece]:
        self.steps.append(("pass", self.pieces))
        self.before("pass", self.pieces)
        return super().run_pass()

    @classmethod
    def passes(cls) -> list[list[Piece]]:
        return [pieces for what, pieces in cls.steps if what == "pass"]


def record(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    """What the model does, in steps that do not depend on how fast it is."""
    Recorded.steps, Recorded.before = [], staticmethod(lambda what, pieces: None)  # type: ignore[assignment]
    monkeypatch.setattr("canvas_asr.scheduling.scheduler.PieceBatch", Recorded)
    monkeypatch.setattr("canvas_asr.scheduling.lanes.STEP_S", float("inf"))
    monkeypatch.setattr("canvas_asr.scheduling.lanes.BULK_STEP_S", float("inf"))
    return Recorded


class Told:
    """Takes the events of a job, and those behind its end too: the scheduler only logs what fails there."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.has_ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, (Finished, Failed)):
            self.has_ended.set()

    def end(self) -> Transcript | Exception:
        assert self.has_ended.wait(60)
        last = self.events[-1]
        return last.transcript if isinstance(last, Finished) else last.error  # type: ignore[union-attr]

    def transcript(self) -> Transcript:
        found = self.end()
        assert isinstance(found, Transcript), found
        return found

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Blocks:
    """A source that does not tell its length."""

    duration_s = None
    gaps: tuple[Gap, ...] = ()

    def __init__(self, samples: Samples, error: Exception | None = None) -> None:
        self._samples, self._error = samples, error

    def __iter__(self) -> Iterator[Samples]:
        for at in range(0, len(self._samples), 3000):
            yield self._samples[at : at + 3000]
        if self._error is not None:
            raise self._error


def ask(scheduler: Scheduler, source: Any, *, steps: int = 2, **given: Any) -> tuple[Job, Told]:
    told = Told()
    names = ("vad", "shows_passes", "wants_segments", "is_live")
    flags = {name: given.pop(name) for name in names if name in given}
    return scheduler.submit(source, DecodingOptions(steps=steps, **given), told, **flags), told


def check_same(found: Transcript, expected: Transcript) -> None:
    assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]
    assert (found.text, found.language, found.passes) == (expected.text, expected.language, expected.passes)
    assert (found.audio_s, found.truncated) == (expected.audio_s, expected.truncated)
    assert [(one.start, one.end, one.text) for one in found.segments] == [
        (one.start, one.end, one.text) for one in expected.segments
    ]
    times = [
        None if one.words is None else [(word.text, word.start, word.end) for word in one.words]
        for one in (found, expected)
    ]
    assert times[0] == times[1]
