"""What a process that serves does before it begins, so that its threads do not hold each other up."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

SPINS = 30_000  # some tenths of a millisecond


def limit_spinning() -> None:
    """Let helpers that wait for work fall asleep within a millisecond; for this, torch is imported later.

    Between the steps of a pass that is long enough for them to stay awake. libgomp, OpenMP as torch has it on
    Linux, lets them run on for ten times as long, in which decoders and clients on the same processors wait.
    What the environment says stays as it is.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let this thread compute alone, and those that begin to meanwhile, so that they have no helpers.

    OpenMP gives every thread that computes helpers of its own, as many as there are processors, and keeps
    them for as long as that thread lives. Where all of them are more than the processors, those that wait for
    work fall asleep at once, and each of the hundreds of small steps of a pass has to wake them. So only the
    thread of the model is to have any: what loads the model runs under this, and then the server.
    """
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def settled_memory() -> Iterator[None]:
    """Leave what is loaded by now to itself: garbage collections look at what is made from here on.

    One that looked at the model and its libraries would hold all threads for as long as some hundred
    milliseconds, ``/health`` among what waits.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
