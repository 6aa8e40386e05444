"""Small copies of data sets as the hub has them, parquet with audio bytes, and of a Common Voice folder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
import yaml
from datasets import Audio, Features, Value
from made_up_clips import SPEECH, tones

from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.hub_sets import HUB_SETS

TEXTS = {language: text for text, language, _ in SPEECH}


def flac(duration_s: float, seed: int) -> bytes:
    """Content of a FLAC file."""
    file = io.BytesIO()
    sf.write(file, tones(duration_s, seed), SAMPLE_RATE_HZ, format="FLAC")
    return file.getvalue()


def write_set(folder: Path, tables: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Path:
    """Write a data set: rows by configuration and split, each with ``audio`` (bytes and path) and texts."""
    configs: dict[str, list[dict[str, str]]] = {}
    for (config, split), rows in tables.items():
        path = folder / config / split / "0000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds: dict[str, Any] = {name: Value("string") for name in rows[0] if name != "audio"}
        schema = Features({"audio": Audio(sampling_rate=SAMPLE_RATE_HZ), **kinds}).arrow_schema
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path)
        pattern = path.relative_to(folder).as_posix()
        configs.setdefault(config, []).append({"split": split, "path": pattern})
    card = {"configs": [{"config_name": name, "data_files": files} for name, files in configs.items()]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n", encoding="utf-8")
    return folder


def _audio(name: str, i: int) -> dict[str, Any]:
    return {"bytes": flac(0.6 + 0.13 * i, i), "path": f"{name}.flac"}


def write_librispeech(folder: Path, n_clips: int = 4) -> Path:
    """Write train.100, train.360 and validation, in capitals as there."""
    rows = [
        {
            "audio": _audio(f"84-121123-{i:04d}", i),
            "text": "GOOD MORNING MY FRIEND",
            "speaker_id": "84",
            "id": f"84-121123-{i:04d}",
        }
        for i in range(n_clips)
    ]
    splits = ("train.100", "train.360", "validation")
    other = {("other", "train.500"): rows[:2], ("other", "validation"): rows[:1]}
    return write_set(folder, {**{("clean", split): rows for split in splits}, **other})


def write_fleurs(folder: Path, n_clips: int = 2) -> Path:
    """Write train and validation in the six languages; Chinese has spaces in ``transcription``, as there."""
    tables = {}
    for code, config in HUB_SETS["fleurs"].configs.items():
        text = TEXTS[code]
        plain = " ".join(text) if code == "zh" else text.lower().rstrip(".")
        rows = [
            {"audio": _audio(f"{code}{i}", i), "transcription": plain, "raw_transcription": text}
            for i in range(n_clips)
        ]
        tables |= {(config, split): rows for split in ("train", "validation")}
    return write_set(folder, tables)


def write_voxpopuli(folder: Path, n_clips: int = 2) -> Path:
    """Write train and validation in four languages; ``raw_text`` is empty for part of the clips, as there."""
    tables = {}
    for code in ("en", "de", "fr", "es"):
        text = TEXTS[code]
        rows = [
            {
                "audio": _audio(f"20{i}-{code}", i),
                "raw_text": text if i else "",
                "normalized_text": text.lower().rstrip("."),
                "speaker_id": f"speaker{i}",
            }
            for i in range(n_clips)
        ]
        tables |= {(code, split): rows for split in ("train", "validation")}
    return write_set(folder, tables)


def write_common_voice(folder: Path, n_clips: int = 3, *, with_durations: bool = False) -> Path:
    """Write a corpus of German and Chinese with ``train.tsv`` and ``dev.tsv``."""
    for code, locale in (("de", "de"), ("zh", "zh-CN")):
        clips = folder / locale / "clips"
        clips.mkdir(parents=True)
        lines = ["client_id\tpath\tsentence\tup_votes\tlocale"]
        for i in range(n_clips):
            (clips / f"{code}{i}.flac").write_bytes(flac(0.6 + 0.13 * i, i))
            lines.append(f'abc{i}\t{code}{i}.flac\t"{TEXTS[code]}\t2\t{locale}')
        for split in ("train", "dev"):
            (folder / locale / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if with_durations:
            rows = [f"{code}{i}.flac\t{5000 + i}" for i in range(n_clips)]
            path = folder / locale / "clip_durations.tsv"
            path.write_text("\n".join(["clip\tduration[ms]", *rows]) + "\n", encoding="utf-8")
    return folder
