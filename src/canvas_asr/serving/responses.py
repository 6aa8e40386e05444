"""Transcripts as OpenAI's API gives them.

What its schema asks for and this model does not have is given as follows. ``tokens`` are ids of this model's
vocabulary. ``seek`` is where the segment starts, in hundredths of a second. ``temperature`` is 0, as nothing
is sampled, and ``no_speech_prob`` 0, as no segment is written where no speech was found. Languages are codes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from fastapi.responses import JSONResponse, Response

from ..formats import to_srt, to_vtt
from ..result import Segment, Token, Transcript
from .form import TranscriptionRequest

# A token's confidence may be 0 once rounded, and JSON has no infinity: what OpenAI gives for the unlikeliest.
LEAST_LOGPROB = -9999.0
_DIGITS = 3  # of seconds
NOBODY = "unknown"  # OpenAI's schema asks for a speaker, and some segments lie in nobody's turn
LONG_S = 300.0  # of audio: what is said in more is not written in the event loop, where all would wait for it
MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


Written = TypeVar("Written")


async def write_apart(transcript: Transcript, write: Callable[[], Written]) -> Written:
    """Write a reply, in a thread if it is long.

    Args:
        transcript: That it is about.
        write: Gives the reply.
    """
    return write() if transcript.audio_s <= LONG_S else await run_sync(write)


def usage(transcript: Transcript) -> dict[str, Any]:
    """Give what is billed elsewhere: seconds of audio."""
    return {"type": "duration", "seconds": round(transcript.audio_s, _DIGITS)}


def logprobs(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Give every token with the logarithm of its confidence."""
    return [
        {
            "token": token.text,
            "logprob": _logprob(token),
            "bytes": list(token.text.encode("utf-8", "replace")),
        }
        for token in tokens
    ]


def transcription_response(transcript: Transcript, asked: TranscriptionRequest) -> Response:
    """Give a transcript in the format that was asked for."""
    match asked.response_format:
        case "json":
            body: dict[str, Any] = {"text": transcript.text}
            if asked.logprobs:
                body["logprobs"] = logprobs(transcript.tokens)
            return JSONResponse({**body, "usage": usage(transcript)})
        case "verbose_json":
            return JSONResponse(_verbose(transcript, asked.times_of))
        case "diarized_json":
            return JSONResponse(_diarized(transcript))
        case "srt":
            text = to_srt(transcript)
        case "vtt":
            text = to_vtt(transcript)
        case _:
            text = transcript.text + "\n" if transcript.text else ""
    return Response(
        text.encode("utf-8", "replace"), media_type=f"{MEDIA_TYPES[asked.response_format]}; charset=utf-8"
    )


def _verbose(transcript: Transcript, times_of: Sequence[str]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language,
        "duration": round(transcript.audio_s, _DIGITS),
        "text": transcript.text,
    }
    if "segment" in times_of:
        body["segments"] = [_segment(number, one) for number, one in enumerate(transcript.segments)]
    if "word" in times_of:
        body["words"] = [
            {"word": word.text, "start": round(word.start, _DIGITS), "end": round(word.end, _DIGITS)}
            for word in transcript.words or ()
        ]
    if transcript.truncated:
        body["truncated"] = True
    if transcript.gaps:
        body["gaps"] = [gap.to_dict() for gap in transcript.gaps]
    return {**body, "usage": usage(transcript)}


def _diarized(transcript: Transcript) -> dict[str, Any]:
    return {
        "task": "transcribe",
        "duration": round(transcript.audio_s, _DIGITS),
        "text": transcript.text,
        "segments": diarized_segments(transcript),
        "usage": usage(transcript),
    }


def diarized_segments(transcript: Transcript) -> list[dict[str, Any]]:
    """Give every segment with its speaker, as replies list them and a stream sends them."""
    return [
        {
            "type": "transcript.text.segment",
            "id": f"seg_{number:03d}",
            "start": round(segment.start, _DIGITS),
            "end": round(segment.end, _DIGITS),
            "text": segment.text,
            "speaker": segment.speaker or NOBODY,
        }
        for number, segment in enumerate(transcript.segments, 1)
    ]


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    written = segment.text.encode("utf-8", "replace")
    return {
        "id": number,
        "seek": round(100 * segment.start),
        "start": round(segment.start, _DIGITS),
        "end": round(segment.end, _DIGITS),
        "text": segment.text,
        "tokens": [token.id for token in segment.tokens],
        "temperature": 0.0,
        "avg_logprob": sum(map(_logprob, segment.tokens)) / max(1, len(segment.tokens)),
        "compression_ratio": len(written) / len(zlib.compress(written)),
        "no_speech_prob": 0.0,
    }


def _logprob(token: Token) -> float:
    return math.log(token.confidence) if token.confidence > 0 else LEAST_LOGPROB
