"""Error rates of transcripts: three spellings of the same texts, two units, one repetition rate.

    >>> wer(["the cat sat"], ["the bat sat down"]).rate
    0.6666666666666666

Every text is compared in three variants:

============  ===============================================================================================
``raw``       as written: Unicode NFC, white space collapsed; case and punctuation count
``whisper``   Whisper's normaliser (`normalise_whisper`), the one most published figures use
``marks``     `normalise_keep_marks`: case and punctuation gone, every letter and vowel sign kept
============  ===============================================================================================

and scored twice in each: words (WER) and characters (CER). Counts are summed over the whole set before they
are divided (corpus level, as jiwer does), so a long clip weighs more than a short one. The alignment is
jiwer's.

**Spaces in CER.** In ``raw`` a space is a character, as in jiwer. In ``whisper`` and ``marks`` the spaces of
Hindi and Chinese are removed from both sides first: Whisper's normaliser puts a space where a Hindi vowel
sign or a Chinese comma stood, and counting those would score punctuation. Other languages keep their spaces.

**The Hindi trap.** Whisper's normaliser replaces every Unicode mark by a space, so the Hindi figures of
``whisper`` ignore vowel signs. They are given because published ones were made so; ``marks`` is the honest
figure.

**Empty texts.** A pair of empty texts is no error. An empty reference with a hypothesis counts one insertion
a word (or character); an empty hypothesis counts one deletion a word. No clip is dropped. Where a whole set
has no reference words, the rate is the number of insertions, as in jiwer.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jiwer

from ..errors import DataError

Metric = Literal["wer", "cer"]

PRIMARY_METRICS: dict[str, Metric] = {
    "en": "wer",
    "de": "wer",
    "fr": "wer",
    "es": "wer",
    "hi": "cer",
    "zh": "cer",
}
REPEATS = 4
"""An n-gram standing this many times in a row is a repetition."""
MAX_NGRAM = 4
"""Longest n-gram, in words (Chinese: characters), that is looked for."""

_CER_WITHOUT_SPACES = frozenset({"hi", "zh"})


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations that turn the references into the hypotheses, summed over a set.

    Attributes:
        substitutions: Units replaced.
        deletions: Reference units without a counterpart.
        insertions: Hypothesis units without a counterpart.
        hits: Reference units found.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    hits: int = 0

    @property
    def errors(self) -> int:
        """Substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        """Units in the references."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float:
        """Errors per reference unit; may exceed 1. Without any reference unit: the number of insertions."""
        return self.errors / max(self.reference_length, 1)

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        """Counts of two sets together."""
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.hits + other.hits,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the rate first, then the counts."""
        return {
            "rate": self.rate,
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "hits": self.hits,
        }


@dataclass(frozen=True)
class Scores:
    """All error rates of one set of transcripts in one language.

    Attributes:
        language: Language code.
        n_clips: Number of pairs.
        raw_wer: Words, as written.
        raw_cer: Characters, as written.
        whisper_wer: Words, Whisper-normalised.
        whisper_cer: Characters, Whisper-normalised.
        marks_wer: Words, case and punctuation removed, marks kept.
        marks_cer: Characters, case and punctuation removed, marks kept.
        repetition_rate: See `repetition_rate`.
    """

    language: str
    n_clips: int
    raw_wer: ErrorCounts
    raw_cer: ErrorCounts
    whisper_wer: ErrorCounts
    whisper_cer: ErrorCounts
    marks_wer: ErrorCounts
    marks_cer: ErrorCounts
    repetition_rate: float

    @property
    def primary(self) -> float:
        """Whisper-normalised rate in the unit of `primary_metric`."""
        counts = self.whisper_wer if primary_metric(self.language) == "wer" else self.whisper_cer
        return counts.rate

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the headline figure stands under ``primary`` with its unit."""
        names = ("raw_wer", "raw_cer", "whisper_wer", "whisper_cer", "marks_wer", "marks_cer")
        return {
            "language": self.language,
            "n_clips": self.n_clips,
            "primary_metric": primary_metric(self.language),
            "primary": self.primary,
            **{name: getattr(self, name).to_dict() for name in names},
            "repetition_rate": self.repetition_rate,
        }


def primary_metric(language: str) -> Metric:
    """The unit a language is judged by: words for en, de, fr, es; characters for hi and zh.

    Raises:
        DataError: If the language is none of the six.
    """
    try:
        return PRIMARY_METRICS[language]
    except KeyError:
        raise DataError(f"unknown language {language!r}: use one of {', '.join(PRIMARY_METRICS)}") from None


@functools.cache
def _whisper_normaliser(english: bool) -> Callable[[str], str]:
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
    return _collapse(_whisper_normaliser(language == "en")(text))


def normalise_keep_marks(text: str) -> str:
    """Remove case and punctuation and nothing that is pronounced.

    NFC and case folding; characters of the Unicode categories P (punctuation) and S (symbols) become spaces,
    format characters (Cf: zero-width joiners, soft hyphens, which have no look of their own) are dropped,
    white space is collapsed. Every mark (M) stays, so Hindi keeps its vowel signs.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return _collapse("".join(map(_without_punctuation, folded)))


