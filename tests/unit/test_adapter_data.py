"""The data of the adapter's stage in a run: bad input before the first step, feature cache, streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hub_data import write_fleurs
from made_up_clips import write_clips
from small_models import TINY, small_model, small_processor

from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.configuration import load_configuration
from canvas_asr.errors import CanvasASRError, CheckpointError, DataError, RecipeError
from canvas_asr.training import adapter, adapter_data
from canvas_asr.training.adapter import run
from canvas_asr.training.judging import Judgement
from canvas_asr.training.recipe import Recipe, TrainingOptions


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    save_checkpoint(small_model(), small_processor(), folder, whole=True)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), 6)


@pytest.fixture
def recipe(parts: Path, manifest: Path, tmp_path: Path) -> Recipe:
    options = {
        "tokenizer": str(TINY),
        "backbone": str(parts / "backbone"),
        "audio_encoder": str(parts / "audio_encoder"),
        "train": [{"path": str(manifest)}],
        "dev": [{"path": str(manifest)}],
        "model": {"projector_width": 24, "lora_rank": 4, "canvas_length": 24},
        "canvas_choices": [],
        "n_dev": 2,
    }
    training = TrainingOptions(
        2, 3, 0.01, warmup_steps=0, eval_steps=2, save_steps=2, log_steps=1, n_workers=0
    )
    return Recipe("adapter", tmp_path / "run", training, options)


def losses_of(recipe: Recipe) -> list[dict[str, Any]]:
    lines = (recipe.output_dir / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def test_clips_that_cannot_be_used_are_told_before_the_first_step(
    recipe: Recipe, manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["audio"] = str(manifest.parent / line["audio"])
    lines[0]["text"] = "good morning my friend " * 3
    lines[1]["text"] = "guten tag " * 200
    lines[2]["duration"] = 100.0
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    recipe.options["train"] = [{"path": str(path)}]
    run(recipe)
    said = capfd.readouterr().err
    reasons = "1 more tokens than CTC frames, 1 text longer than the canvas, 1 longer than max_clip_s"
    assert f"left out: {reasons}" in said
    (report,) = json.loads((recipe.output_dir / "data.json").read_text())
    assert report["clips"] == 3
    assert [line["infeasible"] for line in losses_of(recipe)] == [0.0, 0.0]
    recipe.options["ctc_weight"] = 0.0
    recipe.options["train"] = [{"path": str(path), "languages": ["en"]}]
    run(Recipe("adapter", tmp_path / "no_ctc", recipe.training, recipe.options))
    assert "bad.jsonl: 1 clips" in capfd.readouterr().err
    folders = (recipe.output_dir, tmp_path / "no_ctc")
    assert [load_configuration(folder / "checkpoint").has_draft for folder in folders] == [True, False]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train": [{"path": "x", "wieght": 2}]}, RecipeError, r"options\.train\[0\]: unknown key 'wieght'"),
        ({"dev": []}, RecipeError, r"options\.dev is empty"),
        ({"train": [{"path": "none.jsonl"}]}, DataError, r"none\.jsonl: cannot read the manifest"),
        ({"max_clip_s": 40.0}, RecipeError, r"max_clip_s is 40; this audio encoder holds 30 s"),
        ({"dtype": "float16"}, RecipeError, r"dtype is 'float16'"),
        ({"dtype": "bfloat16", "train_backbone": True}, RecipeError, r"what is trained needs float32"),
    ],
)
def test_bad_data_settings_are_named(
    recipe: Recipe, changes: dict[str, Any], error: type[CanvasASRError], message: str
) -> None:
    recipe.options.update(changes)
    with pytest.raises(error, match=message):
        run(recipe)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projector_stride": 4}, r"its projector_stride is 4, and 2 in this recipe"),
        ({"lora_rank": 8}, r"its lora_rank is 8, and 4 in this recipe"),
        ({"projector_kind": "conv"}, r"its projector_kind is 'conv', and 'stack_mlp'"),
        ({"audio_front_end": "waveform"}, r"its audio_front_end is 'waveform', and 'whisper'"),
        ({"blank_token_id": 9}, r"its blank_token_id is 9, and 6"),
    ],
)
def test_a_warm_start_from_another_geometry_is_refused_before_data_is_read(
    recipe: Recipe, tmp_path: Path, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "read_data", lambda *_: pytest.fail("data was read"))
    other = small_model(**{"projector_width": 24, "lora_rank": 4, **fields})
    save_checkpoint(other, small_processor(), tmp_path / "other")
    recipe.options["init"] = str(tmp_path / "other")
    with pytest.raises(CheckpointError, match=message):
        run(recipe)


def test_clips_to_judge_by_are_read_before_the_first_step(
    recipe: Recipe, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "StageTrainer", lambda *_, **__: pytest.fail("training has begun"))
    clips = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for clip in clips:
        clip["audio"] = str(manifest.parent / clip["audio"])
    (tmp_path / "text.wav").write_text("no audio")
    clips[1]["audio"] = str(tmp_path / "text.wav")
    path = tmp_path / "dev.jsonl"
    path.write_text("\n".join(map(json.dumps, clips)), encoding="utf-8")
    recipe.options["dev"] = [{"path": str(path)}]
    with pytest.raises(DataError, match=r"1 of the 2 clips to judge by cannot be read: .*text\.wav"):
        run(recipe)


def test_with_a_feature_cache_the_encoder_runs_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.options["spec_augment"] = {"n_time": 0, "n_frequency": 0}
    run(recipe)
    plain = losses_of(recipe)
    calls: list[int] = []
    encode_audio = adapter_data.FeatureCache.fill

    def count(self: Any, *args: Any, **kwargs: Any) -> int:
        calls.append(encode_audio(self, *args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(adapter_data.FeatureCache, "fill", count)
    monkeypatch.setattr(
        "canvas_asr.modeling.encode_audio", lambda *_, **__: pytest.fail("the encoder was run")
    )
    recipe.options["feature_cache"] = str(recipe.output_dir.parent / "cache")
    for name in ("first", "second"):
        again = Recipe("adapter", recipe.output_dir.parent / name, recipe.training, recipe.options)
        run(again)
        for line, expected in zip(losses_of(again), plain, strict=True):
            assert line["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert calls == [6, 0]


def test_a_run_on_a_stream(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(adapter, "judge", lambda decoder, dataset: Judgement({}))
    path = str(write_fleurs(tmp_path / "fleurs"))
    recipe.options["train"] = [{"set": "fleurs", "path": path, "languages": ["de", "zh"], "split": "train"}]
    recipe.options.update(streaming=True, shuffle_buffer=4, min_clip_s=0.7)
    run(recipe)
    assert len(losses_of(recipe)) == 2
    assert "passed over as it comes" in (said := capfd.readouterr().err)
    lines = [json.loads(line) for line in (recipe.output_dir / "log.jsonl").read_text().splitlines()]
    (told,) = [line["passed_over"] for line in lines if "passed_over" in line]
    assert set(told) == {"fleurs train: shorter than min_clip_s"}
    assert f"streams passed over {sum(told.values())} clips (fleurs train: shorter" in said
    assert not list((tmp_path / "cache").rglob("*.arrow"))
