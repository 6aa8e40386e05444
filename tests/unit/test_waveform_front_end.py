"""Frames of the waveform in place of the audio encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_clips import tones
from small_models import TINY, small_model, small_processor

from canvas_asr.checkpoint import assemble, load_checkpoint, save_checkpoint
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.encoder import n_audio_tokens
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, WaveformFeatureExtractor, log_mel


def waveform_model(**fields: object) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    model = small_model(audio_front_end="waveform", projector_stride=1, **fields)
    return model, CanvasASRProcessor(WaveformFeatureExtractor(), small_processor().tokenizer)


def test_features_are_the_samples_40_ms_to_a_frame() -> None:
    samples = tones(1.0, 3)
    frames = log_mel(WaveformFeatureExtractor(), samples)
    assert frames.shape == (640, 25)
    np.testing.assert_array_equal(frames.T.ravel(), samples)
    assert log_mel(WaveformFeatureExtractor(), samples[:100]).shape == (640, 1)


@pytest.mark.parametrize("kind", ["stack_mlp", "conv"])
@torch.no_grad()
def test_frames_go_to_the_projector_and_the_audio_encoder_is_not_run(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = waveform_model(projector_kind=kind)
    monkeypatch.setattr(model, "audio_encoder", None)
    mel, n_mel = processor.features([tones(1.0, 1), tones(0.5, 2)])
    tokens, n_audio = model.audio_tokens(mel, n_mel)
    assert tokens.shape == (2, 25, 32)
    assert n_audio.tolist() == [25, 12] == n_audio_tokens(model.config, n_mel).tolist()
    expected, _ = model.projector(mel.transpose(1, 2), n_mel)
    torch.testing.assert_close(tokens, expected)


@torch.no_grad()
def test_such_a_model_is_saved_loaded_and_decodes(tmp_path: Path) -> None:
    model, processor = waveform_model()
    save_checkpoint(model, processor, tmp_path, whole=True)
    again, its_processor = load_checkpoint(tmp_path)
    assert isinstance(its_processor.feature_extractor, WaveformFeatureExtractor)
    mel, n_mel = its_processor.features([tones(0.8, 5)])
    results = [
        CanvasDecoder(m, p)(mel, n_mel, clip_keys=[0], steps=2)[0].ids
        for m, p in ((model, processor), (again, its_processor))
    ]
    assert results[0] == results[1]


def test_frozen_parts_can_be_smaller_than_what_learns(tmp_path: Path) -> None:
    save_checkpoint(small_model(), small_processor(), tmp_path, whole=True)
    parts = str(tmp_path / "backbone"), str(tmp_path / "audio_encoder")
    model, _ = assemble(*parts, TINY, {"audio_front_end": "waveform"}, dtype=torch.bfloat16)
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert kinds == {torch.float32}
    assert model.backbone.lm_head.weight.dtype == torch.bfloat16
