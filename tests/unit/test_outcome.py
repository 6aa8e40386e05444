"""What a training run leaves: a checkpoint that every way of loading takes, its card, and a record."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_layout import put_in_cache, write_backbone, write_whisper
from made_up_clips import tones, write_clips
from small_models import TINY, small_model, small_processor

import canvas_asr
from canvas_asr.checkpoint import assemble, save_checkpoint
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.publishing import pack
from canvas_asr.training.adapter import run
from canvas_asr.training.adapter_data import Sources
from canvas_asr.training.adapter_options import AdapterOptions
from canvas_asr.training.outcome import leave_checkpoint
from canvas_asr.training.recipe import Recipe, TrainingOptions, from_mapping, load_recipe

TRAINING = TrainingOptions(
    2, 3, 0.01, warmup_steps=1, eval_steps=2, save_steps=2, log_steps=1, n_workers=0, report_to=()
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on small parts in folders."""
    root = tmp_path_factory.mktemp("outcome")
    save_checkpoint(small_model(), small_processor(), root / "parts", whole=True)
    manifest = write_clips(root / "clips", 6)
    options: dict[str, Any] = {
        "tokenizer": str(TINY),
        "backbone": str(root / "parts" / "backbone"),
        "audio_encoder": str(root / "parts" / "audio_encoder"),
        "train": [{"path": str(manifest)}],
        "dev": [{"path": str(manifest)}],
        "model": {"projector_width": 24, "lora_rank": 4, "canvas_length": 24, "max_canvas_length": 32},
        "n_dev": 3,
    }
    run(Recipe("adapter", root / "run", TRAINING, options))
    return root / "run"


def test_the_checkpoint_loads_in_every_way(trained: Path) -> None:
    folder = trained / "checkpoint"
    asr = canvas_asr.load(folder)
    assert asr.transcribe((tones(0.7, 1), 16_000), steps=1).passes == 1
    model = CanvasASRModel.from_pretrained(folder)
    processor = CanvasASRProcessor.from_pretrained(folder)
    assert processor.text_ids("Good morning.")
    assert torch.equal(model.projector.out.weight, asr.model.projector.out.weight)
    assert model.config.lora_rank == 4


def test_it_can_be_shared_as_it_is(trained: Path) -> None:
    shipment = pack(trained / "checkpoint")
    wanted = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"}
    assert wanted < shipment.files.keys()
    assert not shipment.left_out
    assert not list((trained / "checkpoint").rglob("*.bin"))


def test_the_card_tells_data_and_training(trained: Path) -> None:
    card = (trained / "checkpoint" / "README.md").read_text()
    data = json.loads((trained / "data.json").read_text())
    assert f"{data[0]['clips']}" in card
    assert "0.00 hours in all: " in card
    assert "2 steps of 3 clips were planned; adamw, learning rate 0.01 at its peak" in card
    assert f"torch {torch.__version__}" in card
    assert "On the development clips at step 2" in card
    assert "| the CTC draft alone |" in card
    record = json.loads((trained / "training.json").read_text())
    assert record["recipe"]["training"]["batch_size"] == 3
    assert record["machine"]["n_cpus"] >= 1


def test_the_recipe_in_the_docs_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (tmp_path / "my.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    recipe = load_recipe(tmp_path / "my.yaml")
    options = from_mapping(AdapterOptions, recipe.options, "options")
    assert [source.name for source in Sources.of(options).train] == [
        "data/radio/manifest.jsonl",
        "fleurs train",
    ]
    assert set(options.model) <= set(inspect.signature(CanvasASRConfig.__init__).parameters)


def test_an_adapter_of_parts_on_the_hub_is_small_and_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    parts = write_backbone(tmp_path / "backbone"), write_whisper(tmp_path / "whisper")
    for name, part in zip(("some/backbone", "some/encoder"), parts, strict=True):
        put_in_cache(cache, name, part)
    model, processor = assemble(str(parts[0]), str(parts[1]), TINY, {"canvas_length": 24})
    model.config.backbone, model.config.audio_encoder = "some/backbone", "some/encoder"
    recipe = Recipe("adapter", tmp_path / "run", TRAINING, {})
    folder = leave_checkpoint(recipe, model, processor, whole=False)
    assert not any(path.is_dir() for path in folder.iterdir())
    assert "base_model:\n- some/backbone\n- some/encoder" in (folder / "README.md").read_text()
    again = CanvasASRModel.from_pretrained(folder, cache_dir=str(cache))
    assert torch.equal(again.projector.out.weight, model.projector.out.weight)
    (folder / "README.md").write_text("mine")
    leave_checkpoint(recipe, model, processor, whole=False)
    assert (folder / "README.md").read_text() == "mine"
    assert "was written by hand and stays" in capsys.readouterr().err
