"""Parts of the benchmark of the server: server and library in processes of their own, and clients."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx
import numpy as np
import soundfile as sf
from long_form import RATE_HZ, write_speech

SPAWN = multiprocessing.get_context("spawn")
START_S = 180.0  # that a server may take to load a model
PAUSE_S = 1.0  # a client that was refused comes back after as much at most, whatever Retry-After says
PROBE_EVERY_S = 0.1
REPLY_S = 600.0  # that a client waits
_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    """What came of one request.

    Attributes:
        clip: Place of the clip in its list.
        status: Of the reply; 0 if there was none.
        started: By ``time.perf_counter``, which all processes of a Linux machine share.
        seconds: From sending to the last byte of the reply.
        text: Of the transcript.
        retry_after: Whether the reply had that header.
    """

    clip: int
    status: int
    started: float
    seconds: float
    text: str = ""
    retry_after: bool = False


def cut_clips(folder: Path, audio_s: float, n_clips: int) -> list[Path]:
    """Write clips of one length: speech with pauses, cut wherever the length falls."""
    speech, _ = sf.read(write_speech(folder / "speech.flac", audio_s * n_clips), dtype="float32")
    length = round(audio_s * RATE_HZ)
    paths = [folder / f"{audio_s:g}s-{place}.flac" for place in range(n_clips)]
    for place, path in enumerate(paths):
        sf.write(path, speech[place * length : (place + 1) * length], RATE_HZ)
    return paths


class Server:
    """``canvas-asr serve`` as it is started by hand, on a free port of this machine.

    Attributes:
        name: What requests call its model; known once it answers.
    """

    def __init__(self, model: str, *options: str) -> None:
        """Start it; :meth:`wait` for it before use.

        Args:
            model: As ``--model`` takes it.
            options: Further arguments of the command.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "canvas_asr.cli", "serve", "--model", model, *options]
        self.log: IO[bytes] = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], stdout=self.log, stderr=subprocess.STDOUT
        )

    def wait(self) -> None:
        """Return when it answers.

        Raises:
            RuntimeError: If it ended, or does not answer in time.
        """
        deadline = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if probe(self.port) is not None:
                self.name = str(httpx.get(f"{self.url}/v1/models").json()["data"][0]["id"])
                return
            time.sleep(PROBE_EVERY_S)
        self.log.seek(0)
        raise RuntimeError(f"the server did not start: {self.log.read().decode()[-2000:]}")

    def counters(self) -> dict[str, float]:
        """Figures of ``/metrics`` by name, those of one name summed."""
        found: dict[str, float] = {}
        for name, _, value in _SAMPLE.findall(httpx.get(f"{self.url}/metrics").text):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def memory_mib(self) -> dict[str, float]:
        """Most memory that the server and, in all, the processes it started have held (Linux)."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        pids = [pid for thread in threads for pid in (thread / "children").read_text().split()]
        return {"server": _peak_mib(self.process.pid), "children": sum(_peak_mib(int(pid)) for pid in pids)}

    def stop(self) -> None:
        """Have it drain and end; leaving the context waits for that."""
        self.process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def _peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def probe(port: int) -> float | None:
    """Seconds that ``/health`` takes on a connection of its own; None if it does not answer with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    started = time.perf_counter()
    try:
        connection.request("GET", "/health")
        reply = connection.getresponse()
        reply.read()
    except OSError:
        return None
    finally:
        connection.close()
    return time.perf_counter() - started if reply.status == 200 else None


