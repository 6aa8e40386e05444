"""Read an adapter file of unknown layout: its tensors by dotted path, and the plain values beside them.

A torch file is read with ``weights_only=True``: nothing in it is executed.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from canvas_asr.errors import CheckpointError

MAX_DEPTH = 16  # of containers in containers; a list may hold itself
Value: TypeAlias = bool | int | float | str

# What torch.load raises for files that are damaged, hold objects, or are none of its own.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    OverflowError,
    ImportError,
    struct.error,
    pickle.PickleError,
    zipfile.BadZipFile,
    SafetensorError,
)


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds.

    Attributes:
        path: Where it was read from.
        tensors: By dotted path, in the order of the file.
        values: Numbers, texts and flags beside them.
    """

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)


def read_adapter_file(path: Path) -> AdapterFile:
    """Read a ``.pt``, ``.bin`` or ``.safetensors`` file.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is missing, damaged, holds anything but tensors and plain values, or a tensor
            with NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say is in the error
                # Only the newer format, a zip file, can be mapped.
                content = torch.load(
                    path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
                )
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path}: cannot be read as tensors alone ({_reason(error)}); it is damaged or holds objects, "
            "which may run code and are not loaded: fetch it again, or have it saved as a plain state dict."
        ) from error
    found = AdapterFile(path)
    _collect(content, "", found, 0)
    if not found.tensors:
        raise CheckpointError(f"{path}: holds no tensors.")
    for name, tensor in found.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: tensor {name!r} has values that are NaN or infinite.")
    return found


def _reason(error: BaseException) -> str:
    """The telling part of what torch.load says, without its advice to load the file unsafely."""
    text = " ".join(str(error).split())
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"it names {named[1]}"
    return text.partition(". ")[0][:200] or type(error).__name__


def _collect(item: Any, name: str, found: AdapterFile, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{found.path}: {name!r} is nested too deeply.")
    if isinstance(item, Tensor):
        if name in found.tensors:
            raise CheckpointError(f"{found.path}: two tensors have the path {name!r}.")
        found.tensors[name] = item
        return
    if isinstance(item, (bool, int, float, str)):
        found.values[name] = item
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(item, Mapping):
        parts = item.items()
    elif isinstance(item, (list, tuple)):
        parts = enumerate(item)
    for key, part in parts:
        _collect(part, f"{name}.{key}" if name else str(key), found, depth + 1)
