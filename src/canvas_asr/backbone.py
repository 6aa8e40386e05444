"""The frozen backbone: DiffusionGemma's encoder run once, its decoder run per pass, and their LoRA.

The model's own ``forward`` takes no ``inputs_embeds`` and makes float32 logits of the whole vocabulary; these
functions call its parts instead. Rows are right-padded: the encoder is causal, so padding changes nothing
before it, and the decoder's mask leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
    DiffusionGemmaRMSNorm,
    DiffusionGemmaSelfConditioning,
    DiffusionGemmaTextExperts,
)

from .configuration import text_config
from .encoder import attention_mask, length_mask

LORA_TARGETS = r"model\.(encoder\.language_model|decoder)\.layers\.\d+\.self_attn\.[qkvo]_proj"


def build_backbone(config: Any) -> DiffusionGemmaForBlockDiffusion:
    """Make a randomly initialised backbone that can learn to attend.

    DiffusionGemma normalises queries and keys and scales their product by 1, so with unit gains the logits of
    a random model have a spread of sqrt(head_dim), attention is nearly one-hot and carries no gradient.
    Query gains of head_dim**-0.5 give it the usual start.

    Args:
        config: A ``DiffusionGemmaConfig``.

    Returns:
        The model, float32, weights tied.
    """
    backbone = DiffusionGemmaForBlockDiffusion(config)
    for name, parameter in backbone.named_parameters():
        if name.endswith("q_norm.weight") and "vision_tower" not in name:
            nn.init.constant_(parameter, parameter.shape[0] ** -0.5)
    return backbone


def inject_lora(backbone: DiffusionGemmaForBlockDiffusion, rank: int, alpha: int) -> None:
    """Put LoRA on q, k, v, o of every encoder and decoder layer, in place and apart for the two sides.

    The backbone ties encoder to decoder weights by pattern, and that pattern matches LoRA matrices too; the
    narrowed one keeps them apart through every later ``tie_weights()``.

    Args:
        backbone: The model to change; its own parameters are frozen.
        rank: LoRA rank; 0 puts none.
        alpha: LoRA scale times the rank.
    """
    backbone.requires_grad_(False)
    if not rank:
        return
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS)
    inject_adapter_in_model(config, backbone)
    tied = cast("dict[str, str]", type(backbone.model)._tied_weights_keys)
    backbone.model._tied_weights_keys = {
        target.replace(r"(?:[^.]+\.)*", r"(?:(?!lora_)[^.]+\.)*"): source.replace(
            r"(?:[^.]+\.)*", r"(?:(?!lora_)[^.]+\.)*"
        )
        for target, source in tied.items()
    }
    for module in (backbone, backbone.model):
        module.all_tied_weights_keys = {
            target: source
            for target, source in module.get_expanded_tied_weights_keys(all_submodels=True).items()
            if "lora_" not in target
        }


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


class LazySelfConditioning(DiffusionGemmaSelfConditioning):
    """Self-conditioning that does nothing for a pass without a signal: its products have no bias."""

    def forward(self, inputs_embeds: Tensor, self_conditioning_signal: Tensor | None) -> Tensor:
        """Add the signal (B, C, D), None for zeros, to the input embeddings (B, C, D)."""
        if self_conditioning_signal is None:
            output: Tensor = self.post_norm(inputs_embeds)
        else:
            output = super().forward(inputs_embeds, self_conditioning_signal)
        return output


def quicken(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    """Decode faster on a CPU, in place; what a float32 backbone computes stays the same, bit for bit.

    Args:
        backbone: The model to change; one that is elsewhere, or of another type, is left as it is.
    """
    for module in backbone.modules():
        if type(module) is DiffusionGemmaTextExperts and _is_plain(module.gate_up_proj):
            module.__class__ = SortedTextExperts
    if _is_plain(backbone.lm_head.weight):
        fuse_norms(backbone)
        conditioning = backbone.model.decoder.self_conditioning
        if type(conditioning) is DiffusionGemmaSelfConditioning:
            conditioning.__class__ = LazySelfConditioning


def _is_training(hidden_states: Tensor) -> bool:
    """Whether gradients are asked for, or types are mixed, as in an evaluation during training."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(hidden_states.device.type)


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is a float32 one of a CPU, and no quantised one."""
    return weight.is_cpu and weight.dtype == torch.float32 and type(weight) is nn.Parameter


def encode_prefix(
    backbone: DiffusionGemmaForBlockDiffusion, embeds: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, DynamicCache]:
    """Run the causal encoder over prompt embeddings.

    Args:
        backbone: The backbone.
        embeds: Scaled input embeddings, (B, P, D), right-padded.
        positions: Of each place, for its rotary embedding, (B, P), of any numeric dtype; None: 0, 1, 2, ...
            Attention is causal by place, whatever they are.

    Returns:
        Last hidden states (B, P, D), normed as the output layer expects them, and the key/value cache.
    """
    encoder = backbone.model.encoder.language_model
    geometry = text_config(backbone.config)
    cache = DynamicCache()
    places = torch.arange(embeds.shape[1], device=embeds.device)
    distance = places[:, None] - places[None, :]  # (P, P), from key to query
    causal = distance >= 0
    # Explicit: without an attention implementation in its configuration the stock model makes no mask at all.
    masks = {
        kind: attention_mask(seen[None], geometry._attn_implementation, embeds.dtype)
        for kind, seen in (
            ("full_attention", causal),
            ("sliding_attention", causal & (distance < geometry.sliding_window)),
        )
    }
    output = encoder(
        inputs_embeds=embeds, past_key_values=cache, attention_mask=masks, position_ids=positions
    )
    return output.last_hidden_state, cache


def keys_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Give each layer's keys and values; their types also admit layers without attention or still empty."""
    return [(layer.keys, layer.values) for layer in cast("list[Any]", cache.layers)]


