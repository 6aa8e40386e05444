"""Diffusion and autoregressive losses over prompts given as embeddings: what stages (b) and (c) share.

One causal pass over [prompt, transcript] serves both: positions before the prompt's end are its prefix,
whatever follows. The decoder is given the prompt only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from canvas_asr.backbone import crop_cache, denoise, encode_prefix, output_logits, select_cache, soft_embed
from canvas_asr.configuration import text_config
from canvas_asr.encoder import length_mask
from canvas_asr.errors import RecipeError

from .corruption import KINDS, Corruption, CorruptionOptions
from .losses import autoregressive_loss, diffusion_loss, sample_noise_levels, states_per_chunk


@dataclass(frozen=True)
class ObjectiveOptions:
    """Weights of the losses.

    Attributes:
        diffusion_weight: Of the uniform-diffusion loss.
        autoregressive_weight: Of the encoder-side autoregressive loss.
        tail_weight: Of canvas positions after the first end token, within the diffusion loss.
        self_conditioning: Share of clips whose decoder sees its own earlier prediction.
        corruption: Mixture of the noising process.
    """

    diffusion_weight: float = 1.0
    autoregressive_weight: float = 1.0
    tail_weight: float = 0.1
    self_conditioning: float = 0.5
    corruption: CorruptionOptions = field(default_factory=CorruptionOptions)

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1]."""
        if not 0 <= self.self_conditioning <= 1:
            raise RecipeError(f"self_conditioning is {self.self_conditioning}; give a share from 0 to 1.")


def append_targets(prompt: Tensor, n_prompt: Tensor, targets: Tensor, n_targets: Tensor) -> Tensor:
    """Write each row's targets right behind its prompt.

    Args:
        prompt: Embeddings (B, P, D), right-padded.
        n_prompt: (B,) int64.
        targets: Embeddings (B, U, D), right-padded.
        n_targets: (B,) int64.

    Returns:
        (B, L, D), L the longest row; padding is zero.
    """
    n_places, n_padded = prompt.shape[1], prompt.shape[1] + targets.shape[1]
    source = torch.cat([prompt, targets, prompt.new_zeros(len(prompt), 1, prompt.shape[2])], dim=1)
    ends = (n_prompt + n_targets)[:, None]
    places = torch.arange(int(ends.max()), device=prompt.device)[None, :]
    index = torch.where(places < n_prompt[:, None], places, n_places + places - n_prompt[:, None])
    index = index.masked_fill(places >= ends, n_padded)
    return source.gather(1, index[:, :, None].expand(-1, -1, prompt.shape[2]))


