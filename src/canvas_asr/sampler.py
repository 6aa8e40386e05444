"""The sampler: from a random or drafted canvas to text in a few passes of the decoder.

What a canvas starts from, what a pass keeps and when a canvas is done are strategies
(:mod:`canvas_asr.strategies`); the loop is :class:`~canvas_asr.canvas_batch.CanvasBatch`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from .backbone import denoise, expected_embedding, output_logits, view_cache
from .canvas import CanvasReading, Evidence, Vocabulary, join_readings, likeliest
from .canvas_batch import CanvasBatch
from .canvas_rows import CanvasRow
from .ctc import Draft
from .row_threads import RowThreads
from .strategies import SamplerConfig

# Logits made at a time when a canvas is read: 1 GiB in float32, 1,024 positions of 262,144 tokens. With many
# fewer, reading the output layer's weights again would take longer than the arithmetic.
MAX_LOGITS = 1 << 28


@dataclass(frozen=True)
class SamplerOutput:
    """Denoised canvases.

    Attributes:
        canvas: Final tokens, (B, C) int64.
        confidence: Probability of each token in the last pass, (B, C) float32.
        tag_probabilities: Of ``Vocabulary.tags`` in the last pass, (B, n_tags) float32; given tags have 1.
        passes: Passes that each canvas took.
    """

    canvas: Tensor
    confidence: Tensor
    tag_probabilities: Tensor
    passes: tuple[int, ...]


def read_canvas(
    backbone: DiffusionGemmaForBlockDiffusion,
    hidden: Tensor,
    vocabulary: Vocabulary,
    *,
    wants_soft: bool,
    wants_entropy: bool = False,
    evidence: Evidence | None = None,
) -> CanvasReading:
    """Read decoder states through the output layer, a bounded number of positions at a time.

    With 262,144 tokens the logits of a batch are many times larger than all else of a pass, so none of them
    outlives its piece. Nothing here waits for the device or copies to it: a CUDA graph may hold it.

    Args:
        backbone: The backbone.
        hidden: Last hidden states, (B, C, D).
        vocabulary: Allowed ids, its ``text`` on the device of ``hidden``.
        wants_soft: Whether a further pass follows.
        wants_entropy: Whether a strategy reads the entropy of every place.
        evidence: Added to the logits; None: nothing.
    """
    n_batch, length = hidden.shape[:2]
    marked = (*vocabulary.tags, vocabulary.eos)
    size = max(1, MAX_LOGITS // vocabulary.size)
    allowed = vocabulary.text.float()
    pieces: list[tuple[Tensor, ...]] = []
    for start in range(0, n_batch * length, size):
        logits = output_logits(backbone, hidden.flatten(0, 1)[start : start + size])  # (N, V)
        if evidence is not None:
            tokens, weights = (
                tensor.flatten(0, 1)[start : start + size] for tensor in (evidence.tokens, evidence.weights)
            )
            logits = logits.float().scatter_add(1, tokens, weights)
        tag_logits = torch.stack([logits[:, i].float() for i in marked], dim=-1)
        # One softmax serves all: the soft embedding has every token, the text's share of it has the rest.
        probabilities = logits.softmax(dim=-1, dtype=torch.float32)
        soft = (expected_embedding(backbone, probabilities),) if wants_soft else ()
        share = probabilities.mul_(allowed).sum(dim=-1).clamp_(min=torch.finfo(torch.float32).tiny)
        best, tokens = likeliest(probabilities)
        confidence = best / share
        piece = [tokens, confidence, tag_logits, probabilities[:, vocabulary.eos] / share]
        if wants_entropy:
            # log of the sum of exponentials less the mean logit, in one sweep more
            top = logits.gather(1, tokens[:, None])[:, 0].float() - confidence.log()
            mean = torch.linalg.vecdot(probabilities, logits.float()) / share
            piece.append((top - mean).clamp(min=0))
        pieces.append((*piece, *soft))
    joined = [torch.unflatten(torch.cat(parts), 0, (n_batch, length)) for parts in zip(*pieces, strict=True)]
    tokens, confidence, tag_logits, end = joined[:4]
    return CanvasReading(
        tokens,
        confidence,
        tag_logits[:, 0],
        end[:, 0],
        soft=joined[-1] if wants_soft else None,
        entropy=joined[4] if wants_entropy else None,
    )


def read_pass(
    backbone: DiffusionGemmaForBlockDiffusion,
    canvas: Tensor,
    prefix: DynamicCache,
    n_prompt: Tensor,
    vocabulary: Vocabulary,
    soft: Tensor | None,
    *,
    wants_soft: bool,
    wants_entropy: bool = False,
    n_canvas: Tensor | None = None,
    evidence: Evidence | None = None,
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
        wants_entropy: Whether a strategy reads the entropy of every place.
        n_canvas: Length of each canvas, (B,) int64; None: all C.
        evidence: See :func:`read_canvas`.
        canvas_start: See :func:`~canvas_asr.backbone.denoise`.
    """
    hidden = denoise(
        backbone,
        canvas,
        prefix,
        n_prompt,
        n_canvas=n_canvas,
        soft_embeddings=soft,
        canvas_start=canvas_start,
    )
    return read_canvas(
        backbone, hidden, vocabulary, wants_soft=wants_soft, wants_entropy=wants_entropy, evidence=evidence
    )


