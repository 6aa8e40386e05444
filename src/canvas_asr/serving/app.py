"""The application: routes, middleware, and what lives as long as the server does."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from .. import __version__
from .auth import KeyGuard
from .errors import add_error_handlers
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..transcriber import Transcriber


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="canvas-asr-") as folder:  # of the server's user alone
        app.state.uploads = Path(folder)
        yield


def create_app(transcriber: Transcriber, settings: ServerSettings) -> FastAPI:
    """Make the application; its lifespan starts and stops the threads and processes behind it.

    Args:
        transcriber: Of the model that is served.
        settings: Of the server.
    """
    app = FastAPI(title="canvas-asr", version=__version__, docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.state.transcriber = transcriber
    app.state.settings = settings
    add_error_handlers(app)
    app.add_middleware(KeyGuard, keys=settings.api_keys)
    return app
