"""The frozen parts: room on the GPU, geometry that fits, and the arguments that reach each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hub_layout import write_backbone, write_whisper
from small_models import BACKBONE, small_model
from torch import nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from canvas_asr import checkpoint
from canvas_asr.backbone import build_backbone
from canvas_asr.checkpoint import adapter_parameters, build_model
from canvas_asr.errors import CheckpointError
from canvas_asr.hub import HubAccess
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.parts import LoadOptions, Part, check_memory, find_part, read_part_config
from canvas_asr.placement import backbone_bytes
from canvas_asr.published import published_config

CONFIG = DiffusionGemmaConfig(**BACKBONE)
FP8 = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]}


# Room on the GPU


def test_bytes_are_those_of_the_distinct_weights() -> None:
    backbone = build_backbone(DiffusionGemmaConfig(**BACKBONE))
    n_all = sum(p.numel() for p in backbone.parameters())
    linear = {m.weight for n, m in backbone.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    n_linear = sum(weight.numel() for weight in linear)
    n_experts = sum(
        p.numel()
        for n, p in backbone.named_parameters()
        if n.endswith(("up_proj", "down_proj")) and p.dim() == 3
    )
    assert n_experts > 0
    assert backbone_bytes(CONFIG, torch.float32) == 4 * n_all
    assert backbone_bytes(CONFIG, torch.bfloat16) == 2 * n_all
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]}
    assert backbone_bytes(CONFIG, torch.bfloat16, four_bits) == 2 * (n_all - n_linear) + n_linear // 2
    # Of a configuration that names none to leave, linear maps with shared weights are left.
    shared = {*backbone.model.decoder.layers.parameters()}
    n_apart = sum(w.numel() for w in linear - shared)
    assert 0 < n_apart < n_linear / 2
    eight_bits = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert backbone_bytes(CONFIG, torch.bfloat16, eight_bits) == 2 * (n_all - n_apart) + n_apart
    n_small = n_linear + n_experts
    assert backbone_bytes(CONFIG, torch.bfloat16, FP8) == 2 * (n_all - n_small) + n_small
    stored = DiffusionGemmaConfig(**BACKBONE, quantization_config=FP8)
    assert backbone_bytes(stored, torch.bfloat16) == backbone_bytes(CONFIG, torch.bfloat16, FP8)
    assert backbone_bytes(CONFIG, torch.bfloat16, {"quant_method": "some-other"}) is None


def test_the_full_size_needs_52_gb_and_eight_bits_of_the_experts_halve_it() -> None:
    config = published_config().backbone_config
    assert round(backbone_bytes(config, torch.bfloat16) / 1e9, 1) == 51.6
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert backbone_bytes(config, torch.bfloat16, four_bits) > 50e9  # the layers stay as they are
    four_bits["llm_int8_skip_modules"] = ["lm_head"]
    assert 47e9 < backbone_bytes(config, torch.bfloat16, four_bits) < 49e9  # the experts do
    assert backbone_bytes(config, torch.bfloat16, FP8) < 28e9


@pytest.mark.parametrize(
    ("place", "device"),
    [
        ({"device": "cuda:1"}, "cuda:1"),
        ({"device_map": {"": 0}}, "cuda:0"),
        ({"device_map": "cuda"}, "cuda"),
    ],
)
def test_too_little_memory_says_what_to_choose(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any], device: str
) -> None:
    needed = backbone_bytes(CONFIG, torch.float32)
    free = [needed]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda asked: (free[0], 10**9))
    options = LoadOptions(**place)
    check_memory("some/backbone", CONFIG, options)
    free[0] -= 1
    with pytest.raises(CheckpointError) as raised:
        check_memory("some/backbone", CONFIG, options)
    message = str(raised.value)
    assert message.startswith(f"some/backbone: needs {needed / 1e9:.1f} GB on {device} in float32, and ")
    for choice in ('dtype="bfloat16"', "FP8", "device_map='auto'"):
        assert choice in message
    check_memory("some/backbone", CONFIG, LoadOptions(**place, dtype=torch.bfloat16))
    check_memory("some/backbone", CONFIG, LoadOptions(**place, quantization_config={"quant_method": "new"}))


@pytest.mark.parametrize("place", [{}, {"device_map": "auto"}, {"device_map": {"a": 0, "b": "cpu"}}])
def test_what_is_spread_or_on_the_cpu_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    check_memory("some/backbone", CONFIG, LoadOptions(**place))


# Where they lie, and that they fit


def test_a_part_lies_beside_the_adapter_at_a_path_or_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint" / "backbone").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkpoint")
    assert find_part("backbone", "v1", tmp_path / "checkpoint") == Part(
        str(tmp_path / "checkpoint" / "backbone")
    )
    assert find_part("backbone", None) == Part("backbone")
    assert find_part("some/backbone", "v1", tmp_path) == Part("some/backbone", "v1")
    with pytest.raises(CheckpointError, match=r"backbone: no such folder; the checkpoint is not whole"):
        find_part("backbone", None, tmp_path)  # not the one of the working directory
    with pytest.raises(CheckpointError, match=r"^no/such/place: no such folder, and no owner/name"):
        find_part("no/such/place", None)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    with pytest.raises(CheckpointError, match="whisper: is a 'whisper' model, not 'diffusion_gemma'"):
        read_part_config(DiffusionGemmaConfig, Part(str(folder)), HubAccess())
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"whisper: no config\.json"):
        read_part_config(WhisperConfig, Part(str(folder)), HubAccess())


@pytest.mark.parametrize(
    ("backbone", "encoder", "message"),
    [
        ({"hidden_size": 48}, {}, "its hidden_size is 48, and the adapter is for hidden_size 32"),
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, {}, "its num_hidden_layers is 1"),
        ({}, {"d_model": 16}, "its d_model is 16, and the adapter is for d_model 32"),
        ({}, {"num_mel_bins": 128}, "its num_mel_bins is 128"),
    ],
)
def test_parts_of_another_geometry_are_refused_before_their_weights_are_read(
    tmp_path: Path, backbone: dict[str, Any], encoder: dict[str, Any], message: str
) -> None:
    parts = write_backbone(tmp_path / "backbone", **backbone), write_whisper(tmp_path / "encoder", **encoder)
    for part in parts:
        (part / "model.safetensors").write_bytes(b"")
    config = small_model().config
    with pytest.raises(CheckpointError, match=message):
        build_model(config, {}, tmp_path / "adapter", *(Part(str(p)) for p in parts), LoadOptions())


# How they are loaded


def test_arguments_reach_the_part_that_they_are_for(
    model: CanvasASRModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, encoder = write_backbone(tmp_path / "backbone"), write_whisper(tmp_path / "encoder")
    asked: dict[str, dict[str, Any]] = {}
    for kind in (DiffusionGemmaForBlockDiffusion, WhisperEncoder):
        given = kind.from_pretrained

        def spy(source: str, _given: Any = given, _name: str = kind.__name__, **options: Any) -> Any:
            asked[_name] = dict(options)
            options.pop("quantization_config", None)
            return _given(source, **options)

        monkeypatch.setattr(kind, "from_pretrained", spy)
    state = {name: p.detach() for name, p in adapter_parameters(model).items()}
    options = LoadOptions(
        dtype=torch.bfloat16,
        quantization_config=FP8,
        attn_implementation="eager",
        access=HubAccess("adapter's", "secret", True, str(tmp_path)),
    )
    loaded = build_model(
        model.config, state, tmp_path, Part(str(backbone), "b"), Part(str(encoder), "e"), options
    )
    of_backbone, of_encoder = asked["DiffusionGemmaForBlockDiffusion"], asked["WhisperEncoder"]
    assert (of_backbone["revision"], of_encoder["revision"]) == ("b", "e")
    assert of_backbone["quantization_config"] == FP8
    assert "quantization_config" not in of_encoder
    for options_of_one in (of_backbone, of_encoder):
        assert options_of_one["dtype"] == torch.bfloat16
        assert options_of_one["token"] == "secret"
        assert options_of_one["local_files_only"] is True
        assert options_of_one["attn_implementation"] == "eager"
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    rotary = {n: b.dtype for n, b in loaded.named_buffers() if "inv_freq" in n}
    assert set(rotary.values()) == {torch.float32}


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> DiffusionGemmaForBlockDiffusion:
    """Is what loading gives, whatever is asked for."""
    loaded = build_backbone(DiffusionGemmaConfig(**BACKBONE))
    encoder = WhisperEncoder(small_model().config.audio_encoder_config)
    monkeypatch.setattr(checkpoint, "load_frozen", lambda *_: (loaded, encoder))
    monkeypatch.setattr(checkpoint, "read_part_config", lambda *_: None)
    monkeypatch.setattr(checkpoint, "check_fit", lambda *_: None)
    return loaded


def test_lora_beside_fp8_weights_has_the_precision_of_the_embeddings(
    backbone: DiffusionGemmaForBlockDiffusion, tmp_path: Path
) -> None:
    model = small_model()
    state = {name: p.detach().clone() for name, p in adapter_parameters(model).items()}
    for name, parameter in backbone.named_parameters():
        if "self_attn" in name and name.endswith("_proj.weight"):
            parameter.data = parameter.data.to(torch.float8_e4m3fn)
    part = Part(str(tmp_path))
    loaded = build_model(model.config, state, tmp_path, part, part, LoadOptions())
    for name, parameter in adapter_parameters(loaded).items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, state[name])


def test_weights_on_disk_are_refused(backbone: DiffusionGemmaForBlockDiffusion, tmp_path: Path) -> None:
    backbone.hf_device_map = {"model.decoder": "cpu", "model.encoder": "disk"}
    part = Part("some/backbone")
    with pytest.raises(CheckpointError, match="some/backbone: device_map leaves some of it on disk"):
        build_model(small_model().config, {}, tmp_path, part, part, LoadOptions())
