"""``python -m canvas_asr.training`` on two processes, ended by SIGTERM, and where it cannot work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_runs import adapter_recipe, log_of

import canvas_asr
from canvas_asr import cli
from canvas_asr.training import adapter
from canvas_asr.training.checkpoints import newest_checkpoint
from canvas_asr.training.recipe import load_recipe

MODULE = ("-m", "canvas_asr.training")
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")
PLAIN = ("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(canvas_asr.__file__).parents[1])}


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Batches of three and, at the end of an epoch, of one: the second process's share is then empty."""
    content = adapter_recipe(tmp_path, eval_steps=6, save_steps=6)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    two = tmp_path / "two"
    command = [sys.executable, *LAUNCH, *PLAIN, *MODULE, str(path), "--set", f"output_dir={two}"]
    beside = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    adapter.run(load_recipe(path))
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    try:
        errors = beside.communicate(timeout=250)[1]
    finally:
        if beside.poll() is None:
            os.killpg(beside.pid, signal.SIGKILL)
    assert beside.returncode == 0, errors.decode()

    one = tmp_path / "run"
    lines, expected = log_of(two), log_of(one)
    assert [line["step"] for line in lines] == [line["step"] for line in expected] == [1, 2, 3, 4, 5, 6, 6, 6]
    timings = ("wall_s", "data_wait", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {*timings}:
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    assert (two / "transcripts.jsonl").read_text() == (one / "transcripts.jsonl").read_text()
    assert newest_checkpoint(two) == two / "checkpoint-6"
    assert {path.name for path in (two / "checkpoint-6").glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert not (two / ".partial").exists()
    weights, whole = (load_file(run / "trained.safetensors") for run in (two, one))
    for name in whole:
        torch.testing.assert_close(weights[name], whole[name], atol=1e-3, rtol=1e-3)
    assert (two / "checkpoint" / "model.safetensors").is_file()


def test_two_processes_share_the_feature_cache(tmp_path: Path) -> None:
    """Each computes half of the clips, and one of them reports: they know of each other before training."""
    content = adapter_recipe(tmp_path, max_steps=1)
    content["options"] |= {"augment": False, "feature_cache": str(tmp_path / "cache"), "n_dev": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, *LAUNCH, *PLAIN, *MODULE, str(path)]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=200, check=False)
    said = ran.stderr.decode()
    assert ran.returncode == 0, said
    assert "4 of 4 clips computed by this process" in said  # of seven, and one of them again to judge by
    assert said.count("training data:") == said.count("clips computed") == 1
    assert len([*(tmp_path / "cache").rglob("*.safetensors")]) == 7
    assert json.loads((tmp_path / "run" / "training.json").read_text())["n_processes"] == 2
    assert not [*tmp_path.rglob("*.partial")]


def test_sigterm_saves_and_ends_with_code_0(tmp_path: Path) -> None:
    """Sent, as a cluster does, to the data-loader processes too."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(adapter_recipe(tmp_path, max_steps=100_000)))
    command = [sys.executable, "-m", "canvas_asr.cli", "train", str(path)]
    running = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 200
    try:
        while running.poll() is None and (not log.exists() or log.read_text().count("\n") < 3):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGTERM)
        errors = running.communicate(timeout=80)[1].decode()
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, errors
    step = log_of(tmp_path / "run")[-1]["step"]
    assert f"ended by SIGTERM, with a checkpoint at step {step}" in errors
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / f"checkpoint-{step}"
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize(("way", "reason"), [("FSDP", "share theirs layer by layer"), ("DEEPSPEED", "DDP")])
def test_sharding_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str, reason: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    assert cli.main(["train", str(tmp_path / "no such recipe.yaml")]) == 1
    message = capsys.readouterr().err
    assert reason in message
    assert "accelerate launch --multi_gpu" in message
