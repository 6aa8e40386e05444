"""Which clips a step has and how they reach the module: the plan, a process's share of it, rows that fail.

A recipe's batch size is that of a step, however many processes and micro-batches it is cut into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from canvas_asr.errors import CanvasASRError

Index = tuple[int, int]
Collate = Callable[[list[Any]], dict[str, Any]]

PASSED_OVER = "passed_over"  # of an example of a stream: clips left out since the one before, by reason


class BatchPlan:
    """Batches of similar length for a whole run, a pure function of lengths and seed.

    Every item is (epoch, index), so that augmentation can depend on both and a resumed run sees what an
    unbroken one would have seen.
    """

    def __init__(self, lengths: Sequence[float], batch_size: int, n_batches: int, seed: int) -> None:
        """Plan.

        Args:
            lengths: Length of every example, in any unit.
            batch_size: Examples per batch.
            n_batches: Batches in all; epochs follow one another as needed.
            seed: Of the order.

        Raises:
            ValueError: If there are no examples.
        """
        if not len(lengths):
            raise ValueError("there are no training examples.")
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.seed = seed

    def __len__(self) -> int:
        """Batches in all."""
        return self.n_batches

    def __iter__(self) -> Iterator[list[Index]]:
        """Yield the batches from the first."""
        n_made, epoch = 0, 0
        while n_made < self.n_batches:
            rng = np.random.default_rng((self.seed, epoch))
            jittered = self.lengths * rng.uniform(0.9, 1.1, len(self.lengths))
            order = np.argsort(jittered, kind="stable")
            starts = np.arange(0, len(order), self.batch_size)
            rng.shuffle(starts)
            for start in starts[: self.n_batches - n_made]:
                yield [(epoch, int(i)) for i in order[start : start + self.batch_size]]
                n_made += 1
            epoch += 1


class Row(NamedTuple):
    """An example of a batch.

    Attributes:
        epoch: Its epoch.
        place: Its place in the epoch.
        counted: False for one that only keeps a process busy whose share of a short batch is empty.
    """

    epoch: int
    place: int
    counted: bool = True


class ShareOfPlan:
    """The micro-batches of one process: ``n_micro`` a step, which with those of all others make its batch."""

    def __init__(self, plan: BatchPlan, n_processes: int = 1, process: int = 0, n_micro: int = 1) -> None:
        """Cut.

        Args:
            plan: Of all processes.
            n_processes: How many there are.
            process: Which one this is, from 0.
            n_micro: Micro-batches of each process in a step.
        """
        self.plan = plan
        self.n_processes = n_processes
        self.process = process
        self.n_micro = n_micro

    def __len__(self) -> int:
        """Micro-batches in all."""
        return len(self.plan) * self.n_micro

    def __iter__(self) -> Iterator[list[Row]]:
        """Yield them from the first."""
        for batch in self.plan:
            # Rows are sorted by length: dealt out in turn, no process has to wait for one with longer clips.
            rows = [Row(*item) for item in batch[self.process :: self.n_processes]]
            for part in np.array_split(np.arange(len(rows)), self.n_micro):
                yield [rows[i] for i in part] or [Row(*batch[0], counted=False)]


class Example(NamedTuple):
    """What became of a row.

    Attributes:
        row: The row.
        value: The dataset's example; None if it could not be made.
        error: Why not.
    """

    row: Row
    value: Any
    error: str = ""


class RowBatch(NamedTuple):
    """A micro-batch as it leaves the data loader.

    Attributes:
        inputs: Keyword arguments of the module; none if no row could be made.
        keys: Of the noise of each row in ``inputs``, (B,) int64.
        names: Of the examples in ``inputs``, for messages.
        failed: Error of each row that could not be made.
        counted: Whether the rows belong to the step.
        passed_over: Clips that a stream left out meanwhile, by reason.
    """

    inputs: dict[str, Any]
    keys: Tensor
    names: list[str]
    failed: list[str]
    counted: bool
    passed_over: dict[str, int]


class RowDataset(Dataset[Example]):
    """A dataset by rows; an example that cannot be made is told, not raised."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        """Wrap a map-style dataset, indexed by (epoch, index)."""
        self.dataset = dataset

    def __getitem__(self, row: Row) -> Example:
        """Make one example."""
        try:
            return Example(row, self.dataset[(row.epoch, row.place)])
        except CanvasASRError as error:
            return Example(row, None, str(error))


class RowCollator:
    """Rows to a :class:`RowBatch`."""

    def __init__(self, collate: Collate, seed: int) -> None:
        """Keep the stage's collator, and the seed of the noise."""
        self.collate = collate
        self.seed = seed

    def __call__(self, examples: list[Example]) -> RowBatch:
        """Collate one micro-batch."""
        made = [example for example in examples if not example.error]
        return RowBatch(
            self.collate([example.value for example in made]) if made else {},
            torch.tensor([self._key(example.row) for example in made], dtype=torch.int64),
            [example_name(example.value) for example in made],
            [example.error for example in examples if example.error],
            all(example.row.counted for example in examples),
            passed_over_by([example.value for example in made]),
        )

    def _key(self, row: Row) -> int:
        # 32 bits: a CPU generator of torch takes no more of its seed.
        return int(np.random.SeedSequence((self.seed, row.epoch, row.place)).generate_state(1)[0])


def passed_over_by(examples: Sequence[Any]) -> dict[str, int]:
    """Clips that streams left out on the way to examples, by reason."""
    counts: Counter[str] = Counter()
    for example in examples:
        counts.update(example.get(PASSED_OVER, {}) if isinstance(example, dict) else {})
    return dict(counts)  # pinning memory copies a Counter by adding to it


def example_name(example: Any) -> str:
    """What an example is known by: the file of a clip, or a text."""
    entry = example.get("entry", example) if isinstance(example, dict) else example
    return str(getattr(entry, "audio", getattr(entry, "text", entry)))
