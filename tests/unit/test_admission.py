"""Who is let in, and who is told to come again before his body is read."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from canvas_asr.serving import work
from canvas_asr.serving.errors import RequestError
from canvas_asr.serving.work import Admission


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def refused(admission: Admission) -> bool:
    try:
        with admission.arriving():
            return False
    except RequestError as error:
        return (error.status, error.code, error.headers) == (429, "queue_full", {"Retry-After": "7"})


def test_of_a_crowd_only_as_many_send_their_bodies_as_there_are_places(clock: SimpleNamespace) -> None:
    admission = Admission(3, lambda: 7)
    with ExitStack() as bodies:
        for _ in range(3):
            assert not refused(admission)
            bodies.enter_context(admission.arriving())
        assert refused(admission)
    assert not refused(admission)  # all of them have left
    assert clock.now == 100.0


def test_a_body_that_is_whole_is_counted_once(clock: SimpleNamespace) -> None:
    admission = Admission(2, lambda: 7)
    with admission.arriving() as arrival:
        arrival.is_whole = True
        admission.enter()
        assert not refused(admission)
        with admission.arriving():
            assert refused(admission)
    assert not refused(admission)
    admission.enter()
    assert refused(admission)
    admission.leave()
    assert not refused(admission)
    assert clock.now == 100.0


def test_who_sends_slowly_shuts_nobody_out(clock: SimpleNamespace) -> None:
    admission = Admission(1, lambda: 7)
    with admission.arriving():
        assert refused(admission)
        clock.now += work.FRESH_S
        assert not refused(admission)
        with admission.arriving():
            assert refused(admission)
        admission.enter()  # whoever is first
        with pytest.raises(RequestError):
            admission.enter()


def test_no_more_bodies_arrive_than_the_disk_is_meant_for(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MORE_ARRIVING", 2)
    admission = Admission(1, lambda: 7)
    with ExitStack() as bodies:
        for _ in range(3):
            bodies.enter_context(admission.arriving())
            clock.now += work.FRESH_S
        assert refused(admission)
    assert not refused(admission)