def read_rows(
    threads: RowThreads,
    backbone: DiffusionGemmaForBlockDiffusion,
    canvas: Tensor,
    prefix: DynamicCache,
    n_prompt: Tensor,
    vocabulary: Vocabulary,
    soft: Tensor | None,
    *,
    n_canvas: Tensor | None = None,
    evidence: Evidence | None = None,
    **options: Any,
) -> CanvasReading:
    """Run a pass as :func:`read_pass` does, canvases shared out to threads.

    Args:
        threads: Which.
        backbone: See :func:`read_pass`, as for what follows.
        canvas: (B, C) int64.
        prefix: Cache of the prompts.
        n_prompt: (B,) int64.
        vocabulary: Allowed ids.
        soft: (B, C, D), or None.
        n_canvas: (B,) int64, or None.
        evidence: (B, C, K), or None.
        options: The others of :func:`read_pass`.
    """
    shares, making = threads.shares(len(canvas), canvas.device), threading.Lock()
    # Each thread writes its rows. The caller does nothing large: OpenMP's threads would spin on after it,
    # for milliseconds, on the cores that the next pass needs.
    signal: list[Tensor] = []

    def read(rows: slice) -> CanvasReading:
        reading = read_pass(
            backbone,
            canvas[rows],
            view_cache(prefix, rows),
            n_prompt[rows],
            vocabulary,
            None if soft is None else soft[rows],
            n_canvas=None if n_canvas is None else n_canvas[rows],
            evidence=None if evidence is None else Evidence(evidence.tokens[rows], evidence.weights[rows]),
            **options,
        )
        if reading.soft is None or len(shares) == 1:
            return reading
        with making:
            if not signal:
                signal.append(reading.soft.new_empty(len(canvas), *reading.soft.shape[1:]))
        signal[0][rows] = reading.soft
        return replace(reading, soft=None)

    joined = join_readings(threads.each(read, shares))
    return replace(joined, soft=signal[0]) if signal else joined


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
    last one, unless the configuration has stop rules: the passes follow each other without a wait.

    Args:
        backbone: The backbone.
        prefix: Cache of the prompts, right-padded.
        n_prompt: Valid prompt positions, (B,) int64.
        vocabulary: Allowed ids.
        config: Passes, canvas, strategies and seed.
        clip_keys: What identifies each clip, whatever batch it is in.
        tags: Language tag of each clip where it is known.
        drafts: CTC drafts, for ``init="draft"``.
        on_pass: Called after each pass with its number from 1 and the canvases (B, C); those that are done
            stay as they were.
        run_pass: What runs a pass, with the arguments of :func:`read_pass`: itself, or a recording of it.

    Returns:
        The canvases after ``config.steps`` passes, or as many as the stop rules let each one take.
    """
    batch = CanvasBatch(backbone, vocabulary, config, run_pass)
    n_clips = len(clip_keys)
    known = tags or [None] * n_clips
    starts = [None] * n_clips if drafts is None else [Draft(ids) for ids in drafts]
    rows = [
        CanvasRow(i, key, config.seed, config.canvas_length, tag, draft)
        for i, (key, tag, draft) in enumerate(zip(clip_keys, known, starts, strict=True))
    ]
    batch.add(prefix, n_prompt, rows)
    shown = torch.full((n_clips, config.canvas_length), vocabulary.eos, device=n_prompt.device)
    step = 0
    while len(batch):
        batch.run_pass()
        step += 1
        if on_pass is not None:
            last = batch.shown()
            shown = shown.index_copy(0, torch.tensor(last.keys, device=shown.device), last.canvas)
            on_pass(step, shown)
    done = {finished.key: finished for finished in batch.take()}
    finished = [done[i] for i in range(n_clips)]
    return SamplerOutput(
        torch.stack([one.canvas for one in finished]),
        torch.stack([one.confidence for one in finished]),
        torch.stack([one.tag_probabilities for one in finished]),
        tuple(one.passes for one in finished),
    )
