"""What the server refuses: status, body in OpenAI's shape, and the exception of OpenAI's own client."""

from __future__ import annotations

import io
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from running_server import http_client, openai_client, running
from small_models import small_model, small_processor

from canvas_asr import Segment, Transcriber, Transcript
from canvas_asr.errors import AudioError
from canvas_asr.serving.app import create_app
from canvas_asr.serving.jobs import Event, Failed, Finished, JobCancelled, Progressed, SegmentReady
from canvas_asr.serving.scheduler import Busy, Job, SchedulerStats
from canvas_asr.serving.settings import ServerSettings
from canvas_asr.serving.uploads import DecoderStats

ROOT = Path(__file__).parents[2]
ROUTE = "/v1/audio/transcriptions"
SETTINGS = ServerSettings(model_names=("small",), decode_workers=1, max_audio_s=4.0)


def wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(round(seconds * 8000), np.float32), 8000, format="WAV")
    return file.getvalue()


AUDIO = ("secret-name.wav", wav())


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return Transcriber(small_model(), small_processor())


@pytest.fixture(scope="module")
def address(asr: Transcriber) -> Iterator[str]:
    with running(create_app(asr, SETTINGS)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai_client(address) as client:
        yield client


class ScriptedScheduler:
    """Tells every job's events as a test wrote them, and notes what it was asked for."""

    stats = SchedulerStats()

    def __init__(self, *events: Event, refusal: Exception | None = None) -> None:
        self.events = events
        self.refusal = refusal
        self.jobs: list[Job] = []

    def start(self) -> None: ...

    def submit(self, _source: Any, _options: Any, on_event: Callable[[Event], None], **_: Any) -> Job:
        if self.refusal is not None:
            raise self.refusal
        for event in self.events:
            on_event(event)
        self.jobs.append(ScriptedJob(len(self.jobs) + 1))
        return self.jobs[-1]

    def close(self, drain_s: float) -> bool:
        return drain_s >= 0


class ScriptedJob(Job):
    is_cancelled = False

    def __init__(self, number: int) -> None:
        self.id = number

    def cancel(self) -> None:
        self.is_cancelled = True


class NoDecoders:
    """Stands in for the processes that decode, where no audio matters."""

    stats = DecoderStats()

    def start(self) -> None: ...

    def close(self) -> None: ...

    def open(self, *_: Any, **__: Any) -> NoDecoders:
        return self


@contextmanager
def scripted(
    asr: Transcriber, *events: Event, refusal: Exception | None = None, **settings: Any
) -> Iterator[tuple[str, ScriptedScheduler]]:
    app = create_app(asr, ServerSettings(model_names=("small",), **settings))
    app.state.decoders = NoDecoders()
    app.state.scheduler = scheduler = ScriptedScheduler(*events, refusal=refusal)
    with running(app) as address:
        yield address, scheduler


def transcript(text: str) -> Transcript:
    segment = Segment(0.0, 0.5, text, "en", 1.0, (), 0.9, 1)
    return Transcript(text, "en", 1.0, (), 0.9, 1, 0.5, 0.1, segments=(segment,))


def create(client: openai.OpenAI, **options: Any) -> Any:
    return client.audio.transcriptions.create(**{"model": "small", "file": AUDIO} | options)


def post(address: str, fields: Any, file: Any = AUDIO) -> tuple[int, dict[str, Any]]:
    with http_client(address) as client:
        reply = client.post(ROUTE, data=fields, files={"file": file} if file else None)
    return reply.status_code, refusal(reply.json())


def refusal(body: dict[str, Any]) -> dict[str, Any]:
    """The error in a body, which has OpenAI's four keys, a sentence, and nothing of ours."""
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"][0].isalnum()
    assert error["message"].endswith(".")
    assert error["code"]
    for secret in ("secret-name", "Traceback", ".py", "/tmp", str(ROOT)):
        assert secret not in json.dumps(body)
    return error


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("response_format", "xml"),
        ("response_format", "diarized_json"),
        ("temperature", "1.01"),
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("temperature", "1e999"),
        ("temperature", "warm"),
        ("language", "english"),
        ("language", "xx"),
        ("languages[]", "xx"),
        ("timestamp_granularities[]", "char"),
        ("timestamp_granularities[]", "word"),  # without verbose_json
        ("include[]", "tokens"),
        ("stream", "perhaps"),
        ("canvas", "true"),  # without stream
        ("chunking_strategy", "fast"),
        ("chunking_strategy", "[" * 5000),
        ("chunking_strategy", '{"type":"server_vad","threshold":0.2}'),
        ("chunking_strategy[threshold]", "0.2"),
        ("chunking_strategy[type]", "client_vad"),
        ("steps", "0"),  # but with init=draft
        ("steps", "65"),
        ("steps", "2.5"),
        ("steps", "1" * 5000),
        ("steps", "٣"),
        ("init", "blank"),
        ("seed", "-1"),
        ("seed", str(2**63)),
        ("keywords[]", "!"),
        ("keywords[]", "w" * 101),
        ("prompt", "Names: Ada"),  # the model was trained without
        ("known_speaker_names[]", "Ada"),
        ("hotwords", "Ada"),
        ("model[]", "small"),
        ("nonsense", "1"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(address: str, param: str, value: str) -> None:
    status, error = post(address, {"model": "small", param: value})
    assert status == 400
    name = param if param == "model[]" else param.partition("[")[0]
    assert error["param"] == name
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("invalid_value", "unknown_parameter")
    assert name.partition("[")[0] in error["message"]
    assert len(error["message"]) < 400


def test_options_that_do_not_go_together_are_refused(address: str) -> None:
    def param(**fields: Any) -> Any:
        status, error = post(address, {"model": "small", **fields})
        assert status == 400
        return error["param"]

    assert param(stream="true", response_format="srt") == "response_format"
    assert param(**{"include[]": "logprobs", "response_format": "verbose_json"}) == "include"
    assert param(**{"language": "de", "languages[]": "en"}) == "languages"
    assert param(**{"languages[]": ["de", "en"]}) == "languages"
    assert param(temperature=["0", "1"]) == "temperature"


def test_an_empty_value_is_one_that_is_not_given(address: str) -> None:
    with http_client(address) as client:
        fields = {"model": "small", "language": "", "prompt": "", "temperature": " "}
        assert client.post(ROUTE, data=fields, files={"file": AUDIO}).status_code == 200


def test_bad_requests_are_exceptions_of_openais_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, temperature=7)
    assert bad.value.param == "temperature"
    assert bad.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError) as unknown:
        create(client, model="whisper-1")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("owner/other")
    assert unknown.value.code == "model_not_found"
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.NotFoundError) as translation,
    ):
        client.audio.translations.create(model="small", file=AUDIO)
    assert translation.value.code == "not_offered"
    assert "Translation" in str(translation.value)


