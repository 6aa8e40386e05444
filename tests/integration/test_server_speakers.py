"""``diarized_json``: who spoke when, as the callable of whoever runs the server tells it."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile
from openai import OpenAI
from openai.types.audio import TranscriptionDiarized, TranscriptionTextSegmentEvent
from running_server import http_client, openai_client, running, until

import canvas_asr
from canvas_asr import Transcriber
from canvas_asr.errors import OptionError
from canvas_asr.serving.app import create_app
from canvas_asr.serving.diarization import load_diarizer
from canvas_asr.serving.settings import ServerSettings
from canvas_asr.speakers import Diarize, join_speakers

SPEECH = Path(__file__).parents[2] / "examples" / "en.flac"
RATE = 16_000
ROUTE = "/v1/audio/transcriptions"
Turns = list[tuple[float, float, str]]


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return canvas_asr.load("tiny", device="cpu")


@contextmanager
def serving(asr: Transcriber, diarize: Diarize, **settings: float) -> Iterator[OpenAI]:
    chosen = ServerSettings(model_names=("tiny",), decode_workers=1, steps=1, **settings)  # type: ignore[arg-type]
    with running(create_app(asr, chosen, diarize=diarize)) as address, openai_client(address) as client:
        yield client


def speech() -> np.ndarray:
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    assert rate == RATE
    return samples


def wav(samples: np.ndarray) -> tuple[str, bytes]:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return "audio.wav", file.getvalue()


def halves(samples: np.ndarray, rate: int) -> Turns:
    """The first half is Ann's, the second Ben's."""
    end = len(samples) / rate
    return [(0.0, end / 2, "Ann"), (end / 2, end, "Ben")]


def diarized(client: OpenAI, file: object = SPEECH) -> TranscriptionDiarized:
    reply = client.audio.transcriptions.create(
        model="tiny",
        file=file,  # type: ignore[arg-type]
        response_format="diarized_json",
    )
    assert isinstance(reply, TranscriptionDiarized)
    return reply


def test_segments_have_the_speakers_that_the_callable_tells(asr: Transcriber) -> None:
    with serving(asr, halves) as client:
        reply = diarized(client)
    samples = speech()
    expected = join_speakers(
        asr.transcribe(samples, sample_rate_hz=RATE, steps=1, word_timestamps=True), halves(samples, RATE)
    )
    TranscriptionDiarized.model_validate_json(reply.model_dump_json())
    assert (reply.task, reply.text) == ("transcribe", expected.text)
    assert reply.duration == pytest.approx(len(samples) / RATE, abs=1e-3)
    assert reply.usage is not None
    assert reply.usage.type == "duration"
    assert [segment.speaker for segment in reply.segments] == ["Ann", "Ben"]
    assert [segment.id for segment in reply.segments] == ["seg_001", "seg_002"]
    assert [(s.text, s.start, s.end) for s in reply.segments] == [
        (s.text, pytest.approx(s.start, abs=1e-3), pytest.approx(s.end, abs=1e-3)) for s in expected.segments
    ]
    assert {segment.type for segment in reply.segments} == {"transcript.text.segment"}


def test_the_callable_is_given_every_sample_of_a_long_file(asr: Transcriber) -> None:
    long = np.concatenate([np.concatenate([speech(), np.zeros(2 * RATE, np.float32)])] * 3)
    given: list[np.ndarray] = []

    def note(samples: np.ndarray, rate: int) -> Turns:
        given.append(np.array(samples))
        samples[:] = 0.0  # who works in place harms nobody
        return halves(samples, rate)

    with serving(asr, note) as client:
        reply = diarized(client, wav(long))
        again = diarized(client, wav(long))
    for samples in given:
        np.testing.assert_allclose(samples, long, atol=1e-6)
    assert len(reply.segments) >= 3
    assert {segment.speaker for segment in reply.segments} == {"Ann", "Ben"}
    assert reply == again


def test_a_stream_sends_the_segments_before_its_end(asr: Transcriber) -> None:
    with serving(asr, halves) as client:
        whole = diarized(client)
        events = list(
            client.audio.transcriptions.create(
                model="tiny", file=SPEECH, response_format="diarized_json", stream=True
            )
        )
    segments = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
    assert [event.to_dict() for event in segments] == [segment.to_dict() for segment in whole.segments]
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole.text
    assert [event.type for event in events[: -1 - len(segments)]] == ["transcript.text.delta"]


def test_a_segment_in_nobodys_turn_is_of_an_unknown_speaker(asr: Transcriber) -> None:
    with serving(asr, lambda *_: []) as client:
        assert [segment.speaker for segment in diarized(client).segments] == ["unknown"]


def test_silence_has_no_segments(asr: Transcriber) -> None:
    with serving(asr, halves) as client:
        reply = diarized(client, wav(np.zeros(RATE, np.float32)))
    assert (reply.text, reply.segments) == ("", [])


def test_other_formats_do_not_ask_who_spoke(asr: Transcriber) -> None:
    def fail(*_: object) -> Turns:
        raise AssertionError

    with serving(asr, fail) as client:
        assert client.audio.transcriptions.create(model="tiny", file=SPEECH).text


def no_turns(*_: object) -> Turns:
    return [(1.0, 0.0, "Ann")]


def broken(*_: object) -> Turns:
    raise RuntimeError("a secret of the server")


def out_of_time(*_: object) -> Turns:
    raise TimeoutError


def out_of_turns(*_: object) -> Turns:
    return [next(iter([]))]


def leaving(*_: object) -> Turns:
    raise SystemExit(3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_callable_that_fails_is_an_error_of_the_server(asr: Transcriber, stream: bool) -> None:
    diarize = iter([no_turns, broken, out_of_time, out_of_turns, leaving, halves])

    def ask(samples: np.ndarray, rate: int) -> Turns:
        return next(diarize)(samples, rate)  # type: ignore[no-any-return, operator]

    with serving(asr, ask) as client:
        for _ in range(5):
            with pytest.raises(openai.APIError) as caught:
                for _ in client.audio.transcriptions.create(
                    model="tiny", file=SPEECH, response_format="diarized_json", stream=stream
                ):
                    pass
            assert "secret" not in str(caught.value)
            assert caught.value.code == "internal_error"
        assert diarized(client).segments


class Slow:
    """A callable that waits until it is told to go on."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.go_on = threading.Event()

    def __call__(self, *_: object) -> Turns:
        self.n_calls += 1
        assert self.go_on.wait(60.0)
        return []


