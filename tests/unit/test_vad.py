"""Voice activity: the package's probabilities, whatever the blocks, and nothing else of the package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from canvas_asr import load_audio, vad
from canvas_asr.errors import CheckpointError
from canvas_asr.vad import FRAME_SAMPLES, LoudnessDetector, SileroDetector

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    silence = np.zeros(FRAME_SAMPLES * 40, np.float32)
    clips = [load_audio(EXAMPLES / f"{language}.flac") for language in ("en", "zh")]
    joined = np.concatenate([silence, clips[0], silence, clips[1], silence])
    return joined[: len(joined) // FRAME_SAMPLES * FRAME_SAMPLES]


@pytest.mark.usefixtures("_own_torch_settings")
def test_probabilities_are_those_of_the_package(speech: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import silero_vad

        theirs = silero_vad.load_silero_vad()
    part = speech[: 150 * FRAME_SAMPLES]
    frames = torch.from_numpy(part).view(-1, FRAME_SAMPLES)
    with torch.no_grad():
        expected = [float(theirs(frame, 16_000)) for frame in frames]
    np.testing.assert_allclose(SileroDetector()(part), expected, atol=1e-3)


def test_blocks_do_not_matter(speech: np.ndarray) -> None:
    whole = SileroDetector()(speech)
    assert whole.shape == (len(speech) // FRAME_SAMPLES,)
    detector, parts, at = SileroDetector(), [], 0
    for n_frames in (1, 7, 0, 64, 10_000):
        part = speech[at * FRAME_SAMPLES : (at + n_frames) * FRAME_SAMPLES]
        parts.append(detector(part))
        at += n_frames
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_speech_is_told_from_silence_and_noise(speech: np.ndarray) -> None:
    scores = SileroDetector()(speech)
    assert scores[:30].max() < 0.2
    assert np.median(scores[45:130]) > 0.9
    noise = np.random.default_rng(0).normal(0, 0.01, 300 * FRAME_SAMPLES).astype(np.float32)
    assert SileroDetector()(noise)[10:].mean() < 0.2


def test_the_package_is_not_imported_and_threads_stay() -> None:
    code = (
        "import sys, torch; torch.set_num_threads(3); from canvas_asr.vad import *;"
        "SileroDetector()(np.zeros(5120, np.float32));"
        "assert torch.get_num_threads() == 3;"
        "assert not {'silero_vad', 'torchaudio', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def _no_model_read() -> None:
    vad._network.cache_clear()


@pytest.mark.usefixtures("_no_model_read")
def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'silero-vad>=6'"):
        SileroDetector()


@pytest.mark.usefixtures("_no_model_read")
def test_a_damaged_package_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "silero_vad.jit").write_bytes(b"no model")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(CheckpointError, match=r"silero_vad\.jit: is damaged"):
        SileroDetector()


def test_loudness_is_a_score() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (3, FRAME_SAMPLES)) * [[0.3], [0.003], [0.0]]
    loud, soft, silent = LoudnessDetector()(noise.astype(np.float32).ravel())
    assert 1 >= loud > soft > silent == 0
