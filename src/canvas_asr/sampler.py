"""The sampler: from a random or drafted canvas to text in a few passes of the decoder.

Strategy ``confidence``, that of diffusion-gemma-asr-small: each pass keeps the predictions it is most
confident of and re-randomises the rest. Positions behind the first predicted end token are left out of that
quota: they are near-certain, and would fill it while the text is still noise.

Noise is drawn per clip from (seed, clip key), so a clip gives the same tokens in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from .backbone import denoise, output_logits, soft_embed
from .errors import OptionError

INITS = ("noise", "draft")


@dataclass(frozen=True)
class SamplerConfig:
    """How a canvas is denoised.

    Attributes:
        steps: Denoising passes, at least 1.
        canvas_length: Tokens of the canvas C.
        init: ``noise`` starts from random tokens, ``draft`` from the CTC draft.
        seed: Of the noise.
    """

    steps: int = 8
    canvas_length: int = 96
    init: str = "noise"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise OptionError for values that cannot be sampled with."""
        if self.steps < 1:
            raise OptionError(f"steps is {self.steps}; give at least 1 (8 is usual).")
        if self.canvas_length < 2:
            raise OptionError(f"canvas is {self.canvas_length} tokens; give at least 2.")
        if self.init not in INITS:
            raise OptionError(f"init is {self.init!r}; choose one of {', '.join(INITS)}.")


@dataclass(frozen=True)
class Vocabulary:
    """Which ids a canvas may hold.

    Attributes:
        size: V.
        eos: The token that ends a text and fills the tail.
        tags: Ids of the language tags that may open a canvas; empty where it carries none.
        text: Ids that may stand in the text, the end token included, (V,) bool.
    """

    size: int
    eos: int
    tags: tuple[int, ...]
    text: Tensor


@dataclass(frozen=True)
class SamplerOutput:
    """Denoised canvases.

    Attributes:
        canvas: Final tokens, (B, C) int64.
        confidence: Probability of each token in the last pass, (B, C) float32.
        tag_probabilities: Of ``Vocabulary.tags`` in the last pass, (B, n_tags) float32; given tags have 1.
        passes: Passes used.
    """

    canvas: Tensor
    confidence: Tensor
    tag_probabilities: Tensor
    passes: int


def _noise(generators: Sequence[torch.Generator], length: int, size: int) -> Tensor:
    return torch.stack([torch.randint(size, (length,), generator=g) for g in generators])


def initial_canvas(
    config: SamplerConfig,
    vocabulary: Vocabulary,
    generators: Sequence[torch.Generator],
    drafts: Sequence[Sequence[int]] | None,
) -> Tensor:
    """Make the canvas before the first pass, (B, C) int64.

    Args:
        config: Its ``init`` and ``canvas_length``.
        vocabulary: Its size, end token and tags.
        generators: One a clip.
        drafts: Draft ids of each clip without tag; needed for ``init="draft"``.

    Raises:
        OptionError: If a draft is needed and missing.
    """
    noise = _noise(generators, config.canvas_length, vocabulary.size)
    if config.init == "noise":
        return noise
    if drafts is None:
        raise OptionError("init='draft' needs CTC drafts.")
    canvas = torch.full_like(noise, vocabulary.eos)
    start = 1 if vocabulary.tags else 0
    if start:
        # Training lays a random tag before a draft too.
        tags = torch.tensor(vocabulary.tags)
        canvas[:, 0] = tags[noise[:, 0] % len(tags)]
    for row, draft in enumerate(drafts):
        kept = list(draft[: config.canvas_length - start])
        canvas[row, start : start + len(kept)] = torch.tensor(kept, dtype=torch.long)
    return canvas


