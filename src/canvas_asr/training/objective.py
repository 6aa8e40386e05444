"""Diffusion and autoregressive losses over prompts given as embeddings: what stages (b) and (c) share.

One causal pass over [prompt, transcript] serves both: positions before the prompt's end are its prefix,
whatever follows. The decoder is given the prompt only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from canvas_asr.backbone import crop_cache, denoise, encode_prefix, output_logits, select_cache, soft_embed
from canvas_asr.configuration import text_config
from canvas_asr.encoder import length_mask
from canvas_asr.errors import RecipeError

from .corruption import KINDS, Corruption, CorruptionOptions
from .losses import autoregressive_loss, diffusion_loss, sample_noise_levels, states_per_chunk
from .stage import Part, row_generators, share_of

Item = TypeVar("Item")

NOISE_BINS = 4  # the diffusion loss is logged for t below 1/4, 2/4, 3/4 and 1


@dataclass(frozen=True)
class ObjectiveOptions:
    """Weights of the losses.

    Attributes:
        diffusion_weight: Of the uniform-diffusion loss.
        autoregressive_weight: Of the encoder-side autoregressive loss.
        tail_weight: Of canvas positions after the first end token, within the diffusion loss.
        self_conditioning: Share of clips whose decoder sees its own earlier prediction.
        draft_conditioning: Share of canvases from drafts whose decoder sees what the CTC tap expects in each
            place in its stead, as decoding with ``self_conditioning="posterior"`` shows it.
        n_canvases: Canvases of each clip, at noise levels from as many equal parts of the range; they share
            the clip's prefix, so that they cost less than as many clips.
        corruption: Mixture of the noising process.
    """

    diffusion_weight: float = 1.0
    autoregressive_weight: float = 1.0
    tail_weight: float = 0.1
    self_conditioning: float = 0.5
    draft_conditioning: float = 0.0
    n_canvases: int = 1
    corruption: CorruptionOptions = field(default_factory=CorruptionOptions)

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1], no canvas for a clip, and conditioning on drafts without any."""
        for name in ("self_conditioning", "draft_conditioning"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise RecipeError(f"{name} is {share}; give a share from 0 to 1.")
        if self.draft_conditioning and not self.corruption.draft:
            raise RecipeError(
                f"draft_conditioning is {self.draft_conditioning} and corruption.draft 0: no canvas starts "
                "from a draft; give drafts a weight, or leave it out."
            )
        if self.n_canvases < 1:
            raise RecipeError(f"n_canvases is {self.n_canvases}; give at least 1.")


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


def denoising_counts(batch: Mapping[str, Any], options: ObjectiveOptions) -> dict[str, float]:
    """Count what the two denoising losses of a batch are means over."""
    n_text = float(batch["n_targets"].sum())
    n_tail = batch["canvas"].numel() - n_text
    return {"targets": n_text, "canvas": n_text + options.tail_weight * n_tail}


def denoising_losses(
    backbone: DiffusionGemmaForBlockDiffusion,
    prompt: Tensor,
    n_prompt: Tensor,
    targets: Tensor,
    n_targets: Tensor,
    canvas: Tensor,
    options: ObjectiveOptions,
    *,
    n_canvas: Tensor | None = None,
    drafts: Sequence[Sequence[int]] | None = None,
    draft_signals: Sequence[Tensor] | None = None,
    positions: Tensor | None = None,
    canvas_start: int | None = None,
    part: Part | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> dict[str, Tensor]:
    """Compute the two denoising losses of a batch.

    Args:
        backbone: The backbone, LoRA injected or not.
        prompt: Scaled prompt embeddings, (B, P, D), right-padded.
        n_prompt: Valid prompt positions, (B,) int64.
        targets: Transcript up to and with its end token, (B, U) int64, right-padded.
        n_targets: Valid targets, (B,) int64.
        canvas: Clean canvas, (B, C) int64.
        options: Weights.
        n_canvas: Canvas places up to and with the first end token, (B,) int64; None: as many as targets.
        drafts: Canvas-ready draft ids of each clip, where there are any.
        draft_signals: What CTC expects at each id of a draft, (S, D) each; None: no canvas is conditioned on
            it.
        positions: Of the prompts' places, (B, P) float32; None: 0, 1, 2, ...
        canvas_start: Position of the first canvas token; None: behind the prompt.
        part: What the batch is of its step; None: all.
        generators: Of each row's noise; None: those of ``part``.

    Returns:
        ``loss`` (weighted sum), ``diffusion``, ``autoregressive``, ``accuracy`` (of text positions): float32
        scalars; ``diffusion_by_noise``: sums over clips of uniform noise by quarter of t, and counts, (2, 4).
    """
    outputs, loss = {}, prompt.new_zeros((), dtype=torch.float32)
    if options.autoregressive_weight:
        reading, cache = _read_transcript(backbone, prompt, n_prompt, targets, n_targets, positions)
        outputs["autoregressive"] = reading * share_of(part, "targets")
        loss = loss + options.autoregressive_weight * outputs["autoregressive"]
    else:
        cache = encode_prefix(backbone, prompt, positions)[1]
    n_canvas = n_targets if n_canvas is None else n_canvas
    generators = generators or row_generators(part, len(canvas))
    if (n := options.n_canvases) > 1:
        cache = select_cache(cache, torch.arange(len(canvas), device=canvas.device).repeat_interleave(n))
        canvas, n_canvas, n_prompt = (x.repeat_interleave(n, dim=0) for x in (canvas, n_canvas, n_prompt))
        generators, drafts = _each(generators, n), drafts and _each(drafts, n)
        draft_signals = draft_signals and _each(draft_signals, n)
    corruption = Corruption(options.corruption, text_config(backbone.config).vocab_size, _eos(backbone))
    noise = _draw_noise(corruption, canvas, n_canvas, drafts, generators, options)
    hidden = _predict(backbone, corruption, noise, cache, n_prompt, draft_signals, canvas_start)
    outputs.update(_read_canvas(backbone, hidden, canvas, n_canvas, noise, options, part))
    outputs["loss"] = loss + options.diffusion_weight * outputs["diffusion"]
    return outputs


def _predict(
    backbone: DiffusionGemmaForBlockDiffusion,
    corruption: Corruption,
    noise: _Noise,
    cache: DynamicCache,
    n_prompt: Tensor,
    draft_signals: Sequence[Tensor] | None,
    canvas_start: int | None,
) -> Tensor:
    """Decoder states (B, C, D) of noisy canvases, each shown what was drawn for it."""
    noisy, soft = noise.canvas, None
    if bool((noise.own | noise.conditioned).any()):
        predicted, soft = _earlier_pass(backbone, noise, cache, n_prompt, canvas_start)
        noisy = noise.renoised(corruption, predicted)
    if draft_signals is not None:
        soft = _with_drafts(backbone, noise, soft, draft_signals)
    return denoise(backbone, noisy, cache, n_prompt, soft_embeddings=soft, canvas_start=canvas_start)


def _each(items: Sequence[Item], n: int) -> list[Item]:
    """Every item ``n`` times, next to each other."""
    return [item for item in items for _ in range(n)]


@dataclass(frozen=True)
class _Noise:
    """What was drawn for a batch; the draws are on the CPU.

    Attributes:
        generators: What each row's noise is drawn from.
        canvas: Corrupted canvases, (B, C) int64, on the model's device.
        levels: t of each row, (B,) float32.
        uniform: Rows whose canvas has uniform noise of level t and nothing else, (B,) bool.
        own: Rows whose canvas starts from the model's own prediction, (B,) bool.
        conditioned: Rows whose decoder sees its earlier prediction, (B,) bool.
        heard: Rows whose decoder sees what CTC expects, (B,) bool.
    """

    generators: Sequence[torch.Generator]
    canvas: Tensor
    levels: Tensor
    uniform: Tensor
    own: Tensor
    conditioned: Tensor
    heard: Tensor

    def renoised(self, corruption: Corruption, predicted: Tensor) -> Tensor:
        """Put predictions (B, C), with uniform noise of a level below t, on the canvases that start so."""
        rows = torch.nonzero(self.own)[:, 0].tolist()
        if not rows:
            return self.canvas
        noisy, predicted = self.canvas.clone(), predicted.cpu()
        for row in rows:
            generator = self.generators[row]
            level = self.levels[row : row + 1] * torch.rand(1, generator=generator)
            noisy[row] = corruption.uniform(predicted[row : row + 1], level, generator)[0]
        return noisy

    def by_level(self, losses: Tensor) -> Tensor:
        """Sums and counts of losses (B,) of uniform rows by quarter of t, (2, 4) float32."""
        bins = (self.levels * NOISE_BINS).long().clamp(max=NOISE_BINS - 1)
        member = nn.functional.one_hot(bins, NOISE_BINS).float() * self.uniform[:, None]
        member = member.to(losses.device)
        return torch.stack([losses @ member, member.sum(0)])


def _read_canvas(
    backbone: DiffusionGemmaForBlockDiffusion,
    hidden: Tensor,
    canvas: Tensor,
    n_targets: Tensor,
    noise: _Noise,
    options: ObjectiveOptions,
    part: Part | None,
) -> dict[str, Tensor]:
    """``diffusion``, ``accuracy`` and ``diffusion_by_noise`` of decoder states (B, C, D)."""
    loss, tokens = diffusion_loss(
        hidden,
        canvas,
        n_targets,
        partial(output_logits, backbone),
        tail_weight=options.tail_weight,
        chunk=_chunk(backbone),
    )
    on_text = length_mask(n_targets, canvas.shape[1])
    weights = torch.where(on_text, 1.0, options.tail_weight)
    by_clip = (tokens.losses.detach() * weights).sum(1) / weights.sum(1)
    return {
        "diffusion": loss * share_of(part, "canvas"),
        "accuracy": tokens.right[on_text].float().mean() * share_of(part, "targets"),
        "diffusion_by_noise": noise.by_level(by_clip),
    }


def _draw_noise(
    corruption: Corruption,
    canvas: Tensor,
    n_targets: Tensor,
    drafts: Sequence[Sequence[int]] | None,
    generators: Sequence[torch.Generator],
    options: ObjectiveOptions,
) -> _Noise:
    """Draw each row's noise from its own generator, as if the row were alone."""
    device, canvas, n_targets = canvas.device, canvas.cpu(), n_targets.cpu()
    columns: list[tuple[Tensor, ...]] = []
    for row, generator in enumerate(generators):
        this = slice(row, row + 1)
        level = (sample_noise_levels(1, generator) + row % options.n_canvases) / options.n_canvases
        kind = corruption.draw_kinds(1, drafts=drafts is not None, generator=generator)
        own_draft = None if drafts is None else drafts[this]
        noisy = corruption(canvas[this], n_targets[this], level, kind, own_draft, generator)
        seen = torch.rand(1, generator=generator) < options.self_conditioning
        heard = torch.zeros(1, dtype=torch.bool)
        if options.draft_conditioning and int(kind) == KINDS.index("draft"):
            heard = torch.rand(1, generator=generator) < options.draft_conditioning
        columns.append((noisy, level, kind, seen & ~heard, heard))
    noisy, levels, kinds, conditioned, heard = (torch.cat(column) for column in zip(*columns, strict=True))
    uniform, own = (kinds == KINDS.index(name) for name in ("uniform", "predictions"))
    return _Noise(generators, noisy.to(device), levels, uniform, own, conditioned, heard)


def _read_transcript(
    backbone: DiffusionGemmaForBlockDiffusion,
    prompt: Tensor,
    n_prompt: Tensor,
    targets: Tensor,
    n_targets: Tensor,
    positions: Tensor | None,
) -> tuple[Tensor, DynamicCache]:
    """Autoregressive loss of the transcript behind its prompt, and the cache of the prompt alone."""
    embedded = backbone.get_input_embeddings()(targets).to(prompt.dtype)
    steps = torch.arange(targets.shape[1], device=prompt.device)
    if positions is not None:
        behind = positions.gather(1, n_prompt[:, None] - 1) + 1 + steps[None, :]
        positions = append_targets(positions[..., None], n_prompt, behind[..., None], n_targets)[..., 0]
    whole = append_targets(prompt, n_prompt, embedded, n_targets)
    hidden, cache = encode_prefix(backbone, whole, positions)
    places = (n_prompt[:, None] - 1 + steps[None, :]).clamp(max=hidden.shape[1] - 1)
    rows = torch.arange(len(prompt), device=prompt.device)
    loss = autoregressive_loss(
        hidden[rows[:, None], places],
        targets,
        n_targets,
        partial(output_logits, backbone),
        chunk=_chunk(backbone),
    )
    return loss, crop_cache(cache, prompt.shape[1])


@torch.no_grad()
def _earlier_pass(
    backbone: DiffusionGemmaForBlockDiffusion,
    noise: _Noise,
    cache: DynamicCache,
    n_prompt: Tensor,
    canvas_start: int | None,
) -> tuple[Tensor, Tensor]:
    """Run the rows that need one through a pass of their own.

    Args:
        backbone: The backbone.
        noise: Canvases, and which rows need a pass and what for.
        cache: Of the prompts.
        n_prompt: Valid prompt places, (B,) int64.
        canvas_start: Position of the first canvas token; None: behind the prompt.

    Returns:
        Predicted canvases (B, C), those of other rows as they were; and the signal (B, C, D), zero for rows
        that are not conditioned.
    """
    noisy = noise.canvas
    rows = torch.nonzero(noise.own | noise.conditioned)[:, 0].to(noisy.device)
    conditioned = noise.conditioned.to(noisy.device)
    hidden = denoise(
        backbone, noisy[rows], select_cache(cache, rows), n_prompt[rows], canvas_start=canvas_start
    )
    guess, signal = _guess(backbone, hidden)
    soft = signal.new_zeros(*noisy.shape, signal.shape[-1])
    soft[rows] = signal * conditioned[rows][:, None, None]
    predicted = noisy.clone()
    predicted[rows] = guess
    return predicted, soft


@torch.no_grad()
def _with_drafts(
    backbone: DiffusionGemmaForBlockDiffusion, noise: _Noise, soft: Tensor | None, signals: Sequence[Tensor]
) -> Tensor | None:
    """Lay what CTC expects on the canvases that see it, end tokens behind it, beside ``soft`` (B, C, D)."""
    rows = torch.nonzero(noise.heard)[:, 0].tolist()
    if not rows:
        return soft
    length = noise.canvas.shape[1]
    eos = backbone.get_input_embeddings()(torch.tensor(_eos(backbone), device=noise.canvas.device))
    laid = eos.new_zeros(len(noise.canvas), length, eos.shape[-1]) if soft is None else soft.clone()
    for row in rows:
        signal = signals[row][:length]
        laid[row, : len(signal)] = signal
        laid[row, len(signal) :] = eos
    return laid


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
