"""What a server does for its process before it begins: by counting threads and objects, not time."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripted_server import NoDecoders, ScriptedScheduler
from starlette.datastructures import State

from canvas_asr.cli import main
from canvas_asr.errors import CanvasASRError, CheckpointError
from canvas_asr.scheduling.scheduler import Scheduler
from canvas_asr.serving import http_server
from canvas_asr.serving.app import _lifespan, create_app
from canvas_asr.serving.process import SPINS, limit_spinning, one_thread, settled_memory
from canvas_asr.serving.settings import ServerSettings

N_THREADS = 3


@pytest.fixture
def threads() -> Any:
    """Several, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(before)


def in_new_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("threads")
def test_who_computes_alone_leaves_no_helpers() -> None:
    large = torch.zeros(1 << 20)
    n_new: list[int] = []

    def compute() -> None:
        before = set(os.listdir("/proc/self/task"))
        with one_thread():
            large.add_(1)
            n_new.append(len(set(os.listdir("/proc/self/task")) - before))
        large.add_(1)
        n_new.append(len(set(os.listdir("/proc/self/task")) - before))

    in_new_thread(compute)
    assert n_new == [0, N_THREADS - 1]
    assert large.min() == large.max() == 2


@pytest.mark.usefixtures("threads")
def test_threads_that_come_later_have_all_processors() -> None:
    found: list[int] = []

    def fail_to_load() -> None:
        with one_thread():
            found.append(torch.get_num_threads())
            raise ValueError("not loaded")

    with pytest.raises(ValueError, match="not loaded"):
        fail_to_load()
    in_new_thread(lambda: found.append(torch.get_num_threads()))
    assert found == [1, N_THREADS]
    assert torch.get_num_threads() == N_THREADS


@pytest.mark.usefixtures("threads")
def test_the_thread_of_the_model_keeps_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    has_turned = threading.Event()

    def turn(_: Scheduler) -> None:
        found.append(torch.get_num_threads())
        has_turned.set()

    monkeypatch.setattr(Scheduler, "_turn", turn)
    with Scheduler(None) as scheduler, one_thread():  # type: ignore[arg-type]
        scheduler._wake()
        assert has_turned.wait(60)
    assert found == [N_THREADS]


@pytest.mark.usefixtures("threads")
def test_what_runs_beside_the_model_has_one_processor_each() -> None:
    found: list[int] = []

    class Decoders(NoDecoders):
        def close(self) -> None:
            in_new_thread(lambda: found.append(torch.get_num_threads()))

    async def run() -> None:
        state = State(
            {
                "settings": ServerSettings(),
                "decoders": Decoders(),
                "scheduler": ScriptedScheduler(),
                "starters": ThreadPoolExecutor(1),
                "diarizer": None,
            }
        )
        async with _lifespan(SimpleNamespace(state=state)):  # type: ignore[arg-type]
            in_new_thread(lambda: found.append(torch.get_num_threads()))

    asyncio.run(run())
    assert found == [1, N_THREADS]


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, str(SPINS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_who_waits_for_work_falls_asleep_soon(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    limit_spinning()
    assert environment.get("GOMP_SPINCOUNT") == spins


def test_torch_is_imported_behind_that() -> None:
    code = """
import os, sys
class Watcher:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Watcher())
from canvas_asr.cli import main
main(["serve", "--port", "0"])
"""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{SPINS}\n"), done.stderr


@pytest.mark.parametrize("is_missing", [False, True])
def test_what_finds_speech_is_read_before_the_server_begins(
    is_missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the server serves short clips."""
    read: list[bool] = []

    def detector() -> None:
        read.append(is_missing)
        if is_missing:
            raise CheckpointError("silero_vad.jit: no such file")

    monkeypatch.setitem(create_app.__globals__, "SileroDetector", detector)
    transcriber = SimpleNamespace(decoder=SimpleNamespace(open=lambda _: None), languages=(), has_draft=True)
    create_app(transcriber, ServerSettings())  # type: ignore[arg-type]
    assert read == [is_missing]


def test_collections_look_at_what_is_new_alone() -> None:
    class Part:
        def __init__(self) -> None:
            self.whole: Any = self

    loaded = Part()
    assert gc.get_freeze_count() == 0
    with settled_memory():
        made = Part()
        seen = [one for one in gc.get_objects() if type(one) is Part]
        assert seen == [made]
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
    assert loaded in [one for one in gc.get_objects() if type(one) is Part]


@pytest.mark.usefixtures("threads")
def test_a_model_is_loaded_by_one_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise CanvasASRError(f"loaded by {torch.get_num_threads()}")

    monkeypatch.setattr("canvas_asr.transcriber.load", load)
    assert main(["serve", "--port", "0"]) == 1
    assert "loaded by 1\n" in capsys.readouterr().err


@pytest.mark.usefixtures("threads")
def test_a_server_runs_with_settled_memory_and_all_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def make(*_: Any) -> Any:
        found.append(torch.get_num_threads())

        def run(sockets: list[socket.socket]) -> None:
            found.extend([torch.get_num_threads(), min(1, gc.get_freeze_count())])

        return SimpleNamespace(run=run, started=True)

    app = SimpleNamespace(state=SimpleNamespace(diarizer=None))
    monkeypatch.setattr(http_server, "create_app", lambda *_, **__: app)
    monkeypatch.setattr(http_server, "make_server", make)
    with socket.socket() as listener:
        http_server.serve(None, ServerSettings(), listener, lambda: None)  # type: ignore[arg-type]
    assert found == [1, N_THREADS, 1]
