"""The whole server against clients and files that mean harm: answers in OpenAI's shape, and no harm done."""

from __future__ import annotations

import functools
import hmac
import io
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile as sf
from fastapi import FastAPI
from running_server import http_client, openai_client, running
from small_models import small_model, small_processor

from canvas_asr import Transcriber
from canvas_asr.scheduling.lanes import Lanes
from canvas_asr.serving import auth, uploads
from canvas_asr.serving.app import create_app
from canvas_asr.serving.settings import ServerSettings

pytestmark = pytest.mark.timeout(300)
ROUTE = "/v1/audio/transcriptions"
FIELDS = {"model": "small"}
NASTY = '../../../etc/passwd<script>alert("1")</script>.wav'
EXAMPLE = Path(__file__).parents[2] / "examples" / "en.flac"
UPLOAD_BYTES = 3 << 20
SOON_S = 1.0  # for a place to be free again, on a machine that is not busy
LATEST_S = 20.0  # the same on one that is


def written(samples: np.ndarray, rate_hz: int, kind: str) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate_hz, format=kind)
    return file.getvalue()


def audio(seconds: float) -> bytes:
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * 8000))
    return written(noise.astype(np.float32), 8000, "WAV")


@functools.cache
def lecture() -> bytes:
    """Speech that lasts: six minutes, of which not all is read ahead."""
    samples, rate_hz = sf.read(EXAMPLE, dtype="int16")
    file = io.BytesIO()
    with sf.SoundFile(file, "w", rate_hz, 1, format="OGG") as sound:
        for _ in range(120):  # libsndfile crashes where it is to encode minutes at once
            sound.write(samples)
    return file.getvalue()


def silence(seconds: float) -> bytes:
    return written(np.zeros(round(seconds * 8000), np.int16), 8000, "FLAC")


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return Transcriber(small_model(), small_processor())


class Brake:
    """Holds every step of the model up."""

    def __init__(self) -> None:
        self.pause_s = 0.0
        self.error: Exception | None = None

    def step(self) -> None:
        time.sleep(self.pause_s)
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def brakes() -> Iterator[Brake]:
    brake, step = Brake(), Lanes.step

    def braked(self: Lanes, tasks: Any) -> None:
        brake.step()
        step(self, tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lanes, "step", braked)
        yield brake


@pytest.fixture
def brake(brakes: Brake) -> Iterator[Brake]:
    yield brakes
    brakes.pause_s, brakes.error = 0.0, None


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the server puts its temporary files."""
    folder = tmp_path_factory.mktemp("private")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def app(asr: Transcriber, brakes: Brake, private: Path) -> FastAPI:
    settings = ServerSettings(
        model_names=("small",),
        max_upload_bytes=UPLOAD_BYTES,
        upload_timeout_s=1.5,
        decode_workers=1,
        max_audio_s=600.0,
    )
    return create_app(asr, settings)


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "READ_AHEAD_S", 5.0)
        with running(app) as address:
            yield address


def connect(address: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def raw_request(content: bytes, name: str = "a.wav", **fields: str) -> tuple[bytes, bytes]:
    """Head and body of an upload, as a client would write them on its connection."""
    with httpx.Client() as client:
        request = client.build_request(
            "POST", f"http://127.0.0.1{ROUTE}", data=FIELDS | fields, files={"file": (name, content)}
        )
        body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {ROUTE} HTTP/1.1\r\n{head}\r\n".encode(), body


def read_reply(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def refusal(body: dict[str, Any]) -> dict[str, Any]:
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    for secret in ("Traceback", "/tmp", "/home", ".py", "passwd", "<script>"):
        assert secret not in json.dumps(body)
    return dict(error)


def wait_until(condition: Callable[[], bool], seconds: float = LATEST_S) -> float:
    """Wait for something; gives how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it took too long"
        time.sleep(0.005)
    return time.monotonic() - started


def is_idle(app: FastAPI) -> bool:
    stats = app.state.scheduler.stats
    return not stats.queued + stats.working + stats.rows and not app.state.admission._n_admitted


