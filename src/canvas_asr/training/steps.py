"""From the micro-batches of one process to its parts of a step, and the step's figures from all parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from canvas_asr.errors import DataError

from .batches import RowBatch
from .callbacks import RunLog, Stop, say
from .recipe import TrainingOptions
from .stage import Part, Stage, widen_canvas

MOST_NAMED = 8


class StepMaker:
    """Makes the parts of each step, in agreement with the other processes.

    Attributes:
        names: Names of the examples of each part of the last step.
        counted: Whether each part of the last step has rows of its own.
        passed_over: Clips that streams left out in this process so far, by reason.
    """

    def __init__(
        self,
        module: Stage,
        accelerator: Accelerator,
        options: TrainingOptions,
        n_examples: int,
        run_log: RunLog,
        stop: Stop,
    ) -> None:
        """Set up.

        Args:
            module: Counts what its losses are means over, and chooses canvas lengths.
            accelerator: Of the processes.
            options: Seed and how many clips may fail.
            n_examples: Size of the dataset.
            run_log: Failed clips are written there.
            stop: Hears what the processes agree on.
        """
        self.module = module
        self.accelerator = accelerator
        self.options = options
        self.n_examples = n_examples
        self.run_log = run_log
        self.stop = stop
        self.names: list[list[str]] = []
        self.counted: list[bool] = []
        self.passed_over: Counter[str] = Counter()
        self._failed: dict[str, None] = {}  # errors, which name their clips, in order
        self._last_good: RowBatch | None = None

    def __call__(self, batches: Sequence[RowBatch], step: int) -> list[dict[str, Any]]:
        """Make the parts.

        Args:
            batches: This process's micro-batches of the step.
            step: Steps made before it.

        Returns:
            Keyword arguments of the module for each.

        Raises:
            DataError: If too many clips could not be read, or none of the first.
        """
        for batch in batches:
            self.passed_over.update(batch.passed_over)
        batches = [self._filled(batch) for batch in batches]
        widths = [batch.inputs["canvas"].shape[1] for batch in batches if "canvas" in batch.inputs]
        n_failed = sum(len(batch.failed) for batch in batches)
        views = self._gather([*self.stop.state(), n_failed, max(widths, default=0)])
        used, signalled, any_failed, width = views.amax(dim=0).tolist()
        self.stop.agree(used, signalled)
        if any_failed:
            self._note_failed([error for batch in batches for error in batch.failed], step)
        if widths:
            rng = np.random.default_rng((self.options.seed, step))
            length = self.module.canvas_length(int(width), rng)
            for batch in batches:
                widen_canvas(batch.inputs, length)
        self.names = [batch.names for batch in batches]
        self.counted = [batch.counted for batch in batches]
        return self._with_parts(batches)

    def _filled(self, batch: RowBatch) -> RowBatch:
        """Put the last good batch, which then does not count, where no row could be made."""
        if batch.inputs:
            self._last_good = batch
            return batch._replace(inputs=dict(batch.inputs))
        if self._last_good is None:
            raise DataError(f"the first clips cannot be used: {batch.failed[0]}")
        inputs = dict(self._last_good.inputs)
        return self._last_good._replace(inputs=inputs, failed=batch.failed, counted=False)

    def _gather(self, values: Sequence[float]) -> Tensor:
        """Values of all processes, (processes, values) float64 on the CPU."""
        row = torch.tensor([values], dtype=torch.float64)
        if self.accelerator.num_processes == 1:
            return row
        gathered: Tensor = self.accelerator.gather(row.to(self.accelerator.device))
        return gathered.cpu()

    def _with_parts(self, batches: Sequence[RowBatch]) -> list[dict[str, Any]]:
        """Give each batch its share of what the step has in all."""
        own = [self.module.counts(batch.inputs) for batch in batches]
        names = list(own[0])
        rows = [
            [count[name] * batch.counted for name in names] for count, batch in zip(own, batches, strict=True)
        ]
        totals = self._gather(np.sum(rows, axis=0).tolist()).sum(dim=0).tolist()
        n_parts = len(batches) * self.accelerator.num_processes
        parts = [
            {
                name: n_parts * count / total
                for name, count, total in zip(names, row, totals, strict=True)
                if total
            }
            for row in rows
        ]
        return [
            {**batch.inputs, "part": Part(batch.keys, shares)}
            for batch, shares in zip(batches, parts, strict=True)
        ]

    def tell_passed_over(self, step: int) -> None:
        """Log what streams have left out so far, in all processes together; all of them call it."""
        counts: Counter[str] = sum(gather_object([self.passed_over]), Counter())
        if counts and self.accelerator.is_main_process:
            reasons = "; ".join(f"{reason} {n}" for reason, n in counts.items())
            say(f"step {step}: streams passed over {counts.total()} clips ({reasons}).")
            self.run_log.write(step, {"passed_over": dict(counts)})

    def _note_failed(self, errors: list[str], step: int) -> None:
        """Log clips that fail for the first time; too many are an error, in all processes alike."""
        new = dict.fromkeys(error for error in gather_object(errors) if error not in self._failed)
        self._failed.update(new)
        if self.accelerator.is_main_process:
            for error in new:
                say(f"clip left out: {error}")
                self.run_log.write(step, {"left_out": error, "n_left_out": len(self._failed)})
        if len(self._failed) > self.options.max_failed * self.n_examples:
            raise DataError(
                f"{len(self._failed)} of {self.n_examples} clips cannot be used, more than "
                f"training.max_failed ({self.options.max_failed:.2%}): "
                f"{' '.join(list(self._failed)[:MOST_NAMED])} Mend them or take them out."
            )


class StepFigures:
    """Means of a stage's figures over steps, micro-batches and processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Start with none."""
        self.accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._n: Counter[str] = Counter()

    def add(self, outputs: Mapping[str, Tensor], *, counted: bool) -> None:
        """Add a forward's figures, its ``loss`` apart; those of a part that does not count are zero."""
        for name, value in outputs.items():
            if name != "loss":
                figure = value.detach().float() * counted
                self._sums[name] = self._sums[name] + figure if name in self._sums else figure
                self._n[name] += 1

    def take(self) -> dict[str, float]:
        """Give the means since the last call; a figure of shape (2, K) gives K ratios, numbered from 1."""
        names = sorted(self._sums)  # in one order in all processes
        sums = {name: self._over_processes(self._sums[name]) for name in names}
        figures = {}
        for name, value in sums.items():
            if value.ndim == 0:
                figures[name] = float(value) / self._n[name]
                continue
            ratios = zip(*value.tolist(), strict=True)
            figures.update(
                {f"{name}_{k}": total / count for k, (total, count) in enumerate(ratios, 1) if count}
            )
        self._sums, self._n = {}, Counter()
        return figures

    def _over_processes(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        gathered: Tensor = self.accelerator.gather(value[None].contiguous())
        return gathered.mean(dim=0)
