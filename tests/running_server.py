"""The server as it runs: uvicorn in a thread of this process, on a free port of 127.0.0.1."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from openai import OpenAI

from canvas_asr.serving.http_server import make_server

START_S = 60.0


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Run an application of create_app; gives its address, such as http://127.0.0.1:40000."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        is_ready = threading.Event()
        server = make_server(app, is_ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert is_ready.wait(START_S)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_S)
    assert not thread.is_alive()


def openai_client(address: str, api_key: str = "none", **options: Any) -> OpenAI:
    """OpenAI's own client, which tries everything once."""
    return OpenAI(base_url=f"{address}/v1", api_key=api_key, max_retries=0, timeout=60.0, **options)


def http_client(address: str, api_key: str = "none") -> httpx.Client:
    """A plain client, for what OpenAI's would not send."""
    headers = {"Authorization": f"Bearer {api_key}"}
    return httpx.Client(base_url=address, headers=headers, timeout=60.0, trust_env=False)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon, on a machine that may be busy."""
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)
