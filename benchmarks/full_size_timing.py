"""Clocks of the full-size benchmark: what is timed, how, and how much time is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

# What torch and transformers raise for work that a device or version cannot do; out of memory is among them.
MEASURING_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, ImportError)

Record = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        batches: Clips at once; of the first two the extras are measured too.
        canvases: Canvas lengths, likewise.
        passes: Of the grid.
        stock_steps: Denoising steps of stock ``generate`` on our canvas.
        repeats: Timed runs, of which the median counts.
        matrix: Side of the matrices that measure the matrix rate.
        copy_bytes: Size of the copy that measures the bandwidth.
    """

    batches: tuple[int, ...]
    canvases: tuple[int, ...]
    passes: tuple[int, ...]
    stock_steps: tuple[int, ...]
    repeats: int
    matrix: int
    copy_bytes: int


@dataclass
class Budget:
    """Time that a run may take: what would not fit is skipped and named."""

    limit_s: float
    skipped: list[Record] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def allows(self, what: str, need_s: float) -> bool:
        """Whether ``need_s`` more seconds fit."""
        left = self.limit_s - self.spent()
        if need_s <= left:
            return True
        self.skipped.append({"what": what, "needed_s": round(need_s, 1), "left_s": round(left, 1)})
        return False


class Timer:
    """Times functions on a device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def once(self, function: Callable[[], object]) -> float:
        """Seconds of one run, until the device is done."""
        if self.device.type != "cuda":
            start_s = time.perf_counter()
            function()
            return time.perf_counter() - start_s
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)  # else work still queued would hide the time of launching this
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def median(self, function: Callable[[], object], *, warm_ups: int = 1) -> float:
        """Median seconds, fewer runs of what takes long."""
        for _ in range(warm_ups):
            function()
        first = self.once(function)
        repeats = self.repeats if first < 0.5 else min(self.repeats, 3)
        return statistics.median([first, *(self.once(function) for _ in range(repeats - 1))])


def ceilings(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> dict[str, float]:
    """Bandwidth of a large copy, bytes read plus written, and rate of a large matrix product; random data."""
    timer = Timer(device, max(sizes.repeats, 3))
    source = torch.empty(sizes.copy_bytes // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    copy_s = timer.median(lambda: target.copy_(source), warm_ups=3)
    a, b = (torch.empty(sizes.matrix, sizes.matrix, dtype=dtype, device=device).normal_() for _ in range(2))
    product_s = timer.median(lambda: a @ b, warm_ups=3)
    return {
        "copy_bytes_per_s": 2 * sizes.copy_bytes / copy_s,
        "matrix_flops_per_s": 2 * sizes.matrix**3 / product_s,
    }
