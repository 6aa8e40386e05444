"""The sampler: from a random or drafted canvas to text in a few passes of the decoder.

Strategy ``confidence``, that of diffusion-gemma-asr-small: each pass keeps the predictions it is most
confident of and re-randomises the rest. Positions behind the first predicted end token are left out of that
quota: they are near-certain, and would fill it while the text is still noise.

Noise is drawn per clip from (seed, clip key), so a clip gives the same tokens in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from .backbone import denoise, output_logits, soft_embed
from .errors import OptionError

INITS = ("noise", "draft")

# Logits made at a time when a canvas is read: 1 GiB in float32, 1,024 positions of 262,144 tokens. With many
# fewer, reading the output layer's weights again would take longer than the arithmetic.
MAX_LOGITS = 1 << 28


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
        mask: What stands where nothing is decided yet, with a backbone trained on absorbing masks; None:
            random ids.
    """

    size: int
    eos: int
    tags: tuple[int, ...]
    text: Tensor
    mask: int | None = None


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


def _undecided(noise: Tensor, vocabulary: Vocabulary) -> Tensor:
    """What stands where nothing is decided: the noise itself, or masks in its place."""
    return noise if vocabulary.mask is None else torch.full_like(noise, vocabulary.mask)


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
        return _undecided(noise, vocabulary)
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


@dataclass(frozen=True)
class CanvasReading:
    """What the output layer says of every canvas position in one pass.

    Attributes:
        tokens: Best allowed token, (B, C) int64.
        confidence: Its probability among allowed tokens, (B, C) float32.
        tag_logits: Of ``Vocabulary.tags``, then of the end token, at the first position, (B, n_tags + 1)
            float32.
        end_probability: Of the end token at the first position among allowed tokens, (B,) float32.
        soft: Self-conditioning signal for the next pass, (B, C, D); None where it was not asked for.
    """

    tokens: Tensor
    confidence: Tensor
    tag_logits: Tensor
    end_probability: Tensor
    soft: Tensor | None


