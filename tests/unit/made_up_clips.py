"""Clips for tests: sums of sine waves, to which sentences and phonemes are made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from canvas_asr.audio import SAMPLE_RATE_HZ

SPEECH = (
    ("Good morning, my friend.", "en", "ɡʊdmɔːnɪŋ"),
    ("Guten Tag.", "de", "ɡuːtn"),
    ("Bonjour, ça va ?", "fr", "bõʒuʁ"),
    ("Buenos días a todos.", "es", "bwenos"),
    ("यह एक अच्छा दिन है।", "hi", "jeɛk"),
    ("我们今天去学校。", "zh", "uomn"),
)


def tones(duration_s: float, seed: int) -> NDArray[np.float32]:
    """Give a sum of three sine waves at 16 kHz, other ones for every seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    frequencies_hz, phases = rng.uniform(100, 4000, (3, 1)), rng.uniform(0, 6, (3, 1))
    waves = np.sin(2 * np.pi * frequencies_hz * t + phases)
    return (0.2 * waves.sum(axis=0)).astype(np.float32)


def write_clips(folder: Path, n_clips: int, *, with_silence: bool = False) -> Path:
    """Write wav files of 0.60, 0.73 ... s and their manifest, with made-up phonemes.

    With silence, the first clip says nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(n_clips):
        text, language, symbols = SPEECH[i % len(SPEECH)]
        if with_silence and i == 0:
            text, symbols = "", ""
        duration_s = 0.6 + 0.13 * i
        path = folder / f"{i}.wav"
        sf.write(path, tones(duration_s, i), SAMPLE_RATE_HZ)
        record = {
            "audio": path.name,
            "text": text,
            "language": language,
            "speaker": f"voice{i % 2}",
            "duration": round(duration_s, 3),
            "split": "train",
            "phonemes": [[s, round(0.05 + 0.08 * k, 3)] for k, s in enumerate(symbols)],
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest
