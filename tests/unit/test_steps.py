"""A step cut into parts is the step: gradients, noise and figures of all stages; clips that fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from made_up_clips import write_clips
from small_models import AUDIO_ENCODER, BACKBONE, TINY, small_model, small_processor
from torch import Tensor, nn
from transformers import DiffusionGemmaConfig, WhisperConfig

from canvas_asr.backbone import build_backbone
from canvas_asr.errors import DataError
from canvas_asr.manifest import read_manifest
from canvas_asr.training.acoustic import AcousticCollator, AcousticModel, AcousticOptions
from canvas_asr.training.adapter import AdapterModel, AdapterOptions
from canvas_asr.training.adapter_data import AdapterCollator
from canvas_asr.training.batches import BatchPlan, Example, Row, RowBatch, RowCollator, ShareOfPlan
from canvas_asr.training.callbacks import RunLog, Stop
from canvas_asr.training.corruption import CorruptionOptions
from canvas_asr.training.objective import ObjectiveOptions
from canvas_asr.training.recipe import TrainingOptions
from canvas_asr.training.recompute import recompute_activations
from canvas_asr.training.speech_data import SpeechDataset
from canvas_asr.training.stage import Stage
from canvas_asr.training.steps import StepFigures, StepMaker
from canvas_asr.training.text import CanvasCollator, TextModel
from canvas_asr.training.text_tasks import TextExample

OBJECTIVE = ObjectiveOptions(
    corruption=CorruptionOptions(uniform=0.4, draft=0.2, predictions=0.2, edits=0.2), tail_weight=0.3
)
OPTIONS = TrainingOptions(10, 5, 0.01, max_failed=0.2)


# The plan


@pytest.mark.parametrize(("n_processes", "n_micro"), [(1, 1), (2, 1), (1, 3), (3, 2), (4, 4)])
def test_the_shares_of_all_processes_make_the_plans_batches(n_processes: int, n_micro: int) -> None:
    plan = BatchPlan([1.0 + i for i in range(13)], 4, 9, seed=2)
    shares = [list(ShareOfPlan(plan, n_processes, process, n_micro)) for process in range(n_processes)]
    assert {len(share) for share in shares} == {9 * n_micro}
    for step, batch in enumerate(plan):
        parts = [part for share in shares for part in share[step * n_micro : (step + 1) * n_micro]]
        assert all(parts)
        counted = [row for part in parts for row in part if row.counted]
        assert sorted((row.epoch, row.place) for row in counted) == sorted(batch)
        assert all(part == [Row(*batch[0], counted=False)] for part in parts if not part[0].counted)
    assert next(iter(ShareOfPlan(plan))) == [Row(*item) for item in next(iter(plan))]


# Parts of a step


def adapter_stage(folder: Path) -> tuple[Stage, Callable[[list[Any]], dict[str, Any]], list[Any]]:
    model, processor = small_model(), small_processor()
    options = AdapterOptions(TINY, "", "", (), (), objective=OBJECTIVE, canvas_choices=(40,), p_long_canvas=1)
    dataset = SpeechDataset(read_manifest(write_clips(folder, 5)), processor.feature_extractor)
    tags = list(processor.language_ids(model.config).values())
    module = AdapterModel(model, options, processor.token_id(model.config.audio_token), tags)
    examples = [dataset[(0, i)] for i in range(5)]
    return module, AdapterCollator(processor, model.config, options), examples


def text_stage(folder: Path) -> tuple[Stage, Callable[[list[Any]], dict[str, Any]], list[Any]]:
    torch.manual_seed(0)
    module = TextModel(build_backbone(DiffusionGemmaConfig(**BACKBONE)), OBJECTIVE)
    rows = [[500 + i + k for k in range(2 + 3 * i)] for i in range(5)]
    examples = [TextExample([2, *row, 5], [7, *row], "en", "copy") for row in rows]
    return module, CanvasCollator(1, 0), examples


def acoustic_stage(folder: Path) -> tuple[Stage, Callable[[list[Any]], dict[str, Any]], list[Any]]:
    torch.manual_seed(0)
    processor = small_processor()
    module = AcousticModel(
        WhisperConfig(**AUDIO_ENCODER), 4096, AcousticOptions(TINY, (), (), AUDIO_ENCODER, ctc_weight=0.5)
    )
    dataset = SpeechDataset(read_manifest(write_clips(folder, 5)), processor.feature_extractor)
    examples = [dataset[(0, i)] for i in range(5)]
    for i in (0, 1):  # clips of people, which have no phonemes: one part has none at all
        entry = examples[i]["entry"]
        examples[i]["entry"] = type(entry)(entry.audio, entry.text, entry.language)
    return module, AcousticCollator(processor.tokenizer, 0.04), examples


STAGES = {"adapter": adapter_stage, "text": text_stage, "acoustic": acoustic_stage}


def maker_of(module: Stage, folder: Path, n_examples: int = 5) -> StepMaker:
    return StepMaker(module, Accelerator(cpu=True), OPTIONS, n_examples, RunLog(folder), Stop(OPTIONS))


def gradients_and_figures(
    module: Stage, batches: list[RowBatch], folder: Path
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Those of a step, its parts' losses averaged as ``Trainer`` does."""
    module.zero_grad()
    make = maker_of(module, folder)
    figures = StepFigures(make.accelerator)
    parts = make(batches, step=3)
    for part, counted in zip(parts, make.counted, strict=True):
        outputs = module(**part)
        (outputs["loss"] / len(parts)).backward()
        figures.add(outputs, counted=counted)
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return found, figures.take()


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_in_parts_has_the_gradients_and_figures_of_the_whole(stage: str, tmp_path: Path) -> None:
    module, collate, examples = STAGES[stage](tmp_path)
    rows = [Example(Row(4, i), example) for i, example in enumerate(examples)]
    collate_rows = RowCollator(collate, seed=1)
    whole = gradients_and_figures(module, [collate_rows(rows)], tmp_path)
    nothing = collate_rows([Example(Row(4, 0, counted=False), examples[0])])
    cut = [collate_rows(rows[:2]), collate_rows(rows[2:3]), nothing, collate_rows(rows[3:])]
    parts = gradients_and_figures(module, cut, tmp_path)
    assert whole[0].keys() == parts[0].keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in whole[0].values())
    for name, gradient in whole[0].items():
        torch.testing.assert_close(parts[0][name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    assert parts[1] == pytest.approx(whole[1], rel=1e-4)
    assert len(whole[1]) >= 3


@torch.no_grad()
def test_a_batch_by_itself_is_one_part(tmp_path: Path) -> None:
    module, collate, examples = acoustic_stage(tmp_path)
    batch = collate(examples)
    (part,) = maker_of(module, tmp_path)(
        [RowCollator(collate, 0)([Example(Row(0, 0), e) for e in examples])], 0
    )
    assert part["part"].shares == {"frames": 1.0, "clips": 1.0}
    assert torch.equal(module(**batch)["loss"], module(**part)["loss"])


@torch.no_grad()
def test_a_rows_noise_is_its_own(tmp_path: Path) -> None:
    """Whatever was drawn before, whatever rows are beside it; another row, epoch or seed has another."""
    module, collate, examples = text_stage(tmp_path)

    def loss(seed: int, row: Row) -> float:
        torch.randn(3)
        (part,) = maker_of(module, tmp_path)([RowCollator(collate, seed)([Example(row, examples[2])])], 0)
        return float(module(**part)["diffusion"])

    first = loss(0, Row(1, 2))
    assert loss(0, Row(1, 2)) == first
    assert len({first, loss(0, Row(1, 3)), loss(0, Row(2, 2)), loss(1, Row(1, 2))}) == 4


def test_losses_by_noise_level_are_means_over_clips_of_that_level(tmp_path: Path) -> None:
    figures = StepFigures(Accelerator(cpu=True))
    figures.add({"by": torch.tensor([[6.0, 0.0], [2.0, 0.0]]), "x": torch.tensor(1.0)}, counted=True)
    figures.add({"by": torch.tensor([[2.0, 0.0], [2.0, 0.0]]), "x": torch.tensor(3.0)}, counted=True)
    figures.add({"by": torch.tensor([[9.0, 9.0], [1.0, 1.0]]), "x": torch.tensor(0.0)}, counted=False)
    assert figures.take() == {"by_1": 2.0, "x": pytest.approx(4 / 3)}
    assert figures.take() == {}


# Mixed precision


@pytest.mark.parametrize("stage", STAGES)
def test_mixed_precision_gives_the_gradients_of_float32_within_its_rounding(
    stage: str, tmp_path: Path
) -> None:
    """As ``training.bf16`` does: bfloat16 products, float32 weights, losses and gradients."""
    module, collate, examples = STAGES[stage](tmp_path)
    batches = [RowCollator(collate, 1)([Example(Row(0, i), e) for i, e in enumerate(examples)])]
    expected, figures = gradients_and_figures(module, batches, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = gradients_and_figures(module, batches, tmp_path)
    assert found.keys() == expected.keys()
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert any(not torch.equal(found[name], expected[name]) for name in expected)  # it did round
    ours, theirs = (torch.cat([g[name].flatten() for name in expected]) for g in (found, expected))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1
    assert rounded == pytest.approx(figures, rel=0.02)


# Gradient checkpointing


@pytest.mark.parametrize("stage", ["adapter", "text"])
def test_recomputed_activations_give_the_same_gradients(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, collate, examples = STAGES[stage](tmp_path)
    module.train()
    batches = [RowCollator(collate, 1)([Example(Row(0, i), e) for i, e in enumerate(examples)])]
    expected = gradients_and_figures(module, batches, tmp_path)
    backbone = module.backbone if isinstance(module, TextModel) else module.model.backbone
    sides = backbone.model.encoder.language_model.layers, backbone.model.decoder.layers
    calls: list[str] = []
    for side, layers in zip(("encoder", "decoder"), sides, strict=True):
        layers[0].mlp.register_forward_hook(lambda *_, side=side: calls.append(side))
    gradients_and_figures(module, batches, tmp_path)
    plain = [calls.count(side) for side in ("encoder", "decoder")]
    calls.clear()
    recompute_activations(module)
    found = gradients_and_figures(module, batches, tmp_path)
    assert [calls.count(side) for side in ("encoder", "decoder")] == [plain[0] + 1, plain[1] + 1]
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert found[0].keys() == expected[0].keys()
    for name, gradient in expected[0].items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


# Clips that fail


class Rows(Stage):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"rows": float(len(batch["x"]))}


def stack(values: list[float]) -> dict[str, Tensor]:
    return {"x": torch.tensor(values)}


def test_rows_that_fail_are_left_out_told_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collate = RowCollator(stack, 0)
    make = maker_of(Rows(), tmp_path, n_examples=10)
    bad = Example(Row(0, 1), None, "b.wav: broken.")
    first = make([collate([Example(Row(0, 0), 1.0), bad, Example(Row(0, 2), 3.0)])], 0)
    assert first[0]["x"].tolist() == [1.0, 3.0]
    assert first[0]["part"].shares == {"rows": 1.0}
    # Where none is left, the last good batch keeps the process busy and counts for nothing.
    second = make([collate([bad]), collate([Example(Row(0, 3), 4.0)])], 1)
    assert [part["x"].tolist() for part in second] == [[1.0, 3.0], [4.0]]
    assert [part["part"].shares["rows"] for part in second] == [0.0, 2.0]
    assert make.counted == [False, True]
    assert capsys.readouterr().err == "clip left out: b.wav: broken.\n"
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert '"left_out": "b.wav: broken.", "n_left_out": 1' in line


def test_too_many_rows_that_fail_stop_the_run(tmp_path: Path) -> None:
    make = maker_of(Rows(), tmp_path, n_examples=10)
    good = Example(Row(0, 0), 1.0)
    failing = [Example(Row(0, i), None, f"{i}.wav: broken.") for i in (1, 2, 3)]
    make([RowCollator(stack, 0)([good, *failing[:2]])], 0)
    with pytest.raises(DataError, match=r"3 of 10 clips .* \(20\.00%\): 1\.wav: broken\. 2\.wav.* Mend"):
        make([RowCollator(stack, 0)([good, *failing])], 1)


def test_a_first_batch_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the first clips cannot be used: a\.wav"):
        maker_of(Rows(), tmp_path)([RowCollator(stack, 0)([Example(Row(0, 0), None, "a.wav: broken.")])], 0)
