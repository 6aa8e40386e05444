"""The released model's own interface, over this package's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from made_up_clips import tones

import canvas_asr
from canvas_asr import inference
from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.errors import AudioError, OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

CLIP = tones(0.7, 3)
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(
    model: CanvasASRModel, processor: CanvasASRProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_checkpoint(model, processor, path, whole=True)
    return path


def test_it_gives_what_the_packages_own_interface_gives(folder: Path) -> None:
    model, tok, fe = inference.load(folder, device="cpu")
    asr = canvas_asr.load(folder, device="cpu")
    texts = [inference.transcribe(CLIP, model, tok, fe, max_steps=steps) for steps in (1, 5)]
    assert texts == [asr.transcribe((CLIP, 16_000), steps=steps).text for steps in (1, 5)]
    assert texts[0] != texts[1]
    assert inference.transcribe(torch.from_numpy(CLIP), model, tok, fe, max_steps=5) == texts[1]
    assert inference.transcribe(CLIP, model, tok, fe) == asr.transcribe((CLIP, 16_000), steps=16).text


def test_longer_audio_than_the_model_takes_is_cut(folder: Path) -> None:
    model, tok, fe = inference.load(folder, device="cpu")
    model.config.max_audio_s = 2.0
    wav = canvas_asr.load_audio(EXAMPLES / "en.flac")
    expected = canvas_asr.Transcriber(model, CanvasASRProcessor(fe, tok)).transcribe((wav, 16_000), steps=1)
    assert len(expected.segments) > 1
    assert inference.transcribe(wav, model, tok, fe, max_steps=1) == expected.text


def test_bad_input_is_one_error(model: CanvasASRModel, processor: CanvasASRProcessor) -> None:
    parts = model, processor.tokenizer, processor.feature_extractor
    with pytest.raises(AudioError, match=r"NaN|infinite"):
        inference.transcribe(np.array([0.0, np.nan] * 800, dtype=np.float32), *parts)
    with pytest.raises(OptionError, match="steps is 0"):
        inference.transcribe(CLIP, *parts, max_steps=0)


def test_the_script_prints_the_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audio.wav"
    sf.write(path, CLIP, 16_000, subtype="FLOAT")
    arguments = [str(path), "--model", str(folder), "--max-steps", "2", "--device", "cpu"]
    assert inference.main(arguments) == 0
    text = canvas_asr.load(folder, device="cpu").transcribe((CLIP, 16_000), steps=2).text
    assert capsys.readouterr().out == f"{text}\n"


def test_a_bad_file_is_found_before_a_model_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main(["no/such.wav"]) == 1
    assert capsys.readouterr().err.startswith("canvas-asr: error: no/such.wav: no such file")


def test_without_the_model_it_says_what_to_do_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    sf.write(tmp_path / "audio.wav", CLIP, 16_000)
    assert inference.main([str(tmp_path / "audio.wav"), "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert "interfaze-ai/diffusion-gemma-asr-small" in err
    assert "give --model with a folder" in err
    assert err.count("\n") == 1
