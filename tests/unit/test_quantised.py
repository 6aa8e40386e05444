"""Quantised backbones: what is read, shared by both sides and refused, and how large each is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hub_layout import write_backbone, write_whisper
from made_up_clips import tones
from transformers import DiffusionGemmaConfig
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from canvas_asr import CheckpointError, load
from canvas_asr.checkpoint import assemble
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.parts import LoadOptions, Part, load_frozen, read_part_config
from canvas_asr.placement import backbone_bytes
from canvas_asr.quantised import share_scales

RATE_HZ = 16_000
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Blocks of 64 divide every side of it.
GEOMETRY = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
GEOMETRY |= {"num_attention_heads": 1, "head_dim": 64, "global_head_dim": 64}
Writer = Callable[..., Path]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def layouts() -> ModuleType:
    import fp8_layouts

    return fp8_layouts


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("parts") / "backbone", **GEOMETRY)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("parts") / "whisper")


@pytest.fixture
def kept_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: elsewhere transformers brings FP8 back to full precision."""
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)


def frozen(folder: Path, encoder: Path, quantization: Any = None) -> Any:
    options = LoadOptions(dtype=torch.bfloat16, quantization_config=quantization)
    part = Part(str(folder))
    config = read_part_config(DiffusionGemmaConfig, part, options.access)
    return load_frozen(part, Part(str(encoder)), config, options)[0]


def trained(backbone: Path, encoder: Path, folder: Path) -> CanvasASRModel:
    fields = {"projector_width": 24, "canvas_length": 24, "max_canvas_length": 48}
    model, _ = assemble(str(backbone), str(encoder), backbone, fields)
    model.save_pretrained(folder)
    return model


# FP8 as transformers keeps it: a factor for every block, experts included


@pytest.mark.usefixtures("kept_in_fp8")
def test_both_sides_have_the_scales_of_a_checkpoint_in_fp8(
    layouts: ModuleType, backbone: Path, encoder: Path, tmp_path: Path
) -> None:
    folder = layouts.block_backbone(backbone, tmp_path / "fp8", (64, 64))
    loaded, plain = frozen(folder, encoder), dict(frozen(backbone, encoder).named_parameters())
    small = {n: p for n, p in loaded.named_parameters() if p.dtype == torch.float8_e4m3fn}
    # Of two layers: 7 projections of attention, 6 of the dense MLP, 4 tensors of experts.
    assert len(small) == 17
    for name, weight in small.items():
        module, _, last = name.rpartition(".")
        of_encoder = getattr(loaded.get_submodule(module), f"{last}_scale_inv")
        twin = module.replace("encoder.language_model", "decoder")
        assert getattr(loaded.get_submodule(twin), f"{last}_scale_inv") is of_encoder
        factors = of_encoder.repeat_interleave(64, -2).repeat_interleave(64, -1)
        torch.testing.assert_close(weight.float() * factors, plain[name].float(), rtol=0.07, atol=1e-3)


def test_without_a_gpu_it_is_brought_back_and_transcribes(
    layouts: ModuleType, backbone: Path, encoder: Path, tmp_path: Path
) -> None:
    trained(backbone, encoder, tmp_path / "adapter")
    folder = layouts.block_backbone(backbone, tmp_path / "fp8", (64, 64))
    asr = load(tmp_path / "adapter", device="cpu", backbone=folder)
    assert not any(p.dtype == torch.float8_e4m3fn for p in asr.model.parameters())
    assert asr.transcribe((tones(0.5, 0), RATE_HZ), steps=2).passes == 2


@pytest.mark.usefixtures("kept_in_fp8")
def test_blocks_that_do_not_divide_a_weight_are_refused(backbone: Path, encoder: Path) -> None:
    asked = {"quant_method": "fp8", "weight_block_size": [48, 48], "modules_to_not_convert": ["lm_head"]}
    with pytest.raises(
        CheckpointError, match=r"cannot be cut into FP8 blocks .*weight_block_size=\(64, 64\)"
    ):
        frozen(backbone, encoder, asked)


