"""The index of a folder of test sets: which manifests belong to it, each by its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..errors import DataError
from ..manifest import MANIFEST_NAME, Clip, read_manifest

INDEX_NAME = "testsets.json"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_testsets(folder: str | os.PathLike[str]) -> dict[str, list[Clip]]:
    """Read the test sets that ``canvas_asr.evaluation.testsets`` wrote, by name, in the order of its index.

    Raises:
        DataError: If the index or a manifest is missing, malformed, or a manifest is not the one in the
            index.
    """
    folder = Path(folder)
    sets: dict[str, list[Clip]] = {}
    for name, digest in read_index(folder).items():
        path = folder / name / MANIFEST_NAME
        sets[name] = read_manifest(path)
        if file_sha256(path) != digest:
            raise DataError(
                f"{path}: changed since {folder / INDEX_NAME} was written; build the test sets again"
            )
    return sets


def read_index(folder: Path) -> dict[str, str]:
    """SHA-256 of each test set's manifest, by the set's name.

    Raises:
        DataError: If the index is missing or is not one.
    """
    path = folder / INDEX_NAME
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
        return {str(name): str(entry["sha256"]) for name, entry in sets.items()}
    except OSError as error:
        hint = "build the test sets with python -m canvas_asr.evaluation.testsets"
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {hint}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not an index of test sets: {error!r}") from error
