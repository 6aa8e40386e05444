"""Rows of a batch on several threads of a CPU.

A batch of a small model is thousands of short operations. Divided over the cores one by one, each of them
waits for the slowest core, and what lies between two of them keeps one core busy while the others wait. No
row depends on another: here each thread takes some of the rows, and has one core for all that is done with
them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
CPU = torch.device("cpu")
# With more, threads wait for each other's turn at the interpreter: between operations only one of them runs.
MAX_THREADS = 4


class RowThreads:
    """Says how the rows of a batch are shared out, and runs the shares beside each other."""

    def __init__(self, *, is_on: bool) -> None:
        """Start no thread yet.

        Args:
            is_on: Whether the model is on the CPU, and small enough for each thread to read all its weights.
        """
        # The number of threads is that of one caller alone with OpenMP only.
        self.is_on = is_on and torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]

    def shares(self, n_rows: int, device: torch.device = CPU) -> list[slice]:
        """Divide rows: as many shares as the caller has threads, if these are few and all get some; else one.

        Args:
            n_rows: At least 1.
            device: Where they are.
        """
        n_threads = torch.get_num_threads()
        is_plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        is_shared = self.is_on and is_plain and device == CPU and n_threads <= min(n_rows, MAX_THREADS)
        n_shares = n_threads if is_shared else 1
        bounds = [n_rows * i // n_shares for i in range(n_shares + 1)]
        return [slice(start, end) for start, end in pairwise(bounds)]

    def each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Call a function on every share, without gradients; several at once, each with one core.

        Args:
            function: May run in several threads at the same time.
            items: One a share, no more than the caller has threads; a single one is left to the caller.

        Returns:
            Its results, in order.
        """
        if len(items) < 2:
            return [function(item) for item in items]
        is_inference = torch.is_inference_mode_enabled()

        def run(item: Item) -> Result:
            with torch.inference_mode() if is_inference else torch.no_grad():
                return function(item)

        try:
            with _making.setdefault(os.getpid(), threading.Lock()):
                pool = _pool(os.getpid(), torch.get_num_threads())
            pending = [pool.submit(run, item) for item in items]
        except RuntimeError:  # no thread can begin: the main thread has ended, or there are too many
            return [function(item) for item in items]
        return [one.result() for one in pending]


_making: dict[int, threading.Lock] = {}  # by process: a lock that was held at a fork stays held in the child


@cache
def _pool(_process: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads that compute alone, for a process and callers with so many threads.

    Raises:
        RuntimeError: If they cannot be started.
    """
    pool = ThreadPoolExecutor(n_threads, "canvas-asr-rows")
    started = threading.Barrier(n_threads + 1)
    of_new: list[int] = []  # threads: how many they may have, which may be less than the caller has

    def start() -> None:
        # A thread that has asked for nothing yet would take the others' number later.
        of_new.append(torch.get_num_threads())
        torch.set_num_threads(1)
        started.wait()

    try:
        for _ in range(n_threads):
            pool.submit(start)
        started.wait()
    except BaseException:
        started.abort()  # those that have started would wait for the others for ever
        pool.shutdown(wait=False)
        raise
    # Set in any thread, this holds for those that begin to compute later.
    restore = threading.Thread(target=torch.set_num_threads, args=of_new[:1])
    restore.start()
    restore.join()
    return pool
