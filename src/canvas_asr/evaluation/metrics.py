"""Error rates of transcripts: four conventions for the same texts, two units, one repetition rate.

    >>> wer(["the cat sat"], ["the bat sat down"]).rate
    0.6666666666666666

Every text is compared as the conventions of `normalisation` have it (raw, whisper, marks, leaderboard) and
scored by words (WER) and, but for the leaderboard's, by characters (CER). Counts are summed over the whole
set before they are divided (corpus level, as jiwer does), so a long clip weighs more than a short one. The
alignment is jiwer's; the leaderboard's is kaldialign's with adjacent words merged where they make up one of
the other side ("white paper" is "whitepaper").

**Spaces in CER.** In ``raw`` a space is a character, as in jiwer. In ``whisper`` and ``marks`` the spaces of
Hindi and Chinese are removed from both sides first: Whisper's normaliser puts a space where a Hindi vowel
sign or a Chinese comma stood, and counting those would score punctuation. Other languages keep their spaces.

**Empty texts.** A pair of empty texts is no error. An empty reference with a hypothesis counts one insertion
a word (or character); an empty hypothesis counts one deletion a word. Only the leaderboard's convention drops
clips: those whose reference is empty. Where a whole set has no reference words there is no rate to speak of:
`ErrorCounts.rate` is the number of insertions then, as in jiwer, and `ErrorCounts.defined` is false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import jiwer

from ..errors import DataError, OptionError
from .normalisation import (
    LEADERBOARD_LANGUAGES,
    normalise_keep_marks,
    normalise_leaderboard,
    normalise_raw,
    normalise_whisper,
)

Metric = Literal["wer", "cer"]

PRIMARY_METRICS: dict[str, Metric] = {
    "en": "wer",
    "de": "wer",
    "fr": "wer",
    "es": "wer",
    "hi": "cer",
    "zh": "cer",
}
RATES = (
    "raw_wer",
    "raw_cer",
    "whisper_wer",
    "whisper_cer",
    "marks_wer",
    "marks_cer",
    "leaderboard_wer",
)
"""Every rate: a convention and a unit. The unit of the leaderboard is the word."""
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

    @property
    def defined(self) -> bool:
        """Whether there is a reference to have a rate of."""
        return self.reference_length > 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        """Counts of two sets together."""
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.hits + other.hits,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the rate first, null if undefined, then the counts."""
        return {
            "rate": self.rate if self.defined else None,
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "hits": self.hits,
        }


@dataclass(frozen=True)
class Scores:
    """All error rates of one set of transcripts in one language.

    ``scores["whisper_wer"]`` is the sum over the clips; the names are those of `RATES`.

    Attributes:
        language: Language code.
        n_clips: Number of pairs.
        clips: Counts of each clip, by name of the rate. `leaderboard_wer` is absent for hi and zh.
        repetition_rate: See `repetition_rate`.
    """

    language: str
    n_clips: int
    clips: Mapping[str, tuple[ErrorCounts, ...]]
    repetition_rate: float

    def __getitem__(self, name: str) -> ErrorCounts:
        """Counts of all clips; KeyError if the language has no such rate."""
        return add_up(self.clips[name])

    @property
    def primary(self) -> float:
        """Whisper-normalised rate in the unit of `primary_metric`."""
        return self[primary_rate(self.language)].rate

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the headline figure stands under ``primary`` with its unit, null if undefined."""
        primary = self[primary_rate(self.language)]
        return {
            "language": self.language,
            "n_clips": self.n_clips,
            "primary_metric": primary_metric(self.language),
            "primary": primary.rate if primary.defined else None,
            **{name: self[name].to_dict() for name in self.clips},
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


def primary_rate(language: str) -> str:
    """The rate a language is judged by, one of `RATES`: Whisper-normalised, in the unit of `primary_metric`.

    Raises:
        DataError: If the language is none of the six.
    """
    return f"whisper_{primary_metric(language)}"


def check_rate(name: str) -> str:
    """Give the name of a rate back, or of ``primary``, which is another one for each language.

    Raises:
        OptionError: If there is no such rate.
    """
    if name not in ("primary", *RATES):
        raise OptionError(f"unknown metric {name!r}: use primary or one of {', '.join(RATES)}")
    return name


def add_up(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Counts of several clips together."""
    return sum(counts, start=ErrorCounts())


