"""API keys: who may use the server.

Open to everybody are ``/health``, which load balancers ask without a key; the page, plain files of this
package that hold no secret and ask their user for the key; and ``/openapi.json``.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from http import HTTPStatus

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import RequestError

OPEN = ("/", "/health", "/openapi.json")
OPEN_FOLDER = "/page/"
# For the OpenAPI document alone: the middleware below refuses a request before any route is looked for.
DOCUMENTED_KEY = Depends(HTTPBearer(auto_error=False, description="Where the server was started with keys."))
SUBPROTOCOL_PREFIX = "openai-insecure-api-key."  # how OpenAI has browsers send it: they cannot set headers
_NOT_ALLOWED = 1008  # close code of a WebSocket: policy violation


def is_key(given: str | None, keys: Sequence[str]) -> bool:
    """Whether a key is one of those; every one is compared, in constant time.

    Args:
        given: By a client, if it gave any.
        keys: That are right.
    """
    found = False
    for key in keys:
        found |= hmac.compare_digest((given or "").encode("utf-8", "surrogateescape"), key.encode())
    return found


def given_key(headers: Headers) -> str | None:
    """Find the key in the headers of a request, or in the subprotocols that a WebSocket offers."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        if offered.strip().startswith(SUBPROTOCOL_PREFIX):
            return offered.strip()[len(SUBPROTOCOL_PREFIX) :]
    return None


class KeyGuard:
    """Middleware that refuses requests without a key, before their bodies are read."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        """Guard an application.

        Args:
            app: That is guarded.
            keys: That are right.
        """
        self._app = app
        self._keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] not in ("http", "websocket") or is_open(scope):
            await self._app(scope, receive, send)
            return
        given = given_key(Headers(scope=scope))
        if is_key(given, self._keys):
            await self._app(scope, receive, send)
            return
        if given:
            message, code = "This API key is not one of the server's.", "invalid_api_key"
        else:
            message = "An API key is missing; send it in the header: Authorization: Bearer KEY."
            code = "missing_api_key"
        refusal = RequestError(
            HTTPStatus.UNAUTHORIZED, message, code=code, headers={"WWW-Authenticate": "Bearer"}
        )
        await answer(refusal, scope, receive, send)


async def answer(refusal: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request, or a WebSocket before it is opened.

    Args:
        refusal: What is answered.
        scope: Of the request.
        receive: Likewise.
        send: Likewise.
    """
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        # Of a WebSocket, starlette names the messages as that needs.
        await refusal.response()(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": _NOT_ALLOWED, "reason": refusal.message})


def is_open(scope: Scope) -> bool:
    """Whether nobody is asked for a key; what is not known to be open is guarded."""
    prefix: str = scope.get("root_path", "").rstrip("/")
    path: str = scope["path"].removeprefix(prefix)
    return path in OPEN or path.startswith(OPEN_FOLDER)
