"""The model card: what it tells of a training run and of evaluations, and which card it replaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import small_model

from canvas_asr.card import MADE_BY, CardFacts, model_card, write_model_card
from canvas_asr.cli import main
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.errors import DataError, OptionError
from canvas_asr.evaluation.modes import parse_setting

TINY_EVALUATIONS = Path(__file__).parents[2] / "docs" / "tiny"


@pytest.fixture(scope="module")
def config() -> CanvasASRConfig:
    config = small_model().config
    config.backbone, config.audio_encoder = "some/backbone", "some/encoder"
    return config


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a run leaves, resumed after its second line."""
    sources = [
        {
            "source": "librispeech clean train.100",
            "licence": "CC BY 4.0",
            "clips": 28539,
            "hours": 100.591,
            "languages": {"en": {"clips": 28539, "hours": 100.591, "weight": 1.0}},
            "left_out": {"longer than max_clip_s": 12},
        },
        {
            "source": "talks|more.jsonl",
            "licence": "",
            "clips": 100,
            "hours": 1.5,
            "languages": {"de": {"hours": 1.0}, "en": {"hours": 0.5}},
            "left_out": {},
        },
    ]
    log: list[dict[str, Any]] = [
        {"step": 20, "wall_s": 1800.0, "loss": 9.1, "ctc": 3.0},
        {"step": 40, "wall_s": 3600.0, "loss": 8.1, "ctc": 2.5},
        {"step": 60, "wall_s": 1800.0, "loss": 7.5, "ctc": 2.0, "diffusion": 3.0},
        {"step": 60, "wall_s": 3600.0, "eval_noise8": 0.7, "eval_draft": 0.6, "eval_shuffled": 1.1},
    ]
    training = {
        "recipe": {
            "training": {
                "max_steps": 17840,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 1.5e-4,
                "schedule": "cosine",
                "seed": 0,
            }
        },
        "machine": {"cpu": "Some CPU", "n_cpus": 16, "n_threads": 8, "gpu": "Some GPU"},
        "versions": {"torch": "2.13"},
        "n_processes": 2,
    }
    (tmp_path / "data.json").write_text(json.dumps(sources))
    (tmp_path / "training.json").write_text(json.dumps(training))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return tmp_path


def result(mode: str, rate: float | None, **changes: Any) -> dict[str, Any]:
    counts = {"rate": rate, "substitutions": 1, "deletions": 0, "insertions": 0, "hits": 9}
    return {
        "testset": "talks",
        "language": "hi",
        "speakers": "unseen",
        "mode": parse_setting(mode).to_dict(),
        "scores": {
            "n_clips": 7,
            "primary_metric": "cer",
            "primary": rate,
            "repetition_rate": 0.0,
            **{
                f"{way}_{unit}": {**counts, "rate": rate if way == "whisper" and unit == "cer" else 0.5}
                for way in ("raw", "whisper", "marks", "leaderboard")
                for unit in ("wer", "cer")
            },
        },
        "mean_passes": 8.0,
        "rtfx": 12.34,
        **changes,
    }


def evaluation(*results: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "canvas-asr evaluate adapter --set talks",
        "date": "2026-11-21T10:00:00+00:00",
        "batch_size": 16,
        "seed": 3,
        "machine": {"cpu": "Some CPU", "n_cpus": 2, "n_threads": 1, "gpu": None},
        "versions": {"torch": "2.13"},
        "results": list(results),
    }


