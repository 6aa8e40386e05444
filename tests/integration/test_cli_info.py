"""``canvas-asr info``: geometry and parameters, without reading a tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_models import small_model, small_processor

import canvas_asr
from canvas_asr import cli
from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.configuration import CanvasASRConfig


def test_info_counts_what_is_there(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["parameters"]
    loaded = canvas_asr.load(model, device="cpu").model
    sizes = {name: parameter.numel() for name, parameter in loaded.named_parameters()}
    trained = sum(parameter.numel() for parameter in loaded.parameters() if parameter.requires_grad)
    assert counts["total"] == sum(sizes.values())
    assert counts["trained"] == trained == counts["projector"] + counts["CTC tap"] + counts["LoRA"]
    assert counts["frozen"] == counts["total"] - trained == counts["audio encoder"] + counts["backbone"]
    assert counts["trained share"] == pytest.approx(trained / counts["total"])
    assert counts["LoRA"] == sum(n for name, n in sizes.items() if "lora_" in name)


def test_info_is_a_table_and_needs_no_tensors(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(model / name, tmp_path / name)
    assert cli.main(["info", str(tmp_path)]) == 0
    lines: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        lines.setdefault(line[:19].strip(), []).append(line[19:])
    table = {key: values[-1] for key, values in lines.items()}
    n_frozen = sum(p.numel() for p in small_model().parameters() if not p.requires_grad)
    assert table["model"] == str(tmp_path)
    assert table["canvas"] == "32 tokens, at most 64"
    assert table["decoding"] == "8 passes from noise"
    assert table["in the prompt"] == "audio tokens, a position each"
    assert table["frozen"].startswith(f"{n_frozen:,} (")
    assert lines["projector"][0] == "stack_mlp, 512 wide, 12.5 audio tokens a second"
    assert table["weights here"] == "0.0 MB"


def test_info_says_that_there_is_no_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(small_model(lora_rank=0), small_processor(), tmp_path, whole=True)
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["LoRA"], facts["parameters"]["LoRA"]) == ("none", 0)


def test_info_of_the_released_geometry_has_its_published_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CanvasASRConfig(
        backbone="google/diffusiongemma-26B-A4B-it",
        audio_encoder="openai/whisper-small",
        backbone_config={
            "text_config": {
                "hidden_size": 2816,
                "num_hidden_layers": 30,
                "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 5,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "num_global_key_value_heads": 2,
                "head_dim": 256,
                "global_head_dim": 512,
                "intermediate_size": 2112,
                "num_experts": 128,
                "top_k_experts": 8,
                "moe_intermediate_size": 704,
                "vocab_size": 262_144,
                "sliding_window": 1024,
            },
            "vision_config": {"model_type": "gemma4_vision", "hidden_size": 1152, "num_hidden_layers": 27},
        },
        audio_encoder_config={
            "d_model": 768,
            "encoder_layers": 12,
            "encoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
        },
        projector_kind="conv",
        projector_width=1408,
        projector_stride=8,
    )
    config.save_pretrained(tmp_path)
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    counts = facts["parameters"]
    assert "6.25 audio tokens a second" in facts["projector"]
    assert counts["projector"] == pytest.approx(19.11e6, abs=0.01e6)
    assert counts["LoRA"] == pytest.approx(22.98e6, abs=0.01e6)
    assert 25.2e9 < counts["backbone"] < 26e9
    assert counts["trained share"] == pytest.approx(0.00163, abs=0.00003)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"hop_length": "long"}'])
def test_info_names_features_that_cannot_be_read(
    content: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(model / "config.json", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    assert cli.main(["info", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"canvas-asr: error: {tmp_path / 'preprocessor_config.json'}: ")


def test_parts_are_for_an_adapter_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model), "--backbone", "some/backbone"]) == 1
    assert "leave out --backbone" in capsys.readouterr().err


def test_info_of_no_model_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "large-v9"]) == 1
    assert capsys.readouterr().err.startswith("canvas-asr: error: large-v9: no such model; give 'tiny'")
