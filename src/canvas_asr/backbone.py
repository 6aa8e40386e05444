"""The frozen backbone: DiffusionGemma's encoder run once, its decoder run per pass, and their LoRA.

The model's own ``forward`` takes no ``inputs_embeds`` and makes float32 logits of the whole vocabulary; these
functions call its parts instead. Rows are right-padded: the encoder is causal, so padding changes nothing
before it, and the decoder's mask leaves it out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from .configuration import text_config
from .cpu_layers import LazySelfConditioning
from .encoder import attention_mask, length_mask
from .products import MIN_VOCABULARY_ROWS, product

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


def encode_prefix(
    backbone: DiffusionGemmaForBlockDiffusion,
    embeds: Tensor,
    positions: Tensor | None = None,
    cache: DynamicCache | None = None,
) -> tuple[Tensor, DynamicCache]:
    """Run the causal encoder over prompt embeddings.

    Args:
        backbone: The backbone.
        embeds: Scaled input embeddings, (B, P, D), right-padded.
        positions: Of each place, for its rotary embedding, (B, P), of any numeric dtype; None: 0, 1, 2, ...
            Attention is causal by place, whatever they are.
        cache: Empty, to be filled; None: a new one.

    Returns:
        Last hidden states (B, P, D), normed as the output layer expects them, and the key/value cache.
    """
    encoder = backbone.model.encoder.language_model
    geometry = text_config(backbone.config)
    cache = DynamicCache() if cache is None else cache
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


class _CacheFullError(Exception):
    """Every layer has written its keys and values."""


class _FirstCache(DynamicCache):
    """A cache that ends the encoder's run once it holds what the last layer writes."""

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        held = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.n_layers - 1:
            raise _CacheFullError
        return held


def encode_keys(
    backbone: DiffusionGemmaForBlockDiffusion, embeds: Tensor, positions: Tensor | None = None
) -> DynamicCache:
    """Give the cache of :func:`encode_prefix` alone: what the last layer makes of it is not computed."""
    first = _FirstCache(text_config(backbone.config).num_hidden_layers)
    with suppress(_CacheFullError):
        encode_prefix(backbone, embeds, positions, first)
    cache = DynamicCache()
    cache.layers = first.layers
    return cache


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


def view_cache(cache: DynamicCache, rows: slice) -> DynamicCache:
    """Give some rows of a cache as a cache that reads the same memory."""
    view = copy.copy(cache)
    view.layers = [copy.copy(layer) for layer in cache.layers]
    for layer, (keys, values) in zip(cast("list[Any]", view.layers), keys_values(cache), strict=True):
        layer.keys, layer.values = keys[rows], values[rows]
    return view


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
    length, cached = canvas.shape[1], keys_values(prefix)[0][0]
    valid = length_mask(n_prompt, cached.shape[-2])
    on_canvas = torch.ones_like(canvas, dtype=torch.bool)
    if n_canvas is not None:
        on_canvas = length_mask(n_canvas, length)
    seen = torch.cat([valid, on_canvas], dim=1)
    mask = None
    # No mask is faster than one that masks nothing; a GPU would have to be waited for, to know.
    if not seen.is_cpu or not bool(seen.all()):
        seen = seen[:, None, :].expand(-1, length, -1)
        mask = attention_mask(seen, text_config(backbone.config)._attn_implementation, cached.dtype)
    decoder = backbone.model.decoder
    # A position that all rows share is one row: cosines and sines are made of it once.
    start = n_prompt if canvas_start is None else torch.full_like(n_prompt[:1], canvas_start)
    hook = signal = None
    module: Any = decoder.self_conditioning
    # The decoder takes self-conditioning as logits only; this hands its module the soft embeddings.
    if isinstance(module, LazySelfConditioning) and not torch.is_grad_enabled():
        signal = module.signal.set(soft_embeddings)
    elif soft_embeddings is not None:
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
        if signal is not None:
            module.signal.reset(signal)
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
    return product(probabilities.to(weight.dtype), weight.mT, min_rows=MIN_VOCABULARY_ROWS) * scale
