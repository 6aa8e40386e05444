"""Whom the server refuses before it reads what they send."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from running_server import http_client
from scripted_server import AUDIO, ROUTE, refusal, scripted, transcript
from small_models import small_model, small_processor

from canvas_asr import Transcriber
from canvas_asr.scheduling.jobs import Finished
from canvas_asr.serving import work

LATEST_S = 20.0
_BEGUN = (
    f"POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    "Content-Length: 1000000\r\n\r\n--x\r\n"
)


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return Transcriber(small_model(), small_processor())


def begin_upload(address: str) -> socket.socket:
    """Send the head of a request and the first bytes of its body."""
    connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30)
    connection.sendall(_BEGUN.encode())
    return connection


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LATEST_S
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def test_no_more_bodies_arrive_than_the_disk_is_meant_for(
    asr: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MORE_ARRIVING", 1)
    n_arriving: list[int] = []
    arriving = work.Admission.arriving

    def counted(admission: work.Admission) -> object:
        n_arriving.append(admission._n_arriving)
        return arriving(admission)

    monkeypatch.setattr(work.Admission, "arriving", counted)
    end = Finished(transcript("Hello."))
    with scripted(asr, end, max_batch=1, max_queue=0) as (address, _), http_client(address) as client:

        def post() -> int:
            return client.post(ROUTE, data={"model": "small"}, files={"file": AUDIO}).status_code

        with ExitStack() as stack:
            for _ in range(2):  # one place, and one more
                stack.enter_context(begin_upload(address))
            until(lambda: len(n_arriving) == 2)
            with begin_upload(address) as third:  # answered though most of its body is never sent
                reply = third.recv(65536).decode()
            assert reply.startswith("HTTP/1.1 429 ")
            assert "\r\nretry-after: " in reply.lower()
            assert "queue_full" in reply
            assert post() == 429
        until(lambda: post() == 200)  # those that left have given their places back
        assert post() == 200
    assert n_arriving[:4] == [0, 1, 2, 2]
    assert n_arriving[-1] == 0
