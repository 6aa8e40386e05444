"""The processes of a run, known before its trainer is made: data are read, and caches filled, by turns."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

# How long the others wait for the one that evaluates or reads data; torch's own 10 minutes are too short.
LONGEST_WAIT_S = 2 * 3600


def process_state() -> PartialState:
    """Give this process's place in the run, as ``TrainingArguments`` will see it.

    Made plainly, ``PartialState`` takes every process of a machine without GPU for the only one, and on GPUs
    it would start the group with a wait that ``ddp_timeout`` can no longer change.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=LONGEST_WAIT_S))