def _without_punctuation(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return " " if category[0] in "PS" else character


def _normalise_raw(text: str) -> str:
    return _collapse(unicodedata.normalize("NFC", text))


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorCounts:
    return ErrorCounts(output.substitutions, output.deletions, output.insertions, output.hits)


def _check_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise DataError(
            f"{len(references)} references but {len(hypotheses)} hypotheses: give one for each clip"
        )


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count word errors of texts as they are (normalise before), words split at spaces.

    Raises:
        DataError: If the two lists differ in length.
    """
    _check_pairs(references, hypotheses)
    if not references:
        return ErrorCounts()
    return _counts(jiwer.process_words(list(references), list(hypotheses)))


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count character errors (Unicode code points, spaces included) of texts as they are.

    Raises:
        DataError: If the two lists differ in length.
    """
    _check_pairs(references, hypotheses)
    if not references:
        return ErrorCounts()
    return _counts(jiwer.process_characters(list(references), list(hypotheses)))


def _repeats(units: Sequence[str]) -> bool:
    for n in range(1, MAX_NGRAM + 1):
        run = 0  # consecutive units equal to the one n places before
        for i in range(n, len(units)):
            run = run + 1 if units[i] == units[i - n] else 0
            if run == n * (REPEATS - 1):
                return True
    return False


def repetition_rate(texts: Sequence[str], language: str) -> float:
    """Share of texts that loop: an n-gram, n = 1 to 4, stands at least four times in a row.

    N-grams are of words, for Chinese of characters, after `normalise_keep_marks`. "no no no no" counts, three
    times does not, and neither do repetitions with something in between. 0.0 for no texts.
    """
    normalised = [normalise_keep_marks(text) for text in texts]
    units = [list(text.replace(" ", "")) if language == "zh" else text.split() for text in normalised]
    return sum(_repeats(u) for u in units) / max(len(texts), 1)


def score(references: Sequence[str], hypotheses: Sequence[str], language: str) -> Scores:
    """Score one set of transcripts in one language, in every variant and unit.

    Args:
        references: What was said, as written.
        hypotheses: What was recognised, in the same order.
        language: One of the six codes; it chooses the normaliser.

    Raises:
        DataError: If the lists differ in length or the language is unknown.
    """
    primary_metric(language)
    _check_pairs(references, hypotheses)
    drop_spaces = language in _CER_WITHOUT_SPACES

    def both(normalise: Callable[[str], str], drop_spaces: bool) -> tuple[ErrorCounts, ErrorCounts]:
        sides = [normalise(t) for t in references], [normalise(t) for t in hypotheses]
        joined = [[t.replace(" ", "") for t in side] for side in sides] if drop_spaces else sides
        return wer(*sides), cer(*joined)

    raw_wer, raw_cer = both(_normalise_raw, False)
    whisper_wer, whisper_cer = both(lambda text: normalise_whisper(text, language), drop_spaces)
    marks_wer, marks_cer = both(normalise_keep_marks, drop_spaces)
    return Scores(
        language=language,
        n_clips=len(references),
        raw_wer=raw_wer,
        raw_cer=raw_cer,
        whisper_wer=whisper_wer,
        whisper_cer=whisper_cer,
        marks_wer=marks_wer,
        marks_cer=marks_cer,
        repetition_rate=repetition_rate(hypotheses, language),
    )
