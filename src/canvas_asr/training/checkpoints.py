"""What a run keeps on disk: its trained parameters, and checkpoints that a kill cannot spoil.

A checkpoint is written to a folder aside, brought to the disk and only then given its name.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from canvas_asr.errors import CheckpointError

WEIGHTS_NAME = "trained.safetensors"
COMPLETE_MARK = "complete"
N_KEPT = 2
ASIDE = ".partial"


def trainable_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give the parameters that require gradients by name, each shared tensor once."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(module: nn.Module, path: Path, *, partial: bool = False) -> None:
    """Load what :func:`trainable_state` gave.

    Args:
        module: A module of the same geometry.
        path: A safetensors file.
        partial: Whether the file may lack some of the module's parameters.

    Raises:
        CheckpointError: If the file is missing or damaged, or names or shapes differ.
    """
    try:
        state, own = load_file(path), trainable_state(module)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    wrong = sorted(set(state) - set(own) if partial else set(state) ^ set(own))
    wrong += [name for name in state if name in own and state[name].shape != own[name].shape]
    if wrong:
        raise CheckpointError(f"{path}: tensor {wrong[0]!r} does not fit this stage's model.")
    module.load_state_dict(state, strict=False)


def save_trainable_state(module: nn.Module, folder: Path) -> None:
    """Write ``trained.safetensors`` to a folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{ASIDE}-{WEIGHTS_NAME}"
    save_file(trainable_state(module), aside)
    _to_disk(aside)
    aside.replace(folder / WEIGHTS_NAME)
    _to_disk(folder)


def clear_aside(run: Path) -> None:
    """Make an empty folder in which the next checkpoint of a run is written, and remove an unfinished one."""
    aside = run / ASIDE
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)


def publish(written: Path, run: Path) -> None:
    """Make a folder that was written aside a checkpoint of its run, and remove the oldest ones.

    Args:
        written: The folder, by its final name; its content is brought to the disk first.
        run: The run's folder.
    """
    (written / COMPLETE_MARK).touch()
    for path in written.rglob("*"):
        _to_disk(path)
    _to_disk(written)
    final = run / written.name
    if final.exists():  # left without its mark by a version that wrote in place
        shutil.rmtree(final)
    written.rename(final)
    _to_disk(run)
    written.parent.rmdir()
    for path in _complete(run)[:-N_KEPT]:
        (path / COMPLETE_MARK).unlink()  # first of all: half of a checkpoint is none
        shutil.rmtree(path)


def newest_checkpoint(run: Path) -> Path | None:
    """Find the newest complete checkpoint of a run."""
    complete = _complete(run)
    return complete[-1] if complete else None


def _complete(run: Path) -> list[Path]:
    """Complete checkpoints of a run, the oldest first."""
    marked = [path.parent for path in run.glob(f"checkpoint-*/{COMPLETE_MARK}")]
    return sorted(marked, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