def check_unharmed(app: FastAPI, address: str, private: Path) -> None:
    """Nothing is left of the last request, and the next one works."""
    wait_until(lambda: is_idle(app))
    wait_until(lambda: len(app.state.decoders.pids()) == 1)
    assert [*private.iterdir()] == []
    with openai_client(address) as client:
        client.audio.transcriptions.create(model="small", file=("a.wav", audio(0.5)))


# Bodies


def test_a_body_above_the_limit_is_refused_before_it_is_sent(
    app: FastAPI, address: str, private: Path
) -> None:
    with closing(connect(address)) as connection:
        head, _ = raw_request(bytes(UPLOAD_BYTES + 1))
        connection.sendall(head)
        status, body = read_reply(connection)
    assert status == 413
    assert refusal(body)["code"] == "upload_too_large"
    with openai_client(address) as client, pytest.raises(openai.APIStatusError) as refused:
        client.audio.transcriptions.create(model="small", file=("a.wav", bytes(UPLOAD_BYTES + 1)))
    assert refused.value.status_code == 413
    check_unharmed(app, address, private)


def test_a_body_that_hides_its_length_is_read_up_to_the_limit(
    app: FastAPI, address: str, private: Path
) -> None:
    sent: list[int] = []
    begin = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield begin
        for _ in range(4096):
            sent.append(1 << 16)
            yield bytes(1 << 16)

    with http_client(address) as client:
        reply = client.post(
            ROUTE, content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
    assert reply.status_code == 413
    refusal(reply.json())
    assert sum(sent) < UPLOAD_BYTES + (16 << 20)  # what sockets hold is sent without being read
    check_unharmed(app, address, private)


def test_a_body_without_end_that_is_refused_early_is_not_read_on(
    app: FastAPI, address: str, private: Path
) -> None:
    with closing(connect(address)) as connection:
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        status, body = read_reply(connection)  # up to where the server closes, though no body has come
    assert status == 415
    refusal(body)
    check_unharmed(app, address, private)


def test_a_slow_upload_is_given_up(app: FastAPI, address: str, private: Path) -> None:
    head, body = raw_request(audio(1.0))
    with closing(connect(address)) as connection:
        connection.sendall(head + body[:-10])
        status, told = read_reply(connection)
    assert status == 408
    assert refusal(told)["code"] == "upload_timeout"
    check_unharmed(app, address, private)


@pytest.mark.parametrize("at", [1.0, 0.5, 0.01])
@pytest.mark.parametrize("is_half_open", [True, False])
def test_an_upload_that_is_cut_off_leaves_nothing(
    app: FastAPI, address: str, private: Path, at: float, is_half_open: bool
) -> None:
    head, body = raw_request(audio(150.0))  # 2.3 MiB, which are spooled to disk
    with closing(connect(address)) as connection:
        connection.sendall(head + body[: round(at * len(body)) - 1])
        if is_half_open:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # whatever the server says, it closes
                pass
    check_unharmed(app, address, private)


# Clients that leave, and time


def test_a_client_that_leaves_frees_its_place_and_its_decoder(
    app: FastAPI, address: str, private: Path, brake: Brake
) -> None:
    brake.pause_s = 0.05
    content = lecture()
    for stream in ("false", "true"):
        head, body = raw_request(content, stream=stream)
        with closing(connect(address)) as connection:
            connection.sendall(head + body)
            wait_until(lambda: app.state.scheduler.stats.rows > 0, 120.0)
            assert len(app.state.decoders.pids()) == 2  # one waits with the rest of the file
        freed_s = wait_until(lambda: is_idle(app))
        print(f"freed after {freed_s:.3f} s (aim {SOON_S} s)")
    brake.pause_s = 0.0
    check_unharmed(app, address, private)


def test_work_over_its_time_is_given_up_and_its_place_freed(
    asr: Transcriber, brake: Brake, private: Path
) -> None:
    settings = ServerSettings(model_names=("small",), decode_workers=1, request_timeout_s=4.0)
    app = create_app(asr, settings)
    with running(app) as address, openai_client(address) as client:
        brake.pause_s = 0.25
        with pytest.raises(openai.InternalServerError) as late:
            client.audio.transcriptions.create(model="small", file=("a.flac", lecture()))
        assert late.value.status_code == 504
        assert refusal(late.value.response.json())["code"] == "timeout"
        freed_s = wait_until(lambda: is_idle(app))
        print(f"freed after {freed_s:.3f} s (aim {SOON_S} s)")
    assert [*private.iterdir()] == []


# Decoders and the model


def test_a_decoder_that_is_killed_costs_its_request_only(
    app: FastAPI, address: str, private: Path, brake: Brake
) -> None:
    brake.pause_s = 0.05
    replies: list[httpx.Response] = []

    def post() -> None:
        with http_client(address) as client:
            files = {"file": ("a.flac", lecture())}
            replies.append(client.post(ROUTE, data=FIELDS, files=files))

    request = threading.Thread(target=post)
    request.start()
    wait_until(lambda: app.state.scheduler.stats.rows > 0, 120.0)
    pids = app.state.decoders.pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    request.join(60)
    (reply,) = replies
    assert reply.status_code == 400
    error = refusal(reply.json())
    assert "decoder" in error["message"]
    assert error["param"] == "file"
    brake.pause_s = 0.0
    check_unharmed(app, address, private)
    assert not set(pids) & set(app.state.decoders.pids())


def test_a_model_that_fails_costs_its_request_only(
    app: FastAPI, address: str, private: Path, brake: Brake
) -> None:
    brake.error = RuntimeError("/home/someone/model.py failed")
    with http_client(address) as client:
        reply = client.post(ROUTE, data=FIELDS, files={"file": ("a.wav", audio(0.5))})
        assert reply.status_code == 500
        assert refusal(reply.json())["type"] == "server_error"
        stream = client.post(ROUTE, data=FIELDS | {"stream": "true"}, files={"file": ("a.wav", audio(0.5))})
    assert "someone" not in stream.text
    brake.error = None
    check_unharmed(app, address, private)


# What replies tell


@pytest.mark.parametrize("name", [NASTY, "a\r\nX-Evil: 1.wav", "\x00.wav", "é" * 500 + ".wav"])
def test_the_name_of_a_file_is_not_used_and_not_told(
    app: FastAPI, address: str, private: Path, name: str
) -> None:
    with http_client(address) as client:
        for content, status in ((audio(0.5), 200), (b"no audio", 400)):
            for form in ("text", "verbose_json"):
                fields = FIELDS | {"response_format": form}
                reply = client.post(ROUTE, data=fields, files={"file": (name, content)})
                assert reply.status_code == status
                told = reply.text + json.dumps([*reply.headers.items()])
                assert not any(part in told for part in ("passwd", "<script", "X-Evil", "\x00", "éé"))
                assert str(private) not in told
                if status == 400:
                    refusal(reply.json())
        fields = FIELDS | {"stream": "true", "canvas": "true"}
        reply = client.post(ROUTE, data=fields, files={"file": (name, audio(0.5))})
        assert reply.text.endswith("data: [DONE]\n\n")
        assert not any(part in reply.text for part in ("passwd", "<script", "Evil"))
    check_unharmed(app, address, private)


def test_audio_that_is_no_more_than_a_bomb_is_refused(app: FastAPI, address: str, private: Path) -> None:
    content = silence(700.0)
    with openai_client(address) as client, pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(model="small", file=("a.flac", content))
    assert refusal(refused.value.response.json())["code"] == "audio_too_long"
    check_unharmed(app, address, private)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return hmac.compare_digest(given, right)

    monkeypatch.setattr(auth, "hmac", type("Spy", (), {"compare_digest": staticmethod(compare)}))
    for given in ("first", "second", "wrong", "", "ключ"):
        compared.clear()
        assert auth.is_key(given, ("first", "second")) == (given in ("first", "second"))
        assert [right for _, right in compared] == [b"first", b"second"]  # all of them, whatever is found
