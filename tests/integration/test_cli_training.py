"""The commands that make things: train and synth, what they hand on and how they fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import soundfile as sf

from canvas_asr import cli
from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.synthesis import espeak
from canvas_asr.training import text as text_stage
from canvas_asr.training.recipe import Recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "text.yaml"
    path.write_text(
        "stage: text\noutput_dir: runs/text\n"
        "training: {max_steps: 10, batch_size: 4, learning_rate: 0.1}\noptions: {n_dev: 3}\n"
    )
    return path


def test_train_runs_the_stage_of_the_recipe_with_its_changes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Recipe] = []
    monkeypatch.setattr(text_stage, "run", runs.append)
    changes = ("training.max_steps=20", "training.learning_rate=1e-3", "options.languages=[en, de]")
    changes += ("training.bf16=false", "output_dir=runs/other", "options.objective.tail_weight=0.5")
    assert cli.main(["train", str(recipe), *(part for change in changes for part in ("--set", change))]) == 0
    (run,) = runs
    assert (run.stage, str(run.output_dir)) == ("text", "runs/other")
    assert (run.training.max_steps, run.training.batch_size, run.training.bf16) == (20, 4, False)
    assert run.training.learning_rate == 0.001
    assert run.options == {"n_dev": 3, "languages": ["en", "de"], "objective": {"tail_weight": 0.5}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.max_steps=0"], "training.max_steps is 0; it must be at least 1."),
        (["--set", "training.steps=5"], "unknown key 'steps'"),
        (["--set", "training.max_steps=many"], "key 'max_steps' has value 'many'"),
        (["--set", "training.max_steps"], "--set training.max_steps: give key=value"),
        (["--set", "training.max_steps=[1"], "--set training.max_steps=[1: the value is not valid YAML."),
        (["--set", "stage=sleep"], "stage is 'sleep'; choose one of"),
    ],
)
def test_a_bad_recipe_is_one_line(
    recipe: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(recipe), *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("canvas-asr: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "no/such.yaml"]) == 1
    assert "canvas-asr: error: no/such.yaml: no such recipe" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "canvas_asr.training.recipe")
    assert cli.main(["train", str(recipe)]) == 1
    assert capsys.readouterr().err == (
        "canvas-asr: error: this needs yaml; install it with: pip install 'canvas-asr[train,eval]'\n"
    )


def test_synth_writes_clips_and_their_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not espeak.available():
        pytest.skip("espeak-ng is not installed")
    (tmp_path / "de.txt").write_text("Guten Morgen.\nGute Nacht.\n", encoding="utf-8")
    out = tmp_path / "speech"
    command = ["synth", str(out), "--text", f"de={tmp_path / 'de.txt'}", "--n", "3", "--recorded-share", "0"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.startswith(f"{out / 'manifest.jsonl'}: 3 clips, ")
    entries = [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert {entry["text"] for entry in entries} == {"Guten Morgen.", "Gute Nacht."}
    assert all(sf.info(out / entry["audio"]).samplerate == SAMPLE_RATE_HZ for entry in entries)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "de"], "--text de: give LANGUAGE=FILE"),
        (["--text", "de=missing.txt", "--n", "1"], "missing.txt: cannot be read as sentences"),
        (["--text", "tlh=missing.txt", "--n", "1"], "no synthetic voice for tlh"),
        (["--text", "de=missing.txt"], "give n (utterances) or hours (of audio)"),
    ],
)
def test_bad_synthesis_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["synth", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
