"""``/v1/live`` on a real server, through a real WebSocket client."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi import FastAPI
from running_server import http_client, running
from small_models import small_model, small_processor
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from canvas_asr import Transcriber, load_audio
from canvas_asr.scheduling.jobs import Failed
from canvas_asr.serving.app import create_app
from canvas_asr.serving.settings import ServerSettings

RATE_HZ = 16_000
EXAMPLES = Path(__file__).parents[2] / "examples"
END = json.dumps({"type": "end"})
# The draft alone is quick: texts of a random model fill its canvas, and are read again and again.
DECODING = {"steps": 0, "init": "draft"}
SETTINGS: dict[str, Any] = {
    "model_names": ("small",),
    "decode_workers": 1,
    "max_audio_s": 30.0,
    "max_batch": 3,
    **DECODING,
}


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    """Takes clips of 5 s, and of longer audio chunks."""
    transcriber = Transcriber(small_model(), small_processor())
    transcriber.max_audio_s = 5.0
    return transcriber


@pytest.fixture(scope="module")
def app(asr: Transcriber) -> FastAPI:
    return create_app(asr, ServerSettings(**SETTINGS))


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def impatient(asr: Transcriber) -> Iterator[str]:
    settings = {**SETTINGS, "max_batch": 1, "max_audio_s": 4.0, "upload_timeout_s": 1.5}
    with running(create_app(asr, ServerSettings(**settings))) as address:
        yield address


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two sentences with pauses around them, 16-bit."""
    sentence, pause = load_audio(EXAMPLES / "en.flac"), np.zeros(RATE_HZ, np.float32)
    joined = np.concatenate([pause, sentence, pause, pause, sentence, pause])
    return (joined * 32767).astype(np.int16)


def open_live(address: str, query: str = "", **options: Any) -> ClientConnection:
    url = f"{address.replace('http', 'ws', 1)}/v1/live{query}"
    return connect(url, proxy=None, open_timeout=60, **options)


def told(live: ClientConnection) -> list[dict[str, Any]]:
    """All messages until the connection is closed."""
    messages = []
    while True:
        try:
            messages.append(json.loads(live.recv(timeout=60)))
        except ConnectionClosed:
            return messages


def say(live: ClientConnection, samples: np.ndarray, seed: int = 0) -> None:
    """Send samples in messages of any length, and the end."""
    rng = np.random.default_rng(seed)
    at = 0
    while at < len(samples):
        n_samples = int(rng.integers(0, 8000))
        live.send(samples[at : at + n_samples].astype("<i2").tobytes())
        at += n_samples
    live.send(END)


def error_of(live: ClientConnection) -> dict[str, Any]:
    """The last message, which has to be an error in OpenAI's shape."""
    last = told(live)[-1]
    assert last["type"] == "error"
    assert set(last["error"]) == {"message", "type", "param", "code"}
    return dict(last["error"])


def code_of(live: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        live.recv(timeout=60)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


# What it gives


@pytest.mark.parametrize(("seconds", "query"), [(3.0, ""), (9.5, ""), (3.0, "?vad=true")])
def test_the_text_is_the_files(
    address: str, asr: Transcriber, speech: np.ndarray, seconds: float, query: str
) -> None:
    samples = speech[: round(seconds * RATE_HZ)]
    with open_live(address, query) as live:
        say(live, samples)
        messages = told(live)
        assert code_of(live) == 1000
    kinds = [message["type"] for message in messages]
    assert kinds[0] == "ready"
    assert kinds[-1] == "transcript.done"
    assert set(kinds[1:-1]) <= {"transcript.draft", "transcript.stable"}
    stable = [message for message in messages if message["type"] == "transcript.stable"]
    done = messages[-1]
    assert "".join(message["text"] for message in stable) == done["text"]
    file = asr.transcribe((samples, RATE_HZ), vad=True if query else None, **DECODING)
    assert file.text
    assert done["text"] == file.text
    assert done["audio_s"] == file.audio_s
    assert [(m["start"], m["end"]) for m in stable] == [(one.start, one.end) for one in file.segments]
    assert "tokens" not in done
    assert "file" not in done


def test_the_text_is_that_of_an_upload(address: str, speech: np.ndarray) -> None:
    rate_hz = 24_000
    noise = np.random.default_rng(0).normal(0, 3000, 4 * rate_hz).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, noise, rate_hz, format="WAV", subtype="PCM_16")
    with http_client(address) as client:
        reply = client.post(
            "/v1/audio/transcriptions", data={"model": "small"}, files={"file": file.getvalue()}
        )
    with open_live(address, f"?sample_rate={rate_hz}") as live:
        say(live, noise, seed=1)
        done = told(live)[-1]
    assert done["text"] == reply.json()["text"]
    assert done["text"]


def test_drafts_come_while_it_is_spoken(address: str, speech: np.ndarray) -> None:
    with open_live(address) as live:
        assert json.loads(live.recv(timeout=60)) == {"type": "ready"}
        live.send(speech[: 3 * RATE_HZ].tobytes())
        draft = json.loads(live.recv(timeout=60))  # nothing but a draft can come before the end
        live.send(END)
        told(live)
    assert set(draft) == {"type", "text"}
    assert draft["type"] == "transcript.draft"
    assert draft["text"]


def test_silence_has_no_text(address: str) -> None:
    with open_live(address, "?vad=true") as live:
        say(live, np.zeros(3 * RATE_HZ, np.int16))
        messages = told(live)
    assert [message["type"] for message in messages] == ["ready", "transcript.done"]
    assert messages[-1]["text"] == ""


