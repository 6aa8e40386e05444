"""Error rates, looping and the score with another clip's reading, on readings written by hand."""

from __future__ import annotations

import pytest

from canvas_asr.training.judging import error_rates, listening, named_error_rates, shuffled

READINGS = {
    "zh": [("我们学习", "我们学"), ("好", "好")],
    "en": [("the cat sat", "the dog sat"), ("go on", "go on")],
}


def test_words_are_counted_but_for_hindi_and_chinese() -> None:
    assert error_rates(READINGS) == {"zh": pytest.approx(1 / 5), "en": pytest.approx(1 / 5)}
    assert list(named_error_rates(READINGS)) == ["wer_en", "cer_zh"]


def test_shuffled_readings_are_the_next_clips() -> None:
    assert shuffled({**READINGS, "de": [("ja", "ja doch")]}) == {
        "zh": [("我们学习", "好"), ("好", "我们学")],
        "en": [("the cat sat", "go on"), ("go on", "the dog sat")],
        "de": [("ja", "我们学")],  # a language with one clip borrows from the next
    }


def test_a_model_that_always_says_the_same_has_no_gap() -> None:
    deaf = {"en": [("a b", "no no no no"), ("c d", "no no no no")]}
    assert listening(deaf) == {"shuffled": 2.0, "gap": 0.0, "repetition": 1.0}
    assert listening({"en": [("a b", "a b"), ("c d", "c d")]})["gap"] == 1.0
