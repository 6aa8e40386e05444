"""Readings of the CTC tap: the draft, how sure it is of each token, and what else each might have been.

Letters: B clips, A audio tokens, V vocabulary, S tokens of a draft, K candidates of a token, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draft:
    """The greedy CTC reading of a clip.

    Attributes:
        ids: Token ids, S of them.
        confidences: CTC posterior of each; empty where nobody asked for them.
        certainty: Posterior of the likeliest id of the least certain state; 0 where nobody asked for it.
        candidates: Ids that each may have been, the likeliest first, (S, K) int64; None where nobody asked.
        log_posteriors: Of the candidates, (S, K) float32.
        weights: Nats that are added to the log probability of each token in every pass; empty where nothing
            is.
        soft: Soft embedding of each token, (S, D), scaled as input embeddings are; None where nobody asked.
    """

    ids: Sequence[int]
    confidences: Sequence[float] = ()
    certainty: float = 0.0
    candidates: Tensor | None = None
    log_posteriors: Tensor | None = None
    weights: Sequence[float] = ()
    soft: Tensor | None = None


def greedy_ctc(logits: Tensor, n_states: Tensor, blank: int) -> list[list[int]]:
    """Best-path CTC reading of logits (B, A, V): see :func:`merge_labels`."""
    return merge_labels(logits.argmax(-1), n_states, blank)


def merge_labels(labels: Tensor, n_states: Tensor, blank: int) -> list[list[int]]:
    """Read a CTC path: repeats merged, blanks dropped.

    Args:
        labels: Likeliest id of each state, (B, A) int64.
        n_states: Valid states, (B,) int64.
        blank: Id of the blank.

    Returns:
        Token ids of each row.
    """
    return [
        [path[run[0]] for run in merged_runs(path[:n], blank)]
        for path, n in zip(labels.tolist(), n_states.tolist(), strict=True)
    ]


def merged_runs(path: Sequence[int], blank: int) -> list[range]:
    """States that are merged to each token of a path."""
    starts = [i for i, label in enumerate(path) if label != blank and (i == 0 or label != path[i - 1])]
    runs = []
    for start in starts:
        end = start + 1
        while end < len(path) and path[end] == path[start]:
            end += 1
        runs.append(range(start, end))
    return runs


def state_certainty(logits: Tensor) -> Tensor:
    """Probability of the likeliest id of every state of logits (B, A, V), (B, A) float32."""
    # Row by row: with a large vocabulary the softmax of a batch is large.
    return torch.stack([row.float().softmax(dim=-1).amax(dim=-1) for row in logits])


def surest_states(labels: Tensor, certainty: Tensor, n_states: Tensor, blank: int) -> list[list[int]]:
    """Find the surest of the states that are merged to each token of :func:`merge_labels`.

    Args:
        labels: Likeliest id of each state, (B, A) int64.
        certainty: Its probability, (B, A).
        n_states: Valid states, (B,) int64.
        blank: Id of the blank.

    Returns:
        One list a row, as long as the reading.
    """
    return [
        [max(run, key=sure.__getitem__) for run in merged_runs(path[:n], blank)]
        for path, sure, n in zip(labels.tolist(), certainty.tolist(), n_states.tolist(), strict=True)
    ]
