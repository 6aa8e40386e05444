"""``/v1/live``: a WebSocket that takes audio as it is spoken and gives text.

    ws://127.0.0.1:8000/v1/live?language=en&sample_rate=16000

The client sends binary messages of 16-bit little-endian mono samples, then the text ``{"type": "end"}``. It
gets ``ready``; ``transcript.draft`` and ``transcript.stable`` while it speaks; ``transcript.done`` and close
code 1000 at the end. What is wrong is told by an ``error`` message and the close code. See docs/live.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, NoReturn
from uuid import uuid4

import numpy as np
from fastapi import APIRouter, WebSocket
from starlette.datastructures import QueryParams, State
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from ..audio_files import SAMPLE_RATE_HZ
from ..errors import AudioError, OptionError
from ..live import MOST_WAITING_S, DraftChanged, LiveEvent, LiveTranscriber, StableGrown
from ..result import Transcript
from ..scheduling.jobs import Failed
from ..scheduling.scheduler import Busy
from .auth import SUBPROTOCOL_PREFIX
from .errors import RequestError, unexpected
from .fields import invalid, shown
from .form import option_error
from .origins import check_origin
from .settings import ServerSettings
from .work import full, raise_failure, stopping

# Close codes of RFC 6455 and IANA's registry, by the status that a request would get; of others, 1008.
DONE, REFUSED = 1000, 1008
CLOSE_CODES = {
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: 1003,
    HTTPStatus.INTERNAL_SERVER_ERROR: 1011,
    HTTPStatus.GATEWAY_TIMEOUT: 1011,
    HTTPStatus.SERVICE_UNAVAILABLE: 1012,  # the server is being stopped
    HTTPStatus.TOO_MANY_REQUESTS: 1013,
}
PAUSE_S = 0.05  # between two looks at whether enough of the audio was read to go on
MOST_AHEAD_BYTES = 4 << 20  # received before the audio is wanted, to see behind it that the client has left
_MESSAGE_BYTES = 512  # what an empty one takes
SEND_TIMEOUT_S = 20.0  # for a client that does not read
_FLAGS = {"true": True, "false": False}

router = APIRouter()


@dataclass(frozen=True)
class LiveRequest:
    """What the address of a connection asks for.

    Attributes:
        language: Code; None: detected.
        sample_rate_hz: Of the audio.
        vad: See :class:`~canvas_asr.live.LiveTranscriber`.
    """

    language: str | None = None
    sample_rate_hz: int = SAMPLE_RATE_HZ
    vad: bool | None = None

    @classmethod
    def parse(cls, query: QueryParams) -> LiveRequest:
        """Read the parameters.

        Raises:
            RequestError: If one is unknown, given twice, or out of range.
        """
        for name, _ in query.multi_items():
            if name not in ("language", "sample_rate", "vad"):
                raise invalid(shown(name), "no parameter here; give language, sample_rate or vad.")
            if len(query.getlist(name)) > 1:
                raise invalid(name, "given twice; give it once.")
        rate, vad = query.get("sample_rate", str(SAMPLE_RATE_HZ)), query.get("vad")
        if not (rate.isascii() and rate.isdecimal() and len(rate) <= 6):
            raise invalid("sample_rate", f"{shown(rate)} is no number of Hz; give one, such as 16000.")
        if vad is not None and vad not in _FLAGS:
            raise invalid("vad", f"{shown(vad)} is neither true nor false.")
        return cls(query.get("language") or None, int(rate), None if vad is None else _FLAGS[vad])


@router.websocket("/v1/live")
async def transcribe_live(websocket: WebSocket) -> None:
    """Serve one connection."""
    await websocket.accept(_subprotocol(websocket))
    try:
        if websocket.app.state.is_draining:
            raise stopping()
        if not websocket.app.state.settings.api_keys:
            check_origin(websocket.headers)  # browsers let any page open a WebSocket
        request = LiveRequest.parse(websocket.query_params)
        with _place(websocket.app.state):
            await _Connection(websocket, request).run()
        await websocket.close(DONE)
    except WebSocketDisconnect:
        pass
    except RequestError as error:
        await _end(websocket, error)
    except Exception as error:
        await _end(websocket, unexpected(error, uuid4().hex))


def _subprotocol(websocket: WebSocket) -> str | None:
    """Choose one of those that are offered, which browsers insist on; not the one that holds the key."""
    offered: list[str] = list(websocket.scope.get("subprotocols", []))
    others = [name for name in offered if not name.startswith(SUBPROTOCOL_PREFIX)]
    return next(iter(others or offered), None)


@contextmanager
def _place(state: State) -> Iterator[None]:
    """Count the connection among those that are live: as many as clips share a pass.

    Raises:
        RequestError: If there are that many already.
    """
    n_live = getattr(state, "n_live", 0)
    if n_live >= state.settings.max_batch:
        message = f"{n_live} live connections are all that the server takes; try again later."
        raise RequestError(HTTPStatus.TOO_MANY_REQUESTS, message, code="queue_full")
    state.n_live = n_live + 1
    try:
        yield
    finally:
        state.n_live -= 1


async def _end(websocket: WebSocket, error: RequestError) -> None:
    """Tell why, and close; the client may be gone, or not read."""
    code = CLOSE_CODES.get(HTTPStatus(error.status), REFUSED)
    with suppress(WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        await asyncio.wait_for(_send(websocket, {"type": "error", **error.body()}), SEND_TIMEOUT_S)
        await asyncio.wait_for(websocket.close(code, error.code), SEND_TIMEOUT_S)


async def _send(websocket: WebSocket, message: dict[str, Any]) -> None:
    await websocket.send_text(json.dumps(message, ensure_ascii=False))


class _Connection:
    """One stream of audio and its text."""

    def __init__(self, websocket: WebSocket, request: LiveRequest) -> None:
        """Begin the transcription.

        Raises:
            RequestError: If it cannot be: nobody is free, or the request does not fit the model.
        """
        self._websocket = websocket
        self._settings: ServerSettings = websocket.app.state.settings
        self._events: asyncio.Queue[LiveEvent] = asyncio.Queue()
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._n_ahead = 0  # bytes in it
        self._gives_up_at: float | None = None  # once the client has said that it has ended
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + self._settings.max_audio_s  # live audio takes its own time
        options = replace(self._settings.decoding(), language=request.language)
        try:
            self._live = LiveTranscriber(
                websocket.app.state.scheduler,
                options,
                self._take_event,
                sample_rate_hz=request.sample_rate_hz,
                vad=request.vad,
            )
        except AudioError as error:
            raise invalid("sample_rate", f"{error}.") from error
        except OptionError as error:
            raise option_error(error) from error
        except Busy as busy:
            raise full(busy.retry_after_s) from busy

    async def run(self) -> None:
        """Take audio and give text until the end.

        Raises:
            RequestError: If the connection is to be ended.
            WebSocketDisconnect: If the client has ended it.
        """
        works = (self._receive_ahead(), self._take_audio(), self._give_text())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # a client that is gone is no error of sending
                if task in done:
                    task.result()
        finally:
            self._live.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take_event(self, event: LiveEvent) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _receive_ahead(self) -> NoReturn:
        """Receive until the client leaves: what it sends behind the end is not looked at."""
        while True:
            message = await self._receive()
            if self._gives_up_at is not None:
                continue
            data, text = message.get("bytes"), message.get("text")
            if data is None:
                self._gives_up_at = self._loop.time() + self._settings.request_timeout_s
            self._received.put_nowait(message)
            self._n_ahead += len(data or text or "") + _MESSAGE_BYTES
            while self._gives_up_at is None and self._n_ahead > MOST_AHEAD_BYTES:
                await asyncio.sleep(PAUSE_S)

    async def _take_audio(self) -> NoReturn:
        """Hand on what was received, as fast as it is read."""
        audio = self._live.audio
        while True:
            message = await self._received.get()
            data, text = message.get("bytes"), message.get("text")
            self._n_ahead -= len(data or text or "") + _MESSAGE_BYTES
            if data is None:
                self._check_end(text)
                self._live.finish()
                continue
            if len(data) % 2:
                raise RequestError(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    f"A message of {len(data)} bytes is no row of 16-bit samples; send whole samples.",
                    code="invalid_audio",
                )
            if audio.fed_s + len(data) / 2 / audio.sample_rate_hz > self._settings.max_audio_s:
                raise RequestError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The audio is longer than {self._settings.max_audio_s:g} s; connect anew to go on.",
                    code="audio_too_long",
                )
            self._live.feed(np.frombuffer(data, "<i2"))
            while audio.waiting_s > MOST_WAITING_S:
                await asyncio.sleep(PAUSE_S)

    async def _receive(self) -> Message:
        settings = self._settings
        is_ended = self._gives_up_at is not None
        limit_s = max(0.0, (self._gives_up_at or self._deadline) - self._loop.time())
        try:
            wait_s = limit_s if is_ended else min(settings.upload_timeout_s, limit_s)
            message = await asyncio.wait_for(self._websocket.receive(), wait_s)
        except asyncio.TimeoutError as error:
            if is_ended:
                told = (
                    f"The transcription took longer than {settings.request_timeout_s:g} s and was given up."
                )
                raise RequestError(HTTPStatus.GATEWAY_TIMEOUT, told, code="timeout") from error
            told = (
                f"Nothing came for {settings.upload_timeout_s:g} s, or not all in {settings.max_audio_s:g} s."
            )
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, told, code="timeout") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return message

    def _check_end(self, text: str | None) -> None:
        """Read a text message, of which there is one.

        Raises:
            RequestError: If it is another, or there was no audio.
        """
        try:
            message = json.loads(text or "")
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or message.get("type") != "end":
            raise RequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                'Audio is due: binary messages of 16-bit samples, then the text {"type": "end"}.',
                code="invalid_message",
            )
        if not self._live.audio.fed_s:
            raise RequestError(
                HTTPStatus.BAD_REQUEST, "There was no audio before the end.", code="invalid_audio"
            )

    async def _give_text(self) -> None:
        """Send what there is to tell, up to the last; of drafts that wait, the newest alone."""
        await self._tell({"type": "ready"})
        while True:
            event = await self._events.get()
            if isinstance(event, DraftChanged):
                if self._events.empty():
                    await self._tell({"type": "transcript.draft", "text": event.text})
            elif isinstance(event, StableGrown):
                segment = event.segment
                times = {"start": segment.start, "end": segment.end}
                await self._tell({"type": "transcript.stable", "text": event.text, **times})
            elif isinstance(event, Failed):
                raise_failure(event.error)
            else:
                await self._tell({"type": "transcript.done", **_fields(event.transcript)})
                return

    async def _tell(self, fields: dict[str, Any]) -> None:
        try:
            await asyncio.wait_for(_send(self._websocket, fields), SEND_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            message = f"Nothing was read for {SEND_TIMEOUT_S:g} s."
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, message, code="timeout") from error


def _fields(transcript: Transcript) -> dict[str, Any]:
    """Give what is told of a transcript: no tokens, of which an hour would be megabytes in one message."""
    fields = transcript.to_dict()
    for one in (fields, *fields["segments"]):
        del one["tokens"]
    del fields["file"]
    return fields
