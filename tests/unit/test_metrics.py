"""Error rates against hand-computed cases and against jiwer itself."""

from __future__ import annotations

import unicodedata

import jiwer
import pytest

from canvas_asr.errors import DataError
from canvas_asr.evaluation.metrics import (
    ErrorCounts,
    cer,
    normalise_keep_marks,
    normalise_whisper,
    primary_metric,
    repetition_rate,
    score,
    wer,
)

HINDI = "हिन्दी में लिखा है"


def test_wer_by_hand():
    # cat→bat is a substitution, "down" an insertion, the second "the" a deletion.
    counts = wer(["the cat sat", "on the mat"], ["the bat sat down", "on mat"])
    assert counts == ErrorCounts(substitutions=1, deletions=1, insertions=1, hits=4)
    assert counts.rate == pytest.approx(3 / 6)
    assert counts.reference_length == 6


def test_cer_by_hand_counts_spaces():
    assert cer(["ab c"], ["abc"]) == ErrorCounts(deletions=1, hits=3)
    assert cer(["ab c"], ["abc"]).rate == pytest.approx(1 / 4)


def test_rates_are_of_the_corpus_not_a_mean_of_clips():
    counts = wer(["a", "a b c d e f g h i"], ["x", "a b c d e f g h i"])
    assert counts.rate == pytest.approx(1 / 10)  # the mean over clips would be 1/2
    assert wer(["a"], ["x"]) + wer(["a b c d e f g h i"], ["a b c d e f g h i"]) == counts


@pytest.mark.parametrize(
    ("references", "hypotheses"),
    [
        (["the cat sat on the mat", "hello"], ["the cat sat mat the", "yellow hello"]),
        (["", "hello world"], ["oh dear", ""]),
        ([""], ["two words"]),
        ([""], [""]),
        (["das weiße  Haus", " führt "], ["das Weiße Haus", "führt nicht"]),
        ([HINDI], ["हिन्दी मे लिखा"]),
    ],
)
def test_equal_to_jiwer(references, hypotheses):
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    assert wer(references, hypotheses).rate == jiwer.wer(references, hypotheses)
    assert cer(references, hypotheses).rate == jiwer.cer(references, hypotheses)
    ours = wer(references, hypotheses)
    assert (ours.substitutions, ours.deletions, ours.insertions, ours.hits) == (
        words.substitutions,
        words.deletions,
        words.insertions,
        words.hits,
    )
    assert cer(references, hypotheses).errors == (
        characters.substitutions + characters.deletions + characters.insertions
    )


def test_empty_reference_counts_insertions_and_keeps_the_clip():
    assert wer([""], ["two words"]) == ErrorCounts(insertions=2)
    assert wer([""], ["two words"]).rate == 2.0
    assert cer([""], ["abc"]) == ErrorCounts(insertions=3)
    assert wer(["a b", ""], ["a b", "c"]).rate == pytest.approx(1 / 2)


def test_empty_hypothesis_counts_deletions():
    assert wer(["two words"], [""]) == ErrorCounts(deletions=2)
    assert wer(["two words"], [""]).rate == 1.0


def test_empty_pair_and_empty_set_are_no_error():
    assert wer([""], [""]) == cer([""], [""]) == wer([], []) == cer([], []) == ErrorCounts()
    assert ErrorCounts().rate == 0.0
    scores = score([], [], "en")
    assert scores.n_clips == 0
    assert scores.primary == scores.repetition_rate == 0.0


def test_lists_of_different_length_are_refused():
    for function in (wer, cer, lambda r, h: score(r, h, "en")):
        with pytest.raises(DataError, match="2 references but 1 hypotheses"):
            function(["a", "b"], ["a"])


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


def test_score_english_by_hand():
    scores = score(["Don't stop, Ann."], ["do not stop anne"], "en")
    assert scores.raw_wer == ErrorCounts(substitutions=3, insertions=1)
    assert scores.whisper_wer == ErrorCounts(substitutions=1, hits=3)  # do not stop ann | anne
    assert scores.whisper_cer == ErrorCounts(insertions=1, hits=15)
    assert scores.marks_wer == ErrorCounts(substitutions=3, hits=1)  # don t stop ann | do not stop anne
    assert scores.primary == pytest.approx(1 / 4)


def test_score_chinese_ignores_punctuation_and_spaces():
    scores = score(["今天，天气很好。"], ["今天天汽很 好"], "zh")
    assert scores.whisper_cer == ErrorCounts(substitutions=1, hits=5)
    assert scores.marks_cer == scores.whisper_cer
    assert scores.primary == pytest.approx(1 / 6)
    assert scores.raw_cer.errors == 4  # one character, two marks of punctuation, one space


def test_score_hindi_vowel_sign_error_is_seen_only_with_marks_kept():
    scores = score(["मेरा"], ["मीरा"], "hi")
    assert scores.whisper_cer == ErrorCounts(hits=2)
    assert scores.marks_cer == ErrorCounts(substitutions=1, hits=3)


def test_to_dict_is_flat_and_complete():
    entry = score(["a b"], ["a c"], "fr").to_dict()
    assert entry["primary_metric"] == "wer"
    assert entry["primary"] == 0.5
    assert entry["raw_wer"] == {"rate": 0.5, "substitutions": 1, "deletions": 0, "insertions": 0, "hits": 1}


def test_primary_metric():
    assert [primary_metric(code) for code in ("en", "de", "fr", "es")] == ["wer"] * 4
    assert [primary_metric(code) for code in ("hi", "zh")] == ["cer"] * 2
    with pytest.raises(DataError, match="unknown language 'xx'"):
        primary_metric("xx")


@pytest.mark.parametrize(
    ("text", "language", "loops"),
    [
        ("the the the the", "en", True),
        ("the the the", "en", False),
        ("so The, the THE the end", "en", True),
        ("you know you know you know you know", "en", True),
        ("you know you know you know you", "en", False),
        ("a b c d a b c d a b c d a b c d", "en", True),
        ("a b c d e a b c d e a b c d e a b c d e", "en", False),  # five words: longer than looked for
        ("the cat the dog the cow the end", "en", False),
        ("很很很很好", "zh", True),
        ("很很很好", "zh", False),
        ("好的，好的，好的，好的", "zh", True),
        ("", "en", False),
    ],
)
def test_repetition(text, language, loops):
    assert repetition_rate([text], language) == float(loops)


def test_repetition_rate_is_a_share():
    assert repetition_rate(["a a a a", "b", "c", "d"], "en") == 0.25
    assert repetition_rate([], "en") == 0.0
