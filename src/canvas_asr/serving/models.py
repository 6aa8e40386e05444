"""``/v1/models``: the one model that is served, under each of its names; and what is not offered."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import State

from .auth import DOCUMENTED_KEY
from .errors import RequestError
from .form import no_such_model

router = APIRouter(tags=["models"], dependencies=[DOCUMENTED_KEY])


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the model that is served, under each of its names."""
    state = request.app.state
    return {"object": "list", "data": [_model(name, state) for name in state.served.names]}


@router.get("/v1/models/{name:path}", summary="Look up a model")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """Describe a model by its name."""
    state = request.app.state
    if name not in state.served.names:
        raise no_such_model(state.served.names)
    return _model(name, state)


@router.post("/v1/audio/translations", include_in_schema=False)
async def refuse_translation() -> None:
    """Say that there are no translations."""
    raise RequestError(
        HTTPStatus.NOT_FOUND,
        "Translation is not offered: the model writes what was said, in the language it was said in; "
        "see /v1/audio/transcriptions.",
        code="not_offered",
    )


def _model(name: str, state: State) -> dict[str, Any]:
    """Describe the model: as OpenAI does, and what the page wants to know."""
    return {
        "id": name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "canvas-asr",
        "languages": list(state.served.languages),
        "has_draft": state.served.has_draft,
    }
