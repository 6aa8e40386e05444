"""Bodies that are too large, too slow, cut off or not as long as they say."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from canvas_asr.serving import limits
from canvas_asr.serving.limits import UploadLimits

MAX_BYTES = 1000


class Client:
    """What an ASGI server would do with one request: hands out messages, and notes what is answered."""

    def __init__(self, messages: list[dict[str, Any]], headers: dict[str, str], pause_s: float = 0.0) -> None:
        self.messages = messages
        self.headers = headers
        self.pause_s = pause_s
        self.n_read = 0
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self.pause_s)
        if self.n_read == len(self.messages):
            await asyncio.sleep(3600)
        self.n_read += 1
        return self.messages[self.n_read - 1]

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def request(self, app: Any) -> Client:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in self.headers.items()],
        }
        asyncio.run(asyncio.wait_for(app(scope, self.receive, self.send), 10))
        return self

    @property
    def status(self) -> int:
        starts = [message["status"] for message in self.sent if message["type"] == "http.response.start"]
        assert len(starts) == 1, "one request, one answer"
        return int(starts[0])

    @property
    def error(self) -> dict[str, Any]:
        body = b"".join(message.get("body", b"") for message in self.sent)
        (error,) = json.loads(body).values()
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)


def parts(*sizes: int, ends: bool = True) -> list[dict[str, Any]]:
    messages = [{"type": "http.request", "body": b"x" * n, "more_body": True} for n in sizes]
    messages[-1]["more_body"] = not ends
    return messages


async def count(request: Request) -> Response:
    return JSONResponse(len(await request.body()))


def limited(endpoint: Any = count, timeout_s: float = 5.0) -> UploadLimits:
    return UploadLimits(Starlette(routes=[Route("/", endpoint, methods=["POST"])]), MAX_BYTES, timeout_s)


def test_a_body_of_the_largest_size_is_passed_on() -> None:
    client = Client(parts(MAX_BYTES // 2, MAX_BYTES // 2), {"content-length": str(MAX_BYTES)})
    assert client.request(limited()).status == 200
    assert client.sent[-1]["body"] == b"1000"


@pytest.mark.parametrize("length", [str(MAX_BYTES + 1), "9" * 5000])
def test_a_length_above_the_limit_is_refused_with_nothing_read(length: str) -> None:
    client = Client(parts(MAX_BYTES + 1), {"content-length": length}).request(limited())
    assert client.status == 413
    assert client.n_read == 0
    assert client.error["type"] == "invalid_request_error"
    assert (b"connection", b"close") in client.sent[0]["headers"]


@pytest.mark.parametrize("headers", [{"transfer-encoding": "chunked"}, {"content-length": "10"}])
def test_a_body_without_a_true_length_is_read_up_to_the_limit(headers: dict[str, str]) -> None:
    client = Client(parts(*[300] * 1000), headers).request(limited())
    assert client.status == 413
    assert client.n_read == 4


def test_a_slow_body_is_refused_when_its_time_is_over() -> None:
    client = Client(parts(*[1] * 500), {}, pause_s=0.02).request(limited(timeout_s=0.2))
    assert client.status == 408
    assert 1 < client.n_read < 100
    assert client.error["code"] == "upload_timeout"


def test_a_body_that_stops_short_of_its_length_is_refused() -> None:
    client = Client(parts(10, ends=False), {"content-length": "100"}).request(limited(timeout_s=0.1))
    assert client.status == 408


def test_time_that_the_application_takes_is_not_the_upload() -> None:
    async def late(request: Request) -> Response:
        await asyncio.sleep(0.3)
        return JSONResponse(len(await request.body()))

    client = Client(parts(10), {}).request(limited(late, timeout_s=0.2))
    assert client.status == 200


def test_a_client_that_leaves_is_seen_as_long_as_the_answer_takes() -> None:
    left: list[bool] = []

    async def wait(request: Request) -> Response:
        await request.body()
        message = await request.receive()  # later than the time for the body
        left.append(message["type"] == "http.disconnect")
        return Response()

    client = Client([*parts(10), {"type": "http.disconnect"}], {}, pause_s=0.6)
    client.request(limited(wait, timeout_s=1.0))
    assert client.status == 200
    assert left == [True]


def test_an_upload_that_is_cut_off_ends_the_request() -> None:
    seen: list[str] = []

    async def read(request: Request) -> Response:
        while True:
            message = await request.receive()
            seen.append(message["type"])
            if message["type"] == "http.disconnect":
                return Response(status_code=400)

    client = Client([*parts(10, ends=False), {"type": "http.disconnect"}], {"content-length": "100"})
    assert client.request(limited(read)).status == 400
    assert seen == ["http.request", "http.disconnect"]


def test_an_answer_that_is_on_its_way_is_not_answered_twice() -> None:
    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b""})

    client = Client(parts(*[300] * 10), {}).request(UploadLimits(hasty, MAX_BYTES, 5.0))
    assert client.status == 202
    assert client.n_read == 4


@pytest.mark.parametrize("rest", [parts(10, 10), parts(*[300] * 1000), parts(10, ends=False)])
def test_an_answer_to_half_a_body_closes_the_connection_soon(
    rest: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINGER_S", 0.2)

    async def refuse(request: Request) -> Response:
        return Response("no key", status_code=401)

    client = Client(rest, {"transfer-encoding": "chunked"}).request(limited(refuse))
    assert client.status == 401
    assert (b"connection", b"close") in client.sent[0]["headers"]
    assert client.sent[1]["body"] == b"no key"  # before the rest is waited for
    assert not client.sent[-1].get("more_body")
    assert client.n_read <= 4


def test_an_answer_to_no_body_or_a_whole_one_keeps_the_connection() -> None:
    for messages, headers in ((parts(0), {}), (parts(10), {"content-length": "10"})):
        client = Client(messages, headers).request(limited())
        assert client.status == 200
        assert b"connection" not in dict(client.sent[0]["headers"])


def test_errors_of_the_application_are_its_own() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Client(parts(1), {}).request(UploadLimits(broken, MAX_BYTES, 5.0))


def test_websockets_are_passed_on() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(UploadLimits(app, MAX_BYTES, 5.0)({"type": "websocket"}, None, None))  # type: ignore[arg-type]
    assert seen == ["websocket"]


def test_a_crowd_is_worked_on_one_by_one_with_rounds_of_the_loop_in_between() -> None:
    """So that what else waits, ``/health`` say, does not wait for all of them."""
    n_clients, n_parts = 16, 3
    rounds = 0
    worked: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        worked.append(rounds)
        for _ in range(n_parts):
            await receive()
            worked.append(rounds)
        await Response()(scope, receive, send)

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    async def crowd() -> None:
        limited = UploadLimits(app, MAX_BYTES, 60.0)
        counting = asyncio.create_task(count())
        await asyncio.gather(*(limited(*one) for one in arrivals))
        counting.cancel()

    parts = [{"type": "http.request", "body": b"x", "more_body": i < n_parts - 1} for i in range(n_parts)]
    clients = [Client(parts, {}) for _ in range(n_clients)]
    length = str(n_parts).encode()
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", length)]}
    arrivals = [(dict(scope), client.receive, client.send) for client in clients]
    asyncio.run(asyncio.wait_for(crowd(), 30))
    assert all(client.status == 200 for client in clients)
    assert len(worked) == n_clients * (1 + n_parts)
    assert len(set(worked)) == len(worked)
