"""The trainer on a module of a few numbers: resumption to the last bit, kills, log and schedule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from canvas_asr.errors import CheckpointError
from canvas_asr.training.batches import BatchPlan
from canvas_asr.training.checkpoints import (
    COMPLETE_MARK,
    WEIGHTS_NAME,
    load_trainable_state,
    trainable_state,
)
from canvas_asr.training.judging import Judgement
from canvas_asr.training.recipe import TrainingOptions
from canvas_asr.training.stage import Part, row_generators, share_of
from canvas_asr.training.stage import Stage as StageBase
from canvas_asr.training.trainer import StageTrainer

N_EXAMPLES, BATCH = 13, 4  # four batches an epoch: step 10 lies within the third


pytestmark = pytest.mark.usefixtures("_own_torch_settings")


class Numbers(Dataset[dict[str, Any]]):
    """Examples that differ from epoch to epoch, as augmented ones do."""

    def __len__(self) -> int:
        return N_EXAMPLES

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        return {"index": index, "x": np.random.default_rng((7, *index)).normal(size=3).astype(np.float32)}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "x": torch.from_numpy(np.stack([example["x"] for example in examples])),
        "indices": torch.tensor([example["index"] for example in examples]),
    }


class Stage(StageBase):
    """A frozen and a trained layer, dropout, and noise drawn in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.trained = nn.Linear(3, 1)
        self.seen: list[list[tuple[int, int]]] = []
        self.stop_at = 0
        self.dropout = 0.3

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"rows": float(len(batch["x"]))}

    def forward(self, x: Tensor, indices: Tensor, part: Part) -> dict[str, Tensor]:
        self.seen.append([tuple(i) for i in indices.tolist()])
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        hidden = nn.functional.dropout(self.frozen(x), self.dropout, training=True)
        noise = [torch.randn(3, generator=generator) for generator in row_generators(part, len(x))]
        errors = self.trained(hidden + 0.1 * torch.stack(noise)) - x.sum(dim=1, keepdim=True)
        loss = errors.square().mean() * share_of(part, "rows")
        return {"loss": loss, "size": torch.tensor(float(len(x)))}


def options(**changes: Any) -> TrainingOptions:
    settings = {
        "max_steps": 20,
        "batch_size": BATCH,
        "learning_rate": 0.05,
        "warmup_steps": 3,
        "eval_steps": 100,
        "save_steps": 10,
        "log_steps": 1,
        "n_workers": 0,
        "bf16": False,
        "report_to": (),
    }
    return TrainingOptions(**{**settings, **changes})


def trainer_of(folder: Path, stage: Stage, **changes: Any) -> StageTrainer:
    lengths = [1.0 + i for i in range(N_EXAMPLES)]
    return StageTrainer(
        stage,
        Numbers(),
        lengths,
        collate,
        options(**changes),
        folder,
        lambda: Judgement({"wer": float(len(stage.seen))}),
    )


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in log_of(folder) if "loss" in line}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    trainer_of(folder, Stage(), n_workers=2).run()
    return folder


# Resumption


def test_ten_and_ten_steps_equal_twenty(unbroken: Path, tmp_path: Path) -> None:
    """Losses and weights to the last bit, resumed within an epoch, with two data-loader workers."""
    first = Stage()
    first.stop_at = 14
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, first, n_workers=2).run()
    assert list(losses_of(tmp_path)) == list(range(1, 14))
    assert not (tmp_path / WEIGHTS_NAME).exists()
    (tmp_path / "log.jsonl").rename(tmp_path / "first.jsonl")

    second = Stage()
    trainer_of(tmp_path, second, n_workers=2).run()
    assert second.seen == list(BatchPlan([1.0 + i for i in range(13)], 4, 20, 0))[10:]
    expected = losses_of(unbroken)
    assert list(expected) == list(range(1, 21))
    found = losses_of(tmp_path)
    assert found == {step: loss for step, loss in expected.items() if step > 10}
    weights, whole = (load_file(folder / WEIGHTS_NAME) for folder in (tmp_path, unbroken))
    assert weights.keys() == whole.keys() == {"trained.weight", "trained.bias"}
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_the_number_of_workers_changes_nothing(unbroken: Path, tmp_path: Path) -> None:
    trainer_of(tmp_path, Stage(), n_workers=0).run()
    assert losses_of(tmp_path) == losses_of(unbroken)


def test_another_seed_is_another_run(unbroken: Path, tmp_path: Path) -> None:
    trainer_of(tmp_path, Stage(), seed=1, max_steps=3).run()
    assert losses_of(tmp_path)[1] != losses_of(unbroken)[1]


