"""A generator in a thread of its own: in order, bounded, errors carried over, no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from itertools import count

import numpy as np
import pytest
from made_up_clips import tones
from numpy.typing import NDArray

from canvas_asr import AudioError, Transcriber
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.read_ahead import ReadAhead


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Numbers:
    """Counts, and knows how far it came and where it ran."""

    def __init__(self) -> None:
        self.last = -1
        self.threads: set[int] = set()
        self.is_closed = False
        self.moved = threading.Condition()

    def up_to(self, n: int | None, error: Exception | None = None) -> Generator[int, None, None]:
        try:
            for i in count() if n is None else range(n):
                with self.moved:
                    self.last = i
                    self.threads.add(threading.get_ident())
                    self.moved.notify_all()
                yield i
            if error is not None:
                raise error
        finally:
            self.is_closed = True


def test_items_come_in_order_from_another_thread() -> None:
    numbers = Numbers()
    with ReadAhead(numbers.up_to(100), 3) as items:
        assert list(items) == list(range(100))
        assert next(items, None) is None
    assert numbers.is_closed
    assert threading.get_ident() not in numbers.threads


def test_it_runs_no_further_ahead_than_it_may() -> None:
    numbers, told = Numbers(), threading.Semaphore(0)
    with ReadAhead(numbers.up_to(None), 4, told.release) as items:
        with numbers.moved:
            assert numbers.moved.wait_for(lambda: numbers.last == 3, 10)
            assert not numbers.moved.wait_for(lambda: numbers.last > 3, 0.05)
        assert next(items) == 0
        with numbers.moved:
            assert numbers.moved.wait_for(lambda: numbers.last == 4, 10)
        assert items.is_ready
        assert all(told.acquire(timeout=10) for _ in range(5))
    assert numbers.is_closed


def test_an_error_is_raised_behind_the_last_item() -> None:
    found = []
    with ReadAhead(Numbers().up_to(3, AudioError("cut off")), 8) as items:
        with pytest.raises(AudioError, match="cut off"):
            found.extend(item for item in items if found.append(item))  # type: ignore[func-returns-value]
        assert items.is_ready
        with pytest.raises(AudioError):
            next(items)
    assert found == [0, 1, 2]


def test_closing_does_not_wait_if_it_may_not() -> None:
    goes_on = threading.Event()

    def slow() -> Generator[int, None, None]:
        goes_on.wait(10)
        yield 1

    items = ReadAhead(slow(), 1)
    items.close(wait=False)
    goes_on.set()
    items.close()
    assert next(items, None) is None


# Long recordings


@pytest.fixture
def asr(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    transcriber = Transcriber(model, processor)
    transcriber.max_audio_s = 1.0
    return transcriber


@pytest.fixture
def long() -> tuple[NDArray[np.float32], int]:
    return np.tile(tones(3.0, 1), 100), 16_000


def test_a_recording_that_is_broken_off_leaves_no_thread(
    asr: Transcriber, long: tuple[NDArray[np.float32], int]
) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    def stop(done_s: float, total_s: float) -> None:
        raise Enough

    with pytest.raises(Enough):
        asr.transcribe(long, steps=1, vad=False, on_progress=stop)


def test_an_iterator_that_is_closed_leaves_no_thread(
    asr: Transcriber, long: tuple[NDArray[np.float32], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvas_asr.recording_reader.load_audio", lambda source, rate=None: long[0])
    monkeypatch.setattr("canvas_asr.recording_reader.is_longer", lambda path, n_samples: False)
    segments = asr.stream_file("a.wav", steps=1, vad=False)
    next(segments)
    assert any(thread.name == "canvas-asr-reader" for thread in threading.enumerate())
    segments.close()  # type: ignore[attr-defined]