def crop_cache(cache: DynamicCache, n_positions: int) -> DynamicCache:
    """Give the first ``n_positions`` of a cache as a cache of its own, leaving the original as it is."""
    cropped = DynamicCache()
    for index, (keys, values) in enumerate(keys_values(cache)):
        cropped.update(keys[:, :, :n_positions], values[:, :, :n_positions], index)
    return cropped


def select_cache(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Give the chosen rows, (B',) int64, of a cache as a cache of its own."""
    selected = DynamicCache()
    for index, (keys, values) in enumerate(keys_values(cache)):
        selected.update(keys[rows], values[rows], index)
    return selected


def join_caches(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Put the rows of caches behind each other, padded to the longest, as a cache of its own."""
    layers = [keys_values(cache) for cache in caches]
    longest = max(pairs[0][0].shape[-2] for pairs in layers)
    joined = DynamicCache()
    for index, pairs in enumerate(zip(*layers, strict=True)):
        keys, values = (
            torch.cat([nn.functional.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts])
            for parts in zip(*pairs, strict=True)
        )
        joined.update(keys, values, index)
    return joined


def denoise(
    backbone: DiffusionGemmaForBlockDiffusion,
    canvas: Tensor,
    prefix: DynamicCache,
    n_prompt: Tensor,
    *,
    n_canvas: Tensor | None = None,
    soft_embeddings: Tensor | None = None,
    canvas_start: int | None = None,
) -> Tensor:
    """Run one pass of the decoder.

    Args:
        backbone: The backbone.
        canvas: Token ids, (B, C) int64.
        prefix: Cache of the prompt only, P positions, right-padded. It is read, not written.
        n_prompt: Valid prompt places of each row, (B,) int64.
        n_canvas: Canvas length of each row, (B,) int64; None: all C.
        soft_embeddings: Self-conditioning signal of the last pass, (B, C, D), scaled as input embeddings
            are; rows of zeros have none. None: zeros for all.
        canvas_start: Position of the first canvas token; None: ``n_prompt``, behind the prompt.

    Returns:
        Last hidden states, (B, C, D), normed as the output layer expects them.
    """
    n_batch, length = canvas.shape
    cached = keys_values(prefix)[0][0]
    valid = length_mask(n_prompt, cached.shape[-2])
    on_canvas = (
        torch.ones_like(canvas, dtype=torch.bool) if n_canvas is None else length_mask(n_canvas, length)
    )
    seen = torch.cat([valid, on_canvas], dim=1)[:, None, :].expand(n_batch, length, -1)
    mask = attention_mask(seen, text_config(backbone.config)._attn_implementation, cached.dtype)
    decoder = backbone.model.decoder
    start = n_prompt if canvas_start is None else torch.full_like(n_prompt, canvas_start)
    hook = None
    module: Any = decoder.self_conditioning
    is_lazy = isinstance(module, LazySelfConditioning) and not torch.is_grad_enabled()
    if soft_embeddings is not None or is_lazy:
        # The decoder takes self-conditioning as logits only; this hands its module the soft embeddings.
        hook = module.register_forward_pre_hook(lambda _module, args: (args[0], soft_embeddings))
    try:
        output = decoder(
            decoder_input_ids=canvas,
            past_key_values=prefix,
            decoder_attention_mask={"full_attention": mask, "sliding_attention": mask},
            decoder_position_ids=start[:, None] + torch.arange(length, device=canvas.device)[None, :],
        )
    finally:
        if hook is not None:
            hook.remove()
    hidden: Tensor = output.last_hidden_state
    return hidden


def output_logits(
    backbone: DiffusionGemmaForBlockDiffusion, hidden: Tensor, *, softcap: bool = True
) -> Tensor:
    """Apply the frozen output layer and, as the backbone does, its soft-cap.

    Args:
        backbone: The backbone.
        hidden: Normed states, (..., D).
        softcap: Whether the backbone's final logit soft-cap is applied.

    Returns:
        Logits, (..., V), in the output layer's dtype (under autocast, its dtype).
    """
    logits: Tensor = backbone.lm_head(hidden)
    cap = backbone.final_logit_softcapping
    if not (softcap and cap):
        return logits
    if torch.is_grad_enabled():
        return torch.tanh(logits / cap) * cap
    if logits.is_cpu and logits.dtype == torch.float32:
        # tanh x is 2 sigmoid 2x - 1: four times as fast there, and within 4e-6 for a cap of 30.
        return logits.mul_(2 / cap).sigmoid_().mul_(2 * cap).sub_(cap)
    return logits.div_(cap).tanh_().mul_(cap)  # the same, without two more tensors of that size


def soft_embed(backbone: DiffusionGemmaForBlockDiffusion, logits: Tensor) -> Tensor:
    """Expected input embedding under the predicted distribution: what self-conditioning needs of a pass.

    Args:
        backbone: The backbone.
        logits: (B, C, V).

    Returns:
        (B, C, D), scaled as input embeddings are.
    """
    return expected_embedding(backbone, logits.softmax(dim=-1, dtype=torch.float32))


def expected_embedding(backbone: DiffusionGemmaForBlockDiffusion, probabilities: Tensor) -> Tensor:
    """Mean input embedding, (..., D), under probabilities (..., V); scaled as input embeddings are."""
    embedding = backbone.model.decoder.embed_tokens
    weight: Tensor = embedding.weight
    scale: Tensor = embedding.embed_scale.to(weight.dtype)
    return (probabilities.to(weight.dtype) @ weight) * scale
