"""What a canvas may hold, what a pass says of it, and which of its places are text.

Letters: B canvases, C canvas length, D width, V vocabulary, K candidates of a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .encoder import length_mask

BLOCK = 64  # scores of a row that are looked at together, to find the greatest


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

    @property
    def heard(self) -> Tensor:
        """Ids that the CTC tap may say, (V,) bool: those of texts but the end, of which it says nothing."""
        allowed = self.text.clone()
        allowed[self.eos] = False
        return allowed

    def undecided(self, noise: Tensor) -> Tensor:
        """What stands where nothing is decided: the noise itself, or masks in its place."""
        return noise.clone() if self.mask is None else torch.full_like(noise, self.mask)


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
        entropy: Of the allowed tokens in nats, (B, C) float32; None where it was not asked for.
    """

    tokens: Tensor
    confidence: Tensor
    tag_logits: Tensor
    end_probability: Tensor
    soft: Tensor | None
    entropy: Tensor | None = None


def join_readings(readings: Sequence[CanvasReading]) -> CanvasReading:
    """Put readings of canvases of one length behind each other."""
    if len(readings) == 1:
        return readings[0]
    joined: dict[str, Any] = {}
    for name in (field.name for field in fields(CanvasReading)):
        parts = [getattr(reading, name) for reading in readings]
        joined[name] = None if parts[0] is None else torch.cat(parts)
    return CanvasReading(**joined)


@dataclass(frozen=True)
class Evidence:
    """What is added to the logits of a pass.

    Attributes:
        tokens: Ids, (B, C, K) int64, each once a place.
        weights: What is added to the logit of each, (B, C, K) float32.
    """

    tokens: Tensor
    weights: Tensor


@dataclass(frozen=True)
class PassResult:
    """What is known of canvases after a pass.

    Attributes:
        canvas: Prediction, the tag in place, (B, C) int64.
        confidence: Probability of each token, (B, C) float32.
        entropy: In nats, (B, C) float32; None where nobody asked for it.
        in_text: Places of the text up to its first end token, without a tag that was given, (B, C) bool.
        step: Passes that each canvas has taken, (B,) int64.
        steps: Passes that it takes at most.
        streak: For how many passes in a row the text has been the same, (B,) int64.
    """

    canvas: Tensor
    confidence: Tensor
    entropy: Tensor | None
    in_text: Tensor
    step: Tensor
    steps: int
    streak: Tensor

    @property
    def entropies(self) -> Tensor:
        """Entropy of each place, (B, C).

        Raises:
            ValueError: If the pass was not asked for it.
        """
        if self.entropy is None:
            raise ValueError("the pass was read without entropies; set wants_entropy on the strategy.")
        return self.entropy


def likeliest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Give the greatest score of each row of (..., V), and the first id that has it: (...) each.

    On a CPU a maximum with its place is thirty times as slow as one without, so the block that has it is
    found first there.
    """
    if not scores.is_cpu or scores.shape[-1] % BLOCK:
        best, ids = scores.max(dim=-1)
        return best, ids
    blocks = torch.unflatten(scores, -1, (-1, BLOCK))
    best, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks.take_along_dim(block[..., None, None], dim=-2)[..., 0, :].argmax(dim=-1)
    return best, block * BLOCK + inside


def place_tags(
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
    # Not as softmax and max, which start OpenMP's threads for the smallest tensors: they go on spinning for
    # milliseconds, on the cores that the next pass needs.
    tags = (logits - logits.logsumexp(dim=-1, keepdim=True)).exp()
    tags = torch.where(given[:, None] >= 0, (ids[None, :] == given[:, None]).to(tags.dtype), tags)
    best = tags.argmax(dim=-1)
    surest = tags.gather(1, best[:, None])[:, 0]
    # A clip without speech has the end token in place of a tag.
    silent = (given < 0) & (end > logits.amax(dim=-1))
    canvas[:, 0] = torch.where(silent, vocabulary.eos, ids[best])
    confidence[:, 0] = torch.where(silent, reading.end_probability, surest)
    return canvas, confidence, tags


def text_places(canvas: Tensor, n_canvas: Tensor, vocabulary: Vocabulary, given: Tensor) -> Tensor:
    """Find the text of canvases: up to the first end token, without a tag that was given.

    Args:
        canvas: (B, C) int64.
        n_canvas: Length of each, (B,) int64.
        vocabulary: Its end token and tags.
        given: Tag of each clip, (B,) int64; -1 where it was found.

    Returns:
        (B, C) bool.
    """
    length = canvas.shape[1]
    is_end = canvas == vocabulary.eos
    first_end = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1), torch.full_like(given, length - 1))
    positions = torch.arange(length, device=canvas.device)[None, :]
    in_text = (positions <= first_end[:, None]) & length_mask(n_canvas, length)
    if vocabulary.tags:
        in_text = in_text & ~((positions == 0) & (given[:, None] >= 0))
    return in_text
