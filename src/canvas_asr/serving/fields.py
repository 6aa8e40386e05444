"""The fields of the form of ``POST /v1/audio/transcriptions``: one table checks and documents them.

Fields that are not in the table are refused, so that nothing a client asked for is left out in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from ..options import MAX_HOTWORD_LENGTH, MAX_HOTWORDS, STARTS
from .errors import RequestError
from .settings import MAX_STEPS

DIARIZED = "diarized_json"
RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt", DIARIZED)
_SHOWN = 40  # characters of a value that a reply repeats
CHUNKING = "chunking_strategy"
_SERVER_VAD = "server_vad"
_REFUSED_HERE = {
    "known_speaker_names": "this server knows nobody by a sample of the voice",
    "known_speaker_references": "this server knows nobody by a sample of the voice",
}

FIELDS: dict[str, dict[str, Any]] = {
    "file": {
        "type": "string",
        "format": "binary",
        "description": "The audio, in any format that FFmpeg reads: wav, flac, mp3, mp4, m4a, ogg, webm, ...",
    },
    "model": {"type": "string", "description": "Name of the model, as `GET /v1/models` lists it."},
    "language": {
        "type": "string",
        "description": "Code of the language spoken, such as `de`; left out: it is detected.",
    },
    "languages": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Languages that may be spoken: one, which is the same as `language`, or all that the "
        "model knows, which is the same as leaving it out; a choice among some is not offered.",
    },
    "prompt": {
        "type": "string",
        "description": "Text to go by, for a model that was trained with such; others refuse it, and take "
        "names as `keywords`.",
    },
    "keywords": {
        "type": "array",
        "items": {"type": "string", "maxLength": MAX_HOTWORD_LENGTH},
        "maxItems": MAX_HOTWORDS,
        "description": "Words and phrases to expect, written as they are to be; the model needs a CTC draft.",
    },
    "response_format": {
        "type": "string",
        "enum": list(RESPONSE_FORMATS),
        "default": "json",
        "description": "Of the reply; `diarized_json` where the server was started with a `--diarizer`.",
    },
    "temperature": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0,
        "description": "Accepted for other services' sake and without effect: the likeliest token of every "
        "place is taken, and what is random is the noise, by `seed`.",
    },
    "timestamp_granularities": {
        "type": "array",
        "items": {"type": "string", "enum": ["word", "segment"]},
        "description": "What `verbose_json` tells the times of; left out: segments.",
    },
    "stream": {
        "type": "boolean",
        "default": False,
        "description": "Send the text as server-sent events, chunk by chunk as each is final.",
    },
    "include": {
        "type": "array",
        "items": {"type": "string", "enum": ["logprobs"]},
        "description": "What is told besides the text; with `response_format=json` only.",
    },
    CHUNKING: {
        "type": "string",
        "description": "`auto`, or an object of the type `server_vad`: only speech is transcribed, as voice "
        "activity detection finds it, whose parameters cannot be set. Left out: that is done where the audio "
        "is longer than the model takes at once.",
    },
    "steps": {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_STEPS,
        "description": "Not OpenAI's: most denoising passes; 0 takes the draft as it is, with `init=draft`.",
    },
    "init": {
        "type": "string",
        "enum": list(STARTS),
        "description": "Not OpenAI's: what the canvas starts from.",
    },
    "seed": {
        "type": "integer",
        "minimum": 0,
        "maximum": 2**63 - 1,
        "default": 0,
        "description": "Not OpenAI's: of the noise. The same audio, options and seed give the same text.",
    },
    "canvas": {
        "type": "boolean",
        "default": False,
        "description": "Not OpenAI's: with `stream`, send every pass of every chunk as well.",
    },
}
REQUIRED = ("file", "model")


def form_schema() -> dict[str, Any]:
    """Give the form as OpenAPI describes it; lists are named as OpenAI's clients send them."""
    listed = {f"{name}[]" if field["type"] == "array" else name: field for name, field in FIELDS.items()}
    schema = {"type": "object", "required": list(REQUIRED), "properties": listed}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def read_fields(items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read values by the table.

    Args:
        items: Names and values as they came; an empty value is one that was not given.

    Returns:
        Values of the types that the table says, by the fields' names without ``[]``.

    Raises:
        RequestError: If a field is unknown, or its value not one that it may have.
    """
    given: dict[str, list[str]] = {}
    strategy: dict[str, str] = {}
    for name, value in items:
        if not value.strip():
            continue
        nested = re.fullmatch(rf"{CHUNKING}\[(\w+)\]", name)
        if nested:
            strategy[nested[1]] = value
            continue
        plain = name.removesuffix("[]")
        if plain in _REFUSED_HERE:
            raise invalid(plain, f"{_REFUSED_HERE[plain]}; leave it out.")
        if plain not in FIELDS or (plain != name and FIELDS[plain]["type"] != "array"):
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                f"Unknown parameter: {shown(name)}; this route takes {', '.join(FIELDS)}.",
                param=name[:_SHOWN],
                code="unknown_parameter",
            )
        given.setdefault(plain, []).append(value)
    read = {name: _read_field(name, texts) for name, texts in given.items()}
    if CHUNKING in read:
        strategy |= _read_strategy(read[CHUNKING])
    if strategy:
        _check_strategy(strategy)
        read[CHUNKING] = strategy
    return read


def _read_field(name: str, texts: Sequence[str]) -> Any:
    if name == "file":
        raise missing("file", "it has to be a file part of the form, and this is a text.")
    field = FIELDS[name]
    if field["type"] == "array":
        if len(texts) > field.get("maxItems", math.inf):
            raise invalid(name, f"{len(texts)} are given; give at most {field['maxItems']}.")
        return [_read_value(name, field["items"], text) for text in texts]
    if len(set(texts)) > 1:
        raise invalid(name, "it is given twice, with two values; give it once.")
    return _read_value(name, field, texts[0])


def _read_value(name: str, schema: dict[str, Any], text: str) -> Any:
    """Read one value as its schema says."""
    text = text.strip()
    kind = schema["type"]
    if kind == "boolean":
        if text.lower() not in ("true", "false", "1", "0"):
            raise invalid(name, f"{shown(text)} is neither true nor false.")
        return text.lower() in ("true", "1")
    if kind in ("integer", "number"):
        return _read_number(name, schema, text)
    if "enum" in schema and text not in schema["enum"]:
        raise invalid(name, f"{shown(text)} is not offered; choose one of {', '.join(schema['enum'])}.")
    return text


def _read_number(name: str, schema: dict[str, Any], text: str) -> int | float:
    is_whole = schema["type"] == "integer"
    least, most = schema["minimum"], schema["maximum"]
    pattern = r"[+-]?\d{1,19}" if is_whole else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    number = (int(text) if is_whole else float(text)) if re.fullmatch(pattern, text, re.ASCII) else None
    if number is None or not least <= number <= most:
        kind = "a whole number" if is_whole else "a number"
        raise invalid(name, f"{shown(text)} is not {kind} from {least} to {most}.")
    return number


def _read_strategy(text: str) -> dict[str, Any]:
    """Read ``auto``, or an object as JSON."""
    if text == "auto":
        return {"type": "auto"}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise invalid(CHUNKING, f"{shown(text)} is neither auto nor an object of the type {_SERVER_VAD}.")
    return found


def _check_strategy(strategy: dict[str, Any]) -> None:
    if strategy.get("type") not in ("auto", _SERVER_VAD):
        raise invalid(CHUNKING, f"its type has to be {_SERVER_VAD}.")
    others = sorted(shown(name) for name in strategy if name != "type")
    if others:
        raise invalid(
            CHUNKING,
            f"{', '.join(others)} cannot be set: the detector runs with its own parameters; give auto, or "
            "the type alone.",
        )


def missing(name: str, what: str) -> RequestError:
    """Give the error of a field that has to be there."""
    return RequestError(
        HTTPStatus.BAD_REQUEST, f"{name} is missing: {what}", param=name, code="missing_required_parameter"
    )


def invalid(name: str, what: str) -> RequestError:
    """Give the error of a field whose value cannot be used."""
    return RequestError(HTTPStatus.BAD_REQUEST, f"{name}: {what}", param=name, code="invalid_value")


def shown(text: str) -> str:
    """Give the beginning of a value, for a message."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
