"""A transcription as server-sent events, as OpenAI sends them.

A ``transcript.text.delta`` for every chunk of the audio that is final, one ``transcript.text.done`` with the
text that these make, then ``[DONE]``. Who asks for the canvas gets ``canvas.progress``, ``canvas.pass``,
``canvas.segment`` and ``canvas.transcript`` between them. What goes wrong on the way is an event ``error``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..result import Segment, Transcript
from ..scheduling.jobs import Event, Failed, Finished, PassShown, Progressed, SegmentReady
from ..transcripts import separator
from .errors import RequestError, unexpected
from .form import TranscriptionRequest
from .responses import diarized_segments, logprobs, write_apart
from .work import Work, raise_failure

SEND_S = 10.0  # for the last events, when the time for the work is over
PING_S = 15.0  # proxies give up connections on which nothing comes
_PING = ": the transcription goes on\n\n"
_DONE = "data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold the events back

Finish = Callable[[Transcript], Awaitable[Transcript]]


class TranscriptEvents:
    """Writes the events of one job."""

    def __init__(self, asked: TranscriptionRequest, steps: int) -> None:
        """Start before the first event.

        Args:
            asked: What the client asked for.
            steps: Most passes of a chunk.
        """
        self._asked = asked
        self._steps = steps
        self._text = ""
        self._language: str | None = None  # of the last delta

    def write(self, event: Event) -> list[dict[str, Any]]:
        """Give what the client is told of an event; the last one is ``transcript.text.done``."""
        match event:
            case SegmentReady(segment):
                shown = [{"type": "canvas.segment", **segment.to_dict()}] if self._asked.canvas else []
                return shown + self._delta(segment)
            case Finished(transcript):
                return self._end(transcript)
            case Progressed(done_s, total_s) if self._asked.canvas:
                return [{"type": "canvas.progress", "done_s": done_s, "total_s": total_s}]
            case PassShown() if self._asked.canvas:
                return [self._pass(event)]
        return []

    def _delta(self, segment: Segment) -> list[dict[str, Any]]:
        if not segment.text:
            return []
        text = separator(self._language, segment.language) + segment.text
        self._text += text
        self._language = segment.language
        event: dict[str, Any] = {"type": "transcript.text.delta", "delta": text}
        if self._asked.logprobs:
            event["logprobs"] = logprobs(segment.tokens)
        return [event]

    def _end(self, transcript: Transcript) -> list[dict[str, Any]]:
        if transcript.text != self._text:
            raise RuntimeError("the segments of a transcript do not add up to its text")
        events: list[dict[str, Any]] = []
        if self._asked.canvas:
            fields = {name: value for name, value in transcript.to_dict().items() if name != "file"}
            events.append({"type": "canvas.transcript", **fields})
        if self._asked.tells_speakers:  # speakers are known once all has been heard
            events += diarized_segments(transcript)
        # Without usage: OpenAI's schema has it in tokens here, which nobody counts.
        done: dict[str, Any] = {"type": "transcript.text.done", "text": transcript.text}
        if self._asked.logprobs:
            done["logprobs"] = logprobs(transcript.tokens)
        return [*events, done]

    def _pass(self, shown: PassShown) -> dict[str, Any]:
        view = shown.view
        kept = view.kept or (True,) * len(view.tokens)  # after the last pass all of it stays
        return {
            "type": "canvas.pass",
            "start": shown.start,
            "end": shown.end,
            "step": view.step,
            "steps": self._steps,
            "language": view.language,
            "tokens": [
                {"text": token.text, "confidence": token.confidence, "kept": stays}
                for token, stays in zip(view.tokens, kept, strict=True)
            ],
            "before": list(view.before),
        }


class EventStream(StreamingResponse):
    """The events of a job; whatever ends the reply lets go of the work."""

    def __init__(
        self, work: Work, writer: TranscriptEvents, first: Event | None, finish: Finish, request_id: str
    ) -> None:
        """Prepare to send.

        Args:
            work: Of the job.
            writer: Of its events.
            first: The event that has come already, if one has.
            finish: Does what is left to do once all is transcribed.
            request_id: For the log.
        """
        self._work = work
        content = _server_sent(work, writer, first, finish, request_id)
        super().__init__(content, media_type="text/event-stream", headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, to a client that takes them in time.

        Raises:
            ClientDisconnect: If it does not, or is gone.
        """
        try:
            await asyncio.wait_for(self.stream_response(send), self._work.left_s + SEND_S)
        except asyncio.TimeoutError as error:
            raise ClientDisconnect from error
        finally:
            self._work.release()


async def _server_sent(
    work: Work, writer: TranscriptEvents, event: Event | None, finish: Finish, request_id: str
) -> AsyncIterator[str]:
    try:
        while not isinstance(event, Finished):
            if isinstance(event, Failed):
                raise_failure(event.error)
            for told in writer.write(event) if event is not None else ():
                yield _event(told)
            event = await work.next(PING_S)
            if event is None:
                yield _PING
        finishing = asyncio.ensure_future(finish(event.transcript))
        try:
            while not (await asyncio.wait({finishing}, timeout=PING_S))[0]:
                yield _PING
        finally:
            finishing.cancel()
        end = Finished(finishing.result())
        yield await write_apart(end.transcript, partial(_last, writer, end))
        yield _DONE
    except RequestError as error:
        yield _event(error.body())
    except ClientDisconnect:
        raise
    except Exception as error:
        yield _event(unexpected(error, request_id).body())


def _last(writer: TranscriptEvents, event: Finished) -> str:
    return "".join(map(_event, writer.write(event)))


def _event(fields: dict[str, Any]) -> str:
    # ASCII alone: some clients split lines where Unicode does.
    return f"data: {json.dumps(fields, allow_nan=False)}\n\n"
