"""Stage (c) as a run: what it leaves, how it is resumed, and settings that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_clips import tones, write_clips
from safetensors.torch import load_file
from small_models import TINY

from canvas_asr.checkpoint import load_checkpoint, save_checkpoint
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.errors import CheckpointError, DataError, RecipeError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.training.adapter import run
from canvas_asr.training.recipe import Recipe, TrainingOptions


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips, of which the first says nothing."""
    return write_clips(tmp_path_factory.mktemp("clips"), 7, with_silence=True)


@pytest.fixture(scope="module")
def parts(
    model: CanvasASRModel, processor: CanvasASRProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """``backbone/``, ``audio_encoder/`` and its features, as stages (a) and (b) leave them."""
    folder = tmp_path_factory.mktemp("parts")
    save_checkpoint(model, processor, folder, whole=True)
    return folder


def recipe_of(folder: Path, parts: Path, manifest: Path, *, n_steps: int = 4, **options: Any) -> Recipe:
    settings: dict[str, Any] = {
        "tokenizer": str(TINY),
        "backbone": str(parts / "backbone"),
        "audio_encoder": str(parts / "audio_encoder"),
        "train": [{"path": str(manifest)}],
        "dev": [{"path": str(manifest)}],
        "model": {"projector_width": 24, "lora_rank": 4, "canvas_length": 24},
        "objective": {"corruption": {"uniform": 0.3, "draft": 0.3, "predictions": 0.2, "edits": 0.2}},
        "augment": True,
        "n_dev": 3,
        **options,
    }
    training = TrainingOptions(
        n_steps, 3, 0.01, warmup_steps=1, eval_steps=n_steps, save_steps=2, log_steps=1, n_workers=0
    )
    return Recipe("adapter", folder, training, settings)


@pytest.fixture(scope="module")
def trained(parts: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    run(recipe_of(folder, parts, manifest))
    return folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_whole_checkpoint_that_decodes(trained: Path) -> None:
    model, processor = load_checkpoint(trained / "checkpoint")
    assert model.config.backbone == "backbone"
    assert (model.config.projector_width, model.config.lora_rank, model.config.canvas_length) == (24, 4, 24)
    state = load_file(trained / "trained.safetensors")
    assert torch.equal(model.projector.out.weight, state["model.projector.out.weight"])
    mel, n_mel = processor.features([tones(0.9, 3), tones(0.4, 4)])
    decoder = CanvasDecoder(model, processor)
    for options in ({"steps": 2}, {"steps": 1, "init": "draft", "language": "hi"}):
        results = decoder(mel, n_mel, clip_keys=[0, 1], **options)
        assert [result.passes for result in results] == [options["steps"]] * 2
        assert all(result.language in model.config.language_tags for result in results)


def test_a_run_logs_its_losses_and_judges_by_transcripts(trained: Path) -> None:
    steps = [line for line in log_of(trained) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {"ctc", "infeasible", "diffusion", "autoregressive", "accuracy"} <= set(steps[0])
    (judged,) = [line for line in log_of(trained) if "eval_noise8" in line]
    assert judged["step"] == 4
    modes = {"draft", "noise1", "noise8", "draft1", "shuffled", "gap", "language_accuracy"}
    assert {f"eval_{mode}" for mode in modes} <= set(judged)


def test_the_frozen_parts_of_the_checkpoint_are_those_it_began_with(trained: Path, parts: Path) -> None:
    for name in ("backbone", "audio_encoder"):
        before, after = (load_file(f / name / "model.safetensors") for f in (parts, trained / "checkpoint"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_resumed_run_equals_an_unbroken_one(
    trained: Path, parts: Path, manifest: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2")
    run(recipe_of(tmp_path, parts, manifest))
    expected = {line["step"]: line["loss"] for line in log_of(trained) if "loss" in line and line["step"] > 2}
    assert {line["step"]: line["loss"] for line in log_of(tmp_path) if "loss" in line} == expected
    whole, resumed = (load_file(f / "checkpoint" / "model.safetensors") for f in (trained, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_joint_fine_tuning_goes_on_from_an_adapter_and_is_saved(
    trained: Path, parts: Path, manifest: Path, tmp_path: Path
) -> None:
    run(
        recipe_of(
            tmp_path,
            parts,
            manifest,
            n_steps=2,
            init=str(trained / "trained.safetensors"),
            train_audio_encoder=True,
            train_backbone=True,
        )
    )
    model, _ = load_checkpoint(tmp_path / "checkpoint")
    for name in ("backbone", "audio_encoder"):
        before, after = (load_file(f / name / "model.safetensors") for f in (parts, tmp_path / "checkpoint"))
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed
        assert not any("vision" in key or "router" in key for key in changed)
    state = load_file(tmp_path / "trained.safetensors")
    sides = model.backbone.model.decoder, model.backbone.model.encoder.language_model
    weights = [side.layers[0].self_attn.q_proj.base_layer.weight for side in sides]
    assert weights[0] is weights[1]
    (name,) = [n for n in state if n.endswith("layers.0.self_attn.q_proj.base_layer.weight")]
    assert torch.equal(weights[0], state[name])
    adapters = [load_file(f / "checkpoint" / "model.safetensors") for f in (trained, tmp_path)]
    # Two steps, the first of them with learning rate 0, from where the adapter was.
    distance = (adapters[0]["projector.out.weight"] - adapters[1]["projector.out.weight"]).abs().max()
    assert 0 < distance < 0.02


def test_bad_settings_are_named(parts: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"options\.augmentation: unknown key 'noise'"):
        run(recipe_of(tmp_path, parts, manifest, augmentation={"noise": 1}))
    with pytest.raises(DataError, match=r"no clips of 5\.0 to 12\.0 s"):
        run(recipe_of(tmp_path, parts, manifest, min_clip_s=5))
    with pytest.raises(CheckpointError, match="nowhere"):
        run(recipe_of(tmp_path, parts, manifest, backbone=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        run(recipe_of(tmp_path, parts, manifest, init=str(tmp_path / "none.safetensors")))
    with pytest.raises(RecipeError, match=r"options\.model: projector_kind is 'linear'"):
        run(recipe_of(tmp_path, parts, manifest, model={"projector_kind": "linear"}))
    with pytest.raises(RecipeError, match=r"options\.model: unknown key 'projector_widht'"):
        run(recipe_of(tmp_path, parts, manifest, model={"projector_widht": 3}))
