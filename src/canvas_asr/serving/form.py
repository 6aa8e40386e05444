"""What a request for a transcription asks for, and whether this server can do it.

What it cannot do is refused with the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from ..errors import OptionError
from ..options import DecodingOptions
from .errors import RequestError
from .fields import CHUNKING, DIARIZED, FIELDS, invalid, missing, read_fields, shown

STREAMED_FORMATS = ("json", "text", DIARIZED)
# Options of decoding that the form calls otherwise.
_FIELD_OF = {
    "hotwords": "keywords",
    "hotword_boost": "keywords",
    "word_timestamps": "timestamp_granularities",
}


@dataclass(frozen=True)
class TranscriptionRequest:
    """What a form asks for.

    Attributes:
        response_format: Of the reply.
        stream: Whether it is sent as events.
        canvas: Whether passes are among them.
        logprobs: Whether the reply tells the tokens' log probabilities.
        times_of: ``word`` and ``segment``, as far as their times are asked for.
        vad: Whether only speech is transcribed; None: where the audio is long.
        decoding: Options.
    """

    response_format: str
    stream: bool
    canvas: bool
    logprobs: bool
    times_of: tuple[str, ...]
    vad: bool | None
    decoding: DecodingOptions

    @property
    def tells_speakers(self) -> bool:
        """Whether speakers are told apart."""
        return self.response_format == DIARIZED


@dataclass(frozen=True)
class Served:
    """What the server offers.

    Attributes:
        names: Of the model.
        languages: Codes that it knows; empty: it tells none apart.
        has_draft: Whether it has a CTC draft, which word times need.
        defaults: Options where a request says nothing.
        tells_speakers: Whether it has somebody who tells speakers apart.
    """

    names: tuple[str, ...]
    languages: tuple[str, ...]
    has_draft: bool
    defaults: DecodingOptions
    tells_speakers: bool = False


def read_request(items: Iterable[tuple[str, str]], served: Served) -> TranscriptionRequest:
    """Read the text fields of a form.

    Args:
        items: Names and values as they came; an empty value is one that was not given.
        served: What the server offers.

    Raises:
        RequestError: If a field is unknown, missing, out of range or beyond this server; it names the field.
    """
    values = read_fields(items)
    _check_model(values.get("model"), served.names)
    response_format = values.get("response_format", "json")
    stream = values.get("stream", False)
    if stream and response_format not in STREAMED_FORMATS:
        raise invalid(
            "response_format", f"{response_format} cannot be streamed; leave stream out, or give json."
        )
    if response_format == DIARIZED and not served.tells_speakers:
        raise invalid(
            "response_format",
            f"{DIARIZED} is not offered here: the server was started without a --diarizer, so nobody tells "
            "speakers apart.",
        )
    if "timestamp_granularities" in values and response_format != "verbose_json":
        raise invalid("timestamp_granularities", "give response_format=verbose_json with it.")
    if "include" in values and response_format != "json":
        raise invalid("include", "logprobs come with response_format=json only.")
    if values.get("canvas") and not stream:
        raise invalid("canvas", "passes are events; give stream=true with it.")
    times_of = tuple(values.get("timestamp_granularities", ["segment"]))
    # Cues are better where words have times, segments are split at them, and the page shows them.
    uses_words = response_format in ("srt", "vtt", DIARIZED) or values.get("canvas", False)
    likes_words = served.has_draft and uses_words
    needs_words = response_format == "verbose_json" and "word" in times_of
    return TranscriptionRequest(
        response_format=response_format,
        stream=stream,
        canvas=values.get("canvas", False),
        logprobs="logprobs" in values.get("include", []),
        times_of=times_of,
        vad=True if CHUNKING in values else None,
        decoding=_decoding(values, served, words=likes_words or needs_words),
    )


def option_error(error: OptionError) -> RequestError:
    """Name the form's field in an error about an option of decoding."""
    found = re.match(r"\w+", str(error))
    option = found[0] if found else ""
    name = _FIELD_OF.get(option, option)
    message = str(error).replace("hotwords", "keywords")
    return RequestError(
        HTTPStatus.BAD_REQUEST, message, param=name if name in FIELDS else None, code="invalid_value"
    )


def _decoding(values: dict[str, Any], served: Served, *, words: bool) -> DecodingOptions:
    """Put options of a request over those of the server."""
    chosen = served.defaults
    keywords = {"hotwords": values["keywords"]} if "keywords" in values else {}
    try:
        if "steps" in values or "init" in values:  # the one that is left out follows from the other
            chosen = DecodingOptions(
                steps=values.get("steps"), init=values.get("init"), canvas=served.defaults.canvas
            )
        return replace(
            chosen,
            language=_language(values, served.languages),
            seed=values.get("seed", 0),
            prompt=values.get("prompt"),
            word_timestamps=words,
            **keywords,
        )
    except OptionError as error:
        raise option_error(error) from error


def _check_model(name: str | None, names: Sequence[str]) -> None:
    if name is None:
        raise missing("model", f"name the model: {', '.join(names)}.")
    if name not in names:
        raise no_such_model(names)


def no_such_model(names: Sequence[str]) -> RequestError:
    """Give the error of a model that is not served."""
    return RequestError(
        HTTPStatus.NOT_FOUND,
        f"There is no such model here; this server has {', '.join(names)}.",
        param="model",
        code="model_not_found",
    )


def _language(values: dict[str, Any], known: Sequence[str]) -> str | None:
    """Find the one language that is meant; None: any."""
    given: str | None = values.get("language")
    possible: list[str] = list(dict.fromkeys(values.get("languages", [])))
    for name, codes in (("language", [given] if given else []), ("languages", possible)):
        for code in codes:
            if (known and code not in known) or not re.fullmatch("[a-z]{2,3}", code):
                choice = f"this model knows {', '.join(known)}" if known else "give a code such as de"
                raise invalid(name, f"{shown(code)} is no language here; {choice}.")
    if given and possible and given not in possible:
        raise invalid("languages", f"language is {given}, which is not among them; leave one of the two out.")
    if given or len(possible) == 1:
        return given or possible[0]
    if not possible or (known and set(possible) == set(known)):
        return None
    raise invalid(
        "languages", "a choice among some languages is not offered; give one, or none to detect it."
    )
