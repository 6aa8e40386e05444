"""The example clips are in voices that training never hears, and their script makes them again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from canvas_asr.synthesis import flite, recorded, voices

ROOT = Path(__file__).parents[2]
LANGUAGES = ("de", "en", "es", "fr", "hi", "zh")
MADE_WITH = "1.51"  # of espeak-ng; another version may speak a little differently


def card_rows(folder: Path) -> dict[str, list[str]]:
    """Text, voice and seconds of each clip in the card."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if ".flac |" in line]
    return {Path(row[0]).stem: row[1:] for row in rows}


def test_there_is_one_small_listed_clip_a_language() -> None:
    rows = card_rows(ROOT / "examples")
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "examples").glob("*.flac")) == list(LANGUAGES)
    for language, (text, _, seconds) in rows.items():
        path = ROOT / "examples" / f"{language}.flac"
        assert text
        assert sf.info(path).duration == pytest.approx(float(seconds), abs=0.051)
        assert 1 < sf.info(path).duration < 10
        assert path.stat().st_size < 200_000
    assert "CC0" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def test_training_never_hears_their_voices() -> None:
    for language, (_, voice, _) in card_rows(ROOT / "examples").items():
        test, train = (
            {*voices.voices(language, split), *recorded.voices(language, split)}
            for split in ("test", "train")
        )
        assert voice in test - train


def test_the_script_makes_the_same_clips_again(tmp_path: Path) -> None:
    """In a process of its own: the engines remember what they said before."""
    program = shutil.which("espeak-ng")
    if program is None or not flite.available():
        pytest.skip("espeak-ng or flite is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if f" {MADE_WITH}" not in version:
        pytest.skip(f"espeak-ng is not {MADE_WITH}, which the clips were made with")
    script = ROOT / "scripts" / "make_examples.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True, timeout=60)
    assert card_rows(tmp_path) == card_rows(ROOT / "examples")
    for language in LANGUAGES:
        (kept, _), (made, _) = (
            sf.read(folder / f"{language}.flac") for folder in (ROOT / "examples", tmp_path)
        )
        assert kept.shape == made.shape
        assert np.abs(kept - made).max() < 1e-3
