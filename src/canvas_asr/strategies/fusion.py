"""Fusion: what the CTC tap heard, added to what the decoder reads in a pass.

Each token of the draft stands for a spike of the CTC tap, and its place on the canvas gets the spike's
posterior: log p(token) of the pass becomes log p(token) + weight * log q(token), normalised again, with q no
less than `FLOOR`, so that a token that CTC ruled out is not ruled out here. At first a spike belongs to the
place where its token is laid. Text that was inserted or removed moves all that follows, so after a pass the
spikes are shifted to where the predictions around a place agree with the draft best; a place whose
neighbourhood agrees nowhere gets none.

Letters: B canvases, C canvas length, S spikes, K candidates of a spike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Evidence

N_CANDIDATES = 16
FLOOR = 1e-3
# How far spikes are shifted, in places, and how many places around one are compared.
MAX_SHIFT = 4
WINDOW = 7


@dataclass(frozen=True)
class Spikes:
    """What the CTC tap says at each token of the draft.

    Attributes:
        tokens: Likeliest ids of each spike, the draft's first, (B, S, K) int64; -1 behind the last spike.
        weights: Log posterior above that of the floor, times the weight of fusion, (B, S, K) float32.
    """

    tokens: Tensor
    weights: Tensor

    def at(self, spike: Tensor) -> Evidence:
        """Give evidence for places by the spike of each, (B, C) int64; -1 for none."""
        index = spike.clamp(min=0)[..., None].expand(-1, -1, self.tokens.shape[-1])
        if not self.tokens.shape[1]:
            return Evidence(torch.zeros_like(index), torch.zeros(index.shape, device=index.device))
        weights = self.weights.gather(1, index) * (spike >= 0)[..., None]
        return Evidence(self.tokens.gather(1, index).clamp(min=0), weights)

    def align(self, canvas: Tensor, in_text: Tensor, first: int) -> Tensor:
        """Find the spike of every place of predicted canvases.

        Args:
            canvas: (B, C) int64.
            in_text: Places of the text, (B, C) bool.
            first: Place of the first text token.

        Returns:
            Spikes, (B, C) int64; -1 for none.
        """
        n_spikes = self.tokens.shape[1]
        if not n_spikes:
            return torch.full_like(canvas, -1)
        # 0, -1, 1, -2, 2, ...: of shifts that fit as well the first, that is the smallest, wins.
        order = torch.arange(2 * MAX_SHIFT + 1, device=canvas.device)
        shifts = torch.where(order % 2 == 0, order, -order - 1).div(2, rounding_mode="trunc")
        places = torch.arange(canvas.shape[1], device=canvas.device)
        candidates = places[None, :] - first + shifts[:, None]
        inside = (places >= first)[None, :] & (candidates >= 0) & (candidates < n_spikes)
        spelt = self.tokens[:, candidates.clamp(0, n_spikes - 1), 0]  # (B, shifts, C)
        agree = (inside & (spelt == canvas[:, None, :]) & in_text[:, None, :]).float()
        score = torch.nn.functional.avg_pool1d(agree, WINDOW, stride=1, padding=WINDOW // 2)
        best = (score - 1e-4 * order[None, :, None]).argmax(dim=1, keepdim=True)  # (B, 1, C)
        spike = candidates[None].expand(len(canvas), -1, -1).gather(1, best)[:, 0]
        fits = inside[None].expand(len(canvas), -1, -1).gather(1, best)[:, 0]
        agrees = score.gather(1, best)[:, 0] > 0
        exists = self.tokens[:, :, 0].gather(1, spike.clamp(0, n_spikes - 1)) >= 0
        return torch.where(fits & agrees & exists & in_text, spike, -1)


def weigh(log_posteriors: Tensor, weight: float) -> Tensor:
    """Give what is added to logits for log posteriors, of the same shape, float32."""
    return weight * (log_posteriors.float() - math.log(FLOOR)).clamp(min=0)
