"""Which predictions of a pass stay on the canvas, and when a canvas needs no further pass.

Places behind the first end token are left out of every quota, budget and mean: they are near-certain, and
would fill it while the text is still noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..canvas import PassResult


class Acceptance(Protocol):
    """Chooses the predictions that stay; noise takes the place of the others."""

    @property
    def wants_entropy(self) -> bool:
        """Whether it reads the entropy of every place."""

    def keep(self, seen: PassResult) -> Tensor:
        """Say which places of the text keep their prediction, (B, C) bool; others than text keep theirs."""


class StopRule(Protocol):
    """Says which canvases are done before they have taken all their passes."""

    @property
    def wants_entropy(self) -> bool:
        """Whether it reads the entropy of every place."""

    def done(self, seen: PassResult) -> Tensor:
        """Say which canvases are done, (B,) bool."""


@dataclass(frozen=True)
class MostConfident:
    """Keep the most confident places, a share of the text that grows by 1 / steps with every pass.

    The strategy of diffusion-gemma-asr-small.
    """

    wants_entropy: bool = False

    def keep(self, seen: PassResult) -> Tensor:
        """See :class:`Acceptance`."""
        order = rank(torch.where(seen.in_text, seen.confidence, -torch.ones_like(seen.confidence)))
        share = (seen.step.double() / seen.steps).float()
        n_kept = torch.ceil(seen.in_text.sum(dim=1) * share)
        return order < n_kept[:, None]


@dataclass(frozen=True)
class EntropyBound:
    """Keep the places of least entropy, as many as a budget allows.

    As in DiffusionGemma (arXiv 2505.24857) the sum of the kept entropies without the largest stays within the
    bound. Other than there, the filled tail has no part in it, and predictions are the best tokens, not drawn
    at a temperature.

    Attributes:
        bound: Budget in nats.
    """

    bound: float = 0.1
    wants_entropy: bool = True

    def keep(self, seen: PassResult) -> Tensor:
        """See :class:`Acceptance`."""
        entropy = torch.where(seen.in_text, seen.entropies, torch.inf)
        ascending, places = entropy.sort(dim=1, stable=True)
        spent = torch.cat([torch.zeros_like(ascending[:, :1]), ascending.cumsum(dim=1)[:, :-1]], dim=1)
        return torch.zeros_like(seen.in_text).scatter(1, places, spent <= self.bound)


@dataclass(frozen=True)
class SureEnough:
    """Keep the places of at least a given probability: only unsure ones are written anew.

    As a stop rule: a canvas without unsure places is done.

    Attributes:
        threshold: The probability.
    """

    threshold: float = 0.9
    wants_entropy: bool = False

    def keep(self, seen: PassResult) -> Tensor:
        """See :class:`Acceptance`."""
        return seen.confidence >= self.threshold

    def done(self, seen: PassResult) -> Tensor:
        """See :class:`StopRule`."""
        return (self.keep(seen) | ~seen.in_text).all(dim=1)


@dataclass(frozen=True)
class StableAndConfident:
    """A canvas is done once its text stays the same and the mean entropy of the text is low.

    After DiffusionGemma's stopping rule, but without the tail, and with the start for the pass before the
    first: a draft that comes back unchanged is stable after one pass.

    Attributes:
        entropy: In nats.
        stability: Passes in a row that must have given the same text; 0: the entropy alone decides.
    """

    entropy: float
    stability: int = 1
    wants_entropy: bool = True

    def done(self, seen: PassResult) -> Tensor:
        """See :class:`StopRule`."""
        total = torch.where(seen.in_text, seen.entropies, 0.0).sum(dim=1)
        mean = total / seen.in_text.sum(dim=1).clamp(min=1)
        return (mean < self.entropy) & (seen.streak >= self.stability)


def rank(scores: Tensor) -> Tensor:
    """Rank of every place of a row, 0 for the highest score; of equal ones the first is higher. (B, C)."""
    places = scores.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(places).contiguous()
    return torch.empty_like(places).scatter_(1, places, ranks)
