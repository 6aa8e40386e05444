"""How jobs end that do not go well, and the scheduler itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scheduled_jobs import (
    CLIPS,
    LONG,
    RATE_HZ,
    Blocks,
    Recorded,
    Samples,
    ask,
    check_same,
    record,
    short_transcriber,
)

from canvas_asr import AudioError, OptionError, Transcriber
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.read_ahead import ReadAhead
from canvas_asr.recordings import Piece
from canvas_asr.result import Gap
from canvas_asr.scheduling.jobs import Event, Failed, Finished, JobCancelled, Progressed
from canvas_asr.scheduling.scheduler import Busy, Scheduler


@pytest.fixture
def asr(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    return short_transcriber(model, processor)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    return record(monkeypatch)


def test_a_cancelled_job_leaves_its_rows(asr: Transcriber, steps: type[Recorded]) -> None:
    scheduler = Scheduler(asr, max_batch=2)
    jobs = [ask(scheduler, clip, steps=4) for clip in CLIPS[:3]]

    def cancel(what: str, pieces: list[Piece]) -> None:
        if len(steps.passes()) == 2:
            jobs[0][0].cancel()
            jobs[0][0].cancel()

    steps.before = staticmethod(cancel)  # type: ignore[assignment]
    with scheduler:
        assert scheduler.close(60)
    assert isinstance(jobs[0][1].end(), JobCancelled)
    assert jobs[0][0].is_done
    for i in (1, 2):
        check_same(jobs[i][1].transcript(), asr.transcribe((CLIPS[i], RATE_HZ), steps=4))
    with_it = [any(one.chunk.audio_s == 0.7 for one in pieces) for pieces in steps.passes()]
    assert with_it == [True, True, *[False] * (len(with_it) - 2)]
    assert [len(pieces) for pieces in steps.passes()][:4] == [2, 2, 2, 2]


def test_a_pass_that_fails_ends_the_jobs_of_its_lane(
    asr: Transcriber, steps: type[Recorded], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(what: str, pieces: list[Piece]) -> None:
        if what == "pass" and any(piece.chunk.audio_s == 0.7 for piece in pieces):
            raise RuntimeError("no memory")

    steps.before = staticmethod(fail)  # type: ignore[assignment]
    scheduler = Scheduler(asr)
    bad = [ask(scheduler, CLIPS[i], steps=3)[1] for i in (0, 1)]
    other = ask(scheduler, CLIPS[3], steps=2)[1]
    with scheduler:
        assert [str(one.end()) for one in bad] == ["no memory", "no memory"]
        again = ask(scheduler, CLIPS[1], steps=3)[1].transcript()
        assert scheduler.close(60)
    check_same(other.transcript(), asr.transcribe((CLIPS[3], RATE_HZ), steps=2))
    check_same(again, asr.transcribe((CLIPS[1], RATE_HZ), steps=3))
    assert "a pass of 2 rows failed" in caplog.text


def test_pieces_that_cannot_be_encoded_end_their_jobs_alone(asr: Transcriber, steps: type[Recorded]) -> None:
    def fail(what: str, pieces: list[Piece]) -> None:
        if what == "encode" and pieces[0].chunk.audio_s == 0.7:
            raise RuntimeError("no memory")

    steps.before = staticmethod(fail)  # type: ignore[assignment]
    scheduler = Scheduler(asr, max_batch=1)
    told = [ask(scheduler, CLIPS[i])[1] for i in (1, 0, 2)]
    with scheduler:
        assert scheduler.close(60)
    assert str(told[1].end()) == "no memory"
    for i, one in ((1, told[0]), (2, told[2])):
        check_same(one.transcript(), asr.transcribe((CLIPS[i], RATE_HZ), steps=2))


def test_audio_that_cannot_be_read_ends_its_job(asr: Transcriber, caplog: pytest.LogCaptureFixture) -> None:
    class Damaged(Blocks):
        gaps = (Gap(0.2, 0.4, "invalid data"),)

    with Scheduler(asr) as scheduler:
        at_once = ask(scheduler, Blocks(CLIPS[0], AudioError("cut off")))[1].end()
        later = ask(scheduler, Blocks(LONG, AudioError("cut off")), vad=False)[1].end()
        odd = ask(scheduler, Blocks(CLIPS[0], KeyError("odd")))[1].end()
        damaged = ask(scheduler, Damaged(CLIPS[0]))[1].end()
        long = ask(scheduler, Damaged(LONG), vad=False)[1].transcript()
    assert [str(one) for one in (at_once, later)] == ["cut off", "cut off"]
    assert isinstance(at_once, AudioError)
    assert isinstance(odd, KeyError)
    assert str(damaged) == "the audio is damaged at 0.2 s: invalid data"
    assert long.gaps == Damaged.gaps


class Waiting(Blocks):
    """Ends, or fails, when it is told to."""

    def __init__(self, samples: Samples, error: Exception | None = None) -> None:
        super().__init__(samples, error)
        self.goes_on = threading.Event()

    def __iter__(self) -> Iterator[Samples]:
        for at in range(0, len(self._samples), 3000):
            yield self._samples[at : at + 3000]
        assert self.goes_on.wait(60)
        if self._error is not None:
            raise self._error


def test_nothing_is_told_behind_a_failure(asr: Transcriber, steps: type[Recorded]) -> None:
    source = Waiting(LONG, AudioError("cut off"))

    def go_on(what: str, pieces: list[Piece]) -> None:
        if what == "pass":
            source.goes_on.set()

    steps.before = staticmethod(go_on)  # type: ignore[assignment]
    with Scheduler(asr) as scheduler:
        told = ask(scheduler, source, steps=16, vad=False, shows_passes=True)[1]
        assert str(told.end()) == "cut off"
        ask(scheduler, CLIPS[0], steps=16)[1].transcript()  # shares its passes, if there were any left
    assert isinstance(told.events[-1], Failed)


def test_a_stream_that_goes_on_keeps_no_long_job_waiting(asr: Transcriber) -> None:
    source = Waiting(LONG)
    with Scheduler(asr, max_batch=2) as scheduler:  # which reads one long job at a time
        live = ask(scheduler, source, steps=1, vad=False)[1]
        deadline = time.monotonic() + 60
        while not live.of(Progressed):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ask(scheduler, LONG, steps=1, vad=False)[1].transcript().audio_s == 7.0
        assert not live.has_ended.is_set()
        source.goes_on.set()
        assert live.transcript().audio_s == 7.0


def test_every_job_is_read_by_one_thread(asr: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ReadAhead[Any]] = []

    def start(*arguments: Any) -> ReadAhead[Any]:
        started.append(ReadAhead(*arguments))
        return started[-1]

    monkeypatch.setattr("canvas_asr.scheduling.tasks.ReadAhead", start)
    with Scheduler(asr, max_batch=1) as scheduler:
        jobs = [ask(scheduler, clip, steps=4) for clip in CLIPS]
        assert all(told.transcript() for _, told in jobs)
    assert len(started) == len(CLIPS)


def test_a_full_queue_is_said(asr: Transcriber) -> None:
    scheduler = Scheduler(asr, max_batch=2, max_queue=1)
    jobs = [ask(scheduler, CLIPS[2]) for _ in range(3)]
    with pytest.raises(Busy) as caught:
        ask(scheduler, CLIPS[2])
    assert caught.value.retry_after_s >= 1
    assert scheduler.stats.queued == 3
    scheduler.start()
    assert all(told.transcript() for _, told in jobs)
    assert scheduler.close(10)
    with pytest.raises(Busy):
        ask(scheduler, CLIPS[2])


def test_a_system_without_threads_ends_the_job_alone(
    asr: Transcriber, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Scheduler(asr) as scheduler:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", lambda self: exec("raise RuntimeError('no thread')"))
            assert str(ask(scheduler, CLIPS[2])[1].end()) == "no thread"
        ask(scheduler, CLIPS[2])[1].transcript()


def test_options_are_checked_at_once(asr: Transcriber) -> None:
    with pytest.raises(OptionError, match="max_batch is 0"):
        Scheduler(asr, max_batch=0)
    with pytest.raises(OptionError, match="max_queue is -1"):
        Scheduler(asr, max_queue=-1)
    scheduler = Scheduler(asr)
    with pytest.raises(OptionError, match="this model knows"):
        ask(scheduler, CLIPS[0], language="xx")
    with pytest.raises(OptionError, match="vad is 1"):
        ask(scheduler, CLIPS[0], vad=1)
    with pytest.raises(OptionError, match="at most"):
        ask(scheduler, CLIPS[0], canvas=100_000)


def test_closing_waits_for_what_is_in_work(asr: Transcriber) -> None:
    scheduler = Scheduler(asr, max_batch=2)
    scheduler.start()
    jobs = [ask(scheduler, clip) for clip in (*CLIPS, LONG)]
    assert scheduler.close(60)
    assert all(isinstance(told.events[-1], Finished) for _, told in jobs)
    assert scheduler.close(0)


@pytest.mark.parametrize("starts", [True, False])
def test_closing_breaks_off_and_leaves_no_thread(asr: Transcriber, starts: bool) -> None:
    before = set(threading.enumerate())
    scheduler = Scheduler(asr)
    if starts:
        scheduler.start()
    jobs = [ask(scheduler, np.tile(LONG, 20), vad=False) for _ in range(3)]
    assert not scheduler.close(0.05)
    assert all(isinstance(told.end(), JobCancelled) for _, told in jobs)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_a_listener_that_fails_harms_nobody(asr: Transcriber, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> None:
        raise ValueError("listener")

    with Scheduler(asr) as scheduler:
        scheduler.submit(CLIPS[0], DecodingOptions(steps=1), fail)
        ask(scheduler, CLIPS[1])[1].transcript()
        assert scheduler.close(10)
    assert "listener" in caplog.text
