"""What a stage's module is to the trainer, and what it has to know when its batch is a part of a step.

A step's batch may be cut across processes and micro-batches. Every loss is a mean over things of its own kind
(clips, tokens, canvas positions), so a mean of the parts' means is not the mean of the whole; and noise that
came from the state of a process would depend on the cut. Each part is therefore told what weight its means
have, and the key from which the noise of each of its rows is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """What a batch is of its step.

    Attributes:
        keys: One integer per row, (B,) int64 on the CPU.
        shares: Factors by name of what is counted: a mean over this part's, times its factor, averaged over
            all parts, is the mean over the step's. What the whole step has none of is missing.
    """

    keys: Tensor
    shares: Mapping[str, float]


def share_of(part: Part | None, name: str) -> float:
    """Factor of means over ``name``; 1 for a batch that is a step of its own."""
    return 1.0 if part is None else part.shares.get(name, 0.0)


def row_generators(part: Part | None, n_rows: int) -> list[torch.Generator]:
    """Sources of noise, one per row; for a batch that is a step of its own, seeded by the process's."""
    keys = torch.randint(1 << 32, (n_rows,)) if part is None else part.keys
    return [torch.Generator().manual_seed(key) for key in keys.tolist()]


class Stage(nn.Module):
    """Base of the modules that :class:`~canvas_asr.training.trainer.StageTrainer` trains.

    Their forward takes a batch and its ``part``, and returns ``loss`` and figures to log, all multiplied by
    their shares; a figure of shape (2, K) is K sums and their counts.

    Attributes:
        canvas_choices: Canvas lengths beside the shortest that fits.
        p_long_canvas: How often a longer canvas is chosen.
    """

    canvas_choices: Sequence[int] = ()
    p_long_canvas: float = 0.0

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Count in a batch what its losses are means over, by name."""
        raise NotImplementedError

    def likely_cause(self, figures: Mapping[str, float]) -> str:
        """Say why a model that an evaluation found deaf does not listen."""
        raise NotImplementedError

    def canvas_length(self, shortest: int, rng: np.random.Generator) -> int:
        """Choose a step's canvas length, at least ``shortest``."""
        longer = [choice for choice in self.canvas_choices if choice > shortest]
        if longer and rng.random() < self.p_long_canvas:
            return int(rng.choice(longer))
        return shortest


def widen_canvas(batch: dict[str, Any], length: int) -> None:
    """Put a longer ``canvas`` (B, C) in a batch; its last column is the token that fills the tail."""
    canvas: Tensor = batch["canvas"]
    tail = canvas[:, -1:].expand(-1, length - canvas.shape[1])
    batch["canvas"] = torch.cat([canvas, tail], dim=1)
