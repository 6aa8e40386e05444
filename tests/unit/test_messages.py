"""Ctrl-C ends a command even where Python drops the KeyboardInterrupt, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from canvas_asr.cli.messages import ctrl_c, exit_code
from canvas_asr.errors import OptionError


@pytest.fixture(autouse=True)
def _hears_ctrl_c() -> Iterator[None]:
    """A test run in the background of a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class InterruptsItself:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # it arrives between two instructions, here
            pass


def went_on() -> int:
    InterruptsItself()  # which dies at once
    assert ctrl_c.arrived
    return 0


def loops() -> int:
    went_on()
    for _ in range(3):
        ctrl_c.check()
    pytest.fail("the loop went on")


def breaks() -> int:
    went_on()
    raise RuntimeError("of what the interrupt left half done")


def complains() -> int:
    went_on()
    raise OptionError("of what the interrupt left half done")


@pytest.mark.parametrize("run", [went_on, loops, breaks, complains])
def test_a_dropped_interrupt_ends_the_command(
    run: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    hook = sys.unraisablehook
    assert exit_code(run) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "canvas-asr: interrupted"
    assert sys.unraisablehook is hook
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert exit_code(lambda: 5) == 5  # the next command knows nothing of it


def test_the_second_ends_at_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    def twice() -> int:
        went_on()
        assert not ended
        return went_on()

    assert exit_code(twice) == 130
    assert ended == [130]
    assert capfd.readouterr().err == "canvas-asr: interrupted\n" * 2  # the real one does not come back


def test_other_errors_are_as_they_were() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_calling_program_stays() -> None:
    taken: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: taken.append(number))
    assert exit_code(lambda: os.kill(os.getpid(), signal.SIGINT) or 0) == 0
    assert taken == [signal.SIGINT]


def test_in_another_thread_nothing_is_changed() -> None:
    seen: list[object] = []

    def run() -> int:
        seen.append(signal.getsignal(signal.SIGINT))
        return 3

    thread = threading.Thread(target=lambda: seen.append(exit_code(run)))
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler, 3]
