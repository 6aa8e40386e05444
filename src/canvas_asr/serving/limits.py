"""Limits on what a client may send: how much, and for how long."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError

LINGER_S = 2.0  # in which the rest of a body may come, for clients read no answer before they have sent all
DELIVERY_S = 0.25  # for an answer to a body that nobody reads: closing discards what is not delivered yet
_MIB = 1 << 20
_COMPRESS = "compress the audio, to FLAC or Opus say"


class Rounds:
    """Lets one upload go on in a round of the event loop, in the order they came.

    What a crowd sends together would otherwise be worked on in one go, and ``/health`` wait for all of it.
    """

    def __init__(self) -> None:
        """Let the first go on."""
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        """Wait for a round of one's own."""
        async with self._turn:
            await asyncio.sleep(0)


class UploadLimits:
    """Middleware that refuses bodies that are too large (413) or too slow (408), without reading them on.

    The application sees a client that left. What it sends from then on is dropped, and so is what it raises.
    Where an application answers without having read all of a body, the connection is closed: uvicorn would
    read on without end.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        """Limit the requests to an application.

        Args:
            app: The application.
            max_bytes: Of a body, by its Content-Length or as it comes.
            timeout_s: How long a body may keep the application waiting.
        """
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._rounds = Rounds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on under the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _LimitedBody(self._max_bytes, self._timeout_s, self._rounds, scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")[:20]  # int() refuses thousands of digits
        if length.isascii() and length.isdigit() and int(length) > self._max_bytes:
            await body.refuse_size()
            return
        if body.has_rest:
            await self._rounds.take()
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            if not body.is_refused:
                raise


class _LimitedBody:
    """The two channels of one request."""

    def __init__(
        self, max_bytes: int, timeout_s: float, rounds: Rounds, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._rounds = rounds
        self._scope = scope
        self._receive = receive
        self._send = send
        self._n_bytes = 0
        self._left_s = timeout_s
        headers = Headers(scope=scope)
        self._is_announced = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._is_whole = self._is_answered = False
        self.is_refused = False

    @property
    def has_rest(self) -> bool:
        """Whether there is a body of which more is to come."""
        return self._is_announced and not self._is_whole

    async def receive(self) -> Message:
        if self.is_refused:
            return {"type": "http.disconnect"}
        if self._is_whole:  # what comes now is the client's leaving, whenever that is
            return await self._receive()
        started = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._left_s))
        except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
            await self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"The body did not arrive within {self._timeout_s:g} s; {_COMPRESS}.",
                "upload_timeout",
            )
            return {"type": "http.disconnect"}
        self._left_s -= time.monotonic() - started
        if message["type"] != "http.request":
            return message
        self._count(message)
        if self._n_bytes > self._max_bytes:
            await self.refuse_size()
            return {"type": "http.disconnect"}
        await self._rounds.take()
        return message

    async def send(self, message: Message) -> None:
        if self.is_refused:
            return
        if message["type"] == "http.response.start":
            self._is_answered = True
            if self.has_rest:
                MutableHeaders(raw=message["headers"])["connection"] = "close"
        elif self.has_rest and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Drop what comes of the body for a while: to close at once could cost the client its answer."""
        deadline = time.monotonic() + LINGER_S
        while self.has_rest and self._n_bytes <= self._max_bytes:
            try:
                message = await asyncio.wait_for(self._receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                return
            if message["type"] != "http.request":
                return
            self._count(message)

    def _count(self, message: Message) -> None:
        self._n_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)

    async def refuse_size(self) -> None:
        size = f"{self._max_bytes / _MIB:g} MiB" if self._max_bytes >= _MIB else f"{self._max_bytes} bytes"
        await self._refuse(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body is larger than {size}, the most that is taken; {_COMPRESS}.",
            "upload_too_large",
        )

    async def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer, unless an answer is on its way, and have the connection closed: the rest is not read."""
        self.is_refused = True
        if not self._is_answered:
            refusal = RequestError(status, message, param="file", code=code, headers={"connection": "close"})
            await refusal.response()(self._scope, self._receive, self._deliver)

    async def _deliver(self, message: Message) -> None:
        """Send a part of an answer, and leave it time to arrive before the connection is closed."""
        if message["type"] == "http.response.body":
            await self._send({**message, "more_body": True})
            await asyncio.sleep(DELIVERY_S)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)
