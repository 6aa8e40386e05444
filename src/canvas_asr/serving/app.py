"""The application: routes, middleware, and what lives as long as the server does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from fastapi import FastAPI

from .. import __version__
from ..errors import CheckpointError
from ..scheduling.scheduler import Scheduler
from ..vad import SileroDetector
from . import live, metrics, models, page, transcriptions
from .auth import KeyGuard
from .diarization import Diarizer
from .errors import add_error_handlers
from .form import Served
from .limits import UploadLimits
from .metrics import Observer, RequestMetrics, SchedulerCollector
from .origins import OriginGuard
from .process import one_thread
from .settings import ServerSettings
from .uploads import DecoderPool
from .work import Admission

if TYPE_CHECKING:
    from ..speakers import Diarize
    from ..transcriber import Transcriber

DESCRIPTION = """Speech recognition by parallel denoising, behind OpenAI's interface for transcription.

Where the server was started with API keys, all but `/health`, the page and this document asks for one:
`Authorization: Bearer KEY`. Errors are OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
"""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the decoders and the model's thread; at the end, let those in work finish, and stop them."""
    state, settings = app.state, app.state.settings
    await run_sync(state.decoders.start)
    state.scheduler.start()
    try:
        with one_thread():  # but the model's, those that look for speech among them
            yield
    finally:
        state.is_draining = True
        await run_sync(state.scheduler.close, settings.drain_s)
        await run_sync(state.decoders.close)
        state.starters.shutdown(wait=False, cancel_futures=True)
        if state.diarizer is not None:
            state.diarizer.close()


def create_app(
    transcriber: Transcriber, settings: ServerSettings, *, diarize: Diarize | None = None
) -> FastAPI:
    """Make the application; its lifespan starts and stops the threads and processes behind it.

    Args:
        transcriber: Of the model that is served.
        settings: Of the server.
        diarize: Tells speakers apart in recordings whose transcript is asked for as ``diarized_json``: see
            :class:`canvas_asr.speakers.Speakers`. It is called in a thread of its own. None: that format is
            refused.

    Raises:
        OptionError: If the model cannot follow the options of decoding in the settings.
    """
    app = FastAPI(
        title="canvas-asr",
        description=DESCRIPTION,
        version=__version__,
        docs_url=None,  # these pages would load their scripts from another host
        redoc_url=None,
        lifespan=_lifespan,
    )
    _set_state(app, transcriber, settings, diarize)
    for module in (transcriptions, models, metrics, live, page):
        app.include_router(module.router)
    add_error_handlers(app)
    # From the inside out: a stranger is refused before a body is read, and what is not read is limited too.
    if settings.api_keys:
        app.add_middleware(KeyGuard, keys=settings.api_keys)
    else:
        app.add_middleware(OriginGuard, host=settings.host, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(UploadLimits, max_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s)
    app.add_middleware(Observer, counts=app.state.metrics)
    return app


def _set_state(
    app: FastAPI, transcriber: Transcriber, settings: ServerSettings, diarize: Diarize | None
) -> None:
    defaults = settings.decoding()
    transcriber.decoder.open(defaults)  # said now what would else be said to every request
    with suppress(CheckpointError):  # which is told to those whose audio needs it
        SileroDetector()  # read now: while torch reads it, all threads wait
    state = app.state
    state.transcriber = transcriber
    state.settings = settings
    state.served = Served(
        settings.served_names,
        transcriber.languages,
        transcriber.has_draft,
        defaults,
        tells_speakers=diarize is not None,
    )
    state.diarizer = None if diarize is None else Diarizer(diarize, settings.max_batch)
    state.started_at = int(time.time())
    state.is_draining = False
    state.scheduler = Scheduler(transcriber, max_batch=settings.max_batch, max_queue=settings.max_queue)
    state.admission = Admission(settings.max_batch + settings.max_queue, state.scheduler.retry_after_s)
    state.decoders = DecoderPool(
        settings.decode_workers,
        max_memory_bytes=settings.decode_memory_bytes,
        max_file_s=settings.decode_timeout_s,
        max_parked=settings.max_batch,  # long files: the model works on no more at a time
    )
    # One thread for every decoder: requests wait here for a free one.
    state.starters = ThreadPoolExecutor(settings.decode_workers, thread_name_prefix="canvas-asr-upload")
    state.metrics = RequestMetrics()
    state.metrics.registry.register(SchedulerCollector(state))
