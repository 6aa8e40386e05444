"""Common Voice from its downloaded folder: ``<language>/train.tsv`` and ``<language>/clips/``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from canvas_asr.audio import audio_seconds
from canvas_asr.errors import AudioError, DataError
from canvas_asr.manifest import Clip

LICENCE = "CC0"
LOCALES = {"en": "en", "de": "de", "fr": "fr", "es": "es", "hi": "hi", "zh": "zh-CN"}
_DURATIONS = "clip_durations.tsv"  # in newer releases; in milliseconds


def read_common_voice(folder: Path, split: str, languages: Sequence[str]) -> list[Clip]:
    """Read a split of the corpus.

    Args:
        folder: The corpus, or one language of it.
        split: Name of a TSV file: ``train``, ``dev``, ``test``, ``validated``.
        languages: Codes; empty: all that are there.

    Returns:
        Clips, the sentence as it was given to the speaker; a length of -1 marks audio that cannot be read.

    Raises:
        DataError: If a folder, file or column is missing.
    """
    alone = {code: folder for code, locale in LOCALES.items() if folder.name == locale}
    found = alone or {code: folder / locale for code, locale in LOCALES.items() if (folder / locale).is_dir()}
    missing = [code for code in languages if code not in found]
    if missing or not found:
        what = f"folder {LOCALES[missing[0]]!r}" if missing else f"folder of {', '.join(LOCALES.values())}"
        raise DataError(f"{folder}: has no {what}; give the folder of an unpacked Common Voice corpus.")
    return [clip for code in languages or found for clip in _language(found[code], split, code)]


def _language(folder: Path, split: str, language: str) -> Iterator[Clip]:
    path = folder / f"{split}.tsv"
    durations_s = {}
    if (folder / _DURATIONS).is_file():
        for row in _rows(folder / _DURATIONS, ("clip",)):
            durations_s[row["clip"]] = (
                float(next(v for k, v in row.items() if k.startswith("duration"))) / 1000
            )
    for row in _rows(path, ("path", "sentence")):
        audio = folder / "clips" / row["path"]
        yield Clip(
            audio=audio,
            text=row["sentence"],
            language=language,
            speaker=row.get("client_id"),
            duration_s=durations_s.get(row["path"], None) or _seconds(audio),
            split=split,
            source=f"common_voice {language} {split}",
        )


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # Quotation marks are part of a sentence there.
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if missing := [column for column in columns if column not in (rows.fieldnames or ())]:
                raise DataError(f"{path}: has no column {missing[0]!r}; give Common Voice's own file.")
            for number, row in enumerate(rows, start=2):
                if None in row or None in row.values():
                    raise DataError(f"{path}:{number}: has more or fewer cells than the first line.")
                yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check path and split.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); get it again.") from error


def _seconds(audio: Path) -> float:
    if not audio.is_file():
        return 0.0  # named as missing when audio files are looked for
    try:
        return audio_seconds(audio, str(audio))
    except AudioError:
        return -1.0
