"""The full-size benchmark on a CPU: every line that one can run; the floor against figures made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from canvas_asr.modeling import CanvasASRModel
from canvas_asr.published import published_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import full_size
    import full_size_floor
    import full_size_measure
    import full_size_report
    import full_size_system
    import full_size_timing

    found = (
        full_size,
        full_size_floor,
        full_size_measure,
        full_size_report,
        full_size_system,
        full_size_timing,
    )
    return {module.__name__: module for module in found}


def test_the_small_run_measures_every_part(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    full_size = modules["full_size"]
    assert full_size.main(["--small", "--out", str(tmp_path), "--limit-s", "1e6"]) == 0
    content = json.loads((tmp_path / "full_size.json").read_text(encoding="utf-8"))
    assert content["failed"] == content["skipped"] == []
    sizes = full_size.SMALL
    # Two prompt lengths, each in two modes; three kinds of clips in the grid.
    assert len(content["shapes"]) == content["n_shapes"] == 4 * len(sizes.batches)
    n_cells = 3 * 2 * len(sizes.batches) * len(sizes.canvases) * len(sizes.passes)
    assert len(content["grid"]) == n_cells
    shape = next(s for s in content["shapes"] if s["mode"] == "graphs" and s["padded"] and s["batch"] == 2)
    cell = next(
        c
        for c in content["grid"]
        if (c["clip"], c["mode"], c["batch"], c["canvas"], c["passes"]) == ("30 s", "graphs", 2, 8, 4)
    )
    timed = shape["canvases"]["8"]
    parts = shape["front_s"] + shape["draft_s"] + shape["prefix_s"] + timed["first_s"] + 3 * timed["next_s"]
    assert cell["seconds"] == pytest.approx(parts)
    assert cell["rtfx"] == pytest.approx(2 * 30 / parts)
    assert all(c["finite"] for s in content["shapes"] for c in s["canvases"].values())
    assert len(content["verification"]) == 6
    assert [s["steps"] for s in content["stock_generate"]] == ["default", 2, 2]
    assert [s["passes"] for s in content["stock_generate"]] == [48, 2, 2]
    assert {r["label"] for r in content["compiled_parts"]} == {"fused norms, parts compiled by eager"}
    assert len(content["profile"]) == 2
    page = (tmp_path / "full_size.md").read_text(encoding="utf-8")
    assert "### 10 s, own length, CUDA graphs: RTFx by passes" in page
    assert "## Composed and really run" in page


def test_a_phase_that_fails_is_recorded_and_the_rest_goes_on(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    full_size, timing = modules["full_size"], modules["full_size_timing"]
    budget = timing.Budget(50.0)
    run = full_size.Run(tmp_path, {}, budget)

    def broken() -> None:
        raise torch.OutOfMemoryError("no room\nfor this")

    assert run.phase("first", 1, broken) is None
    assert run.phase("second", 1, lambda: {"a": 1}) == {"a": 1}
    assert run.phase("third", 51, lambda: 1) is None
    content = json.loads((tmp_path / "full_size.json").read_text(encoding="utf-8"))
    assert content["failed"] == [{"what": "first", "error": "OutOfMemoryError: no room for this"}]
    assert [entry["what"] for entry in content["skipped"]] == ["third"]
    assert content["second"] == {"a": 1}
    assert "third" not in content


def test_the_system_is_made_once_tied_and_with_true_buffers(modules: dict[str, ModuleType]) -> None:
    config = modules["full_size"].small_config()
    made = modules["full_size_system"].build_system(config, CPU, torch.bfloat16)
    plain = CanvasASRModel(config)
    assert not any(t.is_meta for t in (*made.parameters(), *made.buffers()))
    assert {n: p.shape for n, p in made.named_parameters()} == {
        n: p.shape for n, p in plain.named_parameters()
    }
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    theirs = dict(plain.named_buffers())
    for name, buffer in made.named_buffers():
        assert buffer.dtype == theirs[name].dtype
        assert torch.equal(buffer, theirs[name]), name
    assert sum(name.endswith("inv_freq") for name in theirs) > 8
    sides = made.backbone.model.encoder.language_model, made.backbone.model.decoder
    assert sides[0].layers[1].experts.down_proj is sides[1].layers[1].experts.down_proj
    assert made.backbone.lm_head.weight is sides[0].embed_tokens.weight
    q_proj = [side.layers[0].self_attn.q_proj for side in sides]
    assert q_proj[0].base_layer.weight is q_proj[1].base_layer.weight
    assert q_proj[0].lora_B["default"].weight is not q_proj[1].lora_B["default"].weight
    assert all(p.abs().sum() > 0 for n, p in made.named_parameters() if p.ndim > 1)


def test_an_unknown_buffer_is_refused(modules: dict[str, ModuleType]) -> None:
    with torch.device("meta"):
        norm = torch.nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="BatchNorm1d: its buffer 'running_mean' is not known"):
        modules["full_size_system"]._make_buffers(norm, CPU)


# The floor, against products written out


@pytest.fixture
def floor(modules: dict[str, ModuleType]) -> object:
    return modules["full_size_floor"].Floor(published_config())


def test_a_single_canvas_reads_nearly_every_expert(floor: object) -> None:
    assert floor.n_touched(192) == pytest.approx(128, abs=0.01)  # type: ignore[attr-defined]
    assert floor.n_touched(1) == pytest.approx(8)  # type: ignore[attr-defined]
    last = floor.one_pass(1, 200, 192, wants_soft=False)  # type: ignore[attr-defined]
    more = floor.one_pass(1, 200, 192, wants_soft=True)  # type: ignore[attr-defined]
    # All 25.25 B text parameters and the decoder's LoRA, 11.5 M, in bf16; the keys and values beside them.
    assert last.n_bytes == pytest.approx(2 * (25.25e9 + 11.5e6) + 0.06e9, rel=2e-3)
    assert more.n_bytes - last.n_bytes == 2 * 262_144 * 2816
    assert more.n_flops - last.n_flops == 2 * 192 * 262_144 * 2816


def test_a_batch_is_bound_by_arithmetic_and_a_clip_by_bytes(
    modules: dict[str, ModuleType], floor: object
) -> None:
    machine = modules["full_size_floor"].Machine("made up", 1e12, 1e15, "here")
    one, batch = (floor.one_pass(b, 200, 192, wants_soft=True) for b in (1, 32))  # type: ignore[attr-defined]
    assert one.seconds(machine) == one.n_bytes / 1e12
    h200 = modules["full_size_floor"].H200
    assert batch.seconds(h200) == batch.n_flops / h200.flops_per_s
    # Billions of parameters that a token uses: attention, dense layers, 8 experts, the vocabulary twice, LoRA
    # and self-conditioning; then its attention over 392 keys in 25 layers of 4,096 and 5 of 8,192.
    used = 1.110 + 0.546 + 1.427 + 2 * 0.738 + 0.011 + 0.018
    scores = 2 * 392 * (25 * 4096 + 5 * 8192) / 1e9
    assert batch.n_flops == pytest.approx(2 * 32 * 192 * (used + scores) * 1e9, rel=2e-3)


def test_targets_are_compared_where_there_is_a_cell(modules: dict[str, ModuleType]) -> None:
    report = modules["full_size_report"]
    key = {"clip": "10 s, own length", "batch": 1, "canvas": 192, "mode": "graphs"}
    grid = [{**key, "passes": 8, "rtfx": 61.0}, {**key, "passes": 1, "rtfx": 199.0}]
    found = report.targets(grid)
    assert [(t["passes"], t["target"], t["met"]) for t in found] == [(8, 60, True), (1, 200, False)]


def test_the_estimate_says_that_it_is_one(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    assert modules["full_size"].main(["--estimate", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "full_size.md").read_text(encoding="utf-8")
    assert page.startswith("# The published system at full size: an estimate, not a measurement\n")
    assert not (tmp_path / "full_size.json").exists()


@pytest.mark.parametrize(("options", "message"), [(["--small"], "give --out"), ([], "no CUDA device")])
def test_what_cannot_be_measured_is_refused(
    modules: dict[str, ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        modules["full_size"].main(options)
    assert message in capsys.readouterr().err
