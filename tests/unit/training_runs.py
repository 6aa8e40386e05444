"""Small training runs for tests: a recipe of the adapter stage over sine waves, and processes to kill."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_up_clips import write_clips
from small_models import TINY, small_model, small_processor

from canvas_asr.checkpoint import save_checkpoint


def adapter_recipe(folder: Path, **training: Any) -> dict[str, Any]:
    """Write small frozen parts and seven clips to a folder, and give the recipe that trains on them."""
    save_checkpoint(small_model(), small_processor(), folder / "parts", whole=True)
    manifest = str(write_clips(folder / "clips", 7, with_silence=True))
    return {
        "stage": "adapter",
        "output_dir": str(folder / "run"),
        "training": {
            "max_steps": 6,
            "batch_size": 3,
            "learning_rate": 0.01,
            "warmup_steps": 1,
            "eval_steps": 1000,
            "save_steps": 1000,
            "log_steps": 1,
            "n_workers": 2,
            "bf16": False,
            "report_to": [],
            **training,
        },
        "options": {
            "tokenizer": str(TINY),
            "backbone": str(folder / "parts" / "backbone"),
            "audio_encoder": str(folder / "parts" / "audio_encoder"),
            "train": [{"path": manifest}],
            "dev": [{"path": manifest}],
            "model": {"projector_width": 24, "lora_rank": 4, "canvas_length": 24},
            "objective": {"corruption": {"uniform": 0.3, "draft": 0.3, "predictions": 0.2, "edits": 0.2}},
            "canvas_choices": [40],
            "p_long_canvas": 0.4,
            "augment": True,
            "n_dev": 2,
        },
    }


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def losses_of(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in log_of(run) if "loss" in line}


def killed_in_a_fork(run: Callable[[], object]) -> bool:
    """Run in a copy of this process; tell whether SIGKILL ended it, as opposed to its own end."""
    if not (pid := os.fork()):
        try:
            run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