def read_canvas(
    backbone: DiffusionGemmaForBlockDiffusion, hidden: Tensor, vocabulary: Vocabulary, *, wants_soft: bool
) -> CanvasReading:
    """Read decoder states through the output layer, a bounded number of positions at a time.

    With 262,144 tokens the logits of a batch are many times larger than all else of a pass, so none of them
    outlives its piece. Nothing here waits for the device or copies to it: a CUDA graph may hold it.

    Args:
        backbone: The backbone.
        hidden: Last hidden states, (B, C, D).
        vocabulary: Allowed ids, its ``text`` on the device of ``hidden``.
        wants_soft: Whether a further pass follows.
    """
    n_batch, length = hidden.shape[:2]
    marked = (*vocabulary.tags, vocabulary.eos)
    pieces: list[tuple[Tensor, ...]] = []
    for states in torch.split(hidden.flatten(0, 1), max(1, MAX_LOGITS // vocabulary.size)):
        logits = output_logits(backbone, states)  # (N, V)
        full = logits.float()
        probabilities = full.masked_fill(~vocabulary.text, -torch.inf).softmax(dim=-1)
        confidence, tokens = probabilities.max(dim=-1)
        tag_logits = torch.stack([full[:, i] for i in marked], dim=-1)
        piece = (tokens, confidence, tag_logits, probabilities[:, vocabulary.eos].clone())
        del full, probabilities  # before the next float32 copy is made
        pieces.append((*piece, soft_embed(backbone, logits)) if wants_soft else piece)
    joined = [torch.unflatten(torch.cat(parts), 0, (n_batch, length)) for parts in zip(*pieces, strict=True)]
    tokens, confidence, tag_logits, end = joined[:4]
    return CanvasReading(tokens, confidence, tag_logits[:, 0], end[:, 0], joined[4] if wants_soft else None)


def read_pass(
    backbone: DiffusionGemmaForBlockDiffusion,
    canvas: Tensor,
    prefix: DynamicCache,
    n_prompt: Tensor,
    vocabulary: Vocabulary,
    soft: Tensor | None,
    *,
    wants_soft: bool,
    canvas_start: int | None = None,
) -> CanvasReading:
    """Run one pass of the decoder and read it.

    Args:
        backbone: The backbone.
        canvas: Token ids, (B, C) int64.
        prefix: Cache of the prompts, right-padded.
        n_prompt: Valid prompt positions, (B,) int64.
        vocabulary: Allowed ids, its ``text`` on the device of ``canvas``.
        soft: Self-conditioning signal of the pass before, (B, C, D); None in the first.
        wants_soft: Whether a further pass follows.
        canvas_start: See :func:`~canvas_asr.backbone.denoise`.
    """
    hidden = denoise(backbone, canvas, prefix, n_prompt, soft_embeddings=soft, canvas_start=canvas_start)
    return read_canvas(backbone, hidden, vocabulary, wants_soft=wants_soft)


def _place_tags(
    reading: CanvasReading, ids: Tensor, vocabulary: Vocabulary, given: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the likeliest tag, or the given one, at the start of every canvas.

    Args:
        reading: Of the pass.
        ids: ``vocabulary.tags`` as a tensor on the device, (n_tags,) int64.
        vocabulary: Its end token.
        given: Tag of each clip, (B,) int64; -1 where it is to be found.

    Returns:
        Canvas and confidence, (B, C), and tag probabilities, (B, n_tags).
    """
    canvas, confidence = reading.tokens.clone(), reading.confidence.clone()
    if not vocabulary.tags:
        return canvas, confidence, confidence.new_zeros(len(canvas), 0)
    logits, end = reading.tag_logits[:, :-1], reading.tag_logits[:, -1]
    tags = logits.softmax(dim=-1)
    tags = torch.where(given[:, None] >= 0, (ids[None, :] == given[:, None]).to(tags.dtype), tags)
    surest, best = tags.max(dim=-1)
    # A clip without speech has the end token in place of a tag.
    silent = (given < 0) & (end > logits.max(dim=-1).values)
    canvas[:, 0] = torch.where(silent, vocabulary.eos, ids[best])
    confidence[:, 0] = torch.where(silent, reading.end_probability, surest)
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
    run_pass: Callable[..., CanvasReading] = read_pass,
) -> SamplerOutput:
    """Denoise one canvas per clip.

    All that is drawn on the host goes to the device before the first pass, and nothing comes back before the
    last one: the passes follow each other without a wait.

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
        run_pass: What runs a pass, with the arguments of :func:`read_pass`: itself, or a recording of it.

    Returns:
        The canvases after exactly ``config.steps`` passes.
    """
    device = n_prompt.device
    mask = (1 << 63) - 1
    generators = [torch.Generator().manual_seed((config.seed * 1_000_003 + key) & mask) for key in clip_keys]
    given = torch.tensor([-1 if t is None else t for t in tags or [None] * len(clip_keys)], device=device)
    canvas = initial_canvas(config, vocabulary, generators, drafts).to(device)
    noise = [_noise(generators, config.canvas_length, vocabulary.size) for _ in range(config.steps - 1)]
    noise = list(_undecided(torch.stack(noise), vocabulary).to(device)) if noise else []
    vocabulary = replace(vocabulary, text=vocabulary.text.to(device))
    tag_ids = torch.tensor(vocabulary.tags, dtype=torch.long, device=device)
    if vocabulary.tags:
        canvas[:, 0] = torch.where(given >= 0, given, canvas[:, 0])
    soft = None
    for step in range(1, config.steps + 1):
        wants_soft = step < config.steps
        reading = run_pass(backbone, canvas, prefix, n_prompt, vocabulary, soft, wants_soft=wants_soft)
        canvas, confidence, tag_probabilities = _place_tags(reading, tag_ids, vocabulary, given)
        if on_pass is not None:
            on_pass(step, canvas)
        if wants_soft:
            soft = reading.soft
            canvas = _renoise(canvas, confidence, noise[step - 1], step / config.steps, vocabulary, given)
    return SamplerOutput(canvas, confidence, tag_probabilities, config.steps)
