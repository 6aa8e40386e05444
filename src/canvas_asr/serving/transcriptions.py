"""``POST /v1/audio/transcriptions``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, BinaryIO

from fastapi import APIRouter, Request, Response
from starlette.datastructures import FormData, State, UploadFile
from starlette.exceptions import HTTPException

from ..errors import CanvasASRError
from ..result import Transcript
from ..scheduling.jobs import Failed
from ..scheduling.scheduler import Busy
from .auth import DOCUMENTED_KEY
from .diarization import DiarizerClosed, KeptUpload
from .errors import RequestError
from .events import EventStream, TranscriptEvents
from .fields import form_schema, invalid, missing
from .form import Served, TranscriptionRequest, read_request
from .responses import transcription_response, write_apart
from .work import Arrival, Work, full, raise_failure, stopping

MAX_FIELDS = 2048
MAX_FIELD_BYTES = 64 << 10
FIRST_EVENT_S = 10.0  # within these, what goes wrong with a stream is told by its status
_FORM = "multipart/form-data"
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The transcript, in the format that was asked for, or events."},
    400: {"description": "A parameter or the audio cannot be used; `param` names the field."},
    401: {"description": "An API key is missing or wrong."},
    403: {"description": "A page of another host sent it, and the server has no keys."},
    404: {"description": "There is no such model here."},
    408: {"description": "The body took too long to arrive."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is no form."},
    421: {"description": "It is for another host than a server without keys answers for."},
    429: {"description": "The queue is full; `Retry-After` says when to try again."},
    500: {"description": "The server failed; its log has more under the reply's `X-Request-ID`."},
    503: {
        "description": "The server is being stopped (`server_stopping`), or its decoders are all at work "
        "(`server_busy`); `Retry-After` says when to try again."
    },
    504: {"description": "The work took too long and was given up."},
}

router = APIRouter(tags=["audio"], dependencies=[DOCUMENTED_KEY])


@router.post(
    "/v1/audio/transcriptions",
    summary="Transcribe audio",
    responses=_RESPONSES,
    openapi_extra={"requestBody": form_schema()},
)
async def create_transcription(request: Request) -> Response:
    """Transcribe one file.

    The form, the replies and the events of a stream are OpenAI's; fields of this server's own say so.
    """
    state = request.app.state
    work, asked = await _begin(request, state)
    finish = partial(_finish, state, work, asked)
    try:
        if asked.stream:
            first = await work.next(FIRST_EVENT_S)
            if isinstance(first, Failed):
                raise_failure(first.error)
            steps = state.transcriber.decoder.resolve(asked.decoding).steps
            return EventStream(work, TranscriptEvents(asked, steps), first, finish, request.state.request_id)
        transcript = await finish(await work.transcript())
    except BaseException:
        work.release()
        raise
    work.release()
    return await write_apart(transcript, partial(transcription_response, transcript, asked))


async def _finish(
    state: State, work: Work, asked: TranscriptionRequest, transcript: Transcript
) -> Transcript:
    """Tell speakers apart, where that was asked for.

    Raises:
        RequestError: If that takes too long.
        ClientDisconnect: If the client is gone.
        RuntimeError: If the server's callable for it failed.
    """
    upload = work.upload
    if not asked.tells_speakers or not isinstance(upload, KeptUpload):
        return transcript
    try:
        return await work.within(state.diarizer.join(transcript, upload))
    except DiarizerClosed as error:
        raise_failure(error)


async def _begin(request: Request, state: State) -> tuple[Work, TranscriptionRequest]:
    """Look at a request before its body is read, and go on with those that are let in.

    Raises:
        RequestError: If it is refused.
    """
    if state.is_draining:
        raise stopping()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body has to be a form, {_FORM}, with the parts file and model.",
            code="unsupported_media_type",
        )
    with state.admission.arriving() as arrival:
        return await _queue(request, state, arrival)


async def _queue(request: Request, state: State, arrival: Arrival) -> tuple[Work, TranscriptionRequest]:
    """Receive a form, and have its audio decoded and queued.

    Raises:
        RequestError: If it is refused.
    """
    async with _form(request) as form:
        arrival.is_whole = True
        asked, file = _read(form, state.served)
        work = Work(request.receive, state.settings.request_timeout_s, state.admission)
        try:
            if asked.tells_speakers:
                _take_place(work, state)
            start = partial(_start, state, work, asked, file)
            await asyncio.get_running_loop().run_in_executor(state.starters, start)
        except Busy as error:
            work.release()
            if state.is_draining:
                raise stopping() from error
            raise full(error.retry_after_s) from error
        except CanvasASRError as error:
            work.release()
            raise_failure(error)
        except BaseException:
            work.release()
            raise
    return work, asked


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """Receive the form; what it spools to disk has no name there, and is gone with it.

    Raises:
        RequestError: If it is malformed.
    """
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except HTTPException as error:
        message = f"The form cannot be read: {error.detail}"
        raise RequestError(HTTPStatus.BAD_REQUEST, message, code="invalid_form") from error
    try:
        yield form
    finally:
        await form.close()


def _read(form: FormData, served: Served) -> tuple[TranscriptionRequest, BinaryIO]:
    """Take a form apart.

    Raises:
        RequestError: If a field is missing or cannot be used.
    """
    texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    files = {name: value for name, value in form.multi_items() if isinstance(value, UploadFile)}
    asked = read_request(texts, served)
    if others := files.keys() - {"file"}:
        raise invalid(min(others), "it is a file part; the audio is sent as file, and all else as text.")
    if "file" not in files:
        raise missing("file", "send the audio as a file part of the form.")
    if not files["file"].size:
        raise invalid("file", "it is empty (0 bytes); send the audio itself.")
    return asked, files["file"].file


def _take_place(work: Work, state: State) -> None:
    """Have samples kept for one more request; its work is released when there is no place.

    Raises:
        RequestError: If there is none.
    """
    if not state.diarizer.enter():
        raise full(state.scheduler.retry_after_s())
    work.at_end(state.diarizer.leave)


def _start(state: State, work: Work, asked: TranscriptionRequest, file: BinaryIO) -> None:
    """Decode the audio as far as is done at once, and queue it; blocks."""
    if not work.is_wanted:  # by now, behind others that were decoded: who waits for its events is told why
        return
    upload = state.decoders.open(file, max_audio_s=state.settings.max_audio_s)
    try:
        if asked.tells_speakers:
            upload = KeptUpload(upload)
        job = state.scheduler.submit(
            upload,
            asked.decoding,
            work.on_event,
            vad=asked.vad,
            shows_passes=asked.canvas,
            wants_segments=asked.stream,
        )
    except BaseException:
        upload.close()
        raise
    work.hold(upload, job)
