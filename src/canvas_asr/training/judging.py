"""What every evaluation during training reports besides its losses: errors, looping, and whether it listens.

Readings are (reference, hypothesis) pairs of raw text by language.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import jiwer
import numpy as np

from canvas_asr.evaluation.metrics import repetition_rate

Readings = Mapping[str, Sequence[tuple[str, str]]]

BY_CHARACTER = ("hi", "zh")


def error_rates(readings: Readings) -> dict[str, float]:
    """Error rate of each language: WER, and CER for Hindi and Chinese."""
    rates = {}
    for language, pairs in readings.items():
        references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
        measure = jiwer.cer if language in BY_CHARACTER else jiwer.wer
        rates[language] = float(measure(references, hypotheses))
    return rates


def named_error_rates(readings: Readings) -> dict[str, float]:
    """Error rates under the names ``wer_en``, ``cer_hi`` and so on, sorted by language."""
    return {
        f"{'cer' if language in BY_CHARACTER else 'wer'}_{language}": rate
        for language, rate in sorted(error_rates(readings).items())
    }


def shuffled(readings: Readings) -> dict[str, list[tuple[str, str]]]:
    """Put beside each reference what the next clip gave: of its own language but for the last one."""
    flat = [(language, *pair) for language, pairs in readings.items() for pair in pairs]
    paired: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for (language, reference, _), (_, _, other) in zip(flat, flat[1:] + flat[:1], strict=True):
        paired[language].append((reference, other))
    return paired


def listening(readings: Readings) -> dict[str, float]:
    """Tell a model that listens from one that invents.

    Returns:
        ``shuffled``: mean over languages of the error rate with another clip's reading. ``gap``: how far
        that lies above the true mean. ``repetition``: mean share of readings that loop.
    """
    true, other = (np.mean(list(error_rates(r).values())) for r in (readings, shuffled(readings)))
    looping = [repetition_rate([text for _, text in pairs], code) for code, pairs in readings.items()]
    return {"shuffled": float(other), "gap": float(other - true), "repetition": float(np.mean(looping))}