def test_a_missing_part_is_named(address: str) -> None:
    assert post(address, {}, AUDIO)[1]["param"] == "model"
    status, _ = post(address, {"model": "small", "file": "text"}, None)
    assert status == 415  # no part is a file: the client sends no form of parts
    with http_client(address) as client:
        for parts, param in (
            ({"model": (None, "small")}, "file"),
            ({"model": (None, "small"), "file": (None, "text")}, "file"),
            ({"model": ("model.txt", "small")}, "model"),
            ({"model": (None, "small"), "audio": AUDIO}, "audio"),
        ):
            reply = client.post(ROUTE, files=parts)
            assert reply.status_code == 400
            assert refusal(reply.json())["param"] == param
        reply = client.post(ROUTE, data={"model": "small"}, files=[("file", AUDIO), ("file", AUDIO)])
        assert reply.status_code == 400
        assert refusal(reply.json())["code"] == "invalid_form"


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("secret-name.wav", b"", "invalid_value"),
        ("secret-name.wav", b"Just a text, whatever its name says.", "invalid_audio"),
        ("secret-name.wav", (ROOT / "docs" / "watching.png").read_bytes(), "invalid_audio"),
        ("secret-name.wav", wav()[:40], "invalid_audio"),
        ("secret-name.wav", wav(0.0), "invalid_audio"),
        ("secret-name.mp3", b"ID3\x04" + bytes(200), "invalid_audio"),
        ("secret-name.wav", wav(4.5), "audio_too_long"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_audio_that_cannot_be_used(
    client: openai.OpenAI, name: str, data: bytes, code: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, file=(name, data), stream=stream)
    error = refusal(bad.value.response.json())
    assert (error["param"], error["code"]) == ("file", code)


def test_what_is_no_form_is_refused(address: str) -> None:
    with http_client(address) as client:
        reply = client.post(ROUTE, json={"model": "small", "file": "talk.wav"})
        assert reply.status_code == 415
        assert "multipart/form-data" in refusal(reply.json())["message"]
        for content_type, body in (
            ("multipart/form-data", b"--x--"),
            ("multipart/form-data; boundary=x", b"no boundary in it"),
            ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--"),
        ):
            reply = client.post(ROUTE, content=body, headers={"Content-Type": content_type})
            assert reply.status_code == 400
            refusal(reply.json())


def test_routes_and_methods_that_are_not_there(address: str) -> None:
    with http_client(address) as client:
        assert refusal(client.get("/v1/nothing").json())["code"] == "not_found"
        reply = client.get(ROUTE)
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        assert refusal(reply.json())["code"] == "method_not_allowed"
        assert client.get("/docs").status_code == 404  # FastAPI's page loads scripts of another host


def test_a_wrong_key_and_no_key(asr: Transcriber) -> None:
    with scripted(asr, api_keys=("right",)) as (address, _):
        for key in ("wrong", "righ", "rightt", "Right"):
            with openai_client(address, key) as client, pytest.raises(openai.AuthenticationError) as refused:
                create(client)
            assert refused.value.status_code == 401
            assert refused.value.code == "invalid_api_key"
            assert key not in refused.value.response.text
        with http_client(address) as client:
            for header in ("", "Bearer", "Basic right", "right", "Bearer \xff".encode("latin-1")):
                reply = client.get("/v1/models", headers={"Authorization": header})
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                refusal(reply.json())
            assert client.get("/v1/nothing").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": "bearer right"}).status_code == 200


def test_a_full_queue_is_told_with_a_time_to_come_again(asr: Transcriber) -> None:
    with scripted(asr, refusal=Busy(7)) as (address, _), openai_client(address) as client:
        with pytest.raises(openai.RateLimitError) as busy:
            create(client)
        assert busy.value.response.headers["retry-after"] == "7"
        assert refusal(busy.value.response.json())["code"] == "queue_full"


def test_a_server_that_is_being_stopped_says_so(asr: Transcriber) -> None:
    app = create_app(asr, ServerSettings(model_names=("small",)))
    app.state.decoders = NoDecoders()
    with running(app) as address, openai_client(address) as client:
        app.state.is_draining = True
        with pytest.raises(openai.InternalServerError) as stopping:
            create(client)
        assert stopping.value.status_code == 503
        assert int(stopping.value.response.headers["retry-after"]) >= 1
        assert refusal(stopping.value.response.json())["code"] == "server_stopping"
        with http_client(address) as anybody:
            assert anybody.get("/health").status_code == 503


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("stream", [False, True])
def test_work_that_takes_too_long_is_given_up(asr: Transcriber, stream: bool) -> None:
    with scripted(asr, request_timeout_s=0.3) as (address, scheduler), openai_client(address) as client:
        with pytest.raises(openai.InternalServerError) as late:
            create(client, stream=stream)
        assert late.value.status_code == 504
        assert refusal(late.value.response.json())["code"] == "timeout"
        (job,) = scheduler.jobs
        assert job.is_cancelled


def test_a_stream_that_takes_too_long_ends_with_an_error(asr: Transcriber) -> None:
    with (
        scripted(asr, Progressed(0.1, 0.5), request_timeout_s=0.5) as (address, scheduler),
        openai_client(address) as client,
        create(client, stream=True) as stream,
    ):
        with pytest.raises(openai.APIError, match=r"more than 0\.5 s"):
            list(stream)
        assert wait_until(lambda: scheduler.jobs[0].is_cancelled)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_frees_its_place(asr: Transcriber, stream: str) -> None:
    with scripted(asr, Progressed(0.1, 0.5), max_batch=1, max_queue=0) as (address, scheduler):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            with http_client(address) as client:
                fields = {"model": "small", "stream": stream}
                request = client.build_request("POST", ROUTE, data=fields, files={"file": AUDIO})
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            connection.sendall(f"POST {ROUTE} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            assert wait_until(lambda: len(scheduler.jobs) == 1)
            with openai_client(address) as client, pytest.raises(openai.RateLimitError) as full:
                create(client)
            assert refusal(full.value.response.json())["code"] == "queue_full"
        assert wait_until(lambda: scheduler.jobs[0].is_cancelled, 1.0)
        scheduler.events = (Finished(transcript("")),)
        with openai_client(address) as client:
            assert create(client).text == ""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (AudioError("the audio cannot be decoded: it ends in noise"), openai.BadRequestError, 400),
        (JobCancelled("the job was cancelled."), openai.InternalServerError, 503),
    ],
)
def test_a_job_that_fails(
    asr: Transcriber, error: Exception, kind: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    with scripted(asr, Failed(error)) as (address, _), openai_client(address) as client:
        with pytest.raises(kind) as failed:
            create(client, stream=stream)
        assert failed.value.status_code == status
        refusal(failed.value.response.json())


def test_a_failure_within_a_stream_is_an_event(asr: Transcriber) -> None:
    (segment,) = transcript("Half of it").segments
    error = AudioError("the audio cannot be decoded: it ends in noise")
    with scripted(asr, SegmentReady(segment), Failed(error)) as (address, _):
        with openai_client(address) as client, create(client, stream=True) as stream:
            delta = next(stream)
            assert delta.delta == "Half of it"
            with pytest.raises(openai.APIError, match="ends in noise"):
                next(stream)
        with http_client(address) as client:
            reply = client.post(ROUTE, data={"model": "small", "stream": "true"}, files={"file": AUDIO})
    *_, last, end = reply.text.split("\n\n")
    assert end == ""
    assert refusal(json.loads(last.removeprefix("data: ")))["code"] == "invalid_audio"


def test_an_error_that_nobody_foresaw_is_a_number_outside_and_a_traceback_inside(
    asr: Transcriber, caplog: pytest.LogCaptureFixture
) -> None:
    failure = Failed(ZeroDivisionError("/home/secret-name/model.py"))
    with scripted(asr, failure) as (address, _), openai_client(address) as client:
        with caplog.at_level(logging.ERROR), pytest.raises(openai.InternalServerError) as failed:
            create(client)
        assert failed.value.status_code == 500
        error = refusal(failed.value.response.json())
        number = failed.value.response.headers["x-request-id"]
        assert number in error["message"]
        (record,) = (record for record in caplog.records if number in record.getMessage())
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError
