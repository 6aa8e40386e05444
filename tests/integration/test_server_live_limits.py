"""``/v1/live`` where the model gets no further: clients that leave, go on or wait."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from running_server import until
from scripted_server import scripted
from small_models import small_model, small_processor
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from canvas_asr import Transcriber
from canvas_asr.live import MOST_WAITING_S
from canvas_asr.serving import live as live_route

LATEST_S = 30.0
SECOND = bytes(2 * 16_000)
END = json.dumps({"type": "end"})


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return Transcriber(small_model(), small_processor())


def open_live(address: str) -> ClientConnection:
    url = f"{address.replace('http', 'ws', 1)}/v1/live"
    return connect(url, proxy=None, open_timeout=60, close_timeout=1)


def test_a_client_that_leaves_is_noticed_while_its_audio_waits(asr: Transcriber) -> None:
    with scripted(asr) as (address, scheduler):
        with open_live(address) as live:
            for _ in range(int(MOST_WAITING_S) + 5):
                live.send(SECOND)
            until(lambda: bool(scheduler.jobs))
            job = scheduler.jobs[0]  # drafts may be others
            assert not job.is_cancelled
            live.socket.close()
        until(lambda: job.is_cancelled)


def test_what_is_received_ahead_has_a_bound(asr: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_route, "MOST_AHEAD_BYTES", 3 * len(SECOND))
    ahead: list[int] = []
    receive = live_route._Connection._receive

    async def noted(connection: live_route._Connection) -> object:
        message = await receive(connection)
        ahead.append(connection._n_ahead)
        return message

    monkeypatch.setattr(live_route._Connection, "_receive", noted)
    with scripted(asr) as (address, _), open_live(address) as live:
        for _ in range(int(MOST_WAITING_S) + 20):  # sockets hold what is not received
            live.send(SECOND)
        n_taken = int(MOST_WAITING_S) + 1
        until(lambda: len(ahead) >= n_taken + 3)
        time.sleep(0.5)
        assert n_taken + 3 <= len(ahead) <= n_taken + 4
        assert max(ahead) <= 3 * len(SECOND) + 3 * live_route._MESSAGE_BYTES
        live.socket.close()


def test_messages_behind_the_end_give_no_more_time(asr: Transcriber) -> None:
    with scripted(asr, request_timeout_s=1.0) as (address, _), open_live(address) as live:
        live.send(SECOND)
        live.send(END)
        deadline = time.monotonic() + LATEST_S
        with suppress(ConnectionClosed):
            while time.monotonic() < deadline:
                live.send(b"")
                time.sleep(0.1)
        assert time.monotonic() < deadline
        told = []
        with suppress(ConnectionClosed):
            while True:
                told.append(json.loads(live.recv(timeout=LATEST_S)))
    assert told[-1]["error"]["code"] == "timeout"
