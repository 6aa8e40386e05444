"""Several canvases a clip, and the one of minimum Bayes risk among them."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(first: Sequence[object], second: Sequence[object]) -> int:
    """Levenshtein distance between two sequences."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def least_risk(candidates: Sequence[Sequence[object]]) -> int:
    """Choose the candidate with the least sum of edit distances to all; of equal ones the first.

    Args:
        candidates: Sequences of tokens, words or characters, at least one.
    """
    distances: dict[tuple[int, int], int] = {}
    for i, first in enumerate(candidates):
        for j in range(i):
            distances[i, j] = distances[j, i] = edit_distance(first, candidates[j])
    risks = [sum(distances[i, j] for j in range(len(candidates)) if j != i) for i in range(len(candidates))]
    return risks.index(min(risks))
