"""What is done to texts before they are compared: four conventions.

============  ===============================================================================================
raw           as written: Unicode NFC, white space collapsed; case and punctuation count
whisper       Whisper's normaliser, which most published figures were made with
marks         case and punctuation gone, every letter and vowel sign kept
leaderboard   that of the Open ASR Leaderboard, as its repository had it in 2026: see `normalise_leaderboard`
============  ===============================================================================================

**The Hindi trap.** Whisper's normaliser replaces every Unicode mark by a space: ``हिन्दी में लिखा है`` becomes
``ह न द म ल ख ह``, its vowels gone and its words split. Figures so made are given because published ones are;
``marks`` is the honest one.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Hesitations that the leaderboard leaves out, however long they are drawn.
_FILLERS = (
    r"\b(?:ah-ha|a+h+m*|a+h+a+|e+h+m*|e+m+|e+r+m*|h+[aeu]+h+|h+m+|m{2,}|m+h+m*|t+s+k+"
    r"|u+(?:g+h+|h+m*|h+u+[hm]*|m+h*)|ahem|eheh|ehehe|ehr|hmmph|hum|hunh|mhum|mmkay)\b"
)
# Whose 's is a contraction there; another's is a possessive and stays.
_CONTRACTED = r"\b(it|he|she|what|that|who|here|there|how|when|where|why|this)'s\b"
# Contractions that whisper-normalizer knows and the leaderboard does not.
_NOT_THERE = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")
# What it leaves of figures once their digits are looked at: a full stop or a unit without one.
_STOP = re.compile(r"\.(?![0-9])")
_UNIT_ALONE = re.compile(r"[.$¢€£](?![0-9])|(?<![0-9])%")
# Format characters that belong to a word.
_JOINERS = "\u200c\u200d"
_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")

LEADERBOARD_LANGUAGES = ("en", "de", "fr", "es")
"""Those that the leaderboard scores by words; Hindi is scored on lattices there, Chinese not at all."""


def normalise_raw(text: str) -> str:
    """Unicode NFC and single spaces, nothing else."""
    return _collapse(unicodedata.normalize("NFC", text))


@functools.cache
def _whisper(english: bool) -> Callable[[str], str]:
    # Imported here: the English one reads a spelling table, which only scoring needs.
    if english:
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()  # type: ignore[no-any-return]
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(remove_diacritics=False)  # type: ignore[no-any-return]


def normalise_whisper(text: str, language: str) -> str:
    """Normalise as Whisper's own evaluation does.

    English goes through ``EnglishTextNormalizer`` (contractions, spelling, numbers), every other language
    through ``BasicTextNormalizer(remove_diacritics=False)``: NFKC, lower case, bracketed text removed, and
    marks, symbols and punctuation replaced by spaces. Chinese is not split into letters; its CER removes the
    spaces instead, which counts the same characters.
    """
    return _collapse(_whisper(language == "en")(text))


def normalise_keep_marks(text: str) -> str:
    """Remove case and punctuation and nothing that is pronounced.

    NFC and case folding; characters of the Unicode categories P (punctuation) and S (symbols) become spaces,
    format characters (Cf: zero-width joiners, soft hyphens, which have no look of their own) are dropped,
    white space is collapsed. Every mark (M) stays, so Hindi keeps its vowel signs.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return _collapse("".join("" if unicodedata.category(c) == "Cf" else _spoken(c) for c in folded))


@functools.cache
def _leaderboard_english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    normalise = EnglishTextNormalizer()
    normalise.ignore_patterns = _FILLERS
    normalise.replacers = {
        (_CONTRACTED if pattern == r"'s\b" else pattern): (r"\1 is" if pattern == r"'s\b" else text)
        for pattern, text in normalise.replacers.items()
        if pattern not in _NOT_THERE
    }
    numbers = normalise.standardize_numbers
    numbers.process_words = functools.partial(_numbers_with_oh, numbers, numbers.process_words)
    return normalise  # type: ignore[no-any-return]


def _numbers_with_oh(
    numbers: Any, read: Callable[[list[str]], Iterable[str]], words: list[str]
) -> Iterator[str]:
    """Write numbers in digits; an "oh" is a zero only where digits go on behind it, as in "four oh one".

    Args:
        numbers: Whisper's normaliser of English numbers, for its words.
        read: Its own way of writing them, which takes every "oh" for a zero.
        words: Of a text.
    """

    def is_digits(place: int) -> bool:
        word = words[place] if 0 <= place < len(words) else ""
        known = (numbers.zeros, numbers.ones, numbers.tens)
        return bool(re.fullmatch(r"\d+", word)) or any(word in some for some in known)

    start = 0
    for place, word in enumerate(words):
        goes_on = is_digits(place + 1) and (is_digits(place - 1) or is_digits(place + 2))
        if word == "oh" and not goes_on:
            yield from read(words[start:place])
            yield word
            start = place + 1
    yield from read(words[start:])


def normalise_leaderboard(text: str, language: str) -> str:
    """Normalise by the rules of the Open ASR Leaderboard (huggingface/open_asr_leaderboard).

    English: Whisper's normaliser, but hesitations of any length are left out, ``'s`` is written out after
    pronouns only, an "oh" is a word unless digits go on behind it, no full stop is left over from "...", and
    single letters in a row are joined (``b b c`` to ``bbc``; with ``a`` or ``i`` among them from three on).
    Other languages: lower case, bracketed text, symbols and punctuation removed, marks kept.

    Not reproduced, for they are tables of that repository: variants of names, its list of compounds (most
    are merged in the alignment anyway), clock times, and numbers of other languages as words. Its own
    scorer reads what this evaluation writes: see ``docs/evaluation.md``.
    """
    if language == "en":
        plain = _leaderboard_english()(_STOP.sub(" ", _BRACKETED.sub("", text)))
        return _join_letters(_UNIT_ALONE.sub(" ", plain).split())
    bare = unicodedata.normalize("NFKC", _BRACKETED.sub("", text.lower()))
    kept = "".join(c for c in bare if c in _JOINERS or unicodedata.category(c) != "Cf")
    return _collapse("".join(map(_spoken, kept)).lower())


def _join_letters(words: list[str]) -> str:
    joined: list[str] = []
    run: list[str] = []
    for word in [*words, ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        enough = 3 if {"a", "i"} & set(run) else 2
        joined += ["".join(run)] if len(run) >= enough else run
        run = []
        joined.append(word)
    return " ".join(joined[:-1])


def _spoken(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "PS" else character


def _collapse(text: str) -> str:
    return " ".join(text.split())
