"""Layers of the backbone that take less time than the stock ones, on a CPU above all.

A layer becomes one of them by its class, so that its parameters stay where they are.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
    DiffusionGemmaRMSNorm,
    DiffusionGemmaSelfConditioning,
    DiffusionGemmaText4MLP,
    DiffusionGemmaTextExperts,
)

from .products import VocabularyLinear


class FusedRMSNorm(DiffusionGemmaRMSNorm):
    """The backbone's RMS norm as one kernel; the stock one takes eight, in float32, as this one computes.

    In training the stock one runs: it goes on as it began, whatever decoded between.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (..., D) over its last dimension."""
        if _is_training(hidden_states):
            return super().forward(hidden_states)
        weight: Tensor | None = self.weight if self.with_scale else None
        return nn.functional.rms_norm(hidden_states, hidden_states.shape[-1:], weight, self.eps)


def fuse_norms(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    """Run every RMS norm as one kernel, in place: several hundred of them are a good part of a pass on a GPU.

    Args:
        backbone: The model to change; what it computes stays the same, on a GPU up to rounding.
    """
    for module in backbone.modules():
        if type(module) is DiffusionGemmaRMSNorm:
            # The class, not the instance's forward: torch.compile would compile each instance anew.
            module.__class__ = FusedRMSNorm


class SortedTextExperts(DiffusionGemmaTextExperts):
    """The backbone's experts on a CPU: tokens are sorted by expert once, and few copies of them are made.

    The library's grouped product computes the same, bit for bit, but copies every token for each of its
    experts, and back. In training, or on a GPU, it runs.
    """

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Give the experts' weighted sum of each token.

        Args:
            hidden_states: (N, D).
            top_k_index: Experts of each token, (N, K) int64.
            top_k_weights: Their weights, (N, K).
        """
        if _is_training(hidden_states) or not hidden_states.is_cpu:
            output: Tensor = super().forward(hidden_states, top_k_index, top_k_weights)
            return output
        experts = top_k_index.flatten()
        order = experts.argsort(stable=True)
        counts = experts.bincount(minlength=len(self.gate_up_proj)).tolist()
        tokens = (order // top_k_index.shape[1]).split_with_sizes(counts)
        weights = top_k_weights.reshape(-1, 1)[order].split_with_sizes(counts)
        total = torch.zeros_like(hidden_states)
        for expert, (rows, weight) in enumerate(zip(tokens, weights, strict=True)):
            if len(rows):
                both = nn.functional.linear(hidden_states.index_select(0, rows), self.gate_up_proj[expert])
                gate, up = both.chunk(2, dim=-1)
                out = nn.functional.linear(self.act_fn(gate).mul_(up), self.down_proj[expert])
                total.index_add_(0, rows, out.mul_(weight))
        return total


class InPlaceText4MLP(DiffusionGemmaText4MLP):
    """The backbone's gated layer, which multiplies in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        if _is_training(x):
            trained: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return trained
        output: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)).mul_(self.up_proj(x)))
        return output


class LazySelfConditioning(DiffusionGemmaSelfConditioning):
    """Self-conditioning that does nothing for a pass without a signal: its products have no bias.

    Attributes:
        signal: Of the pass that a thread runs, None for zeros; not set: what the decoder has.
    """

    signal: ContextVar[Tensor | None] = ContextVar("signal of self-conditioning")

    def forward(self, inputs_embeds: Tensor, self_conditioning_signal: Tensor) -> Tensor:
        """Add the signal (B, C, D), that of the pass if it has one, to the input embeddings (B, C, D)."""
        signal = self.signal.get(self_conditioning_signal)
        if signal is None:
            output: Tensor = self.post_norm(inputs_embeds)
        else:
            output = super().forward(inputs_embeds, signal)
        return output


def quicken(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    """Decode faster on a CPU, in place.

    What the layers of a float32 backbone compute stays the same, bit for bit; what its output layer does, up
    to rounding.

    Args:
        backbone: The model to change; one that is elsewhere, or of another type, is left as it is.
    """
    for module in backbone.modules():
        if type(module) is DiffusionGemmaTextExperts and _is_plain(module.gate_up_proj):
            module.__class__ = SortedTextExperts
    if _is_plain(backbone.lm_head.weight):
        fuse_norms(backbone)
        for module in backbone.modules():
            if type(module) is DiffusionGemmaText4MLP:
                module.__class__ = InPlaceText4MLP
        if type(backbone.lm_head) is nn.Linear:
            backbone.lm_head.__class__ = VocabularyLinear
    conditioning = backbone.model.decoder.self_conditioning
    if backbone.lm_head.weight.is_cpu and type(conditioning) is DiffusionGemmaSelfConditioning:
        conditioning.__class__ = LazySelfConditioning


def _is_training(hidden_states: Tensor) -> bool:
    """Whether gradients are asked for, or types are mixed, as in an evaluation during training."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(hidden_states.device.type)


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is a float32 one of a CPU, and no quantised one."""
    return weight.is_cpu and weight.dtype == torch.float32 and type(weight) is nn.Parameter