def _predict(logits: Tensor, vocabulary: Vocabulary, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best allowed token and its probability at every position, and tag probabilities.

    Args:
        logits: (B, C, V) float32.
        vocabulary: Allowed ids.
        given: Tag of each clip, (B,) int64; -1 where it is to be found.
    """
    text = vocabulary.text.to(logits.device)
    probabilities = logits.masked_fill(~text, -torch.inf).softmax(dim=-1)
    confidence, canvas = probabilities.max(dim=-1)
    tags = logits.new_zeros(len(logits), 0)
    if vocabulary.tags:
        ids = torch.tensor(vocabulary.tags, device=logits.device)
        tags = logits[:, 0, ids].softmax(dim=-1)
        tags = torch.where(given[:, None] >= 0, (ids[None, :] == given[:, None]).to(tags.dtype), tags)
        confidence[:, 0], best = tags.max(dim=-1)
        # A clip without speech has the end token in place of a tag.
        silent = (given < 0) & (logits[:, 0, vocabulary.eos] > logits[:, 0, ids].max(dim=-1).values)
        canvas[:, 0] = torch.where(silent, vocabulary.eos, ids[best])
        confidence[:, 0] = torch.where(silent, probabilities[:, 0, vocabulary.eos], confidence[:, 0])
    return canvas, confidence, tags


def _renoise(
    canvas: Tensor, confidence: Tensor, noise: Tensor, share: float, vocabulary: Vocabulary, given: Tensor
) -> Tensor:
    """Keep the most confident ``share`` of each row's text and put noise elsewhere in it."""
    length = canvas.shape[1]
    is_end = canvas == vocabulary.eos
    first_end = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1), torch.full_like(given, length - 1))
    positions = torch.arange(length, device=canvas.device)[None, :]
    in_text = positions <= first_end[:, None]
    if vocabulary.tags:
        in_text = in_text & ~((positions == 0) & (given[:, None] >= 0))
    rank = torch.where(in_text, confidence, -torch.ones_like(confidence)).argsort(
        dim=1, descending=True, stable=True
    )
    order = torch.empty_like(rank).scatter_(1, rank, positions.expand_as(rank).contiguous())
    n_kept = torch.ceil(in_text.sum(dim=1) * share)
    return torch.where(in_text & (order >= n_kept[:, None]), noise, canvas)


@torch.no_grad()
def sample(
    backbone: DiffusionGemmaForBlockDiffusion,
    prefix: DynamicCache,
    n_prompt: Tensor,
    vocabulary: Vocabulary,
    config: SamplerConfig,
    *,
    clip_keys: Sequence[int],
    tags: Sequence[int | None] | None = None,
    drafts: Sequence[Sequence[int]] | None = None,
    on_pass: Callable[[int, Tensor], None] | None = None,
) -> SamplerOutput:
    """Denoise one canvas per clip.

    Args:
        backbone: The backbone.
        prefix: Cache of the prompts, right-padded.
        n_prompt: Valid prompt positions, (B,) int64.
        vocabulary: Allowed ids.
        config: Passes, canvas, start and seed.
        clip_keys: What identifies each clip, whatever batch it is in.
        tags: Language tag of each clip where it is known.
        drafts: CTC drafts, for ``init="draft"``.
        on_pass: Called after each pass with its number from 1 and the canvas (B, C).

    Returns:
        The canvases after exactly ``config.steps`` passes.
    """
    device = n_prompt.device
    mask = (1 << 63) - 1
    generators = [torch.Generator().manual_seed((config.seed * 1_000_003 + key) & mask) for key in clip_keys]
    given = torch.tensor([-1 if t is None else t for t in tags or [None] * len(clip_keys)], device=device)
    canvas = initial_canvas(config, vocabulary, generators, drafts).to(device)
    if vocabulary.tags:
        canvas[:, 0] = torch.where(given >= 0, given, canvas[:, 0])
    soft = None
    for step in range(1, config.steps + 1):
        logits = output_logits(backbone, denoise(backbone, canvas, prefix, n_prompt, soft_embeddings=soft))
        canvas, confidence, tag_probabilities = _predict(logits.float(), vocabulary, given)
        if on_pass is not None:
            on_pass(step, canvas)
        if step == config.steps:
            break
        soft = soft_embed(backbone, logits)
        noise = _noise(generators, config.canvas_length, vocabulary.size).to(device)
        canvas = _renoise(canvas, confidence, noise, step / config.steps, vocabulary, given)
    return SamplerOutput(canvas, confidence, tag_probabilities, config.steps)
