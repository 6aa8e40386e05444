"""How sure a rate is, and whether two differ: over clips, which are what was drawn at random.

- An interval by the bootstrap (Bisani and Ney 2004, doi 10.1109/ICASSP.2004.1326009): sets of as many clips
  are drawn from the set with replacement, and the middle 95 % of their rates is the interval.
- For two systems on the same clips, the same draws for both: the interval of the difference.
- The p-value is that of a permutation test: if the two are alike, which of them read a clip so is a coin's
  throw, so the differences of error counts are given random signs and compared with the one that was found.
  It needs no distribution. MAPSSWE, the usual other test, cuts clips into segments at words that both read
  right and takes the segments for independent and normal; with a language model that reads a clip as one
  canvas, errors of a clip hang together, and the clip is the independent unit.

Clips of one speaker are not independent either; with few speakers, all intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .metrics import ErrorCounts

N_DRAWS = 2000
LEVEL = 0.95
_CELLS_AT_ONCE = 4_000_000  # of a matrix of draws by clips: 32 MB

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same clips.

    Attributes:
        difference: Rate of the second minus that of the first.
        low: Lower end of the difference's interval.
        high: Upper end.
        p: Two-sided p-value of the permutation test.
        n_clips: How many clips have both.
    """

    difference: float
    low: float
    high: float
    p: float
    n_clips: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "n_clips": self.n_clips,
        }


def _columns(clips: Sequence[ErrorCounts]) -> tuple[Numbers, Numbers]:
    """Errors and reference lengths, (N,) each."""
    errors = np.array([clip.errors for clip in clips], dtype=np.float64)
    return errors, np.array([clip.reference_length for clip in clips], dtype=np.float64)


def _drawn_sums(columns: Numbers, seed: int, n_draws: int) -> Numbers:
    """Sums of columns (N, K) over clips drawn with replacement, (draws, K)."""
    n = len(columns)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // n)
    sums = []
    for start in range(0, n_draws, at_once):
        size = min(at_once, n_draws - start)
        sums.append(rng.multinomial(n, np.full(n, 1 / n), size=size) @ columns)
    return np.concatenate(sums)


def _middle(rates: Numbers) -> tuple[float, float]:
    low, high = np.quantile(rates, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def intervals(
    rates: Mapping[str, Sequence[ErrorCounts]], seed: int = 0, n_draws: int = N_DRAWS
) -> dict[str, tuple[float, float] | None]:
    """The 95 % bootstrap intervals of several rates of the same clips, from the same draws.

    Args:
        rates: Counts of each clip, by name of the rate.
        seed: Of the draws.
        n_draws: How many.

    Returns:
        Ends of each; None where there is no rate, for no reference has a word.
    """
    columns = [column for clips in rates.values() for column in _columns(clips)]
    if not columns or not len(columns[0]):
        return dict.fromkeys(rates)
    sums = _drawn_sums(np.stack(columns, axis=1), seed, n_draws)
    found: dict[str, tuple[float, float] | None] = {}
    for i, name in enumerate(rates):
        errors, lengths = sums[:, 2 * i], sums[:, 2 * i + 1]
        has_words = lengths > 0  # a draw of nothing but clips without words has no rate
        found[name] = _middle(errors[has_words] / lengths[has_words]) if has_words.any() else None
    return found


def compare(
    first: Sequence[ErrorCounts], second: Sequence[ErrorCounts], seed: int = 0, n_draws: int = N_DRAWS
) -> Comparison | None:
    """Compare two systems that read the same clips.

    Args:
        first: Counts of each clip, of the system compared with.
        second: Of the other, clip by clip.
        seed: Of the draws.
        n_draws: Draws of the bootstrap, and permutations.

    Returns:
        The comparison; None where there is no rate.

    Raises:
        DataError: If the clips are not the same: another number of them, or of reference units in one.
    """
    (errors_a, lengths), (errors_b, lengths_b) = _columns(first), _columns(second)
    if not np.array_equal(lengths, lengths_b):
        raise DataError("the two systems were not scored on the same references, so they cannot be compared")
    if not lengths.sum():
        return None
    apart = errors_b - errors_a
    sums = _drawn_sums(np.stack([apart, lengths], axis=1), seed, n_draws)
    sums = sums[sums[:, 1] > 0]
    low, high = _middle(sums[:, 0] / sums[:, 1])
    found = float(apart.sum())
    return Comparison(found / float(lengths.sum()), low, high, _p_value(apart, seed, n_draws), len(first))


def _p_value(apart: Numbers, seed: int, n_draws: int) -> float:
    """Share of sign-flipped sums at least as far from 0 as the one found, which counts as one of them."""
    rng = np.random.default_rng((seed, 1))
    at_once = max(1, _CELLS_AT_ONCE // max(1, len(apart)))
    found, n_as_far = abs(apart.sum()), 0
    for start in range(0, n_draws, at_once):
        size = min(at_once, n_draws - start)
        signs = rng.integers(2, size=(size, len(apart))) * 2 - 1
        n_as_far += int((abs(signs @ apart) >= found).sum())
    return (n_as_far + 1) / (n_draws + 1)
