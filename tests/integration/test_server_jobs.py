"""Jobs that fail, take too long or lose their client, with a scheduler whose events tests have written."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import openai
import pytest
from running_server import http_client, openai_client, running
from scripted_server import AUDIO, ROUTE, NoDecoders, create, refusal, scripted, transcript
from small_models import small_model, small_processor
from starlette.datastructures import State
from starlette.requests import ClientDisconnect

from canvas_asr import Transcriber
from canvas_asr.errors import AudioError
from canvas_asr.scheduling.jobs import Failed, Finished, JobCancelled, Progressed, SegmentReady
from canvas_asr.scheduling.scheduler import Busy
from canvas_asr.serving import transcriptions
from canvas_asr.serving.app import create_app
from canvas_asr.serving.events import TranscriptEvents
from canvas_asr.serving.form import Served, read_request
from canvas_asr.serving.responses import LONG_S
from canvas_asr.serving.settings import ServerSettings
from canvas_asr.serving.transcriptions import _start
from canvas_asr.serving.work import Admission, Work


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return Transcriber(small_model(), small_processor())


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
    with scripted(asr, request_timeout_s=1.0) as (address, scheduler), openai_client(address) as client:
        with pytest.raises(openai.InternalServerError) as late:
            create(client, stream=stream)
        assert late.value.status_code == 504
        assert refusal(late.value.response.json())["code"] == "timeout"
        (job,) = scheduler.jobs
        assert job.is_cancelled


def test_a_stream_that_takes_too_long_ends_with_an_error(asr: Transcriber) -> None:
    with (
        scripted(asr, Progressed(0.1, 0.5), request_timeout_s=1.0) as (address, scheduler),
        openai_client(address) as client,
        create(client, stream=True) as stream,
    ):
        with pytest.raises(openai.APIError, match="more than 1 s"):
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


def test_nothing_is_decoded_for_a_client_that_left_while_it_waited() -> None:
    served = Served(("small",), (), True, ServerSettings().decoding())
    asked = read_request([("model", "small")], served)

    async def leave() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def serve() -> None:
        work = Work(leave, 60.0, Admission(1, lambda: 1))
        assert work.is_wanted
        with pytest.raises(ClientDisconnect):
            await work.transcript()
        assert not work.is_wanted
        _start(State(), work, asked, io.BytesIO())  # which has no decoders to ask
        work.release()
        late = Work(leave, 0.0, Admission(1, lambda: 1))
        assert not late.is_wanted
        late.release()

    asyncio.run(serve())


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


@pytest.mark.parametrize("is_long", [False, True])
def test_a_long_transcript_is_not_written_in_the_event_loop(
    asr: Transcriber, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    writers: list[str] = []

    def note(owner: Any, name: str) -> None:
        write = getattr(owner, name)

        def noted(*args: Any) -> Any:
            writers.append(threading.current_thread().name)
            return write(*args)

        monkeypatch.setattr(owner, name, noted)

    note(transcriptions, "transcription_response")
    note(TranscriptEvents, "_end")
    whole = replace(transcript("Hello."), audio_s=LONG_S + is_long)
    with scripted(asr, SegmentReady(whole.segments[0]), Finished(whole)) as (address, _):
        with openai_client(address) as client:
            assert create(client, response_format="srt").endswith("\nHello.\n\n")
            *_, done = create(client, stream=True)
            assert done.text == "Hello."
    assert [name.startswith("AnyIO worker") for name in writers] == [is_long] * 2


@pytest.mark.parametrize("kind", [ZeroDivisionError, OSError])
def test_an_error_that_nobody_foresaw_is_a_number_outside_and_a_traceback_inside(
    asr: Transcriber, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    failure = Failed(kind("/home/secret-name/model.py"))
    with scripted(asr, failure) as (address, _), openai_client(address) as client:
        with caplog.at_level(logging.ERROR), pytest.raises(openai.InternalServerError) as failed:
            create(client)
        assert failed.value.status_code == 500
        error = refusal(failed.value.response.json())
        number = failed.value.response.headers["x-request-id"]
        assert number in error["message"]
        (record,) = (record for record in caplog.records if number in record.getMessage())
        assert record.exc_info is not None
        assert record.exc_info[0] is kind
