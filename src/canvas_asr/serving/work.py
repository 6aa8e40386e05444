"""A transcription on its way: its events come from the scheduler's threads, and are waited for here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ..errors import AudioError, OptionError
from ..result import Transcript
from ..scheduling.jobs import Event, Failed, Finished, JobCancelled, PassShown, Progressed
from .diarization import DiarizerClosed, KeptUpload
from .errors import RequestError
from .form import option_error
from .uploads import AudioTooLong, DecodersBusy

if TYPE_CHECKING:
    from ..scheduling.scheduler import Job
    from .uploads import DecodedUpload

Done = TypeVar("Done")

MORE_ARRIVING = 64  # bodies on their way, beside as many as there are places: each may be a file on the disk
FRESH_S = 1.0  # a body that takes longer keeps no place free: who sends slowly shuts nobody out
MAX_SHOWN = 256  # passes that wait for a client to read; further ones it does not see
RETRY_S = 1  # another server takes the place of one that is being stopped


@dataclass(eq=False)
class Arrival:
    """A body on its way.

    Attributes:
        since: Time at which its head came, by ``time.monotonic``.
        is_whole: Whether all of it is here.
    """

    since: float
    is_whole: bool = False


class Admission:
    """Counts bodies that arrive, and requests from when theirs has come until they are answered.

    The scheduler refuses jobs, but a job is made once its audio is decoded: a crowd is to be told at once. So
    a place is also kept for every body that began to arrive a moment ago, and who finds none is refused
    before his own body is read.
    """

    def __init__(self, capacity: int, retry_after_s: Callable[[], int]) -> None:
        """Let in a number of requests.

        Args:
            capacity: How many at a time.
            retry_after_s: Tells the seconds after which a place may be free.
        """
        self._capacity = capacity
        self._retry_after_s = retry_after_s
        self._n_admitted = 0
        self._arrivals: set[Arrival] = set()

    @contextmanager
    def arriving(self) -> Iterator[Arrival]:
        """Count a request from before its body is read until nothing of it is on the disk.

        Raises:
            RequestError: If there is no place for it, or too many bodies are on their way.
        """
        arrival = Arrival(time.monotonic())
        n_fresh = sum(not one.is_whole and arrival.since - one.since < FRESH_S for one in self._arrivals)
        has_place = self._n_admitted + n_fresh < self._capacity
        if not has_place or len(self._arrivals) >= self._capacity + MORE_ARRIVING:
            raise full(self._retry_after_s())
        self._arrivals.add(arrival)
        try:
            yield arrival
        finally:
            self._arrivals.remove(arrival)

    def enter(self) -> None:
        """Let one in, or raise RequestError."""
        if self._n_admitted >= self._capacity:
            raise full(self._retry_after_s())
        self._n_admitted += 1

    def leave(self) -> None:
        """Count one out."""
        self._n_admitted -= 1


class Work:
    """One job and what it holds; made in the event loop."""

    def __init__(self, receive: Receive, timeout_s: float, admission: Admission) -> None:
        """Let a request in and begin to watch its client.

        Args:
            receive: Of the request, whose body has been read.
            timeout_s: Seconds that the work may take from now on.
            admission: Of the server.

        Raises:
            RequestError: If there are too many already.
        """
        admission.enter()
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._timeout_s = timeout_s
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()  # None: the client is gone
        self._has_left = False  # the client
        self._watcher = self._loop.create_task(self._watch(receive))
        self._changing = threading.Lock()
        self._held: tuple[DecodedUpload | KeptUpload, Job] | None = None
        self._is_released = False
        self._at_end: list[Callable[[], None]] = []

    def hold(self, upload: DecodedUpload | KeptUpload, job: Job) -> None:
        """Take what is to be let go of in the end, in any thread; at once if the end has come."""
        with self._changing:
            if not self._is_released:
                self._held = upload, job
                return
        _let_go(upload, job)

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called, in the event loop, when the work is released."""
        self._at_end.append(call)

    def on_event(self, event: Event) -> None:
        """Take an event, in any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._put, event)

    @property
    def upload(self) -> DecodedUpload | KeptUpload | None:
        """What is read; None before it is held and after it was let go of."""
        held = self._held
        return held[0] if held else None

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for it and it has time left; may be asked in any thread."""
        return not self._has_left and self.left_s > 0

    @property
    def left_s(self) -> float:
        """Seconds that the work may still take."""
        return max(0.0, self._deadline - self._loop.time())

    async def next(self, wait_s: float | None = None) -> Event | None:
        """Wait for the next event.

        Args:
            wait_s: Seconds to wait at most; None: as long as the work may take.

        Returns:
            The event; None if none came.

        Raises:
            ClientDisconnect: If the client is gone.
            RequestError: If the work takes too long.
        """
        left_s = self.left_s
        limit_s = left_s if wait_s is None else min(wait_s, left_s)
        try:
            event = await asyncio.wait_for(self._events.get(), limit_s)
        except asyncio.TimeoutError:
            if limit_s < left_s:  # and no look at the clock, which may be a little behind the timer
                return None
            raise self._too_late() from None
        if event is None:
            raise ClientDisconnect
        return event

    async def transcript(self) -> Transcript:
        """Wait for the end.

        Raises:
            ClientDisconnect: If the client is gone.
            Exception: See :func:`raise_failure`.
            RequestError: If the work takes too long.
        """
        while True:
            match await self.next():
                case Finished(transcript):
                    return transcript
                case Failed(error):
                    raise_failure(error)

    async def within(self, further: Awaitable[Done]) -> Done:
        """Wait for what is done behind the last event, as long as the work may take; else it is cancelled.

        Raises:
            ClientDisconnect: If the client is gone.
            RequestError: If it takes too long.
            Exception: Whatever it raises.
        """
        doing, leaving = asyncio.ensure_future(further), asyncio.ensure_future(self._events.get())
        try:
            await asyncio.wait({doing, leaving}, timeout=self.left_s, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise ClientDisconnect if leaving.done() else self._too_late()
        finally:
            doing.cancel()
            leaving.cancel()

    def _too_late(self) -> RequestError:
        return RequestError(
            HTTPStatus.GATEWAY_TIMEOUT,
            f"The transcription took more than {self._timeout_s:g} s and was given up; send less audio.",
            code="timeout",
        )

    def release(self) -> None:
        """Let go of the job's place, the decoder and the client; may be called again."""
        with self._changing:
            if self._is_released:
                return
            self._is_released = True
            held, self._held = self._held, None
        self._admission.leave()
        for call in self._at_end:
            call()
        self._watcher.cancel()
        if held is not None:
            held[1].cancel()
            self._loop.run_in_executor(None, _let_go, *held)  # it may wait for a thread that is reading

    def _put(self, event: Event | None) -> None:
        if isinstance(event, (PassShown, Progressed)) and self._events.qsize() >= MAX_SHOWN:
            return
        self._events.put_nowait(event)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        self._put(None)


def _let_go(upload: DecodedUpload | KeptUpload, job: Job) -> None:
    job.cancel()
    upload.close()


def raise_failure(error: Exception) -> NoReturn:
    """Raise what is to be answered for an error of a job, an upload or the scheduler.

    Raises:
        RequestError: If it is the audio's or an option's fault, or the server is busy or being stopped.
        Exception: The error itself, if it was not expected.
    """
    if isinstance(error, AudioError):
        code = "audio_too_long" if isinstance(error, AudioTooLong) else "invalid_audio"
        message = str(error)
        message = message[:1].upper() + message[1:].rstrip(".") + "."
        raise RequestError(HTTPStatus.BAD_REQUEST, message, param="file", code=code) from error
    if isinstance(error, OptionError):
        raise option_error(error) from error
    if isinstance(error, (JobCancelled, DiarizerClosed)):
        raise stopping() from error
    if isinstance(error, DecodersBusy):
        message = "All audio decoders of the server are at work; try again."
        raise _unavailable(message, error.retry_after_s, code="server_busy") from error
    raise error


def stopping() -> RequestError:
    """Give the error of a server that is being stopped."""
    return _unavailable("The server is being stopped; try again.", RETRY_S, code="server_stopping")


def _unavailable(message: str, retry_after_s: int, *, code: str) -> RequestError:
    return RequestError(
        HTTPStatus.SERVICE_UNAVAILABLE, message, code=code, headers={"Retry-After": str(retry_after_s)}
    )


def full(retry_after_s: int) -> RequestError:
    """Give the error of a queue that is full."""
    return RequestError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"The queue of the server is full; try again in {retry_after_s} s.",
        code="queue_full",
        headers={"Retry-After": str(retry_after_s)},
    )
