"""Phoneme numbers, frame labels, pinyin, Hindi respelling, phone sets, voice lists: no engine needed."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_asr.errors import DataError
from canvas_asr.synthesis import chinese, recorded
from canvas_asr.synthesis.phone_sets import Phone, to_ipa
from canvas_asr.synthesis.phonemes import PHONEMES, UNKNOWN_INDEX, frame_labels, phoneme_index
from canvas_asr.synthesis.voices import ACCENTS, HELD_OUT_ACCENTS, TEST, TRAIN, voices


def test_phonemes_are_distinct_and_start_with_silence() -> None:
    assert len(set(PHONEMES)) == len(PHONEMES)
    assert PHONEMES[0] == ""
    assert list(PHONEMES[2:]) == sorted(PHONEMES[2:])


@pytest.mark.parametrize(
    ("symbol", "known"), [("ə", "ə"), ("ˈə", "ə"), ("bː", "b"), ("kʷ", "k"), ("b\u0325", "b"), ("", "")]
)
def test_unlisted_symbols_fall_back_by_losing_marks(symbol: str, known: str) -> None:
    assert phoneme_index(symbol) == PHONEMES.index(known)


def test_a_symbol_unlike_any_is_unknown() -> None:
    assert phoneme_index("☃") == UNKNOWN_INDEX
    assert phoneme_index("ˈ") == UNKNOWN_INDEX


def test_frame_labels_take_the_phoneme_in_the_middle_of_the_frame() -> None:
    phonemes = [("n", 0.05), ("iː", 0.11), ("", 0.2)]
    # Middles at 0.02, 0.06, 0.10, 0.14, 0.18, 0.22 s.
    labels = frame_labels(phonemes, 6, 0.04)
    assert labels.dtype == np.int64
    assert [PHONEMES[i] for i in labels] == ["", "n", "n", "iː", "iː", ""]


def test_frame_labels_without_phonemes_are_silence() -> None:
    assert frame_labels([], 3, 0.02).tolist() == [0, 0, 0]


@pytest.mark.parametrize("language", ACCENTS)
def test_train_and_test_voices_share_no_variant(language: str) -> None:
    train = {v.partition("+")[2] for v in TRAIN[language]}
    test = {v.partition("+")[2] for v in TEST[language]}
    assert test
    assert not train & test


@pytest.mark.parametrize("language", HELD_OUT_ACCENTS)
def test_held_out_accents_are_in_no_other_split(language: str) -> None:
    accents = {v.partition("+")[0] for v in voices(language, "test-accent")}
    assert not accents & {v.partition("+")[0] for v in (*TRAIN[language], *TEST[language])}


def test_recorded_voices_of_training_are_not_tested() -> None:
    assert not set(recorded.voices("en", "train")) & set(recorded.voices("en", "test"))


def test_unknown_language_or_split_is_refused() -> None:
    with pytest.raises(DataError, match="'xx'"):
        voices("xx", "train")
    with pytest.raises(DataError, match="'dev'"):
        voices("en", "dev")
    with pytest.raises(DataError, match="held out"):
        voices("de", "test-accent")


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("0", "零"), ("7", "七"), ("10", "十"), ("15", "十五"), ("105", "一百零五"), ("110", "一百一十"),
        ("1001", "一千零一"), ("10010", "一万零一十"), ("120000", "十二万"), ("100000000", "一亿"),
        ("100010000", "一亿零一万"), ("100000001", "一亿零一"),
    ],
)  # fmt: skip
def test_whole_numbers_in_chinese(digits: str, words: str) -> None:
    assert chinese.number_to_chinese(digits) == words


@pytest.mark.parametrize(
    ("text", "pinyin"),
    [
        ("你好吗？", "ni3 hao3 ma5 ?"),
        ("我们的", "wo3 men5 de5"),
        ("我有12个", "wo3 you3 shi2 er4 ge4"),
        ("2008年", "er4 ling2 ling2 ba1 nian2"),
        ("12.5元", "shi2 er4 dian3 wu3 yuan2"),
        ("７％", "bai3 fen1 zhi1 qi1"),
        ("100,000人", "shi2 wan4 ren2"),
        ("“中国”——《红楼梦》", "zhong1 guo2 , hong2 lou2 meng4"),
        ("DJ好", "di4 zhei4 hao3"),
        ("绿女", "lv4 nv3"),
    ],
)
def test_chinese_as_pinyin(text: str, pinyin: str) -> None:
    pytest.importorskip("pypinyin", reason="Chinese needs pypinyin: pip install pypinyin")
    assert chinese.to_pinyin(text) == pinyin


@pytest.mark.parametrize("text", ["Tom在医院。", "最喜欢的iPad应用", "ㄟ好"])
def test_chinese_with_what_its_voice_cannot_read_is_refused(text: str) -> None:
    pytest.importorskip("pypinyin", reason="Chinese needs pypinyin: pip install pypinyin")
    with pytest.raises(DataError, match="Chinese voice"):
        chinese.to_pinyin(text)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("सलमान", "सल्मान्"),  # salmān
        ("लड़का", "लड्का"),  # laṛkā
        ("समझ", "समझ्"),  # samajh: only the last falls
        ("बचपन", "बच्पन्"),  # bacpan
        ("नमस्ते", "नमस्ते"),  # not before a cluster
        ("क्षेत्र", "क्षेत्र"),  # not after a cluster
        ("कृपा", "क्रिपा"),
        ("ज्ञान", "ग्यान्"),
        ("न", "न"),  # a word keeps its only vowel
    ],
)
def test_hindi_loses_its_silent_vowels(written: str, spoken: str) -> None:
    assert recorded.hindi_for_festival(written) == spoken


def test_hindi_with_digits_or_latin_is_unreadable() -> None:
    for text in ("12 लोग", "१२ लोग", "GDP बढ़ी"):
        with pytest.raises(recorded.UnreadableError):
            recorded.hindi_for_festival(text)


def test_english_for_scheme_has_no_quotes() -> None:
    assert recorded.english_for_festival("“Don’t \\ say”—café\n") == "Don't say, cafe"
    with pytest.raises(DataError, match="nothing"):
        recorded.english_for_festival("… “”")


def test_phones_become_ipa_within_the_audio() -> None:
    phones = [
        Phone("pau", 0.5, False),
        Phone("aa", 1.0, True),
        Phone("r", 1.5, True),
        Phone("iy", 2.0, False),
    ]
    assert to_ipa(phones, "en", 200, 100) == [(0, ""), (50, "ɑːɹ"), (150, "i")]
    assert to_ipa(phones, "en", 150, 100) == [(0, ""), (50, "ɑːɹ")]
    aspirated = [Phone("b", 0.5, False), Phone("h", 1.0, False), Phone("aa", 2.0, False)]
    assert to_ipa(aspirated, "hi", 200, 100) == [(0, "bʰ"), (100, "aː")]


@pytest.mark.parametrize("language", ["en", "hi"])
def test_every_phone_of_the_recorded_voices_is_a_known_phoneme(language: str) -> None:
    from canvas_asr.synthesis import phone_sets

    names = phone_sets._ENGLISH if language == "en" else phone_sets._HINDI
    merged = phone_sets._ENGLISH_MERGED if language == "en" else phone_sets._HINDI_MERGED
    assert set(names.values()) | set(merged.values()) <= set(PHONEMES)