def denoising_losses(
    backbone: DiffusionGemmaForBlockDiffusion,
    prompt: Tensor,
    n_prompt: Tensor,
    targets: Tensor,
    n_targets: Tensor,
    canvas: Tensor,
    options: ObjectiveOptions,
    *,
    drafts: Sequence[Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """Compute the two denoising losses of a batch.

    Args:
        backbone: The backbone, LoRA injected or not.
        prompt: Scaled prompt embeddings, (B, P, D), right-padded.
        n_prompt: Valid prompt positions, (B,) int64.
        targets: Clean canvas up to and with its first end token, (B, U) int64, right-padded.
        n_targets: Valid targets, (B,) int64.
        canvas: Clean canvas, (B, C) int64.
        options: Weights.
        drafts: Canvas-ready draft ids of each clip, where there are any.

    Returns:
        ``loss`` (weighted sum), ``diffusion``, ``autoregressive`` and ``accuracy`` (of text positions at the
        drawn noise levels), float32 scalars.
    """
    outputs: dict[str, Tensor] = {}
    loss = prompt.new_zeros((), dtype=torch.float32)
    if options.autoregressive_weight:
        outputs["autoregressive"], cache = _read_transcript(backbone, prompt, n_prompt, targets, n_targets)
        loss = loss + options.autoregressive_weight * outputs["autoregressive"]
    else:
        cache = encode_prefix(backbone, prompt)[1]

    corruption = Corruption(options.corruption, text_config(backbone.config).vocab_size, _eos(backbone))
    levels = sample_noise_levels(len(canvas))
    kinds = corruption.draw_kinds(len(canvas), drafts=drafts is not None)
    noisy = corruption(canvas, n_targets, levels, kinds, drafts)
    own = (kinds == KINDS.index("predictions")).to(canvas.device)
    conditioned = torch.rand(len(canvas)).to(canvas.device) < options.self_conditioning
    soft = None
    if bool((own | conditioned).any()):
        predicted, soft = _earlier_pass(backbone, noisy, cache, n_prompt, own, conditioned)
        renoised = corruption.uniform(predicted, levels * torch.rand(len(canvas)))
        noisy = torch.where(own[:, None], renoised, noisy)
    hidden = denoise(backbone, noisy, cache, n_prompt, soft_embeddings=soft)
    outputs["diffusion"], right = diffusion_loss(
        hidden,
        canvas,
        n_targets,
        partial(output_logits, backbone),
        tail_weight=options.tail_weight,
        chunk=_chunk(backbone),
    )
    outputs["accuracy"] = right[length_mask(n_targets, canvas.shape[1])].float().mean()
    outputs["loss"] = loss + options.diffusion_weight * outputs["diffusion"]
    return outputs


def _read_transcript(
    backbone: DiffusionGemmaForBlockDiffusion,
    prompt: Tensor,
    n_prompt: Tensor,
    targets: Tensor,
    n_targets: Tensor,
) -> tuple[Tensor, DynamicCache]:
    """Autoregressive loss of the transcript behind its prompt, and the cache of the prompt alone."""
    embedded = backbone.get_input_embeddings()(targets).to(prompt.dtype)
    hidden, cache = encode_prefix(backbone, append_targets(prompt, n_prompt, embedded, n_targets))
    steps = torch.arange(targets.shape[1], device=prompt.device)
    positions = (n_prompt[:, None] - 1 + steps[None, :]).clamp(max=hidden.shape[1] - 1)
    rows = torch.arange(len(prompt), device=prompt.device)
    loss = autoregressive_loss(
        hidden[rows[:, None], positions],
        targets,
        n_targets,
        partial(output_logits, backbone),
        chunk=_chunk(backbone),
    )
    return loss, crop_cache(cache, prompt.shape[1])


@torch.no_grad()
def _earlier_pass(
    backbone: DiffusionGemmaForBlockDiffusion,
    noisy: Tensor,
    cache: DynamicCache,
    n_prompt: Tensor,
    own: Tensor,
    conditioned: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the rows that need one through a pass of their own.

    Args:
        backbone: The backbone.
        noisy: Canvases, (B, C) int64.
        cache: Of the prompts.
        n_prompt: Valid prompt positions, (B,) int64.
        own: Rows whose canvas starts from what the pass predicts, (B,) bool.
        conditioned: Rows whose decoder sees it as a signal, (B,) bool.

    Returns:
        Predicted canvases (B, C), those of other rows as they were; and the signal (B, C, D), zero for rows
        that are not conditioned.
    """
    rows = torch.nonzero(own | conditioned)[:, 0]
    hidden = denoise(backbone, noisy[rows], select_cache(cache, rows), n_prompt[rows])
    guess, signal = _guess(backbone, hidden)
    soft = signal.new_zeros(*noisy.shape, signal.shape[-1])
    soft[rows] = signal * conditioned[rows][:, None, None]
    predicted = noisy.clone()
    predicted[rows] = guess
    return predicted, soft


def _guess(backbone: DiffusionGemmaForBlockDiffusion, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Likeliest tokens of decoder states (B, C, D), and the self-conditioning signal that they give."""
    tokens, signals = [], []
    for states in torch.split(hidden.flatten(0, 1), _chunk(backbone)):
        logits = output_logits(backbone, states)
        tokens.append(logits.argmax(dim=-1))
        signals.append(soft_embed(backbone, logits))
    return torch.cat(tokens).view(hidden.shape[:2]), torch.cat(signals).view(hidden.shape)


def _chunk(backbone: DiffusionGemmaForBlockDiffusion) -> int:
    return states_per_chunk(text_config(backbone.config).vocab_size)


def _eos(backbone: DiffusionGemmaForBlockDiffusion) -> int:
    eos = cast("int | list[int]", text_config(backbone.config).eos_token_id)
    return eos[0] if isinstance(eos, list) else eos