def test_a_finished_run_is_not_trained_again(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    stage = Stage()
    trainer_of(tmp_path, stage).run()
    assert not stage.seen
    weights, whole = (load_file(folder / WEIGHTS_NAME) for folder in (tmp_path, unbroken))
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_a_checkpoint_without_its_mark_is_passed_over(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-10", "checkpoint-20"}
    (tmp_path / "checkpoint-20" / COMPLETE_MARK).unlink()
    (tmp_path / "checkpoint-20" / WEIGHTS_NAME).write_bytes(b"half of it")
    (tmp_path / "log.jsonl").unlink()
    stage = Stage()
    trainer_of(tmp_path, stage).run()
    assert len(stage.seen) == 10
    assert losses_of(tmp_path) == {step: loss for step, loss in losses_of(unbroken).items() if step > 10}
    assert (tmp_path / "checkpoint-20" / COMPLETE_MARK).is_file()


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer_of(tmp_path, Stage(), max_steps=12, save_steps=3).run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]
    assert all((path / COMPLETE_MARK).is_file() for path in tmp_path.glob("checkpoint-*"))


def test_what_is_frozen_is_not_written(unbroken: Path) -> None:
    for path in unbroken.rglob(WEIGHTS_NAME):
        assert load_file(path).keys() == {"trained.weight", "trained.bias"}
    written = {path.name for path in unbroken.rglob("*") if path.suffix in (".safetensors", ".bin")}
    assert written == {WEIGHTS_NAME}


# The log, the clock, evaluation


def test_log_lines_have_step_time_loss_and_the_mean_of_the_stages_figures(tmp_path: Path) -> None:
    stage = Stage()
    trainer_of(tmp_path, stage, max_steps=8, log_steps=4, eval_steps=4, save_steps=100).run()
    lines = log_of(tmp_path)
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [4, 8]
    for line in trained:
        assert line["wall_s"] >= 0
        assert line["learning_rate"] >= 0
        sizes = [len(batch) for batch in stage.seen[line["step"] - 4 : line["step"]]]
        assert line["size"] == np.mean(sizes)
    judged = [(line["step"], line["eval_wer"]) for line in lines if "eval_wer" in line]
    assert judged == [(4, 4.0), (8, 8.0)]


def test_evaluation_runs_in_evaluation_mode_without_gradients(tmp_path: Path) -> None:
    stage = Stage()
    modes: list[tuple[bool, bool]] = []
    trainer = trainer_of(tmp_path, stage, max_steps=2, eval_steps=1, save_steps=100)

    def evaluate() -> Judgement:
        modes.append((stage.training, torch.is_grad_enabled()))
        return Judgement({})

    trainer.run_evaluation = evaluate
    trainer.run()
    assert modes == [(False, False)] * 2
    assert stage.training


def test_when_time_is_up_the_run_stops_with_a_checkpoint_and_goes_on_later(
    unbroken: Path, tmp_path: Path
) -> None:
    trainer_of(tmp_path, Stage(), max_minutes=1.0, minutes_before=1.0, save_steps=100).run()
    assert (tmp_path / "checkpoint-1" / COMPLETE_MARK).is_file()
    assert list(losses_of(tmp_path)) == [1]
    trainer_of(tmp_path, Stage(), save_steps=100).run()
    assert losses_of(tmp_path) == losses_of(unbroken)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant_with_warmup", lambda step: min(1.0, step / 3)),
        ("timed_cosine", lambda step: min(1.0, (step + 1) / 3) * 0.5 * (1 + np.cos(np.pi * step / 20))),
    ],
)
def test_the_learning_rate_follows_the_recipes_schedule(
    tmp_path: Path, schedule: str, expected: Callable[[int], float]
) -> None:
    stage, rates = Stage(), []
    trainer = trainer_of(tmp_path, stage, schedule=schedule, save_steps=100)
    step = stage.forward

    def forward(x: Tensor, indices: Tensor, part: Part) -> dict[str, Tensor]:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return step(x, indices, part)

    stage.forward = forward  # type: ignore[method-assign]
    trainer.run()
    assert rates == pytest.approx([0.05 * expected(n) for n in range(20)])


def test_a_timed_cosine_ends_with_its_time(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Stage(), schedule="timed_cosine", max_minutes=10.0, minutes_before=5.0)
    trainer.create_optimizer_and_scheduler(20)
    factor = trainer.lr_scheduler.lr_lambdas[0]
    assert factor(3) == pytest.approx(0.5, abs=0.03)  # half of the time is gone, three of twenty steps
    assert factor(15) == pytest.approx(0.5 * (1 + np.cos(0.75 * np.pi)), abs=1e-6)


# Trained state


def test_the_trained_state_is_loaded_into_a_stage_of_the_same_geometry(tmp_path: Path) -> None:
    path, first, second = tmp_path / WEIGHTS_NAME, Stage(), Stage()
    with torch.no_grad():
        first.trained.weight.add_(1)
        first.frozen.weight.add_(1)
    save_file(trainable_state(first), path)
    frozen = second.frozen.weight.clone()
    load_trainable_state(second, path)
    assert torch.equal(second.trained.weight, first.trained.weight)
    assert torch.equal(second.frozen.weight, frozen)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: s.pop("trained.bias"), "trained.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"trained.weight": torch.zeros(2, 2)}), "trained.weight"),
        (lambda s: s.update({"frozen.weight": torch.zeros(3, 3)}), "frozen.weight"),
    ],
)
def test_a_trained_state_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Callable, name: str
) -> None:
    path = tmp_path / WEIGHTS_NAME
    state = trainable_state(Stage())
    change(state)
    save_file(state, path)
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' does not fit"):
        load_trainable_state(Stage(), path)


def test_part_of_a_trained_state_may_be_enough(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_NAME
    state = {"trained.bias": torch.full((1,), 9.0)}
    save_file(state, path)
    stage = Stage()
    load_trainable_state(stage, path, partial=True)
    assert stage.trained.bias.tolist() == [9.0]
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="tensor 'extra' does not fit"):
        load_trainable_state(stage, path, partial=True)


@pytest.mark.parametrize("content", [None, b"", b"not tensors at all"])
def test_a_trained_state_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / WEIGHTS_NAME
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=WEIGHTS_NAME):
        load_trainable_state(Stage(), path)
