"""The frozen encoder's frames on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_clips import write_clips
from small_models import small_model, small_processor

from canvas_asr.encoder import encode_audio
from canvas_asr.errors import AudioError, DataError, RecipeError
from canvas_asr.manifest import Clip, read_manifest
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.training import feature_cache
from canvas_asr.training.adapter_data import AdapterCollator
from canvas_asr.training.adapter_options import AdapterOptions
from canvas_asr.training.feature_cache import FeatureCache
from canvas_asr.training.speech_data import SpeechDataset, clip_samples


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    return read_manifest(write_clips(tmp_path / "clips", 5))


@pytest.mark.parametrize("pad_to_30s", [False, True])
@torch.no_grad()
def test_it_gives_what_the_encoder_gives(clips: list[Clip], tmp_path: Path, pad_to_30s: bool) -> None:
    model, processor = small_model(pad_to_30s=pad_to_30s), small_processor()
    cache = FeatureCache(tmp_path / "cache", model, processor)
    assert cache.fill(clips, "cpu", batch_size=2) == 5
    for clip in clips:
        frames, n = encode_audio(
            model.audio_encoder, *processor.features([clip_samples(clip)]), pad_to_30s=pad_to_30s
        )
        found = cache(clip)
        assert found.shape == (32, int(n))
        np.testing.assert_allclose(found.T, frames[0], atol=0.02, rtol=0.01)  # bfloat16


def test_what_is_there_is_not_computed_again(
    clips: list[Clip], tmp_path: Path, model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    folder = tmp_path / "cache"
    assert FeatureCache(folder, model, processor).fill(clips[:2], "cpu") == 2
    (folder / "stray.partial").write_text("left by a kill")
    assert FeatureCache(folder, model, processor).fill(clips, "cpu") == 3
    # Known by content: a copy elsewhere is the same clip, another encoder's frames are others.
    shutil.copytree(clips[0].audio.parent, tmp_path / "moved")
    moved = read_manifest(tmp_path / "moved" / "manifest.jsonl")
    assert FeatureCache(folder, model, processor).fill(moved, "cpu") == 0
    assert FeatureCache(folder, small_model(seed=1), processor).fill(clips, "cpu") == 5
    assert FeatureCache(folder, small_model(pad_to_30s=True), processor).fill(clips[:1], "cpu") == 1


def test_clips_that_cannot_be_read_are_left_for_training_to_count(
    clips: list[Clip], tmp_path: Path, model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    clips[1].audio.write_bytes(b"no audio")
    clips[2].audio.unlink()
    cache = FeatureCache(tmp_path / "cache", model, processor)
    cache.fill(clips, "cpu")
    assert cache(clips[0]).shape[0] == 32
    for clip in clips[1:3]:
        with pytest.raises(AudioError, match=f"{clip.audio.name}: could not be read"):
            cache(clip)
    next(cache.folder.glob("*/*.safetensors")).write_bytes(b"damaged")
    damaged = 0
    for clip in (clips[0], *clips[3:]):
        try:
            cache(clip)
        except AudioError as error:
            damaged += "cannot be read; delete it" in str(error)
    assert damaged == 1


def test_a_full_disk_is_told_before_the_first_clip(
    clips: list[Clip],
    tmp_path: Path,
    model: CanvasASRModel,
    processor: CanvasASRProcessor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"the frames of 5 clips take .* GB and .* GB are free"):
        FeatureCache(tmp_path / "cache", model, processor).fill(clips, "cpu")


@torch.no_grad()
def test_audio_tokens_are_those_of_the_features(clips: list[Clip], tmp_path: Path) -> None:
    model, processor = small_model(), small_processor()
    cache = FeatureCache(tmp_path / "cache", model, processor)
    cache.fill(clips, "cpu")
    options = AdapterOptions(Path(), "", "", (), ())
    cached = AdapterOptions(Path(), "", "", (), (), feature_cache="x")
    batches = []
    for some, features in ((options, None), (cached, cache)):
        dataset = SpeechDataset(clips, processor.feature_extractor, features=features)
        batches.append(AdapterCollator(processor, model.config, some)([dataset[(0, i)] for i in range(5)]))
    assert torch.equal(batches[0]["prompt_ids"], batches[1]["prompt_ids"])
    tokens, n = model.audio_tokens(batches[0]["mel"], batches[0]["n_mel"])
    model.takes_frames = True
    again, n_again = model.audio_tokens(batches[1]["mel"], batches[1]["n_mel"])
    assert torch.equal(n, n_again)
    torch.testing.assert_close(again, tokens, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"train_audio_encoder": True}, "what it gives changes at every step"),
        ({"augment": True}, "every epoch hears another waveform"),
        ({"streaming": True}, "a stream has no clips to come back to"),
        ({"model": {"audio_front_end": "waveform"}}, "no encoder is run"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        AdapterOptions(Path(), "", "", (), (), feature_cache="x", **options)  # type: ignore[arg-type]
