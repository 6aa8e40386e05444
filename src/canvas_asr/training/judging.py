"""What every evaluation during training reports besides its losses: errors, looping, and whether it listens.

Readings are (reference, hypothesis) pairs of raw text by language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jiwer
import numpy as np

from canvas_asr.evaluation.metrics import repetition_rate

Readings = Mapping[str, Sequence[tuple[str, str]]]

BY_CHARACTER = ("hi", "zh")


class Judgement(NamedTuple):
    """What an evaluation found.

    Attributes:
        figures: By name.
        transcripts: Of each clip ``language``, ``reference``, ``hypothesis`` and what else was read.
    """

    figures: dict[str, float]
    transcripts: Sequence[Mapping[str, str]] = ()


def transcripts_of(readings: Readings, **others: Readings) -> list[dict[str, str]]:
    """List readings, clip by clip; ``others`` are readings of the same clips by name."""
    return [
        {
            "language": language,
            "reference": reference,
            "hypothesis": hypothesis,
            **{name: other[language][place][1] for name, other in others.items()},
        }
        for language, pairs in readings.items()
        for place, (reference, hypothesis) in enumerate(pairs)
    ]


def error_rates(readings: Readings, by_character: Sequence[str] = BY_CHARACTER) -> dict[str, float]:
    """Error rate of each language: CER of those ``by_character``, WER of the others."""
    rates = {}
    for language, pairs in readings.items():
        references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
        measure = jiwer.cer if language in by_character else jiwer.wer
        rates[language] = float(measure(references, hypotheses))
    return rates


def named_error_rates(readings: Readings, by_character: Sequence[str] = BY_CHARACTER) -> dict[str, float]:
    """Error rates under the names ``wer_en``, ``cer_hi`` and so on, sorted by language."""
    return {
        f"{'cer' if language in by_character else 'wer'}_{language}": rate
        for language, rate in sorted(error_rates(readings, by_character).items())
    }


def shuffled(readings: Readings) -> dict[str, list[tuple[str, str]]]:
    """Put beside each reference what the next clip of its language gave, or of the next where it is alone."""
    languages = list(readings)
    paired = {}
    for place, language in enumerate(languages):
        pairs = list(readings[language])
        after = readings[languages[(place + 1) % len(languages)]] if len(pairs) == 1 else pairs
        others = [*pairs[1:], after[0]]
        paired[language] = [(ref, other) for (ref, _), (_, other) in zip(pairs, others, strict=True)]
    return paired


def listening(readings: Readings, by_character: Sequence[str] = BY_CHARACTER) -> dict[str, float]:
    """Tell a model that listens from one that invents.

    Returns:
        ``shuffled``: mean over languages of the error rate with another clip's reading. ``gap``: how far
        that lies above the true mean. ``repetition``: mean share of readings that loop.
    """
    true, other = (
        np.mean(list(error_rates(r, by_character).values())) for r in (readings, shuffled(readings))
    )
    looping = [repetition_rate([text for _, text in pairs], code) for code, pairs in readings.items()]
    return {"shuffled": float(other), "gap": float(other - true), "repetition": float(np.mean(looping))}
