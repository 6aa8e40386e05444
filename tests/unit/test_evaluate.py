"""The command of the evaluation with a scripted model: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from scripted_model import TEXTS, ScriptedModel, clips

from canvas_asr import cli
from canvas_asr.cli import messages
from canvas_asr.errors import CheckpointError
from canvas_asr.evaluation import evaluate
from canvas_asr.evaluation.evaluate import main
from canvas_asr.evaluation.index import file_sha256
from canvas_asr.manifest import Clip, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "testsets"
    (out / "made").mkdir(parents=True)
    for clip in clips(out / "made"):
        sf.write(clip.audio, np.zeros(int(clip.audio.stem), np.float32), 16_000)
    manifest = out / "made" / "manifest.jsonl"
    write_manifest(manifest, clips(out / "made"))
    (out / "testsets.json").write_text(json.dumps({"sets": {"made": {"sha256": file_sha256(manifest)}}}))
    return out


def command(folder: Path, out: Path, *more: str) -> int:
    arguments = ["tiny", "--testsets", str(folder), "--out", str(out), *more]
    return main(arguments, load_model=lambda model, device: ScriptedModel(TEXTS))


def test_command_writes_figures_hypotheses_and_tables(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(folder, out, "--modes", "draft", "noise-8", "--batch-size", "2") == 0
    figures = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert len(figures["results"]) == 8
    assert len(figures["comparisons"]) == 4
    assert figures["results"][0]["scores"]["primary_metric"] == "wer"
    assert (figures["model"], figures["batch_size"], figures["limit_per_group"]) == ("tiny", 2, None)
    assert figures["command"].startswith("python -m canvas_asr.evaluation.evaluate tiny --testsets")
    assert figures["machine"]["n_cpus"] >= 1
    assert {"python", "jiwer", "torch", "transformers"} <= set(figures["versions"])
    assert figures["testsets"]["made"]["sha256"] == file_sha256(folder / "made" / "manifest.jsonl")
    lines = (out / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    assert json.loads(lines[0])["hypothesis"] == "the cat sat"
    assert (out / "evaluation.md").read_text(encoding="utf-8") in capsys.readouterr().out
    manifest = out / "manifests" / "MODEL_tiny_DATASET_made_de_noise-8_clean.jsonl"
    entry = json.loads(manifest.read_text(encoding="utf-8"))
    assert (entry["text"], entry["pred_text"], entry["duration"]) == ("guten Tag", "guten Tag", 0.4)
    assert entry["time"] > 0


def test_times_of_another_batch_size_are_told_apart(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(folder, out, "--modes", "draft", "--batch-size", "2") == 0
    assert "Times were not all taken alike" not in capsys.readouterr().out
    assert command(folder, out, "--modes", "noise-8", "--batch-size", "3") == 0
    report = capsys.readouterr().out
    assert "Times were not all taken alike" in report
    assert "batch 2; `tiny` on" in report
    assert "batch 3." in report


def test_command_takes_a_manifest_and_silence(folder, tmp_path, capsys):
    """The scripted model writes a text for every length, so each silent clip has an invented one."""
    arguments = ["tiny", "--set", str(folder / "made"), "--setting", "noise-8", "--robustness", "silence"]
    assert main([*arguments, "--out", str(tmp_path / "out")], lambda *_: ScriptedModel(TEXTS)) == 0
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    silent = [result for result in figures["results"] if result["condition"] == "silence"]
    assert sum(result["n_invented"] for result in silent) == 6
    assert {result["scores"]["primary"] for result in silent} == {None}
    assert "| made | fr | seen | noise-8 | silence | 2 | 2 | 6 |" in capsys.readouterr().out


def test_ctrl_c_stops_a_run_which_goes_on_later(folder, tmp_path, monkeypatch):
    """The command's flag is looked at, for Python drops a KeyboardInterrupt raised in a destructor."""
    out = tmp_path / "out"
    arguments = ["evaluate", "tiny", "--set", str(folder / "made"), "--setting", "draft", "--out", str(out)]

    own_run = evaluate.run

    def run(options, command, **given):
        own_run(options, command, lambda *_: ScriptedModel(TEXTS), **given)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "run", run)
        patch.setattr(messages.ctrl_c, "arrived", True)
        assert cli.main(arguments) == messages.INTERRUPTED
    first = (out / "hypotheses.jsonl").read_text(encoding="utf-8")
    assert len(first.splitlines()) == 2  # one group of clips
    assert command(folder, out, "--modes", "draft") == 0
    lines = (out / "hypotheses.jsonl").read_text(encoding="utf-8")
    assert lines.startswith(first)
    assert len(lines.splitlines()) == 6


def test_a_set_of_empty_references_is_said_to_have_no_rate(tmp_path, capsys):
    for n in (1600, 3200):
        sf.write(tmp_path / f"{n}.wav", np.zeros(n, np.float32), 16_000)
    manifest = tmp_path / "empty.jsonl"
    write_manifest(manifest, [Clip(tmp_path / f"{n}.wav", "", "en") for n in (1600, 3200)])
    arguments = [
        "tiny",
        "--set",
        str(manifest),
        "--setting",
        "draft",
        "noise-8",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments, lambda *_: ScriptedModel(TEXTS)) == 0
    printed = capsys.readouterr().out
    assert "No clip of `empty` has a reference text: its error rates are undefined." in printed
    assert "| empty | en | WER | unknown | 2 | undefined | undefined |" in printed
    assert (tmp_path / "out" / "evaluation.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modes", "noise-9"], "unknown setting 'noise-9'"),
        (
            ["--setting", "strategy=magic"],
            "setting 'strategy=magic': unknown option 'strategy'; tiny has steps, init, canvas",
        ),
        (
            ["--setting", "acceptance=magic"],
            "setting 'acceptance=magic': acceptance is 'magic'; choose",
        ),
        (["--metric", "bleu"], "unknown metric 'bleu': use primary or one of raw_wer"),
        (["--against", "noise-3"], "--against: no setting 'noise-3': use one of draft, "),
        (["--robustness", "moon"], "--robustness: unknown condition 'moon': use some of clean, noise-20"),
        (["--sets", "other"], "--sets: no test set 'other': use some of made"),
        (["--set", "none.jsonl"], "--set none.jsonl: there is no such manifest"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_command_refuses_bad_options_in_one_line(folder, tmp_path, capsys, options, message):
    assert command(folder, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_reports_a_model_that_does_not_load(folder, tmp_path, capsys):
    def load_model(model, device):
        raise CheckpointError(f"{model}: no such model")

    arguments = ["nope", "--testsets", str(folder), "--out", str(tmp_path / "out")]
    assert main(arguments, load_model=load_model) == 1
    assert capsys.readouterr().err == "error: nope: no such model\n"
