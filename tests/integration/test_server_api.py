"""Every route and format of the server, through OpenAI's own client, with the embedded model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import srt
import webvtt
from openai import OpenAI
from openai.types.audio import TranscriptionTextDoneEvent, TranscriptionVerbose
from prometheus_client.parser import text_string_to_metric_families
from running_server import http_client, openai_client, running

import canvas_asr
from canvas_asr import Transcriber
from canvas_asr.serving.app import create_app
from canvas_asr.serving.settings import ServerSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEECH = EXAMPLES / "en.flac"
RATE = 16_000
SETTINGS = ServerSettings(
    model_names=("tiny", "whisper-1"), api_keys=("first", "second"), decode_workers=1, steps=1, max_batch=4
)


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return canvas_asr.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def address(asr: Transcriber) -> Iterator[str]:
    with running(create_app(asr, SETTINGS)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with openai_client(address, "first") as client:
        yield client


def wav(samples: np.ndarray) -> tuple[str, bytes]:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return "audio.wav", file.getvalue()


@pytest.fixture(scope="module")
def long_file() -> tuple[str, bytes]:
    """Speech that is read in several chunks, where it is looked for."""
    speech, rate = soundfile.read(SPEECH, dtype="float32")
    assert rate == RATE
    return wav(np.concatenate([np.concatenate([speech, np.zeros(2 * RATE, np.float32)])] * 3))


def local(asr: Transcriber, **options: object) -> canvas_asr.Transcript:
    return asr.transcribe(str(SPEECH), steps=1, **options)  # type: ignore[arg-type]


def test_json_holds_the_text_of_the_library_and_the_seconds(client: OpenAI, asr: Transcriber) -> None:
    reply = client.audio.transcriptions.create(model="tiny", file=SPEECH)
    expected = local(asr)
    assert expected.text
    assert reply.text == expected.text
    assert reply.usage is not None
    assert reply.usage.type == "duration"
    assert reply.usage.seconds == pytest.approx(expected.audio_s, abs=1e-3)
    assert reply.logprobs is None


def test_text_is_plain(client: OpenAI, asr: Transcriber) -> None:
    reply = client.audio.transcriptions.with_raw_response.create(
        model="tiny", file=SPEECH, response_format="text"
    )
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.parse() == local(asr).text + "\n"


def test_srt_and_vtt_can_be_read_again(client: OpenAI, asr: Transcriber) -> None:
    create = client.audio.transcriptions.with_raw_response.create
    subtitles = create(model="tiny", file=SPEECH, response_format="srt")
    assert subtitles.headers["content-type"] == "application/x-subrip; charset=utf-8"
    cues = list(srt.parse(subtitles.parse()))
    assert " ".join(cue.content for cue in cues) == local(asr).text
    captions = create(model="tiny", file=SPEECH, response_format="vtt")
    assert captions.headers["content-type"] == "text/vtt; charset=utf-8"
    found = webvtt.from_buffer(io.StringIO(captions.parse()))
    assert " ".join(caption.text for caption in found) == local(asr).text


def test_verbose_json_has_the_schema_of_openai(client: OpenAI, asr: Transcriber) -> None:
    reply = client.audio.transcriptions.create(model="tiny", file=SPEECH, response_format="verbose_json")
    expected = local(asr)
    assert isinstance(reply, TranscriptionVerbose)
    TranscriptionVerbose.model_validate_json(reply.model_dump_json())
    assert isinstance(reply.duration, float)
    assert reply.duration == pytest.approx(expected.audio_s, abs=1e-3)
    assert (reply.text, reply.language) == (expected.text, "en")
    assert reply.words is None
    assert reply.segments is not None
    (segment,) = reply.segments
    assert (segment.id, segment.seek, segment.start) == (0, 0, 0.0)
    assert segment.end == pytest.approx(expected.audio_s, abs=1e-3)
    assert segment.text == expected.text
    assert segment.tokens == [token.id for token in expected.tokens]
    logs = [math.log(token.confidence) for token in expected.tokens]
    assert segment.avg_logprob == pytest.approx(sum(logs) / len(logs), abs=1e-4)
    assert 0 < segment.compression_ratio < 2.4
    assert (segment.temperature, segment.no_speech_prob) == (0.0, 0.0)
    assert reply.usage is not None
    assert reply.usage.seconds == reply.duration


def test_word_times_come_when_asked_for(client: OpenAI, asr: Transcriber) -> None:
    create = client.audio.transcriptions.create
    words = create(
        model="tiny", file=SPEECH, response_format="verbose_json", timestamp_granularities=["word"]
    )
    expected = local(asr, word_timestamps=True).words
    assert expected
    assert words.words is not None
    assert words.segments is None
    assert [(word.word, round(word.start, 2), round(word.end, 2)) for word in words.words] == [
        (word.text, round(word.start, 2), round(word.end, 2)) for word in expected
    ]
    both = create(
        model="tiny", file=SPEECH, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert both.words == words.words
    assert both.segments


def test_logprobs_are_those_of_the_tokens(client: OpenAI, asr: Transcriber) -> None:
    reply = client.audio.transcriptions.create(model="tiny", file=SPEECH, include=["logprobs"])
    tokens = local(asr).tokens
    assert reply.logprobs is not None
    assert [entry.token for entry in reply.logprobs] == [token.text for token in tokens]
    assert [entry.logprob for entry in reply.logprobs] == pytest.approx(
        [math.log(token.confidence) for token in tokens], abs=1e-4
    )
    assert bytes(map(int, reply.logprobs[0].bytes or [])).decode() == tokens[0].text


def test_a_stream_is_deltas_one_done_and_the_mark_of_the_end(
    client: OpenAI, long_file: tuple[str, bytes]
) -> None:
    create = client.audio.transcriptions.create
    whole = create(model="tiny", file=long_file, chunking_strategy="auto")
    with create(model="tiny", file=long_file, chunking_strategy="auto", stream=True) as stream:
        *deltas, done = stream
    assert len(deltas) > 1
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert done.text == "".join(event.delta for event in deltas) == whole.text
    TranscriptionTextDoneEvent.model_validate_json(done.model_dump_json(exclude_unset=True))


def test_the_bytes_of_a_stream_are_those_of_openai(address: str) -> None:
    with http_client(address, "second") as client:
        reply = client.post(
            "/v1/audio/transcriptions",
            data={"model": "tiny", "stream": "true", "include[]": "logprobs", "response_format": "json"},
            files={"file": SPEECH.read_bytes()},
        )
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, last, end = reply.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    read = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [event["type"] for event in read] == ["transcript.text.delta", "transcript.text.done"]
    assert read[0]["delta"] == read[1]["text"]
    assert read[0]["logprobs"] == read[1]["logprobs"] != []


def test_who_asks_for_the_canvas_sees_every_pass(client: OpenAI, asr: Transcriber) -> None:
    with client.audio.transcriptions.create(
        model="tiny", file=SPEECH, stream=True, extra_body={"canvas": True, "steps": 3}
    ) as stream:
        events = [event.model_dump() for event in stream]
    kinds = [event["type"] for event in events]
    assert kinds[-2:] == ["canvas.transcript", "transcript.text.done"]
    passes = [event for event in events if event["type"] == "canvas.pass"]
    assert [(event["step"], event["steps"]) for event in passes] == [(1, 3), (2, 3), (3, 3)]
    assert passes[-1]["tokens"]
    assert all(token["kept"] and 0 <= token["confidence"] <= 1 for token in passes[-1]["tokens"])
    transcript = events[-2]
    assert transcript["words"]
    assert "file" not in transcript
    assert transcript["text"] == events[-1]["text"] == asr.transcribe(str(SPEECH), steps=3).text
    assert kinds.index("canvas.segment") < kinds.index("transcript.text.delta")


def test_text_may_be_streamed_too(client: OpenAI) -> None:
    with client.audio.transcriptions.create(
        model="tiny", file=SPEECH, stream=True, response_format="text"
    ) as stream:
        assert [event.type for event in stream] == ["transcript.text.delta", "transcript.text.done"]


@pytest.mark.parametrize("fmt", ["json", "text", "srt", "vtt", "verbose_json"])
def test_silence_has_no_text(client: OpenAI, fmt: str) -> None:
    silence = wav(np.zeros(3 * RATE, np.float32))
    reply = client.audio.transcriptions.create(model="tiny", file=silence, response_format=fmt)
    empty = {"text": "", "srt": "", "vtt": "WEBVTT\n\n"}
    assert reply == empty[fmt] if fmt in empty else reply.text == ""
    if fmt == "verbose_json":
        assert reply.segments == []
        assert reply.duration == 3.0


def test_silence_streams_one_empty_done(client: OpenAI) -> None:
    silence = wav(np.zeros(RATE, np.float32))
    with client.audio.transcriptions.create(model="tiny", file=silence, stream=True) as stream:
        (done,) = stream
    assert (done.type, done.text) == ("transcript.text.done", "")


def test_options_reach_the_model(client: OpenAI, asr: Transcriber) -> None:
    def text(**options: object) -> str:
        return client.audio.transcriptions.create(model="tiny", file=SPEECH, **options).text  # type: ignore[call-overload, no-any-return]

    assert (
        text(extra_body={"steps": 0, "init": "draft"})
        == asr.transcribe(str(SPEECH), steps=0, init="draft").text
    )
    assert text(extra_body={"init": "noise", "steps": 2, "seed": 7}) == (
        asr.transcribe(str(SPEECH), steps=2, seed=7).text
    )
    assert text(language="de") == local(asr, language="de").text
    assert text(languages=["de"]) == local(asr, language="de").text
    assert text(languages=list(asr.languages)) == local(asr).text
    assert text(keywords=["abandoned"]) == local(asr, hotwords=["abandoned"]).text
    assert text(chunking_strategy="auto", temperature=0.4) == local(asr, vad=True).text
    assert text(chunking_strategy={"type": "server_vad"}) == local(asr, vad=True).text


def test_models_are_listed_by_the_names_they_are_served_under(client: OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["tiny", "whisper-1"]
    assert {model.object for model in listed} == {"model"}
    assert client.models.retrieve("whisper-1") == listed[1]
    assert "de" in listed[0].model_extra["languages"]
    assert listed[0].model_extra["has_draft"] is True
    assert client.audio.transcriptions.create(model="whisper-1", file=SPEECH).text


def test_every_key_is_right_and_health_needs_none(address: str) -> None:
    for key in ("first", "second"):
        with openai_client(address, key) as client:
            assert client.models.list().data
    with http_client(address) as anybody:
        assert anybody.get("/health").json() == {"status": "ok"}
        assert anybody.get("/metrics").status_code == 401
        assert anybody.get("/").status_code == 200


def test_metrics_count_requests_passes_and_audio(address: str, client: OpenAI) -> None:
    def figures() -> dict[tuple[str, str, str], float]:
        with http_client(address, "first") as scraper:
            text = scraper.get("/metrics").text
        return {
            (one.name, one.labels.get("route", ""), one.labels.get("status", "")): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    route = "/v1/audio/transcriptions"
    before = figures()
    client.audio.transcriptions.create(model="tiny", file=SPEECH)
    after = figures()

    def more(name: str, route: str = "", status: str = "") -> float:
        return after[name, route, status] - before.get((name, route, status), 0.0)

    assert more("canvas_asr_requests_total", route, "200") == 1
    assert more("canvas_asr_request_seconds_count", route) == 1
    assert more("canvas_asr_passes_total") == 1
    assert more("canvas_asr_audio_seconds_total") == pytest.approx(soundfile.info(SPEECH).duration, abs=0.01)
    assert after["canvas_asr_queued_jobs", "", ""] == 0


def test_the_openapi_document_describes_the_form(address: str) -> None:
    with http_client(address) as anybody:
        document = anybody.get("/openapi.json").json()
    assert {"/v1/audio/transcriptions", "/v1/models", "/v1/models/{name}", "/health", "/metrics"} <= {
        *document["paths"]
    }
    form = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
    schema = form["multipart/form-data"]["schema"]
    assert schema["required"] == ["file", "model"]
    assert {"timestamp_granularities[]", "include[]", "temperature", "stream"} <= schema["properties"].keys()
    assert all(field["description"] for field in schema["properties"].values())
    for path in document["paths"].values():
        assert all(operation["summary"] and operation["description"] for operation in path.values())
    guarded = document["paths"]["/v1/audio/transcriptions"]["post"]["security"]
    assert [*guarded[0]] == ["HTTPBearer"]
    assert "security" not in document["paths"]["/health"]["get"]
