"""The example clips are in voices that training never hears, and their script makes them again."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile as sf

from canvas_asr.synthesis import flite, recorded, voices

ROOT = Path(__file__).parents[2]
MADE_WITH = "1.51"  # of espeak-ng; another version may speak a little differently


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_examples", ROOT / "scripts" / "make_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def card_rows() -> dict[str, list[str]]:
    """Text, voice and seconds of each clip in the card."""
    card = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if ".flac |" in line]
    return {Path(row[0]).stem: row[1:] for row in rows}


def test_there_is_one_small_listed_clip_a_language(script: ModuleType) -> None:
    rows = card_rows()
    assert {language: row[0] for language, row in rows.items()} == script.SENTENCES
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.flac")) == sorted(rows)
    for language, (_, _, seconds) in rows.items():
        path = ROOT / "examples" / f"{language}.flac"
        assert sf.info(path).duration == pytest.approx(float(seconds), abs=0.051)
        assert 1 < sf.info(path).duration < 10
        assert path.stat().st_size < 200_000
    assert "CC0" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def test_training_never_hears_their_voices() -> None:
    for language, (_, voice, _) in card_rows().items():
        test, train = (
            {*voices.voices(language, split), *recorded.voices(language, split)}
            for split in ("test", "train")
        )
        assert voice in test - train


@pytest.mark.parametrize("language", card_rows())
def test_the_script_makes_the_same_clip_again(script: ModuleType, language: str) -> None:
    program = shutil.which("espeak-ng")
    if program is None or not flite.available():
        pytest.skip("espeak-ng or flite is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if f" {MADE_WITH}" not in version:
        pytest.skip(f"espeak-ng is not {MADE_WITH}, which the clips were made with")
    clip = script.make_clip(language)
    kept, rate_hz = sf.read(ROOT / "examples" / f"{language}.flac", dtype="float32")
    assert rate_hz == 16_000
    assert [clip.text, clip.voice] == card_rows()[language][:2]
    assert np.abs(clip.samples - kept).max() < 1e-3
