"""The page: plain files of this package under ``/``, with a policy that lets them reach no other host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.status import HTTP_304_NOT_MODIFIED, HTTP_404_NOT_FOUND

from .errors import RequestError

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for by its ETag: a newer server is seen at once
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class PageFile:
    """A file of the page as it is sent."""

    body: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Read the files of the page, by name; names come from here and never from a request."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in MEDIA_TYPES:
            body = path.read_bytes()
            files[path.name] = PageFile(body, MEDIA_TYPES[path.suffix], f'"{sha256(body).hexdigest()[:16]}"')
    return files


@router.api_route("/", methods=["GET", "HEAD"])
def index(request: Request) -> Response:
    """Answer the page itself."""
    return _answer(page_files()[INDEX], request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def part(name: str, request: Request) -> Response:
    """Answer what the page is made of."""
    file = page_files().get(name)
    if file is None:
        return RequestError(HTTP_404_NOT_FOUND, "There is no such file.", code="not_found").response()
    return _answer(file, request)


def _answer(file: PageFile, request: Request) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    known = {etag.strip().removeprefix("W/") for etag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in known:
        return Response(status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)
