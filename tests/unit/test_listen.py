"""``canvas-asr listen``: samples from a pipe or a microphone, lines on stdout, drafts on a terminal."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canvas_asr import Segment, Transcriber, load_audio
from canvas_asr.cli import main
from canvas_asr.cli.live_screen import Screen
from canvas_asr.cli.messages import ctrl_c
from canvas_asr.live import DraftChanged, StableGrown
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

RATE_HZ = 16_000
EXAMPLES = Path(__file__).parents[2] / "examples"
DRAFT = ["--steps", "0", "--init", "draft"]


class Stdin(io.BytesIO):
    """Standard input that gives no more than some bytes at a time, and whose writer may hit Ctrl-C."""

    def __init__(self, content: bytes, most: int = 1 << 20, interrupted_at: int | None = None) -> None:
        super().__init__(content)
        self.most, self.interrupted_at = most, interrupted_at

    @property
    def buffer(self) -> Stdin:
        return self

    def isatty(self) -> bool:
        return False

    def read1(self, size: int | None = -1, /) -> bytes:
        if self.interrupted_at is not None and self.tell() >= self.interrupted_at:
            self.interrupted_at = None
            ctrl_c.arrived = True
            raise KeyboardInterrupt
        return super().read1(min(self.most, size or 0))


@pytest.fixture
def asr(model: CanvasASRModel, processor: CanvasASRProcessor, monkeypatch: pytest.MonkeyPatch) -> Transcriber:
    """Takes clips of 5 s, and is what the command loads."""
    transcriber = Transcriber(model, processor)
    transcriber.max_audio_s = 5.0
    monkeypatch.setattr("canvas_asr.transcriber.load", lambda *_, **__: transcriber)
    return transcriber


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    sentence, pause = load_audio(EXAMPLES / "en.flac"), np.zeros(RATE_HZ, np.float32)
    return (np.concatenate([sentence, pause, pause, sentence]) * 32767).astype("<i2")


def listen(monkeypatch: pytest.MonkeyPatch, stdin: Stdin, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", stdin)
    return main(["listen", "-", *DRAFT, *options])


def test_every_segment_is_a_line(
    asr: Transcriber, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listen(monkeypatch, Stdin(speech.tobytes(), most=3001)) == 0  # samples come in halves
    file = asr.transcribe((speech, RATE_HZ), steps=0, init="draft")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [" ".join(segment.text.split()) for segment in file.segments]
    assert len(file.segments) > 1
    assert shown.err == ""


def test_a_format_is_printed_at_the_end(
    asr: Transcriber, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listen(monkeypatch, Stdin(speech.tobytes()), "--output-format", "json", "--rate", "32000") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["audio_s"] == pytest.approx(len(speech) / 32_000, abs=1e-3)
    assert found["text"]


def test_ctrl_c_is_the_end_of_the_speech(
    asr: Transcriber, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listen(monkeypatch, Stdin(speech.tobytes(), most=32_000, interrupted_at=96_000)) == 0
    file = asr.transcribe((speech[:48_000], RATE_HZ), steps=0, init="draft")
    assert capsys.readouterr().out.split() == file.text.split()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", (), "standard input: holds no audio samples"),
        (b"\0", (), "standard input: holds no audio samples"),
        ((EXAMPLES / "en.flac").read_bytes(), (), "use canvas-asr transcribe for files"),
        (bytes(64), ("--rate", "16"), "a sample rate of 16 Hz is outside"),
        (bytes(64), ("--language", "xx"), "language is 'xx'"),
    ],
)
def test_what_cannot_be_heard_is_one_sentence(
    asr: Transcriber,
    content: bytes,
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert listen(monkeypatch, Stdin(content), *options) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err.splitlines()[-1]


def test_half_a_sample_is_told(
    asr: Transcriber, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listen(monkeypatch, Stdin(speech[:RATE_HZ].tobytes() + b"\0")) == 0
    assert "ends within a sample" in capsys.readouterr().err


def test_a_terminal_is_no_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stdin = Stdin(b"")
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    assert listen(monkeypatch, stdin) == 1
    assert "standard input is a terminal" in capsys.readouterr().err


# Microphones


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)


def test_without_the_package_the_way_to_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without("sounddevice", monkeypatch)
    assert main(["listen"]) == 1
    assert "pip install 'canvas-asr[listen]'" in capsys.readouterr().err


class PortAudioError(Exception):
    pass


def sounddevice(speech: np.ndarray) -> types.ModuleType:
    """In the place of the package: a microphone that hears speech, until Ctrl-C."""
    pieces = [speech[at : at + 2400] for at in range(0, len(speech) // 2400 * 2400, 2400)]

    class RawInputStream:
        def __init__(self, **settings: Any) -> None:
            assert settings == {"samplerate": 24_000, "device": None, "channels": 1, "dtype": "int16"}

        def __enter__(self) -> RawInputStream:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, n_frames: int) -> tuple[bytes, bool]:
            assert n_frames == 2400
            if not pieces:
                ctrl_c.arrived = True
                raise KeyboardInterrupt
            return pieces.pop(0).tobytes(), len(pieces) == 3

    def query_devices(device: object, kind: str) -> dict[str, float]:
        if device == 9:
            raise ValueError("No input device matching 9")
        return {"default_samplerate": 24_000.0}

    module = types.ModuleType("sounddevice")
    module.__dict__.update(
        RawInputStream=RawInputStream, query_devices=query_devices, PortAudioError=PortAudioError
    )
    return module


def test_a_microphone_is_heard_until_ctrl_c(
    asr: Transcriber, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = speech[: 24 * 2400]
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(heard))
    assert main(["listen", *DRAFT]) == 0
    shown = capsys.readouterr()
    assert shown.out.split() == asr.transcribe((heard, 24_000), steps=0, init="draft").text.split()
    assert shown.err.count("listening") == shown.err.count("some audio was lost") == 1


def test_a_microphone_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(np.zeros(0, np.int16)))
    assert main(["listen", "--microphone", "9"]) == 1
    assert "9: no such microphone" in capsys.readouterr().err


# What a terminal shows


def test_drafts_are_dimmed_and_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("canvas_asr.cli.live_screen.is_terminal", lambda stream: True)
    monkeypatch.setattr("canvas_asr.cli.live_screen.terminal_size", lambda stream: (12, 24))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    screen = Screen(shows_segments=True)
    screen.take(DraftChanged("one", 0.0, 1.0))
    screen.take(DraftChanged("one two three\x1b[2J", 0.0, 1.0))
    screen.take(
        StableGrown(" one two\n\x1b[2J", Segment(0.0, 1.0, "one two\n\x1b[2J", "en", 1.0, (), 1.0, 1))
    )
    screen.close()
    clear = "\r\x1b[K"
    assert terminal.getvalue() == (
        f"{clear}\x1b[2mone\x1b[0m{clear}\x1b[2m… three [2J\x1b[0m{clear}one two [2J\n"
    )
