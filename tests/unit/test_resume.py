"""A run that is killed, whenever that is, goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_trainer import Stage, trainer_of
from training_runs import adapter_recipe, kill_self, killed_in_a_fork, losses_of

from canvas_asr import hub_sets
from canvas_asr.training import adapter
from canvas_asr.training.batches import BatchPlan
from canvas_asr.training.checkpoints import WEIGHTS_NAME, load_trainable_state, newest_checkpoint
from canvas_asr.training.recipe import Recipe, load_recipe

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.usefixtures("_own_torch_settings"),
]
WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def same_weights(first: Path, second: Path) -> bool:
    one, other = (load_file(folder / WEIGHTS_NAME) for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Twenty steps of joint fine-tuning with Muon; three steps are an epoch."""
    folder = tmp_path_factory.mktemp("joint")
    content = adapter_recipe(folder, max_steps=20, save_steps=10, optimizer="muon")
    content["options"].update(train_audio_encoder=True, train_backbone=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_ten_steps_a_kill_and_ten_equal_twenty(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """To the last bit, from within an epoch, with two workers, of which none reads what was trained on."""
    training = dataclasses.replace(recipe.training, optimizer=optimizer)
    whole, broken = (
        dataclasses.replace(recipe, output_dir=tmp_path / name, training=training)
        for name in ("whole", "broken")
    )
    adapter.run(whole)

    forward, n_calls = adapter.AdapterModel.forward, 0

    def forward_or_die(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 14:
            kill_self()
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(adapter.AdapterModel, "forward", forward_or_die)
        assert killed_in_a_fork(lambda: adapter.run(broken))
    assert list(losses_of(broken.output_dir)) == list(range(1, 14))
    (broken.output_dir / "log.jsonl").unlink()

    read = tmp_path / "read"
    load_audio = hub_sets.load_audio

    def noted_load(path: Any) -> Any:
        with read.open("a") as file:
            file.write("x")
        return load_audio(path)

    monkeypatch.setattr(hub_sets, "load_audio", noted_load)
    adapter.run(broken)
    plan = list(BatchPlan([0.6 + 0.13 * i for i in range(7)], 3, 20, 0))
    n_dev = 2 * 2  # read before the first step, and at the last one, which is evaluated
    assert len(read.read_text()) == sum(map(len, plan[10:])) + n_dev
    expected = losses_of(whole.output_dir)
    assert losses_of(broken.output_dir) == {step: loss for step, loss in expected.items() if step > 10}
    assert same_weights(whole.output_dir, broken.output_dir)


def test_twenty_kills_during_a_save_cost_no_more_than_that_save(tmp_path: Path) -> None:
    """Killed before the first write of a save, before the second, and so on to beyond its end."""
    whole = tmp_path / "whole"
    trainer_of(whole, Stage(), max_steps=8, save_steps=2).run()
    kept = tmp_path / "kept"
    trainer_of(kept, Stage(), max_steps=8, save_steps=2).run()
    for step in (6, 8):
        shutil.rmtree(kept / f"checkpoint-{step}")
    first = Stage()
    first.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        trainer_of(kept, first, max_steps=8, save_steps=2).run()
    assert newest_checkpoint(kept) == kept / "checkpoint-4"

    found = []
    for n_writes in range(40):
        run = tmp_path / f"killed{n_writes}"
        shutil.copytree(kept, run)
        if not killed_in_a_fork(lambda run=run, n=n_writes: train_and_die(run, n)):
            break
        newest = newest_checkpoint(run)
        assert newest is not None
        found.append(int(newest.name.removeprefix("checkpoint-")))
        load_trainable_state(Stage(), newest / WEIGHTS_NAME)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.load(newest / name, weights_only=name != "rng_state.pth")
        shutil.rmtree(run) if n_writes % 5 else None
    assert len(found) >= 20
    assert found == sorted(found)
    assert {*found} == {4, 6}
    for run in tmp_path.glob("killed*"):
        trainer_of(run, Stage(), max_steps=8, save_steps=2).run()
        assert same_weights(run, whole)
        assert {path.name for path in run.glob("*check*")} == {"checkpoint-6", "checkpoint-8"}
        assert not (run / ".partial").exists()


def train_and_die(run: Path, n_writes: int) -> None:
    """Train to the save of step 6 and die before its write number ``n_writes``."""
    left, fsync = n_writes, os.fsync

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            kill_self()

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and any(name in str(arguments[0]) for name in (".partial", "checkpoint-6")):
            count()

    def counted_fsync(descriptor: int) -> None:
        count()
        fsync(descriptor)

    stage = Stage()
    stage.stop_at = 3  # two steps from the fourth
    trainer = trainer_of(run, stage, max_steps=8, save_steps=2)
    os.fsync = counted_fsync
    sys.addaudithook(on_event)
    try:
        trainer.run()
    except KeyboardInterrupt:
        return
