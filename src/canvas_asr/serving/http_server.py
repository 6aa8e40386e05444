"""The application on uvicorn, until the process is told to stop."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import State

from ..errors import CanvasASRError
from .app import create_app
from .process import one_thread, settled_memory
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..speakers import Diarize
    from ..transcriber import Transcriber

MARGIN_S = 2.0  # of the time to drain, or half of it, for the model's present pass and what is left to send


class HTTPServer(uvicorn.Server):
    """A server that says when it can be reached, and that it is being stopped."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        """Prepare.

        Args:
            config: Of uvicorn, with the application.
            on_ready: Called once the server can be reached.
        """
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what is new, and wait for what is in work; what takes too long is told so and ended."""
        state = self.config.app.state  # type: ignore[union-attr]
        state.is_draining = True
        drain_s = state.settings.drain_s
        late = asyncio.create_task(_end_jobs(state, max(drain_s / 2, drain_s - MARGIN_S)))
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()


async def _end_jobs(state: State, after_s: float) -> None:
    await asyncio.sleep(after_s)
    if state.diarizer is not None:
        state.diarizer.close()
    await asyncio.to_thread(state.scheduler.close, 0.0)


def make_server(app: FastAPI, on_ready: Callable[[], None]) -> HTTPServer:
    """Put an application of :func:`~canvas_asr.serving.app.create_app` on uvicorn.

    Args:
        app: With its settings.
        on_ready: Called once the server can be reached.
    """
    config = uvicorn.Config(
        app,
        access_log=False,
        lifespan="on",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(app.state.settings.drain_s),
        # Named, so that what else is installed changes nothing.
        http="h11",
        loop="asyncio",
        ws="websockets-sansio",
        # A pong stands behind audio that is not received yet; a live connection has time limits of its own.
        ws_ping_timeout=None,
    )
    return HTTPServer(config, on_ready)


def serve(
    transcriber: Transcriber,
    settings: ServerSettings,
    listener: socket.socket,
    on_ready: Callable[[], None],
    *,
    diarize: Diarize | None = None,
) -> bool:
    """Serve a model until SIGINT or SIGTERM, and then until the requests in work are answered.

    Args:
        transcriber: Of the model, best loaded in :func:`~canvas_asr.serving.process.one_thread`.
        settings: Of the server.
        listener: Bound to the address; it is closed in the end.
        on_ready: Called once the server can be reached.
        diarize: See :func:`~canvas_asr.serving.app.create_app`.

    Returns:
        Whether ``diarize`` is still at work, as a stop does not wait for it.

    Raises:
        CanvasASRError: If it could not be started.
        OptionError: If the model cannot follow the options of decoding in the settings.
    """
    with one_thread():
        app = create_app(transcriber, settings, diarize=diarize)
        server = make_server(app, on_ready)
    with settled_memory(), _stopped_quietly():
        server.run([listener])
    if not server.started:  # newer versions of uvicorn end the program themselves, with 3
        raise CanvasASRError("the server could not be started; the log above says why.")
    return app.state.diarizer is not None and bool(app.state.diarizer.is_asking)


@contextmanager
def _stopped_quietly() -> Iterator[None]:
    """Let SIGINT and SIGTERM be the ordinary end: uvicorn repeats them when it has ended, to no effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
