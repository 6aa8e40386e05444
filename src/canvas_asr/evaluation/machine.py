"""The machine that figures were measured on, and the versions of what they depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGES = (
    "canvas-asr",
    "torch",
    "transformers",
    "peft",
    "numpy",
    "jiwer",
    "kaldialign",
    "whisper-normalizer",
    "faster-whisper",
    "pocketsphinx",
)


def installed_versions() -> dict[str, str]:
    """Give the versions of the packages that results depend on, by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_machine() -> dict[str, Any]:
    """Say which machine this is; JSON-ready."""
    # Without torch loaded there was no GPU either: a recogniser brings its own.
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "n_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "n_threads": torch.get_num_threads() if torch is not None else None,
        "gpu": gpu,
        "system": platform.platform(),
    }


@cache
def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def where(device: str | None) -> str:
    """This machine in a few words.

    Args:
        device: Of the models; None takes the GPU if there is one.
    """
    machine = describe_machine()
    on_gpu = device is None or device.startswith("cuda")
    processor = machine["gpu"] if on_gpu and machine["gpu"] else machine["cpu"]
    n_threads = machine["n_threads"]  # known only where torch is loaded
    return f"{processor}, {machine['n_cpus']} CPUs" + (f", {n_threads} threads" if n_threads else "")


def describe_setup(device: str | None, batch_size: int) -> str:
    """Say what a time is measured with: times are comparable where that is the same."""
    import torch  # noqa: F401 - so that its threads and GPU are named for every system alike

    return f"{where(device)}; batch {batch_size}"