def _check_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise DataError(
            f"{len(references)} references but {len(hypotheses)} hypotheses: give one for each clip"
        )


def _by_clip(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[ErrorCounts, ...]:
    clips = []
    for chunks in output.alignments:
        found = dict.fromkeys(("substitute", "delete", "insert", "equal"), 0)
        for chunk in chunks:
            is_insertion = chunk.type == "insert"
            start, end = (
                (chunk.hyp_start_idx, chunk.hyp_end_idx)
                if is_insertion
                else (chunk.ref_start_idx, chunk.ref_end_idx)
            )
            found[chunk.type] += end - start
        clips.append(ErrorCounts(*found.values()))
    return tuple(clips)


def clip_wer(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[ErrorCounts, ...]:
    """Count word errors of each text as it is (normalise before), words split at spaces.

    Raises:
        DataError: If the two lists differ in length.
    """
    _check_pairs(references, hypotheses)
    return _by_clip(jiwer.process_words(list(references), list(hypotheses))) if references else ()


def clip_cer(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[ErrorCounts, ...]:
    """Count character errors (Unicode code points, spaces included) of each text as it is.

    Raises:
        DataError: If the two lists differ in length.
    """
    _check_pairs(references, hypotheses)
    return _by_clip(jiwer.process_characters(list(references), list(hypotheses))) if references else ()


def _join_alike(reference: list[str], hypothesis: list[str]) -> tuple[list[str], list[str]]:
    """Join stretches of words that differ in nothing but where their spaces are, on both sides."""
    joined: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in SequenceMatcher(None, reference, hypothesis).get_opcodes():
        stretches = reference[i:j], hypothesis[k:m]
        wholes = ["".join(stretch) for stretch in stretches]
        alike = kind != "equal" and wholes[0] == wholes[1]
        for words, stretch, whole in zip(joined, stretches, wholes, strict=True):
            words += [whole] if alike else stretch
    return joined


def clip_merged_wer(
    references: Sequence[str], hypotheses: Sequence[str], *, join_stretches: bool = False
) -> tuple[ErrorCounts, ...]:
    """Count word errors of each text, adjacent words merged where they equal one of the other side.

    A clip whose reference is empty is dropped: it counts nothing, whatever its hypothesis.

    Args:
        references: Normalised.
        hypotheses: Likewise.
        join_stretches: Whether several words that are several others of the other side, but for their
            spaces, are joined before: what the leaderboard does in languages other than English.

    Raises:
        DataError: If the two lists differ in length, or kaldialign is not installed.
    """
    _check_pairs(references, hypotheses)
    try:
        from kaldialign import edit_distance
    except ImportError as error:
        raise DataError("scores need kaldialign; install it with: pip install 'canvas-asr[eval]'") from error
    clips = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        words, read = reference.split(), hypothesis.split()
        if join_stretches:
            words, read = _join_alike(words, read)
        found = edit_distance(words, read, merge_compounds=True)
        hits = len(words) - found["sub"] - found["del"]
        kept = ErrorCounts(found["sub"], found["del"], found["ins"], hits)
        clips.append(kept if words else ErrorCounts())
    return tuple(clips)


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count word errors of all texts together: see `clip_wer`."""
    return add_up(clip_wer(references, hypotheses))


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count character errors of all texts together: see `clip_cer`."""
    return add_up(clip_cer(references, hypotheses))


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
    clips: dict[str, tuple[ErrorCounts, ...]] = {}

    def sides(normalise: Callable[[str], str]) -> tuple[list[str], list[str]]:
        return [normalise(text) for text in references], [normalise(text) for text in hypotheses]

    for name, normalise in (
        ("raw", normalise_raw),
        ("whisper", lambda text: normalise_whisper(text, language)),
        ("marks", normalise_keep_marks),
    ):
        said, read = sides(normalise)
        clips[f"{name}_wer"] = clip_wer(said, read)
        if drop_spaces and name != "raw":
            said, read = ([text.replace(" ", "") for text in side] for side in (said, read))
        clips[f"{name}_cer"] = clip_cer(said, read)
    if language in LEADERBOARD_LANGUAGES:
        said, read = sides(lambda text: normalise_leaderboard(text, language))
        clips["leaderboard_wer"] = clip_merged_wer(said, read, join_stretches=language != "en")
    return Scores(language, len(references), clips, repetition_rate(hypotheses, language))
