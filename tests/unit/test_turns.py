"""Reading threads take turns at finding speech: few at once, first come first served."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from scheduled_jobs import CLIPS, Blocks, Samples, ask, short_transcriber

from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.scheduling.scheduler import READERS, Scheduler
from canvas_asr.scheduling.turns import Turns
from canvas_asr.vad import LoudnessDetector, Scores


def until_waiting(turns: Turns, n_threads: int) -> None:
    deadline = time.monotonic() + 60
    while len(turns._waiting) < n_threads:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_came_first_goes_first() -> None:
    turns, order = Turns(1), []

    def work(name: str) -> None:
        turns.take()
        order.append(name)
        turns.hand_on()

    turns.take()
    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for n_started, thread in enumerate(threads, 1):
        thread.start()
        until_waiting(turns, n_started)
    turns.hand_on()
    work("again")  # does not overtake those that wait
    for thread in threads:
        thread.join(60)
    assert order == ["a", "b", "c", "again"]


class Endless(Blocks):
    """Gives nothing until it is told to end."""

    def __init__(self) -> None:
        super().__init__(CLIPS[0])
        self.is_read, self.may_end = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Samples]:
        self.is_read.set()
        assert self.may_end.wait(60)
        yield from super().__iter__()


def test_few_look_for_speech_at_once_and_nobody_starves(
    model: CanvasASRModel, processor: CanvasASRProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    class Watched(LoudnessDetector):
        def __call__(self, samples: Samples) -> Scores:
            with lock:
                at_work.append(1)
                most.append(len(at_work))
            time.sleep(0.02)
            with lock:
                at_work.pop()
            return super().__call__(samples)

    monkeypatch.setattr("canvas_asr.recordings.SileroDetector", Watched)
    slow = [Endless() for _ in range(READERS + 1)]  # a source that makes wait takes nobody's turn
    with Scheduler(short_transcriber(model, processor)) as scheduler:
        late = [ask(scheduler, source, steps=1, vad=True)[1] for source in slow]
        assert all(source.is_read.wait(60) for source in slow)
        told = [ask(scheduler, np.tile(clip, 2)[:16_000], steps=1, vad=True)[1] for clip in CLIPS * 2]
        assert all(one.transcript() for one in told)
        for source in slow:
            source.may_end.set()
        assert all(one.transcript().audio_s == 0.7 for one in late)
        assert scheduler._turns._n_free == READERS
    assert len(most) >= len(told) + len(late)
    assert max(most) <= READERS