def test_a_callable_that_takes_too_long_is_given_up(asr: Transcriber) -> None:
    slow = Slow()
    with serving(asr, slow, request_timeout_s=3.0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            diarized(client)
        assert caught.value.status_code == 504
        assert client.audio.transcriptions.create(model="tiny", file=SPEECH).text
        slow.go_on.set()
        assert diarized(client).text


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_leaves_frees_its_place_and_nobody_is_asked_for_it(
    asr: Transcriber, stream: str
) -> None:
    slow = Slow()
    settings = ServerSettings(model_names=("tiny",), decode_workers=1, steps=1, max_batch=2, max_queue=0)
    app = create_app(asr, settings, diarize=slow)
    with running(app) as address, ExitStack() as stack:
        for n in (1, 2):  # the second waits for the first
            connection = stack.enter_context(socket.create_connection(address.split("/")[2].split(":")))
            connection.sendall(raw_request(address, stream))
            until(lambda n=n: app.state.admission._n_admitted == n)
        until(lambda: slow.n_calls == 1 and app.state.scheduler.stats.queued == 0)
        with openai_client(address) as other:
            with pytest.raises(openai.RateLimitError):  # both places are taken
                diarized(other)
            stack.close()
            until(lambda: app.state.admission._n_admitted == 0)
            assert other.audio.transcriptions.create(model="tiny", file=SPEECH).text
            slow.go_on.set()
            assert diarized(other).text
    assert slow.n_calls == 2


def raw_request(address: str, stream: str) -> bytes:
    fields = {"model": "tiny", "response_format": "diarized_json", "stream": stream}
    files = {"file": ("a.flac", SPEECH.read_bytes())}
    with http_client(address) as client:
        request = client.build_request("POST", ROUTE, data=fields, files=files)
        body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {ROUTE} HTTP/1.1\r\n{head}\r\n".encode() + body


def given_up(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError):
        diarized(client)


def test_only_so_many_requests_as_share_a_pass_may_ask(asr: Transcriber) -> None:
    slow = Slow()
    with serving(asr, slow, max_batch=1, max_queue=4, request_timeout_s=3.0) as client:
        waiting = threading.Thread(target=given_up, args=(client,))
        waiting.start()
        until(lambda: slow.n_calls == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            diarized(client)
        assert caught.value.response.headers["retry-after"]
        assert client.audio.transcriptions.create(model="tiny", file=SPEECH).text  # others are let in
        waiting.join()
        slow.go_on.set()
        assert diarized(client).text  # its place was given back


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_server_that_is_stopped_waits_for_no_callable(tmp_path: Path, stream: str) -> None:
    # In torch, whose threads do not bear it if the interpreter ends under them.
    (tmp_path / "slow.py").write_text(
        "import torch\n"
        "def diarize(samples, rate):\n"
        "    print('asked', flush=True)\n"
        "    layer, x = torch.nn.Linear(500, 500), torch.ones(500, 500)\n"
        "    while True:\n"
        "        x = layer(x).tanh()\n"
    )
    command = [sys.executable, "-m", "canvas_asr.cli", "serve", "--diarizer", "slow:diarize", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--drain-s", "3"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    with process, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(process.kill)
        found = None
        while not found:
            line = process.stderr.readline()
            assert line, "the server ended"
            found = re.search(r"http://[^/]+", line)
        fields = {"model": "tiny", "response_format": "diarized_json", "stream": stream}
        with http_client(found[0]) as client:
            files = {"file": ("a.flac", SPEECH.read_bytes())}
            waiting = pool.submit(client.post, ROUTE, data=fields, files=files)
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            reply = waiting.result()
        assert process.wait(60.0) == 0
        assert time.monotonic() - started < 3.0 + 20.0
        assert "Traceback" not in process.stderr.read()
    if stream == "true":
        error = json.loads(reply.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    else:
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        error = reply.json()["error"]
    assert error["code"] == "server_stopping"


def test_nothing_of_a_recording_is_held_once_it_was_asked_about(asr: Transcriber) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def fail(samples: np.ndarray, _rate: int) -> Turns:
        held = np.zeros(len(samples))
        alive.append(weakref.ref(held))
        if len(alive) == 1:
            raise RuntimeError
        return []

    with serving(asr, fail) as client:
        with pytest.raises(openai.InternalServerError):
            diarized(client)
        until(lambda: alive[0]() is None)
        assert diarized(client).text
        until(lambda: alive[1]() is None)


def test_a_callable_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "who_speaks.py").write_text("def diarize(samples, rate):\n    return []\nturns = []\n")
    (tmp_path / "fails_to_load.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    assert load_diarizer("who_speaks:diarize")(np.zeros(1, np.float32), RATE) == []
    for name, what in {
        "who_speaks": "give MODULE:FUNCTION",
        ":diarize": "give MODULE:FUNCTION",
        "nobody_has_this:diarize": "cannot be imported: No module named 'nobody_has_this'",
        "fails_to_load:diarize": "cannot be imported: division by zero",
        "leaves:diarize": "cannot be imported: 3",
        "who_speaks:turns": "has no function turns",
        "who_speaks:others": "has no function others",
    }.items():
        with pytest.raises(OptionError, match=what):
            load_diarizer(name)
