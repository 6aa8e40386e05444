"""The three losses and the noise level, each a small function of logits or states.

With 262,144 tokens, logits are most of the memory of training: each loss takes states and the output layer,
and reads them in chunks that are made again in backward.

Shapes: B clips, A audio tokens, C canvas length, U transcript length, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from canvas_asr.encoder import length_mask

MIN_NOISE = 0.001
# Made at a time, and the most that is kept for backward: 128 MiB in float32, 128 states of 262,144 classes.
MAX_LOGITS = 1 << 25


class TokenLosses(NamedTuple):
    """What is known of each token.

    Attributes:
        losses: Cross-entropy, (B, C) float32.
        right: Where the likeliest token is the right one, (B, C) bool.
    """

    losses: Tensor
    right: Tensor


def sample_noise_levels(n_clips: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw one noise level a clip, t ~ U(0.001, 1), (B,) float32: the backbone authors' schedule."""
    return MIN_NOISE + (1.0 - MIN_NOISE) * torch.rand(n_clips, generator=generator)


def states_per_chunk(n_classes: int) -> int:
    """How many states are read at a time, so that at most ``MAX_LOGITS`` logits exist."""
    return max(1, MAX_LOGITS // n_classes)


def _in_chunks(
    function: Callable[..., tuple[Tensor, ...]], chunk: int, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function to rows of tensors, a chunk at a time; several chunks are made again in backward."""
    if len(tensors[0]) <= chunk:
        return function(*tensors)
    parts = [
        checkpoint(function, *(tensor[i : i + chunk] for tensor in tensors), use_reentrant=False)
        for i in range(0, len(tensors[0]), chunk)
    ]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _token_losses(
    states: Tensor, targets: Tensor, read: Callable[[Tensor], Tensor], chunk: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each state's target, (N,) float32, and whether it is the likeliest, (N,) bool."""

    def part(some: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = read(some).float()
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        return losses, logits.argmax(dim=-1) == wanted

    losses, right = _in_chunks(part, chunk, states.flatten(0, 1), targets.flatten())
    return losses, right


def diffusion_loss(
    states: Tensor,
    canvas: Tensor,
    n_text: Tensor,
    read: Callable[[Tensor], Tensor],
    *,
    tail_weight: float = 1.0,
    chunk: int = 4096,
) -> tuple[Tensor, TokenLosses]:
    """Flat cross-entropy of the clean canvas at every position, with no weight by noise level.

    Args:
        states: Of the decoder, as the output layer takes them, (B, C, D).
        canvas: Clean canvas, (B, C) int64: text, then end tokens.
        n_text: Positions of each canvas before the tail, its first end token included, (B,) int64.
        read: The output layer, (N, D) to logits (N, V).
        tail_weight: Weight of the positions after ``n_text``; 1 is the backbone authors' objective.
        chunk: States read at a time; of more than that, no logits are kept for backward.

    Returns:
        Weighted mean over all positions, float32 scalar; and what it is a mean of.
    """
    losses, right = _token_losses(states, canvas, read, chunk)
    weights = length_mask(n_text, canvas.shape[1]).to(losses.dtype)
    weights = (weights + tail_weight * (1.0 - weights)).flatten()
    loss = (losses * weights).sum() / weights.sum()
    return loss, TokenLosses(losses.view(canvas.shape), right.view(canvas.shape))


def autoregressive_loss(
    states: Tensor,
    targets: Tensor,
    n_targets: Tensor,
    read: Callable[[Tensor], Tensor],
    *,
    chunk: int = 4096,
) -> Tensor:
    """Next-token cross-entropy of the transcript on the backbone's causal side.

    Args:
        states: (B, U, D); row i of a clip predicts its target i.
        targets: (B, U) int64, right-padded, the end token included.
        n_targets: Valid targets of each clip, (B,) int64.
        read: The output layer, (N, D) to logits (N, V).
        chunk: See :func:`diffusion_loss`.

    Returns:
        Mean over valid targets, float32 scalar.
    """
    losses, _ = _token_losses(states, targets, read, chunk)
    valid = length_mask(n_targets, targets.shape[1]).flatten()
    return losses[valid].sum() / valid.sum().clamp(min=1)


def min_ctc_frames(targets: Tensor, n_targets: Tensor) -> Tensor:
    """Fewest CTC frames that spell each target: its length plus a blank per repeated pair, (B,) int64."""
    repeats = (targets[:, 1:] == targets[:, :-1]) & length_mask(n_targets, targets.shape[1])[:, 1:]
    return n_targets + repeats.sum(dim=1)


def ctc_loss(
    states: Tensor,
    n_states: Tensor,
    targets: Tensor,
    n_targets: Tensor,
    read: Callable[[Tensor], Tensor],
    *,
    blank: int,
    chunk: int = 4096,
) -> tuple[Tensor, Tensor]:
    """Exact CTC over a large vocabulary without keeping its logits.

    ``torch.nn.functional.ctc_loss`` sees only the columns that matter: blank, the clip's own target ids, and
    one column with the log-mass of every other id. Without that last column the value is right and the
    gradient wrong, since it assumes normalised rows.

    Args:
        states: States of the output layer, (B, A, D).
        n_states: Valid states of each clip, (B,) int64.
        targets: (B, U) int64, right-padded, never the blank.
        n_targets: Valid targets of each clip, (B,) int64.
        read: The output layer, (N, D) to logits (N, V).
        blank: Id of the blank.
        chunk: See :func:`diffusion_loss`.

    Returns:
        Mean over clips of the loss per target token (per state where the target is empty), float32 scalar;
        and the infeasible clips, (B,) bool, which have fewer states than their target needs and count zero.
    """
    n_clips, n_positions, _ = states.shape
    # One class per distinct id of a clip, named by its first position: CTC's repeat rule needs a repeated id
    # to keep its identity. No loop over clips, which would wait for a GPU at every one.
    n_labels = targets.shape[1]
    first = (targets[:, :, None] == targets[:, None, :]).int().argmax(dim=2)  # (B, U)
    positions = torch.arange(n_labels, device=targets.device)
    distinct = (first == positions) & length_mask(n_targets, n_labels)
    columns = nn.functional.pad(targets, (1, 0), value=blank)
    classes = first + 1

    def gather(part: Tensor, part_columns: Tensor) -> tuple[Tensor]:
        logits = read(part).float()
        return (torch.gather(logits, 1, part_columns) - logits.logsumexp(dim=1, keepdim=True),)

    flat = states.reshape(n_clips * n_positions, -1)
    flat_columns = columns.repeat_interleave(n_positions, dim=0)
    log_probs = _in_chunks(gather, chunk, flat, flat_columns)[0].reshape(n_clips, n_positions, -1)
    unused = nn.functional.pad(~distinct, (1, 0))
    log_probs = log_probs.masked_fill(unused[:, None, :], -1e4)
    mass = log_probs.logsumexp(dim=2, keepdim=True).clamp(max=-1e-6)
    rest = torch.log(-torch.expm1(mass))
    # The loss of 188 states of an untrained model is above 1,000: too coarse in float32 for gradients.
    log_probs = torch.cat([log_probs, rest], dim=2).transpose(0, 1).double()  # (A, B, 1 + U + 1)

    infeasible = min_ctc_frames(targets, n_targets) > n_states
    losses = nn.functional.ctc_loss(
        log_probs, classes, n_states, n_targets, blank=0, reduction="none", zero_infinity=True
    )
    return (losses / torch.where(n_targets > 0, n_targets, n_states)).mean().float(), infeasible
