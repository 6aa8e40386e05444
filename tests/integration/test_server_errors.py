"""What the server refuses: status, body in OpenAI's shape, and the exception of OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from running_server import http_client, openai_client, running
from scripted_server import AUDIO, ROOT, ROUTE, create, post, refusal, scripted, wav
from small_models import small_model, small_processor
from starlette.applications import Starlette
from starlette.routing import Mount

from canvas_asr import Transcriber
from canvas_asr.serving.app import create_app
from canvas_asr.serving.errors import add_error_handlers
from canvas_asr.serving.settings import ServerSettings

SETTINGS = ServerSettings(model_names=("small",), decode_workers=1, max_audio_s=4.0)


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return Transcriber(small_model(), small_processor())


@pytest.fixture(scope="module")
def address(asr: Transcriber) -> Iterator[str]:
    with running(create_app(asr, SETTINGS)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai_client(address) as client:
        yield client


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("response_format", "xml"),
        ("response_format", "diarized_json"),  # without a --diarizer
        ("temperature", "1.01"),
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("temperature", "1e999"),
        ("temperature", "warm"),
        ("language", "english"),
        ("language", "xx"),
        ("languages[]", "xx"),
        ("timestamp_granularities[]", "char"),
        ("timestamp_granularities[]", "word"),  # without verbose_json
        ("include[]", "tokens"),
        ("stream", "perhaps"),
        ("canvas", "true"),  # without stream
        ("chunking_strategy", "fast"),
        ("chunking_strategy", "[" * 5000),
        ("chunking_strategy", '{"type":"server_vad","threshold":0.2}'),
        ("chunking_strategy", '{"type":"auto","\\ud800":1}'),  # half a character, which no reply can hold
        ("chunking_strategy[threshold]", "0.2"),
        ("chunking_strategy[type]", "client_vad"),
        ("steps", "0"),  # but with init=draft
        ("steps", "65"),
        ("steps", "2.5"),
        ("steps", "1" * 5000),
        ("steps", "٣"),
        ("init", "blank"),
        ("seed", "-1"),
        ("seed", str(2**63)),
        ("keywords[]", "!"),
        ("keywords[]", "w" * 101),
        ("prompt", "Names: Ada"),  # the model was trained without
        ("known_speaker_names[]", "Ada"),
        ("hotwords", "Ada"),
        ("model[]", "small"),
        ("nonsense", "1"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(address: str, param: str, value: str) -> None:
    status, error = post(address, {"model": "small", param: value})
    assert status == 400
    name = param if param == "model[]" else param.partition("[")[0]
    assert error["param"] == name
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("invalid_value", "unknown_parameter")
    assert name.partition("[")[0] in error["message"]
    assert len(error["message"]) < 400


def test_options_that_do_not_go_together_are_refused(address: str) -> None:
    def param(**fields: Any) -> Any:
        status, error = post(address, {"model": "small", **fields})
        assert status == 400
        return error["param"]

    assert param(stream="true", response_format="srt") == "response_format"
    assert param(**{"include[]": "logprobs", "response_format": "verbose_json"}) == "include"
    assert param(**{"language": "de", "languages[]": "en"}) == "languages"
    assert param(**{"languages[]": ["de", "en"]}) == "languages"
    assert param(temperature=["0", "1"]) == "temperature"


def test_an_empty_value_is_one_that_is_not_given(address: str) -> None:
    with http_client(address) as client:
        fields = {"model": "small", "language": "", "prompt": "", "temperature": " "}
        assert client.post(ROUTE, data=fields, files={"file": AUDIO}).status_code == 200


def test_bad_requests_are_exceptions_of_openais_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, temperature=7)
    assert bad.value.param == "temperature"
    assert bad.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError) as unknown:
        create(client, model="whisper-1")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("owner/other")
    assert unknown.value.code == "model_not_found"
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.NotFoundError) as translation,
    ):
        client.audio.translations.create(model="small", file=AUDIO)
    assert translation.value.code == "not_offered"
    assert "Translation" in str(translation.value)


def test_a_missing_part_is_named(address: str) -> None:
    assert post(address, {}, AUDIO)[1]["param"] == "model"
    status, _ = post(address, {"model": "small", "file": "text"}, None)
    assert status == 415  # no part is a file: the client sends no form of parts
    with http_client(address) as client:
        for parts, param in (
            ({"model": (None, "small")}, "file"),
            ({"model": (None, "small"), "file": (None, "text")}, "file"),
            ({"model": ("model.txt", "small")}, "model"),
            ({"model": (None, "small"), "audio": AUDIO}, "audio"),
        ):
            reply = client.post(ROUTE, files=parts)
            assert reply.status_code == 400
            assert refusal(reply.json())["param"] == param
        reply = client.post(ROUTE, data={"model": "small"}, files=[("file", AUDIO), ("file", AUDIO)])
        assert reply.status_code == 400
        assert refusal(reply.json())["code"] == "invalid_form"


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("secret-name.wav", b"", "invalid_value"),
        ("secret-name.wav", b"Just a text, whatever its name says.", "invalid_audio"),
        ("secret-name.wav", (ROOT / "docs" / "watching.png").read_bytes(), "invalid_audio"),
        ("secret-name.wav", wav()[:40], "invalid_audio"),
        ("secret-name.wav", wav(0.0), "invalid_audio"),
        ("secret-name.mp3", b"ID3\x04" + bytes(200), "invalid_audio"),
        ("secret-name.wav", wav(4.5), "audio_too_long"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_audio_that_cannot_be_used(
    client: openai.OpenAI, name: str, data: bytes, code: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, file=(name, data), stream=stream)
    error = refusal(bad.value.response.json())
    assert (error["param"], error["code"]) == ("file", code)


def test_what_is_no_form_is_refused(address: str) -> None:
    with http_client(address) as client:
        reply = client.post(ROUTE, json={"model": "small", "file": "talk.wav"})
        assert reply.status_code == 415
        assert "multipart/form-data" in refusal(reply.json())["message"]
        for content_type, body in (
            ("multipart/form-data", b"--x--"),
            ("multipart/form-data; boundary=x", b"no boundary in it"),
            ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--"),
        ):
            reply = client.post(ROUTE, content=body, headers={"Content-Type": content_type})
            assert reply.status_code == 400
            refusal(reply.json())


def test_routes_and_methods_that_are_not_there(address: str) -> None:
    with http_client(address) as client:
        assert refusal(client.get("/v1/nothing").json())["code"] == "not_found"
        reply = client.get(ROUTE)
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        assert refusal(reply.json())["code"] == "method_not_allowed"
        assert client.get("/docs").status_code == 404  # FastAPI's page loads scripts of another host


def test_what_a_route_of_fastapi_refuses_has_the_same_shape() -> None:
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/rooms")
    def room(number: int) -> int:
        return number

    reply = TestClient(app).get("/rooms", params={"number": "two"})
    assert reply.status_code == 400
    assert refusal(reply.json())["param"] == "number"


def test_a_wrong_key_and_no_key(asr: Transcriber) -> None:
    with scripted(asr, api_keys=("right",)) as (address, _):
        for key in ("wrong", "righ", "rightt", "Right"):
            with openai_client(address, key) as client, pytest.raises(openai.AuthenticationError) as refused:
                create(client)
            assert refused.value.status_code == 401
            assert refused.value.code == "invalid_api_key"
            assert key not in refused.value.response.text
        with http_client(address) as client:
            for header in ("", "Bearer", "Basic right", "right", "Bearer \xff".encode("latin-1")):
                reply = client.get("/v1/models", headers={"Authorization": header})
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                refusal(reply.json())
            assert client.get("/v1/nothing").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": "bearer right"}).status_code == 200


def test_a_server_below_a_prefix_asks_for_its_key_there(asr: Transcriber) -> None:
    app = create_app(asr, ServerSettings(model_names=("small",), api_keys=("right",)))
    client = TestClient(Starlette(routes=[Mount("/asr", app)]))
    assert client.get("/asr/health").status_code == 200
    assert client.get("/asr/").status_code == 200
    for path in ("/asr/v1/models", "/asr/metrics", "/asr//v1/models"):
        assert client.get(path).status_code == 401
    headers = {"Authorization": "Bearer right"}
    assert client.get("/asr/v1/models", headers=headers).status_code == 200
