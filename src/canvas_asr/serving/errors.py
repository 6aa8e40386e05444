"""Errors as OpenAI's API tells them, ``{"error": {"message", "type", "param", "code"}}``, for every route.

Nothing here repeats a path, a file's name or a traceback: those are for the server's log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_TYPES = {
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.MISDIRECTED_REQUEST: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
logger = logging.getLogger(__name__)

_NO_ROUTE = "There is no such route; /openapi.json lists those there are."


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: Of the reply, 400 or above.
        message: What is wrong and what to do.
        param: The form field at fault.
        code: Short name of the case, for programs.
        headers: Of the reply, besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def response(self) -> JSONResponse:
        """Give the reply."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)

    def body(self) -> dict[str, Any]:
        """Give what stands in the reply, and in an event of a stream."""
        error = {
            "message": self.message,
            "type": _type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def _type(status: int) -> str:
    """Give what OpenAI calls errors of a status."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return _TYPES.get(HTTPStatus(status), "invalid_request_error")


def unexpected(error: Exception, request_id: str) -> RequestError:
    """Log an error that nobody foresaw, with its traceback, and give what the client is told: a number."""
    logger.error("request %s failed", request_id, exc_info=error)
    return RequestError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"The server failed on this request; its log has more, under {request_id}.",
        code="internal_error",
    )


def add_error_handlers(app: FastAPI) -> None:
    """Have the errors of an application told in OpenAI's shape."""

    @app.exception_handler(RequestError)
    async def refuse(_request: Request, error: RequestError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def tell(_request: Request, error: HTTPException) -> JSONResponse:
        message, code = str(error.detail), None
        if error.status_code == HTTPStatus.NOT_FOUND:
            message, code = _NO_ROUTE, "not_found"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "another method")
            message, code = f"This route takes {allowed}.", "method_not_allowed"
        return RequestError(error.status_code, message, code=code, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def name_field(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1]) if first.get("loc") else None
        message = f"{param or 'The request'}: {first.get('msg', 'is not valid')}."
        return RequestError(HTTPStatus.BAD_REQUEST, message, param=param, code="invalid_value").response()