class Helper:
    """A process that answers through a pipe until it is closed."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=work, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def ask(self, what: Any) -> Any:
        """Send something and wait for the answer.

        Raises:
            EOFError: If the process has ended.
        """
        self.pipe.send(what)
        return self.pipe.recv()

    def __enter__(self) -> Helper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipe.close()
        self.process.join(timeout=30)


def watch_health(pipe: Connection, port: int) -> None:
    """Ask for ``/health`` over and over; whenever something is received, send what was found since."""
    found: list[tuple[float, float | None]] = []
    while True:
        started = time.perf_counter()
        found.append((started, probe(port)))
        if pipe.poll(max(0.0, PROBE_EVERY_S - (time.perf_counter() - started))):
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(found)
            found = []


def run_library(pipe: Connection, model: str, paths: Sequence[str]) -> None:
    """Transcribe the file whose place is received, and send seconds and text; at first, the threads."""
    import torch

    import canvas_asr

    asr = canvas_asr.load(model, device="cpu")
    pipe.recv()
    pipe.send(torch.get_num_threads())
    while True:
        try:
            place = pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        text = asr.transcribe(paths[place]).text
        pipe.send((time.perf_counter() - started, text))


@cache
def upload(model: str, content: bytes) -> bytes:
    """What a client sends for a clip, made once: head and form."""
    form = httpx.Request("POST", "http://127.0.0.1", data={"model": model}, files={"file": ("clip", content)})
    body = form.read()
    names = {"Host": "127.0.0.1", "Content-Type": form.headers["content-type"], "Content-Length": len(body)}
    head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
    return f"POST /v1/audio/transcriptions HTTP/1.1\r\n{head}\r\n".encode() + body


class Connections:
    """Connections of many clients to a server, kept and used again.

    They share the processors with the server, and each other's event loop: what httpx takes for a request,
    2 ms, is waited for by all that are answered at the same time, and counted as the server's.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request; status, headers and body of the reply.

        Raises:
            OSError: If there is no connection.
            EOFError: If it ends before the reply does.
            asyncio.TimeoutError: If there is no reply.
        """
        while self._free and self._free[-1][0].at_eof():  # the server has closed it meanwhile
            self._free.pop()[1].close()
        reader, writer = (
            self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        )
        try:
            writer.write(sent)  # and read at once: a refusal comes before all is sent
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REPLY_S)).decode("latin-1")
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(status.split()[1]), headers, body

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, writer in self._free:
            writer.close()


async def ask(client: Connections, model: str, clip: int, content: bytes) -> Reply:
    """Have one clip transcribed."""
    sent = upload(model, content)
    started = time.perf_counter()
    try:
        status, headers, body = await client.post(sent)
    except (OSError, EOFError, asyncio.TimeoutError):
        return Reply(clip, 0, started, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    text = json.loads(body)["text"] if status == 200 else ""
    return Reply(clip, status, started, seconds, text, "retry-after" in headers)


def connect(server: Server) -> Connections:
    """Give connections that are kept, as many as are needed."""
    return Connections(server.port)


async def send(
    client: Connections, model: str, contents: Sequence[bytes], first: int, seconds: float
) -> list[Reply]:
    """Send clips in turn, the next as soon as one is answered, for some time and once at least.

    Args:
        client: Connected.
        model: What the server calls it.
        contents: Of the clips.
        first: Place of the clip to begin with.
        seconds: After which nothing new is sent; what is under way is waited for.
    """
    until = time.perf_counter() + seconds
    found: list[Reply] = []
    place = first
    while not found or time.perf_counter() < until:
        clip = place % len(contents)
        found.append(await ask(client, model, clip, contents[clip]))
        if found[-1].status == 200:
            place += 1
        else:
            await asyncio.sleep(min(PAUSE_S, max(0.0, until - time.perf_counter())))
    return found


async def load(server: Server, contents: Sequence[bytes], n_clients: int, seconds: float) -> list[Reply]:
    """Have many clients :func:`send` at once."""
    async with connect(server) as client:
        sending = [send(client, server.name, contents, first, seconds) for first in range(n_clients)]
        return [reply for one in await asyncio.gather(*sending) for reply in one]


def quantiles(seconds: Sequence[float]) -> dict[str, Any]:
    """Number, median, 95th percentile and largest, in milliseconds."""
    if not seconds:
        return {"n": 0, "p50_ms": None, "p95_ms": None, "max_ms": None}
    p50, p95, largest = (1e3 * float(np.percentile(seconds, share)) for share in (50, 95, 100))
    return {"n": len(seconds), "p50_ms": p50, "p95_ms": p95, "max_ms": largest}
