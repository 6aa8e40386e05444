"""Manifests: one JSON object a line that names a clip, its text and its language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import DataError


@dataclass(frozen=True)
class ManifestEntry:
    """One clip.

    Attributes:
        audio: Path of the audio file, made absolute against the manifest's folder.
        text: Transcript; empty for a clip without speech.
        language: Code such as "en"; empty if not known.
        speaker: Name of the speaker or voice; empty if not known.
        duration_s: Length in seconds; 0 if not known.
        split: Name such as "train" or "test"; empty if not given.
        phonemes: (symbol, start in seconds) in order of time, "" for silence; None for recorded speech.
    """

    audio: Path
    text: str
    language: str = ""
    speaker: str = ""
    duration_s: float = 0.0
    split: str = ""
    phonemes: tuple[tuple[str, float], ...] | None = None

    def to_json(self, folder: Path) -> str:
        """Write as a manifest line, the path relative to ``folder``."""
        record = asdict(self)
        record["audio"] = str(self.audio.relative_to(folder))
        record["duration"] = round(record.pop("duration_s"), 3)
        if self.phonemes is None:
            del record["phonemes"]
        return json.dumps(record, ensure_ascii=False)


def _parse(record: dict[str, Any], folder: Path) -> ManifestEntry:
    audio = record.get("audio", record.get("audio_filepath"))
    if not isinstance(audio, str):
        raise KeyError("audio")
    if not isinstance(record.get("text"), str):
        raise KeyError("text")
    phonemes = record.get("phonemes")
    return ManifestEntry(
        audio=folder / audio,
        text=record["text"],
        language=str(record.get("language", record.get("lang", ""))),
        speaker=str(record.get("speaker", "")),
        duration_s=float(record.get("duration", 0.0)),
        split=str(record.get("split", "")),
        phonemes=None if phonemes is None else tuple((str(s), float(t)) for s, t in phonemes),
    )


def read_manifest(path: str | Path) -> Iterator[ManifestEntry]:
    """Read a manifest (NeMo's ``audio_filepath`` and ``lang`` are understood).

    Args:
        path: A JSON-lines file.

    Yields:
        Its entries in order.

    Raises:
        DataError: If the file is missing, or a line is not a JSON object with ``audio`` and ``text``; the
            message names file, line and key.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such manifest; give the path of a JSON-lines file.")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                entry = _parse(record, path.parent)
            except KeyError as error:
                raise DataError(f"{path}:{number}: key {error} is missing or not a string.") from error
            except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
                raise DataError(f"{path}:{number}: not a manifest line ({error}).") from error
            yield entry
