"""Token and Transcript: checked when made, readable, ready for JSON."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest

from canvas_asr.result import Token, Transcript


def make(**changes: Any) -> Transcript:
    values: dict[str, Any] = {
        "text": "Grüße, नमस्ते.",
        "language": "de",
        "language_confidence": 0.98,
        "tokens": (Token(300, "Grüße", 0.9), Token(301, ", नमस्ते.", 0.7)),
        "confidence": 0.8,
        "passes": 8,
        "audio_s": 3.0,
        "seconds": 0.5,
    }
    return Transcript(**(values | changes))


def test_str_is_the_text() -> None:
    assert str(make()) == "Grüße, नमस्ते."
    assert str(make(text="", tokens=())) == ""


def test_repr_is_one_short_line() -> None:
    text = repr(make(text="a\nb", file="talk.mp3", truncated=True))
    assert "\n" not in text
    assert text == (
        r"Transcript(text='a\nb', language='de' (0.98), confidence=0.80, tokens=2, passes=8, audio_s=3.00, "
        "seconds=0.500, truncated=True, file='talk.mp3')"
    )
    assert "truncated" not in repr(make())


def test_rtfx_is_audio_over_work() -> None:
    assert make().rtfx == pytest.approx(6.0)
    assert make(seconds=0.0).rtfx == 0.0


def test_to_dict_holds_every_field_and_survives_json() -> None:
    transcript = make(draft="gruse", file="talk.mp3")
    written = json.loads(json.dumps(transcript.to_dict(), ensure_ascii=False, allow_nan=False))
    assert set(written) == {field.name for field in dataclasses.fields(Transcript)} | {"rtfx"}
    tokens = tuple(Token(**token) for token in written.pop("tokens"))
    assert written.pop("rtfx") == 6.0
    assert Transcript(tokens=tokens, **written) == transcript


def test_numpy_numbers_become_plain_ones() -> None:
    token = Token(np.int64(7), "a", np.float32(0.5))
    transcript = make(tokens=[token], confidence=np.float32(0.5), passes=np.int64(2), audio_s=np.float64(1.5))
    assert transcript.tokens == (token,)  # a list is taken, a tuple kept
    assert json.loads(json.dumps(transcript.to_dict()))["tokens"] == [
        {"id": 7, "text": "a", "confidence": 0.5}
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"confidence": 1.1},
        {"confidence": float("nan")},
        {"language_confidence": -0.1},
        {"passes": -1},
        {"audio_s": -1.0},
        {"audio_s": float("inf")},
        {"seconds": float("nan")},
    ],
)
def test_impossible_values_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"Transcript\.{next(iter(changes))} must be"):
        make(**changes)


def test_impossible_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Token\.id must be >= 0, got -1"):
        Token(-1, "a", 0.5)
    with pytest.raises(ValueError, match=r"Token\.confidence must be within 0 and 1, got 2"):
        Token(1, "a", 2.0)


def test_results_are_frozen_comparable_and_picklable() -> None:
    transcript = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        transcript.text = "other"  # type: ignore[misc]
    assert make() == transcript
    assert make(passes=2) != transcript
    assert pickle.loads(pickle.dumps(transcript)) == transcript
    assert len({transcript, make()}) == 1
