"""A server whose jobs go as a test wrote them, and what tests of refusals share."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import soundfile
from running_server import http_client, running

from canvas_asr import Segment, Transcriber, Transcript
from canvas_asr.scheduling.jobs import Event
from canvas_asr.scheduling.scheduler import Job, SchedulerStats
from canvas_asr.serving.app import create_app
from canvas_asr.serving.settings import ServerSettings
from canvas_asr.serving.uploads import DecoderStats

ROOT = Path(__file__).parents[1]
ROUTE = "/v1/audio/transcriptions"


def wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(round(seconds * 8000), np.float32), 8000, format="WAV")
    return file.getvalue()


AUDIO = ("secret-name.wav", wav())


class ScriptedScheduler:
    """Tells every job's events as a test wrote them, and notes what it was asked for."""

    stats = SchedulerStats()

    def __init__(self, *events: Event, refusal: Exception | None = None) -> None:
        self.events = events
        self.refusal = refusal
        self.jobs: list[Job] = []

    def start(self) -> None: ...

    def submit(self, _source: Any, _options: Any, on_event: Callable[[Event], None], **_: Any) -> Job:
        if self.refusal is not None:
            raise self.refusal
        for event in self.events:
            on_event(event)
        self.jobs.append(ScriptedJob(len(self.jobs) + 1))
        return self.jobs[-1]

    def close(self, drain_s: float) -> bool:
        return drain_s >= 0


class ScriptedJob(Job):
    is_cancelled = False

    def __init__(self, number: int) -> None:
        self.id = number

    def cancel(self) -> None:
        self.is_cancelled = True


class NoDecoders:
    """Stands in for the processes that decode, where no audio matters."""

    stats = DecoderStats()

    def start(self) -> None: ...

    def close(self) -> None: ...

    def open(self, *_: Any, **__: Any) -> NoDecoders:
        return self


@contextmanager
def scripted(
    asr: Transcriber, *events: Event, refusal: Exception | None = None, **settings: Any
) -> Iterator[tuple[str, ScriptedScheduler]]:
    app = create_app(asr, ServerSettings(model_names=("small",), **settings))
    app.state.decoders = NoDecoders()
    app.state.scheduler = scheduler = ScriptedScheduler(*events, refusal=refusal)
    with running(app) as address:
        yield address, scheduler


def transcript(text: str) -> Transcript:
    segment = Segment(0.0, 0.5, text, "en", 1.0, (), 0.9, 1)
    return Transcript(text, "en", 1.0, (), 0.9, 1, 0.5, 0.1, segments=(segment,))


def create(client: openai.OpenAI, **options: Any) -> Any:
    return client.audio.transcriptions.create(**{"model": "small", "file": AUDIO} | options)


def post(address: str, fields: Any, file: Any = AUDIO) -> tuple[int, dict[str, Any]]:
    with http_client(address) as client:
        reply = client.post(ROUTE, data=fields, files={"file": file} if file else None)
    return reply.status_code, refusal(reply.json())


def refusal(body: dict[str, Any]) -> dict[str, Any]:
    """The error in a body, which has OpenAI's four keys, a sentence, and nothing of ours."""
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"][0].isalnum()
    assert error["message"].endswith(".")
    assert error["code"]
    for secret in ("secret-name", "Traceback", ".py", "/tmp", str(ROOT)):
        assert secret not in json.dumps(body)
    return error
