"""Manifests: one JSON object a line for every clip, read with errors that name the line, written atomically.

    {"audio": "audio/0001.flac", "text": "Guten Tag.", "language": "de", "speaker": "kerstin",
     "duration": 1.2, "split": "test"}

``audio`` (or NeMo's ``audio_filepath``) is relative to the manifest's folder, or absolute. ``audio``,
``text`` and ``language`` are required; ``text`` may be empty (nothing is said). Test sets add ``source`` (the
corpus) and ``seen_speaker`` (the speaker also stands in the training data), synthetic clips ``phonemes``.
Other keys are ignored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError
from .languages import LANGUAGES

MANIFEST_NAME = "manifest.jsonl"


@dataclass(frozen=True)
class Clip:
    """One line of a manifest.

    Attributes:
        audio: Absolute path of the audio file; it is not opened here.
        text: What is said; empty for silence and noise.
        language: One of the six codes.
        speaker: Name of the speaker or synthetic voice, if known.
        duration_s: Length in seconds, if stated.
        split: "train", "dev" or "test", if stated.
        source: Corpus the clip comes from, if stated.
        seen_speaker: Whether the speaker is in the training data too, if stated.
        phonemes: (symbol, start in seconds) in order of time, "" is silence; synthetic clips only.
    """

    audio: Path
    text: str
    language: str
    speaker: str | None = None
    duration_s: float | None = None
    split: str | None = None
    source: str | None = None
    seen_speaker: bool | None = None
    phonemes: tuple[tuple[str, float], ...] | None = None

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """JSON-ready, ``audio`` relative to ``folder``, keys without a value left out."""
        line = {
            "audio": Path(os.path.relpath(self.audio, folder)).as_posix(),
            "text": self.text,
            "language": self.language,
            "speaker": self.speaker,
            "duration": None if self.duration_s is None else round(self.duration_s, 3),
            "split": self.split,
            "source": self.source,
            "seen_speaker": self.seen_speaker,
            "phonemes": None if self.phonemes is None else [[s, round(t, 4)] for s, t in self.phonemes],
        }
        return {key: value for key, value in line.items() if value is not None}


def read_manifest(path: str | os.PathLike[str]) -> list[Clip]:
    """Read every clip of a manifest, in order; blank lines are skipped.

    Raises:
        DataError: If the file is missing or not UTF-8, or a line is not a JSON object, lacks a key or has a
            value of the wrong kind; the message names file, line and key.
    """
    folder = Path(path).parent.resolve()
    return [_parse(entry, folder, place) for place, entry in _entries(Path(path))]


def read_audio_paths(path: str | os.PathLike[str]) -> list[Path]:
    """Read the audio files of a list that may state nothing else of them.

    Args:
        path: A manifest, of which keys other than ``audio`` or ``audio_filepath`` are not read.

    Returns:
        Their paths, absolute, in order.

    Raises:
        DataError: If the file is missing or not UTF-8, or a line is not a JSON object or names no file; or if
            it means a part of a file (``offset``, in NeMo's lists).
    """
    folder = Path(path).parent.resolve()
    found = []
    for place, entry in _entries(Path(path)):
        if entry.get("offset"):
            raise DataError(
                f"{place}: key 'offset' means a part of a file; cut it out into a file of its own"
            )
        found.append(folder / _audio(entry, place))
    return found


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the objects of a JSON-lines file, each with its place for messages."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); save the manifest as UTF-8") from error
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(entry, dict):
            raise DataError(f"{place}: expected a JSON object, found {type(entry).__name__}")
        yield place, entry


def _audio(entry: dict[str, Any], place: str) -> str:
    audio_key = "audio" if "audio" in entry else "audio_filepath"
    if audio_key not in entry:
        raise DataError(f"{place}: key 'audio' (or 'audio_filepath') is missing")
    audio = _text(entry, audio_key, place)
    if not audio:
        raise DataError(f"{place}: key {audio_key!r} is empty")
    return audio


def _parse(entry: dict[str, Any], folder: Path, place: str) -> Clip:
    audio = _audio(entry, place)
    language = _text(entry, "language", place)
    if language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise DataError(f"{place}: key 'language' is {language!r}: use one of {known}")
    return Clip(
        audio=folder / audio,
        text=_text(entry, "text", place),
        language=language,
        speaker=_optional(entry, "speaker", str, place),
        duration_s=_duration(entry, place),
        split=_optional(entry, "split", str, place),
        source=_optional(entry, "source", str, place),
        seen_speaker=_optional(entry, "seen_speaker", bool, place),
        phonemes=_phonemes(entry, place),
    )


def _text(entry: dict[str, Any], key: str, place: str) -> str:
    if key not in entry:
        raise DataError(f"{place}: key {key!r} is missing")
    value = entry[key]
    if not isinstance(value, str):
        raise DataError(f"{place}: key {key!r} must be a string, got {value!r}")
    return value


def _optional(entry: dict[str, Any], key: str, kind: type, place: str) -> Any:
    value = entry.get(key)
    if value is not None and not isinstance(value, kind):
        raise DataError(f"{place}: key {key!r} must be of type {kind.__name__}, got {value!r}")
    return value


def _duration(entry: dict[str, Any], place: str) -> float | None:
    value = entry.get("duration")
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise DataError(f"{place}: key 'duration' must be seconds >= 0, got {value!r}")
    return float(value)


def _phonemes(entry: dict[str, Any], place: str) -> tuple[tuple[str, float], ...] | None:
    value = entry.get("phonemes")
    if value is None:
        return None
    try:
        return tuple((str(symbol), float(start)) for symbol, start in value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: key 'phonemes' must be a list of [symbol, start in seconds]") from error


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write a manifest in one step: a reader sees the old file or the whole new one."""
    folder = path.parent.resolve()
    lines = [json.dumps(clip.to_dict(folder), ensure_ascii=False) for clip in clips]
    write_text(path, "".join(line + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file in one step, by a temporary file beside it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
