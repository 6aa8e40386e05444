"""Words of transcripts: where they are cut, whose the punctuation is, their times and confidences."""

from __future__ import annotations

from itertools import pairwise

import pytest

from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Word
from canvas_asr.words import END_S, make_words, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, world!", ["Hello,", "world!"]),
        ("Bonjour, ça va ?", ["Bonjour,", "ça", "va ?"]),
        ("« Oui » dit-il.", ["« Oui »", "dit-il."]),
        ("¿Qué tal? ¡Hola!", ["¿Qué", "tal?", "¡Hola!"]),
        ("Er sagt: „Ja.“ – Gut", ["Er", "sagt:", "„Ja.“ –", "Gut"]),
        ("यह अच्छा है।", ["यह", "अच्छा", "है।"]),
        ("你好，世界。", ["你", "好，", "世", "界。"]),
        ("他说：“好”（笑）。", ["他", "说：", "“好”", "（笑）。"]),
        ("用Python写，好A，了", ["用", "Python", "写，", "好", "A，", "了"]),
        ("好，A", ["好，", "A"]),
        ("  a   b  ", ["a", "b"]),
        ("— Ja (", ["— Ja ("]),
        ("...", ["..."]),
        ("“", ["“"]),
        (" ", []),
        ("", []),
    ],
)
def test_a_text_is_cut_into_words_with_their_punctuation(text: str, words: list[str]) -> None:
    assert [text[first:last] for first, last in split_words(text)] == words


def spans(n: int, step: float = 0.32) -> list[tuple[float, float]]:
    return [(step * i, step * i + 0.08) for i in range(n)]


def test_a_word_is_its_tokens() -> None:
    found = make_words([" of", " some", "one", "."], [0.9, 0.8, 0.5, 0.25], spans(4), 2.0)
    assert found == (Word("of", 0.0, 0.16, 0.9), Word("someone.", 0.32, 0.8, 0.4))
    assert END_S == 0.08


def test_a_word_ends_where_the_next_starts_or_the_clip_ends() -> None:
    found = make_words(["a", " b", " c"], [1.0] * 3, [(0.0, 0.08), (0.08, 0.32), (0.32, 0.4)], 0.41)
    assert [(word.start, word.end) for word in found] == [(0.0, 0.08), (0.08, 0.32), (0.32, 0.41)]


def test_a_letter_spelt_in_bytes_starts_with_its_first_byte(processor: CanvasASRProcessor) -> None:
    ids = processor.text_ids("a 龘 b")
    texts = processor.token_texts(ids)
    assert "" in texts  # bytes before the last of their letter
    found = make_words(texts, [0.9] * len(ids), spans(len(ids)), 9.0)
    assert [word.text for word in found] == ["a", "龘", "b"]
    first = next(i for i, text in enumerate(texts) if not text)
    assert found[1].start == pytest.approx(0.32 * first)
    assert found[1].confidence < 0.9**2


def test_words_that_share_a_token_share_its_time() -> None:
    found = make_words(["我们", "。"], [0.5, 0.9], [(1.0, 1.2), (1.5, 1.6)], 3.0)
    assert [(word.text, word.start, word.confidence) for word in found] == [
        ("我", 1.0, 0.5),
        ("们。", 1.1, 0.5),
    ]
    assert found[0].end == found[1].start


def test_punctuation_alone_is_a_word_and_nothing_is_none() -> None:
    assert make_words(["..."], [0.5], [(0.4, 0.48)], 1.0) == (Word("...", 0.4, 0.56, 0.5),)
    assert make_words([], [], [], 1.0) == ()
    assert make_words([" "], [0.5], [(0.0, 0.1)], 1.0) == ()


def test_tokens_crowded_behind_the_end_are_squeezed_into_the_clip() -> None:
    found = make_words(["a", " b", " c"], [1.0] * 3, [(0.1 * i, 0.1 * (i + 1)) for i in range(3)], 0.15)
    assert [(word.start, word.end) for word in found] == [(0.0, 0.05), (0.05, 0.1), (0.1, 0.15)]


@pytest.mark.parametrize(
    "text", ["A quick brown fox, it jumps!", "我们今天去学校，好吗？", "यह एक अच्छा दिन है।", "Ça va ?"]
)
def test_times_rise_within_the_clip(processor: CanvasASRProcessor, text: str) -> None:
    ids = processor.text_ids(text)
    crowded = [(0.08 * i / 3, 0.08 * (i + 1) / 3) for i in range(len(ids))]
    audio_s = crowded[-1][1]
    found = make_words(processor.token_texts(ids), [0.9] * len(ids), crowded, audio_s)
    assert "".join(word.text for word in found).replace(" ", "") == text.replace(" ", "")
    assert all(0 <= word.start < word.end <= audio_s + 1e-6 for word in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
