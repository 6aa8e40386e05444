"""What goes on beside the steps of a run: its log, its transcripts, its clock, and the end of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .recipe import TrainingOptions

LOG_NAME = "log.jsonl"
TRANSCRIPTS_NAME = "transcripts.jsonl"


def say(message: str) -> None:
    """Tell the person at the terminal, once for all processes of a run."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)


class RunLog(TrainerCallback):
    """Append every log line, with step and wall-clock seconds, to ``log.jsonl``; the main process writes."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder of the run."""
        self.folder = folder
        self.start = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line of figures."""
        if state.is_world_process_zero:
            self.write(state.global_step, logs or {})

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Write a line of anything."""
        self._append(LOG_NAME, [{"step": step, "wall_s": round(time.monotonic() - self.start, 1), **record}])

    def write_transcripts(self, step: int, transcripts: Sequence[Mapping[str, str]]) -> None:
        """Write what an evaluation read to ``transcripts.jsonl``."""
        self._append(TRANSCRIPTS_NAME, [{"step": step, **transcript} for transcript in transcripts])

    def _append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


class Terminated(Exception):  # noqa: N818 - not an error
    """Raised within an evaluation when SIGTERM comes: the checkpoint cannot wait for its end."""


class Stop(TrainerCallback):
    """Stops a run, with a checkpoint, when its time is up or SIGTERM has come.

    Processes must stop at the same step, and follow one schedule: those of a run of several go by what they
    agreed on when the step began.

    Attributes:
        several: Whether the run has several processes.
        interruptible: Whether SIGTERM may break off what is being done: true within an evaluation.
    """

    def __init__(self, options: TrainingOptions) -> None:
        """Start the clock."""
        self.max_s = options.max_minutes * 60
        self.before_s = options.minutes_before * 60
        self.start = time.monotonic()
        self.several = False
        self.interruptible = False
        self._signalled = False
        self._agreed = (0.0, 0.0)

    def state(self) -> tuple[float, float]:
        """This process's own view: share of the time limit that has gone by, and whether SIGTERM came."""
        used = (self.before_s + time.monotonic() - self.start) / self.max_s if self.max_s else 0.0
        return used, float(self._signalled)

    def agree(self, used: float, signalled: float) -> None:
        """Take what is true of the processes together."""
        self._agreed = (used, signalled)

    def share_used(self) -> float:
        """Share of the time limit that has gone by; 0 where there is none."""
        return (self._agreed if self.several else self.state())[0]

    def terminated(self) -> bool:
        """Whether SIGTERM came."""
        return bool((self._agreed if self.several else self.state())[1])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where there is reason to."""
        if self.share_used() >= 1 or self.terminated():
            control.should_training_stop = True
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop before the next step where SIGTERM came meanwhile."""
        if self.terminated():
            control.should_training_stop = True
            control.should_save = True

    @contextmanager
    def catching_sigterm(self) -> Iterator[None]:
        """Notice SIGTERM instead of ending by it; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _on_sigterm(self, number: int, frame: Any) -> None:
        self._signalled = True
        if self.interruptible:
            self.interruptible = False
            raise Terminated


def ignore_sigterm(worker: int) -> None:
    """Let a data-loader process live on when all are told to end: its parent ends it, after a save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