def test_what_neither_side_has_stays_missing() -> None:
    model = torch.nn.Module()
    missing = {"model.encoder.language_model.layers.0.a", "model.decoder.layers.0.a", "other"}
    assert set(share_scales(model, missing)) == missing


# compressed-tensors


def test_a_backbone_published_in_fp8_is_read(
    layouts: ModuleType, backbone: Path, encoder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    if not hasattr(CompressedTensorsHfQuantizer, "get_load_operations"):
        pytest.skip("this transformers reads no compressed-tensors with shared weights")
    before = dict(trained(backbone, encoder, tmp_path / "adapter").backbone.named_parameters())
    folder = layouts.compress_backbone(backbone, tmp_path / "fp8")
    asr = load(tmp_path / "adapter", device="cpu", backbone=folder)
    changed = 0
    for name, parameter in asr.model.backbone.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, before[name], rtol=0.07, atol=1e-4)  # e4m3: 4 bits of a number
        changed += not torch.equal(parameter, before[name])
    assert changed == 17
    assert asr.transcribe((tones(0.5, 0), RATE_HZ), steps=2).passes == 2


@pytest.mark.parametrize("lacking", ["library", "transformers"])
def test_what_the_format_of_a_backbone_needs_is_named(
    lacking: str,
    layouts: ModuleType,
    backbone: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: Any) -> None:
        raise ImportError("no compressed_tensors")

    monkeypatch.setattr("transformers.CompressedTensorsConfig", refuse)
    if lacking == "library":
        monkeypatch.setattr(CompressedTensorsHfQuantizer, "get_load_operations", dict, raising=False)
        message = r"fp8: is in the format of compressed-tensors; pip install compressed-tensors\."
    else:
        for kind in CompressedTensorsHfQuantizer.__mro__:
            if "get_load_operations" in vars(kind):
                monkeypatch.delattr(kind, "get_load_operations")
        message = r"fp8: is in the format of compressed-tensors, which .* pip install -U transformers\."
    folder = layouts.compress_backbone(backbone, tmp_path / "fp8")
    with pytest.raises(CheckpointError, match=message):
        frozen(folder, encoder)


# How large each is


def test_the_benchmark_measures_what_is_estimated(tmp_path: Path) -> None:
    import quantised_memory

    assert quantised_memory.main(["--small", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "quantised_memory.json").read_text(encoding="utf-8"))
    by_name = {record["method"]: record for record in content["methods"]}
    config = quantised_memory.small_system().backbone_config
    plain = by_name["as published, bfloat16"]
    assert plain["runs_here"] == "yes"
    assert plain["total_gb"] * 1e9 == pytest.approx(backbone_bytes(config, torch.bfloat16), rel=5e-3)
    blocks = by_name["FP8 checkpoint of transformers, blocks of 64"]
    stored = {"quant_method": "fp8", "modules_to_not_convert": quantised_memory.NOT_CONVERTED}
    estimated = backbone_bytes(config, torch.bfloat16, stored)
    assert blocks["total_gb"] * 1e9 == pytest.approx(estimated, rel=1e-2)  # scales are not estimated
    experts = blocks["measured_bytes"]["full_attention experts"]
    assert experts["float8_e4m3fn"] > 99 * experts["bfloat16"] > 0  # the router is the rest
    assert "weight_block_size" in by_name["FP8 on loading, blocks of 128"]["refused"]
    assert all("refused" in r or r["total_gb"] <= plain["total_gb"] for r in content["methods"])


def test_every_expert_counts_as_those_that_were_measured(tmp_path: Path, encoder: Path) -> None:
    import quantised_memory as benchmark

    config = benchmark.small_system().backbone_config
    totals = []
    for n_experts in (2, 4):
        folder = benchmark.write_backbone(
            benchmark.thin(config, n_experts), tmp_path / str(n_experts), torch.bfloat16
        )
        method = ("plain", folder, lambda: None)
        totals.append(benchmark.measure(method, config, n_experts, encoder)["total_gb"])
    assert totals[0] == pytest.approx(totals[1])