# What it refuses


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?language=xx", "language"),
        ("?language=%00", "language"),
        ("?sample_rate=fast", "sample_rate"),
        ("?sample_rate=", "sample_rate"),
        ("?sample_rate=100", "sample_rate"),
        ("?sample_rate=9999999", "sample_rate"),
        ("?sample_rate=8000&sample_rate=16000", "sample_rate"),
        ("?vad=maybe", "vad"),
        ("?lang=en", "'lang'"),
    ],
)
def test_a_bad_address_names_the_parameter(address: str, query: str, param: str) -> None:
    with open_live(address, query) as live:
        error = error_of(live)
        assert code_of(live) == 1008
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_value"


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ("hello", 1003, "invalid_message"),
        ('{"type": "start"}', 1003, "invalid_message"),
        ("[" * 100_000, 1003, "invalid_message"),
        ("", 1003, "invalid_message"),
        (b"\0\0\0", 1003, "invalid_audio"),
        (END, 1008, "invalid_audio"),
    ],
)
def test_a_bad_message_ends_the_connection(
    address: str, message: str | bytes, code: int, reason: str
) -> None:
    with open_live(address) as live:
        live.send(message)
        error = error_of(live)
        assert code_of(live) == code
    assert error["code"] == reason
    assert error["type"] == "invalid_request_error"


def test_who_sends_nothing_or_too_much_is_sent_away(impatient: str) -> None:
    with open_live(impatient) as live:
        assert error_of(live)["code"] == "timeout"
        assert code_of(live) == 1008
    with open_live(impatient) as live:
        live.send(bytes(2 * RATE_HZ * 5))
        assert error_of(live)["code"] == "audio_too_long"
        assert code_of(live) == 1008


def test_who_trickles_does_not_keep_the_place(impatient: str) -> None:
    with open_live(impatient) as live:
        live.recv(timeout=60)
        started = time.monotonic()
        while time.monotonic() < started + 30:
            try:
                live.send(b"")
            except ConnectionClosed:
                break
            time.sleep(0.1)
        assert error_of(live)["code"] == "timeout"
        assert code_of(live) == 1008
    assert 3.0 < time.monotonic() - started < 25


def test_a_full_server_says_so_and_a_disconnect_makes_room(
    address: str, app: FastAPI, speech: np.ndarray
) -> None:
    with ExitStack() as stack:
        lives = [stack.enter_context(open_live(address)) for _ in range(3)]
        for live in lives:
            assert json.loads(live.recv(timeout=60))["type"] == "ready"
            live.send(speech[: 2 * RATE_HZ].tobytes())
        with open_live(address) as live:
            error = error_of(live)
            assert code_of(live) == 1013
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        lives[0].socket.close()  # without a word
    deadline = time.monotonic() + 10
    while app.state.n_live or app.state.scheduler.stats.queued or app.state.scheduler.stats.working:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with open_live(address) as live:
        say(live, speech[: 2 * RATE_HZ])
        assert told(live)[-1]["type"] == "transcript.done"


def test_what_breaks_is_told_without_what_it_was(
    address: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit = app.state.scheduler.submit

    def fail(source: Any, options: Any, on_event: Any, **settings: Any) -> Any:
        on_event(Failed(RuntimeError("/secret/path")))
        return submit(source, options, lambda event: None, **settings)

    monkeypatch.setattr(app.state.scheduler, "submit", fail)
    with open_live(address) as live:
        error = error_of(live)
        assert code_of(live) == 1011
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in error["message"]
    assert "secret" in caplog.text


def test_pages_of_other_hosts_are_refused(address: str) -> None:
    with open_live(address, origin="http://example.org") as live:
        assert error_of(live)["code"] == "origin_not_allowed"
        assert code_of(live) == 1008
    with open_live(address, origin=address) as live:
        assert json.loads(live.recv(timeout=60)) == {"type": "ready"}


def test_keys_come_in_a_header_or_as_browsers_send_them(asr: Transcriber) -> None:
    settings = ServerSettings(**SETTINGS, api_keys=("right",))
    key = "openai-insecure-api-key."
    with running(create_app(asr, settings)) as address:
        for options in ({}, {"additional_headers": {"Authorization": "Bearer wrong"}}):
            with pytest.raises(InvalidStatus) as refused, open_live(address, **options):
                pass
            assert refused.value.response.status_code == 401
        with open_live(address, additional_headers={"Authorization": "Bearer right"}) as live:
            assert json.loads(live.recv(timeout=60)) == {"type": "ready"}
        # Elsewhere keys tell who may connect, and the page's host does not matter.
        offered = {"subprotocols": ["canvas-live", f"{key}right"], "origin": "http://example.org"}
        with open_live(address, **offered) as live:
            assert live.subprotocol == "canvas-live"
            assert json.loads(live.recv(timeout=60)) == {"type": "ready"}


def test_a_server_that_stops_says_so(asr: Transcriber, speech: np.ndarray) -> None:
    with ExitStack() as stack:
        with running(create_app(asr, ServerSettings(**SETTINGS))) as address:
            live = stack.enter_context(open_live(address))
            live.recv(timeout=60)
            live.send(speech[:RATE_HZ].tobytes())
            started = time.monotonic()
        assert time.monotonic() - started < 20
        told(live)
        assert code_of(live) == 1012
