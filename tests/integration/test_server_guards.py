"""Whom the server refuses before it reads what they send."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest
from running_server import http_client, until
from scripted_server import AUDIO, ROUTE, refusal, scripted, transcript
from small_models import small_model, small_processor

from canvas_asr import Transcriber
from canvas_asr.scheduling.jobs import Finished
from canvas_asr.serving import work
from canvas_asr.serving.app import create_app
from canvas_asr.serving.settings import ServerSettings

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


def test_no_more_bodies_arrive_than_the_disk_is_meant_for(
    asr: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MORE_ARRIVING", 1)
    monkeypatch.setattr(work, "FRESH_S", 0.0)
    n_arriving: list[int] = []
    arriving = work.Admission.arriving

    def counted(admission: work.Admission) -> object:
        n_arriving.append(len(admission._arrivals))
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
                reply = b"".join(iter(lambda: third.recv(65536), b"")).decode()
            assert reply.startswith("HTTP/1.1 429 ")
            assert "\r\nretry-after: " in reply.lower()
            assert "queue_full" in reply
            assert post() == 429
        until(lambda: post() == 200)  # those that left have given their places back
        assert post() == 200
    assert n_arriving[:4] == [0, 1, 2, 2]
    assert n_arriving[-1] == 0


def test_pages_of_other_hosts_cannot_use_a_server_without_keys(asr: Transcriber) -> None:
    def status(origin: str) -> int:
        return post(address, headers={"Origin": origin})[0]

    end = Finished(transcript("Hello."))
    with scripted(asr, end) as (address, scheduler):
        for other in ("http://example.org", "null", address.replace("127.0.0.1", "localhost")):
            assert status(other) == 403
        assert post(address, headers={"Origin": "http://example.org"})[1]["code"] == "origin_not_allowed"
        assert not scheduler.jobs
        assert status(address) == 200
    with scripted(asr, end, api_keys=("none",)) as (address, _):  # here the key tells who may
        assert status("http://example.org") == 200


def test_a_server_of_this_machine_answers_no_other_name_without_keys(asr: Transcriber) -> None:
    end = Finished(transcript("Hello."))

    def status(host: str) -> int:
        return post(address, headers={"Host": host})[0]

    with scripted(asr, end, allowed_hosts=("ASR.example.org",)) as (address, scheduler):
        for other in (
            "example.org",
            "example.org:8000",
            "127.0.0.1.example.org",
            "10.0.0.1",
            "[::2]:80",
            "[",
        ):
            code, error = post(address, headers={"Host": other})
            assert (code, error["code"]) == (421, "host_not_allowed")
            assert "--allowed-host" in error["message"]
        assert not scheduler.jobs
        for own in (
            "127.0.0.1",
            "localhost:8000",
            "LOCALHOST",
            "127.0.0.2:1",
            "[::1]:8000",
            "asr.example.org",
        ):
            assert status(own) == 200
        with http_client(address) as client:
            assert client.get("/v1/models", headers={"Host": "example.org"}).status_code == 421
            for health in (client.get, client.head):  # of a load balancer
                assert health("/health", headers={"Host": "example.org"}).status_code == 200
    for settings in ({"api_keys": ("none",)}, {"host": "0.0.0.0"}):
        with scripted(asr, end, **settings) as (address, _):
            assert status("example.org") == 200


def post(address: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Upload something; gives the status, and the error if it is one."""
    with http_client(address) as client:
        reply = client.post(ROUTE, data={"model": "small"}, files={"file": AUDIO}, headers=headers)
    return reply.status_code, {} if reply.status_code == 200 else refusal(reply.json())


def test_the_setting_for_stalled_decoders_and_the_batch_reach_the_pool(asr: Transcriber) -> None:
    app = create_app(asr, ServerSettings(model_names=("small",), decode_timeout_s=3.0, max_batch=5))
    assert app.state.decoders.max_file_s == 3.0
    assert app.state.decoders._max_parked == 5


def test_the_document_knows_every_status_of_an_upload(asr: Transcriber) -> None:
    app = create_app(asr, ServerSettings(model_names=("small",)))
    replies = app.openapi()["paths"][ROUTE]["post"]["responses"]
    assert {*replies} >= {
        "200",
        "400",
        "401",
        "403",
        "404",
        "408",
        "413",
        "415",
        "421",
        "429",
        "500",
        "503",
        "504",
    }
    assert "server_busy" in replies["503"]["description"]
