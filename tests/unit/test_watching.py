"""What a run says of itself: transcripts, warnings, losses that are no numbers, where figures are shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_trainer import Stage, log_of, trainer_of
from torch import Tensor

from canvas_asr.errors import DataError, RecipeError
from canvas_asr.training import trainer as trainer_module
from canvas_asr.training.adapter import AdapterModel
from canvas_asr.training.batches import example_name
from canvas_asr.training.callbacks import Terminated
from canvas_asr.training.checkpoints import newest_checkpoint
from canvas_asr.training.judging import Judgement, transcripts_of

pytestmark = pytest.mark.usefixtures("_own_torch_settings")


# Losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("n_micro", [1, 2])
def test_a_loss_that_is_no_number_stops_the_run_before_it_changes_the_weights(
    tmp_path: Path, value: float, n_micro: int
) -> None:
    stage = Stage()
    forward = stage.forward
    weights: list[Tensor] = []

    def spoilt(x: Tensor, indices: Tensor, part: Any) -> dict[str, Tensor]:
        outputs = forward(x, indices, part)
        if len(stage.seen) == 3 * n_micro:
            weights.append(stage.trained.weight.detach().clone())
            outputs["loss"] = outputs["loss"] * value
        return outputs

    stage.forward = spoilt  # type: ignore[method-assign]
    trainer = trainer_of(tmp_path, stage, accumulation_steps=n_micro)
    with pytest.raises(DataError, match="step 3: the loss is not a finite number") as caught:
        trainer.run()
    assert torch.equal(stage.trained.weight, weights[0])
    last = stage.seen[-1]
    named = str(caught.value).partition("Its clips: ")[2].partition(". Look")[0]
    assert named.count("'index'") == len(last)  # of the part with that loss only
    assert all(f"'index': {index}" in named for index in last)


def test_a_gradient_that_is_no_number_stops_the_run_too(tmp_path: Path) -> None:
    stage = Stage()
    stage.trained.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(DataError, match="step 1: the gradient is not a finite number"):
        trainer_of(tmp_path, stage).run()
    assert torch.isfinite(stage.trained.weight).all()


def test_examples_are_known_by_their_file_or_text() -> None:
    assert example_name({"entry": SimpleNamespace(audio=Path("/x/a.wav"), text="a")}) == "/x/a.wav"
    assert example_name(SimpleNamespace(text="a sentence")) == "a sentence"


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    losses = []
    for n_micro in (1, 3):
        stage = Stage()
        stage.dropout = 0.0
        run = tmp_path / str(n_micro)
        trainer_of(run, stage, accumulation_steps=n_micro, max_steps=8).run()
        assert max(map(len, stage.seen)) == (4 if n_micro == 1 else 2)
        losses.append([line["loss"] for line in log_of(run) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# Evaluations


def judged_by(folder: Path, figures: dict[str, float], stage: Stage | None = None, **options: Any) -> Any:
    stage = stage or Stage()
    stage.likely_cause = lambda found: f"Cause at {found['gap']}."  # type: ignore[method-assign]
    trainer = trainer_of(folder, stage, max_steps=4, eval_steps=2, **options)
    readings = {"en": [("a b", "a c")], "de": [("ja", "ja")]}
    drafts = {"en": [("a b", "a")], "de": [("ja", "")]}
    trainer.run_evaluation = lambda: Judgement(figures, transcripts_of(readings, draft=drafts))
    trainer.run()
    return trainer


def test_every_evaluation_writes_its_transcripts(tmp_path: Path) -> None:
    judged_by(tmp_path, {})
    lines = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 4, 4]
    assert lines[0] == {
        "step": 2,
        "language": "en",
        "reference": "a b",
        "hypothesis": "a c",
        "draft": "a",
    }


def test_a_model_that_does_not_listen_is_warned_of_with_its_likely_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged_by(tmp_path, {"gap": 0.02}, listening_steps=3)
    warning = "step 4: the model does not listen yet: with another clip's audio it does only 2% worse"
    assert capsys.readouterr().err.count("does not listen") == 1
    (line,) = [line for line in log_of(tmp_path) if "warning" in line]
    assert line["step"] == 4
    assert line["warning"].startswith(warning)
    assert line["warning"].endswith("Cause at 0.02.")


@pytest.mark.parametrize(
    ("figures", "options"), [({"gap": 0.3}, {}), ({}, {}), ({"gap": 0.0}, {"listening_steps": 0})]
)
def test_no_warning_without_a_reason(
    tmp_path: Path, figures: dict[str, float], options: dict[str, Any]
) -> None:
    judged_by(tmp_path, figures, **{"listening_steps": 1, **options})
    assert not any("warning" in line for line in log_of(tmp_path))


@pytest.mark.parametrize(
    ("ctc_weight", "draft", "cause"),
    [
        (0.0, 1.0, "The CTC loss is off"),
        (1.0, 0.2, "does follow the audio (20% errors), so the backbone does not read its prompt"),
        (1.0, 0.95, "The draft itself is still noise (95% errors)"),
    ],
)
def test_causes_of_a_deaf_adapter(ctc_weight: float, draft: float, cause: str) -> None:
    module = SimpleNamespace(options=SimpleNamespace(ctc_weight=ctc_weight))
    assert cause in AdapterModel.likely_cause(module, {"draft": draft})  # type: ignore[arg-type]


def test_sigterm_breaks_off_an_evaluation(tmp_path: Path) -> None:
    stage = Stage()
    trainer = trainer_of(tmp_path, stage, max_steps=6, eval_steps=2, save_steps=100)

    def evaluate() -> Judgement:
        with pytest.raises(Terminated):
            trainer.stop._on_sigterm(15, None)
        raise Terminated

    trainer.run_evaluation = evaluate
    with pytest.raises(SystemExit) as caught:
        trainer.run()
    assert caught.value.code == 0
    assert len(stage.seen) == 2
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert stage.training


# Programs that show figures


def test_figures_go_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer_of(tmp_path, Stage(), max_steps=2, report_to=("tensorboard",)).run()
    assert [path for path in tmp_path.rglob("events.out.tfevents.*") if path.stat().st_size > 0]


def test_a_program_that_is_not_installed_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer_module, "get_available_reporting_integrations", list)
    trainer_of(tmp_path, Stage(), max_steps=1, report_to=("tensorboard",)).run()
    assert "training.report_to: tensorboard is not installed" in capsys.readouterr().err
    assert not list(tmp_path.rglob("events.out*"))
    assert len([line for line in log_of(tmp_path) if "loss" in line]) == 1


def test_an_unknown_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'tensorbord' is not known; choose from .*tensorboard"):
        trainer_of(tmp_path, Stage(), report_to=("tensorbord",))
