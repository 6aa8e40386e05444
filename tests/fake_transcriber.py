"""The command line with a transcriber that needs no model: `python tests/fake_transcriber.py transcribe ...`.

It reads text files: their words are what is said, half a second each. A file of `die` kills the process, and
an empty one is no audio. FAKE_SECONDS in the environment is how long it takes for a file.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from canvas_asr.errors import AudioError
from canvas_asr.result import Segment, Transcript, Word
from canvas_asr.speakers import Speakers, SpeakerSource

WORD_S = 0.5


class FakeTranscriber:
    has_draft = True

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = float(os.environ.get("FAKE_SECONDS", "0")) if seconds is None else seconds
        self.asked: list[str] = []

    def transcribe_files(
        self,
        paths: Iterable[str],
        *,
        on_progress: Callable[[float, float], None] | None = None,
        word_timestamps: bool = False,
        diarize: SpeakerSource = None,
        **_: Any,
    ) -> Iterator[Transcript | AudioError]:
        done = 0.0
        speakers = Speakers.of(diarize, None)
        for path in paths:
            if refusal := speakers.refusal(path):
                yield refusal
                continue
            self.asked.append(path)
            if not Path(path).is_file():
                yield AudioError(f"{path}: no such file; check the path.")
                continue
            text = Path(path).read_text(encoding="utf-8")
            if not text:
                yield AudioError(f"{path}: the file is empty (0 bytes); get the file again.")
                continue
            if text == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            transcript = speakers.join(read(path, text, timed=word_timestamps), path)
            done += transcript.audio_s
            if on_progress is not None:
                on_progress(done, done)
            yield transcript


def read(path: str, text: str, *, timed: bool) -> Transcript:
    times = enumerate(text.split())
    words = tuple(Word(word, i * WORD_S, (i + 1) * WORD_S, 0.9) for i, word in times) if timed else None
    end = max(1, len(text.split())) * WORD_S
    segment = Segment(0.0, end, text, "en", 1.0, (), 0.9, 8, words=words)
    return Transcript(text, "en", 1.0, (), 0.9, 8, end, 0.1, file=path, words=words, segments=(segment,))


def module(transcriber: FakeTranscriber) -> types.ModuleType:
    """Stands in for canvas_asr.transcriber."""
    fake = types.ModuleType("canvas_asr.transcriber")
    fake.load = lambda *_, **__: transcriber  # type: ignore[attr-defined]
    return fake


if __name__ in ("__main__", "__mp_main__"):
    sys.modules["canvas_asr.transcriber"] = module(FakeTranscriber())
if __name__ == "__main__":
    from canvas_asr.cli import main

    sys.exit(main())
