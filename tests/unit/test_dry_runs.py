"""Every recipe for a GPU, run as it is on small parts and small copies of its data, in the hub's layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hub_data import write_common_voice, write_fleurs, write_librispeech, write_voxpopuli
from hub_layout import write_backbone, write_whisper
from safetensors.torch import load_file
from small_models import TINY

from canvas_asr.configuration import load_configuration
from canvas_asr.training import adapter
from canvas_asr.training.judging import Judgement
from canvas_asr.training.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {
    "training.max_steps": 1,
    "training.batch_size": 4,
    "training.accumulation_steps": 2,
    "training.eval_steps": 1,
    "training.save_steps": 1,
    "training.log_steps": 1,
    "training.warmup_steps": 0,
    "training.n_workers": 0,
    "options.tokenizer": str(TINY),
    "options.n_dev": 2,
    "options.model.projector_width": 32,
    "options.whole_checkpoint": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders by what they stand in for."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        datasets.disable_progress_bars()
        yield {
            "librispeech": write_librispeech(folder / "librispeech"),
            "fleurs": write_fleurs(folder / "fleurs"),
            "voxpopuli": write_voxpopuli(folder / "voxpopuli", 8),
            "common_voice": write_common_voice(folder / "common_voice"),
            "backbone": write_backbone(folder / "backbone"),
            "whisper-small": write_whisper(folder / "whisper-small"),
            "whisper-large-v3": write_whisper(folder / "whisper-large-v3", num_mel_bins=128),
        }


@pytest.fixture(scope="module")
def dry_run(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run a recipe once, those that it starts from first; gives the folder of the run."""
    runs = tmp_path_factory.mktemp("runs")
    done: dict[str, Path] = {}

    def small(recipe: Recipe) -> Recipe:
        options = dict(recipe.options)
        options["backbone"] = str(data["backbone"])
        options["audio_encoder"] = str(data[options["audio_encoder"].removeprefix("openai/")])
        for key in ("train", "dev"):
            options[key] = [{**entry, "path": str(data[entry["set"]])} for entry in options[key]]
            for entry in options[key]:
                if entry["set"] == "common_voice":
                    entry["languages"] = [code for code in entry["languages"] if code in ("de", "zh")]
        if "init" in options:
            earlier = Path(options["init"]).parent.relative_to("runs")
            options["init"] = str(run_once(str(earlier)) / "checkpoint")
        return dataclasses.replace(recipe, output_dir=runs / recipe.output_dir, options=options)

    def run_once(name: str) -> Path:
        if name not in done:
            recipe = small(load_recipe(RECIPES / f"{name}.yaml", SMALL))
            with pytest.MonkeyPatch.context() as patch:
                if not name.endswith("1-english"):  # decoding is as slow as all the rest, and the same
                    patch.setattr(adapter, "judge", lambda decoder, dataset: Judgement({}))
                adapter.run(recipe)
            done[name] = recipe.output_dir
        return done[name]

    return run_once


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["1-english", "2-six-languages", "3-conversational"])
def test_the_released_system_stage_by_stage(name: str, dry_run: Callable[[str], Path]) -> None:
    folder = dry_run(f"diffusion-gemma-asr-small/{name}")
    config = load_configuration(folder / "checkpoint")
    assert (config.projector_kind, config.projector_stride, config.lora_rank) == ("conv", 8, 16)
    assert not (folder / "checkpoint" / "backbone").exists()
    (step,) = [line for line in log_of(folder) if "loss" in line]
    assert {"ctc", "diffusion", "autoregressive"} <= set(step)
    assert any("eval_noise8" in line for line in log_of(folder)) == (name == "1-english")
    sources = [line["source"] for line in json.loads((folder / "data.json").read_text())]
    expected = {"1": ["librispeech clean train.100"], "2": ["fleurs train"]}
    assert sources == expected.get(name[0], ["fleurs train", "voxpopuli train[:13%]"])


def test_a_warm_start_begins_where_the_stage_before_ended(dry_run: Callable[[str], Path]) -> None:
    """AdamW moves a weight by about the learning rate in its first step, and a new projector is far away."""
    first, second = (
        load_file(dry_run(f"diffusion-gemma-asr-small/{name}") / "checkpoint" / "model.safetensors")
        for name in ("1-english", "2-six-languages")
    )
    distances = [(first[name] - second[name]).abs().max() for name in first if name.startswith("projector")]
    assert 0 < max(distances) < 1e-3


def test_the_ablations(dry_run: Callable[[str], Path]) -> None:
    (step,) = [line for line in log_of(dry_run("diffusion-gemma-asr-small/no-ctc")) if "loss" in line]
    assert "ctc" not in step
    folder = dry_run("diffusion-gemma-asr-small/raw-waveform")
    config = load_configuration(folder / "checkpoint")
    assert (config.reads_waveform, config.d_audio, config.projector_stride) == (True, 640, 1)
    (step,) = [line for line in log_of(folder) if "loss" in line]
    assert step["ctc"] > 0


@pytest.mark.parametrize("name", ["1-english", "2-six-languages", "3-common-voice"])
def test_our_own_stage_by_stage(name: str, dry_run: Callable[[str], Path]) -> None:
    folder = dry_run(f"canvas-asr-large-v3/{name}")
    config = load_configuration(folder / "checkpoint")
    assert (config.projector_kind, config.projector_stride) == ("stack_mlp", 4)
    assert config.audio_encoder_config.num_mel_bins == 128
    lines = json.loads((folder / "data.json").read_text())
    if name == "3-common-voice":
        (fleurs,) = [line for line in lines if line["source"] == "fleurs train"]
        assert [fleurs["languages"][code]["weight"] for code in ("en", "hi")] == [2.0, 6.0]
        assert [line["licence"] for line in lines if line["source"] == "common_voice train"] == ["CC0", "CC0"]


def test_every_recipe_for_a_gpu_has_its_dry_run() -> None:
    folders = ("diffusion-gemma-asr-small", "canvas-asr-large-v3")
    found = {path.stem for folder in folders for path in (RECIPES / folder).glob("*.yaml")}
    stages = {"1-english", "2-six-languages", "3-conversational", "3-common-voice"}
    assert found == {*stages, "no-ctc", "raw-waveform"}
