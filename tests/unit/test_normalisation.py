"""What each convention does to a text."""

from __future__ import annotations

import unicodedata

import pytest

from canvas_asr.evaluation.normalisation import (
    normalise_keep_marks,
    normalise_leaderboard,
    normalise_whisper,
)

HINDI = "हिन्दी में लिखा है"


def test_marks_are_kept_in_hindi():
    kept = normalise_keep_marks(HINDI + "।")
    assert kept == unicodedata.normalize("NFC", HINDI)
    marks = [c for c in HINDI if unicodedata.category(c).startswith("M")]
    assert [c for c in kept if unicodedata.category(c).startswith("M")] == marks
    assert len(marks) == 8


def test_every_hindi_mark_survives_alone():
    for code in range(0x0900, 0x0980):
        if unicodedata.category(chr(code)).startswith("M"):
            assert normalise_keep_marks("क" + chr(code)) == unicodedata.normalize("NFC", "क" + chr(code))


def test_whisper_normaliser_loses_hindi_vowels():
    assert normalise_whisper(HINDI, "hi") == "ह न द म ल ख ह"


def test_keep_marks_on_case_punctuation_and_joiners():
    assert normalise_keep_marks("  Straße, „Übung“ – 5 €!  ") == "strasse übung 5"
    assert normalise_keep_marks("wake-up") == normalise_keep_marks("wake up")
    assert normalise_keep_marks("दिल्\u200dली") == normalise_keep_marks("दिल्ली")
    assert normalise_keep_marks("e\u0301") == "é"
    assert normalise_keep_marks("...") == ""


def test_whisper_normalisation_by_language():
    assert normalise_whisper("Don't colour twenty-one books!", "en") == "do not color 21 books"
    assert normalise_whisper("Die Übung (leise) heißt: „Ja“.", "de") == "die übung heißt ja"
    assert normalise_whisper("今天，天气很好。", "zh") == "今天 天气很好"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Uhhh, I, erm, think so. Mm-hmm!", "i think so"),
        ("It's John's book, isn't it?", "it is john s book is not it"),
        ("The B. B. C. on 5 G", "the bbc on 5g"),
        ("a b", "a b"),  # too few to be letters that are spelled
        ("a b c", "abc"),
        ("kinda cause", "kinda cause"),
        ("Twenty-one colours [laughter] (door)", "21 colors"),
        ("", ""),
    ],
)
def test_english_of_the_leaderboard(text, expected):
    assert normalise_leaderboard(text, "en") == expected


def test_other_languages_of_the_leaderboard_keep_their_marks():
    assert normalise_leaderboard("Die Übung (leise) heißt: „Ja“.", "de") == "die übung heißt ja"
    assert normalise_leaderboard("l'été — ÇA", "fr") == "l été ça"


def test_the_leaderboard_leaves_the_normaliser_of_whisper_as_it_is():
    assert normalise_leaderboard("kinda", "en") == "kinda"
    assert normalise_whisper("kinda John's", "en") == "kind of john is"
