"""``diarized_json``: who spoke when, as the callable of whoever runs the server tells it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile
from openai import OpenAI
from openai.types.audio import TranscriptionDiarized, TranscriptionTextSegmentEvent
from running_server import openai_client, running

import canvas_asr
from canvas_asr import Transcriber
from canvas_asr.errors import OptionError
from canvas_asr.serving.app import create_app
from canvas_asr.serving.diarization import load_diarizer
from canvas_asr.serving.settings import ServerSettings
from canvas_asr.speakers import Diarize, join_speakers

SPEECH = Path(__file__).parents[2] / "examples" / "en.flac"
RATE = 16_000
Turns = list[tuple[float, float, str]]


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return canvas_asr.load("tiny", device="cpu")


@contextmanager
def serving(asr: Transcriber, diarize: Diarize, **settings: float) -> Iterator[OpenAI]:
    chosen = ServerSettings(model_names=("tiny",), decode_workers=1, steps=1, **settings)  # type: ignore[arg-type]
    with running(create_app(asr, chosen, diarize=diarize)) as address, openai_client(address) as client:
        yield client


def speech() -> np.ndarray:
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    assert rate == RATE
    return samples


def wav(samples: np.ndarray) -> tuple[str, bytes]:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return "audio.wav", file.getvalue()


def halves(samples: np.ndarray, rate: int) -> Turns:
    """The first half is Ann's, the second Ben's."""
    end = len(samples) / rate
    return [(0.0, end / 2, "Ann"), (end / 2, end, "Ben")]


def diarized(client: OpenAI, file: object = SPEECH) -> TranscriptionDiarized:
    reply = client.audio.transcriptions.create(
        model="tiny",
        file=file,  # type: ignore[arg-type]
        response_format="diarized_json",
    )
    assert isinstance(reply, TranscriptionDiarized)
    return reply


def test_segments_have_the_speakers_that_the_callable_tells(asr: Transcriber) -> None:
    with serving(asr, halves) as client:
        reply = diarized(client)
    samples = speech()
    expected = join_speakers(
        asr.transcribe(samples, sample_rate_hz=RATE, steps=1, word_timestamps=True), halves(samples, RATE)
    )
    TranscriptionDiarized.model_validate_json(reply.model_dump_json())
    assert (reply.task, reply.text) == ("transcribe", expected.text)
    assert reply.duration == pytest.approx(len(samples) / RATE, abs=1e-3)
    assert reply.usage is not None
    assert reply.usage.type == "duration"
    assert [segment.speaker for segment in reply.segments] == ["Ann", "Ben"]
    assert [segment.id for segment in reply.segments] == ["seg_001", "seg_002"]
    assert [(s.text, s.start, s.end) for s in reply.segments] == [
        (s.text, pytest.approx(s.start, abs=1e-3), pytest.approx(s.end, abs=1e-3)) for s in expected.segments
    ]
    assert {segment.type for segment in reply.segments} == {"transcript.text.segment"}


def test_the_callable_is_given_every_sample_of_a_long_file(asr: Transcriber) -> None:
    long = np.concatenate([np.concatenate([speech(), np.zeros(2 * RATE, np.float32)])] * 3)
    given: list[np.ndarray] = []

    def note(samples: np.ndarray, rate: int) -> Turns:
        given.append(np.array(samples))
        samples[:] = 0.0  # who works in place harms nobody
        return halves(samples, rate)

    with serving(asr, note) as client:
        reply = diarized(client, wav(long))
        again = diarized(client, wav(long))
    for samples in given:
        np.testing.assert_allclose(samples, long, atol=1e-6)
    assert len(reply.segments) >= 3
    assert {segment.speaker for segment in reply.segments} == {"Ann", "Ben"}
    assert reply == again


def test_a_stream_sends_the_segments_before_its_end(asr: Transcriber) -> None:
    with serving(asr, halves) as client:
        whole = diarized(client)
        events = list(
            client.audio.transcriptions.create(
                model="tiny", file=SPEECH, response_format="diarized_json", stream=True
            )
        )
    segments = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
    assert [event.to_dict() for event in segments] == [segment.to_dict() for segment in whole.segments]
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole.text
    assert [event.type for event in events[: -1 - len(segments)]] == ["transcript.text.delta"]


def test_a_segment_in_nobodys_turn_is_of_an_unknown_speaker(asr: Transcriber) -> None:
    with serving(asr, lambda *_: []) as client:
        assert [segment.speaker for segment in diarized(client).segments] == ["unknown"]


def test_silence_has_no_segments(asr: Transcriber) -> None:
    with serving(asr, halves) as client:
        reply = diarized(client, wav(np.zeros(RATE, np.float32)))
    assert (reply.text, reply.segments) == ("", [])


def test_other_formats_do_not_ask_who_spoke(asr: Transcriber) -> None:
    def fail(*_: object) -> Turns:
        raise AssertionError

    with serving(asr, fail) as client:
        assert client.audio.transcriptions.create(model="tiny", file=SPEECH).text


def no_turns(*_: object) -> Turns:
    return [(1.0, 0.0, "Ann")]


def broken(*_: object) -> Turns:
    raise RuntimeError("a secret of the server")


@pytest.mark.parametrize("diarize", [no_turns, broken])
@pytest.mark.parametrize("stream", [False, True])
def test_a_callable_that_fails_is_an_error_of_the_server(
    asr: Transcriber, diarize: Callable[..., Turns], stream: bool
) -> None:
    with serving(asr, diarize) as client:
        with pytest.raises(openai.APIError) as caught:
            for _ in client.audio.transcriptions.create(
                model="tiny", file=SPEECH, response_format="diarized_json", stream=stream
            ):
                pass
        assert "secret" not in str(caught.value)
        assert caught.value.code == "internal_error"
        assert client.audio.transcriptions.create(model="tiny", file=SPEECH).text


def test_a_callable_that_takes_too_long_is_given_up(asr: Transcriber) -> None:
    def sleep(*_: object) -> Turns:
        time.sleep(4.0)
        return []

    with serving(asr, sleep, request_timeout_s=3.0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            diarized(client)
        assert caught.value.status_code == 504
        assert client.audio.transcriptions.create(model="tiny", file=SPEECH).text


def test_a_callable_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "who_speaks.py").write_text("def diarize(samples, rate):\n    return []\nturns = []\n")
    (tmp_path / "fails_to_load.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert load_diarizer("who_speaks:diarize")(np.zeros(1, np.float32), RATE) == []
    for name, what in {
        "who_speaks": "give MODULE:FUNCTION",
        ":diarize": "give MODULE:FUNCTION",
        "nobody_has_this:diarize": "cannot be imported: No module named 'nobody_has_this'",
        "fails_to_load:diarize": "cannot be imported: division by zero",
        "who_speaks:turns": "has no function turns",
        "who_speaks:others": "has no function others",
    }.items():
        with pytest.raises(OptionError, match=what):
            load_diarizer(name)
