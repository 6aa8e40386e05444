"""Servers without keys, and pages of other hosts: browsers let any page send requests to any address."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .auth import answer, is_open
from .errors import RequestError
from .settings import is_loopback

_SAFE = ("GET", "HEAD", "OPTIONS")  # change nothing, and browsers keep their replies from other pages


def check_origin(headers: Headers) -> None:
    """Refuse the pages of other hosts.

    Args:
        headers: Of a request; other programs than browsers send no ``Origin``.

    Raises:
        RequestError: If it comes from such a page.
    """
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        message = "A page of another host may not use a server without API keys."
        raise RequestError(HTTPStatus.FORBIDDEN, message, code="origin_not_allowed")


class OriginGuard:
    """Middleware of a server without keys.

    It refuses what pages of other hosts send. On connections within the machine it also refuses requests for
    other hosts: a page may have its own host's name resolved to 127.0.0.1, and would then be of "this" host.
    The WebSocket's origin is looked at by its route, which can say why to a browser.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Sequence[str]) -> None:
        """Guard an application.

        Args:
            app: That is guarded.
            host: That the server was told to listen at.
            allowed_hosts: Names that requests may be for besides this machine's own, such as a proxy's.
        """
        self._app = app
        self._is_local = is_loopback(host)
        self._allowed = {name.lower() for name in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403 or 421."""
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(scope)
            except RequestError as error:
                await answer(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        server = scope.get("server") or ("",)
        if self._is_local and is_loopback(server[0]) and not self._is_ours(headers.get("host", "")):
            if is_open(scope) and scope["path"].endswith("/health"):
                return
            raise RequestError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "A server without API keys answers requests for this machine alone; start it with a key, or "
                "with --allowed-host and the name in the address.",
                code="host_not_allowed",
            )
        if scope["type"] == "http" and scope["method"] not in _SAFE:
            check_origin(headers)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self._allowed