def head_of(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---")[1])
    assert isinstance(found, dict)
    return found


def cells_of(card: str, *starts: str) -> list[str]:
    (line,) = [line for line in card.splitlines() if line.startswith("| " + " | ".join(starts) + " |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_data_is_told_by_source_language_and_licence(config: CanvasASRConfig, run_folder: Path) -> None:
    card = model_card(config, CardFacts.read(run_folder))
    assert "102.09 hours in all: en 101.09, de 1.00." in card
    assert "| librispeech clean train.100 | CC BY 4.0 | en 100.59 | 28,539 | 100.59 |" in card
    assert "| talks\\|more.jsonl | not stated | de 1.00, en 0.50 | 100 | 1.50 |" in card
    assert "Clips left out: 12 longer than max_clip_s." in card


def test_training_is_told_by_its_recipe_machine_and_log(config: CanvasASRConfig, run_folder: Path) -> None:
    card = model_card(config, CardFacts.read(run_folder))
    assert "17,840 steps of 16 clips were planned; adamw, learning rate 0.00015 at its peak" in card
    assert "Trained on Some GPU, 16 CPUs, 8 threads, 2 processes, with torch 2.13." in card
    # An hour before it was stopped, and one after.
    assert "60 steps in 2.00 hours by the clock; last logged: loss 7.500, ctc 2.000, diffusion 3.000." in card
    assert "| the CTC draft alone | 60.0 |\n| 8 passes, with another clip's audio | 110.0 |" in card
    assert "Not evaluated" in card


def test_scores_are_told_with_normaliser_passes_and_hardware(config: CanvasASRConfig) -> None:
    told = evaluation(result("draft", 0.25), result("noise-8", 0.125), result("shuffled-noise-8", 1.5))
    card = model_card(config, CardFacts(evaluations=[told]))
    assert "Measured 2026-11-21 on Some CPU, 2 CPUs, 1 threads, batch 16, seed 3" in card
    assert cells_of(card, "talks", "hi", "unseen", "CER")[4:] == ["7", "25.0", "12.5", "150.0"]
    header = cells_of(card, "test set", "language", "speakers", "read by")
    row = dict(zip(header, cells_of(card, "talks", "hi", "unseen", "noise-8"), strict=True))
    assert row["CER Whisper"] == "12.5"
    assert (row["passes"], row["RTFx"], row["WER leaderboard"], row["CER marks kept"]) == (
        "8.0",
        "12.3",
        "50.0",
        "50.0",
    )
    for words in ("drops Hindi vowel signs", "Open ASR Leaderboard", "as written"):
        assert words in card
    (index,) = head_of(card)["model-index"]
    (entry,) = index["results"]
    assert entry["metrics"] == [{"type": "cer", "value": 12.5, "name": "CER, Whisper-normalised, noise-8"}]
    assert entry["dataset"]["config"] == "hi"


def test_an_undefined_rate_and_an_unmeasured_speed_are_dashes(config: CanvasASRConfig) -> None:
    card = model_card(config, CardFacts(evaluations=[evaluation(result("noise-8", None, rtfx=None))]))
    assert cells_of(card, "talks", "hi", "unseen", "CER")[5:] == ["–"]
    assert cells_of(card, "talks", "hi", "unseen", "noise-8")[-1] == "–"
    assert "model-index" not in head_of(card)


def test_models_and_conditions_of_one_evaluation_are_kept_apart(config: CanvasASRConfig) -> None:
    several = evaluation(
        result("noise-8", 0.1, model="adapter"),
        result("noise-8", 0.2, model="whisper-small"),
        result("noise-8", 0.3, model="adapter", condition="noise 10 dB"),
    )
    card = model_card(config, CardFacts(evaluations=[several]))
    header = cells_of(card, "test set", "language", "speakers", "unit")
    assert header[5:] == ["adapter noise-8", "whisper-small noise-8", "adapter noise-8 (noise 10 dB)"]
    assert cells_of(card, "talks", "hi", "unseen", "CER")[5:] == ["10.0", "20.0", "30.0"]
    assert "model-index" not in head_of(card)  # which of the two the card is of is not told


@pytest.mark.parametrize("name", ["recorded", "synthetic"])
def test_the_evaluations_of_tiny_can_be_told(config: CanvasASRConfig, name: str) -> None:
    path = TINY_EVALUATIONS / f"{name}.json"
    card = model_card(config, CardFacts.read(evaluations=[path]))
    results = json.loads(path.read_text())["results"]
    for found in results:
        cells_of(card, found["testset"], found["language"], found["speakers"], found["mode"]["name"])
    assert len(head_of(card)["model-index"][0]["results"]) == len(
        {(found["testset"], found["language"]) for found in results}
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("e.json", "{", "cannot be read as JSON"),
        ("e.json", "[]", "no object"),
        ("e.json", '{"n": 1}', "no evaluation.json of canvas-asr evaluate: it has no 'results'"),
        ("data.json", "{}", "no list"),
        ("log.jsonl", '{"step": 1}\n', "log.jsonl:1: not a line of a training log"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        CardFacts.read(tmp_path, [tmp_path / name] if name == "e.json" else [])


def test_only_a_card_of_ours_is_replaced(config: CanvasASRConfig, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    write_model_card(tmp_path, config)
    assert MADE_BY in card.read_text()
    told = CardFacts(evaluations=[evaluation(result("noise-8", 0.125))])
    write_model_card(tmp_path, config, told)
    assert "12.5" in card.read_text()
    write_model_card(tmp_path, config)  # saved again, it keeps what is told
    assert "12.5" in card.read_text()
    card.write_text("mine")
    with pytest.raises(OptionError, match="was not made by canvas-asr; give --overwrite"):
        write_model_card(tmp_path, config, told)
    assert card.read_text() == "mine"
    write_model_card(tmp_path, config, told, overwrite=True)
    assert "12.5" in card.read_text()


def test_the_command_finds_the_run_of_a_checkpoint(
    config: CanvasASRConfig, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder / "checkpoint"
    config.save_pretrained(folder)
    assert main(["card", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{folder / 'README.md'}\n"
    assert "does not state scores (give --evaluation)" in said.err
    assert "102.09 hours in all" in (folder / "README.md").read_text()
    told = run_folder / "evaluation.json"
    told.write_text(json.dumps(evaluation(result("noise-8", 0.125))))
    assert main(["card", str(folder), "--evaluation", str(told)]) == 0
    assert capsys.readouterr().err == ""
    assert "12.5" in (folder / "README.md").read_text()
    assert main(["card", str(folder), "--run", str(folder / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
