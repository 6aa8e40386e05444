"""Gradient checkpointing: layers keep their input only and compute the rest again in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaEncoderTextLayer


def recompute_activations(module: nn.Module) -> None:
    """Let every layer of a module compute its activations again in backward.

    The backbone's causal layers write a cache, which the stock implementation therefore does not recompute:
    here each writes one of its own, whose content goes to the shared one.

    Args:
        module: Its layers are changed in place; it has to be in training mode for that to have an effect.
    """

    def run_again(function: Any, *args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False)

    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = run_again  # type: ignore[assignment]
        elif isinstance(layer, DiffusionGemmaEncoderTextLayer):
            layer.forward = _recomputed(layer)  # type: ignore[method-assign]


def _recomputed(layer: DiffusionGemmaEncoderTextLayer) -> Any:
    """Give a forward of a cache-writing layer that is computed again in backward."""
    plain = layer.forward
    index = layer.layer_idx

    def forward(hidden: Tensor, past_key_values: DynamicCache | None = None, **kwargs: Any) -> Any:
        if past_key_values is None or not (layer.training and torch.is_grad_enabled()):
            return plain(hidden, past_key_values=past_key_values, **kwargs)

        def run(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            own = DynamicCache()
            output = plain(states, past_key_values=own, **kwargs)
            written: Any = own.layers[index]
            return output, written.keys, written.values

        output, keys, values = checkpoint(run, hidden, use_reentrant=False)
        past_key_values.update(keys, values, index)
        return output

    return forward
