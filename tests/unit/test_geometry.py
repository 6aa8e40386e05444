"""The released system at full size, without weights; then other front ends and backbones in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_clips import tones
from small_models import AUDIO_ENCODER, BACKBONE, TINY
from transformers import (
    DiffusionGemmaConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from canvas_asr.backbone import build_backbone
from canvas_asr.checkpoint import assemble
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.published import published_config


@pytest.fixture(scope="module")
def full_size() -> CanvasASRModel:
    with torch.device("meta"):
        return CanvasASRModel(published_config())


def count(model: CanvasASRModel, *, prefix: str = "", part: str = "") -> int:
    """Parameters whose name begins with and contains these; tied ones are listed once."""
    return sum(p.numel() for n, p in model.named_parameters() if n.startswith(prefix) and part in n)


def test_full_size_has_the_published_number_of_parameters(full_size: CanvasASRModel) -> None:
    lora = count(full_size, part="lora_")
    vision = sum(count(full_size, prefix="backbone.", part=p) for p in ("vision_tower", "embed_vision"))
    text = count(full_size, prefix="backbone.") - lora - vision
    projector = count(full_size, prefix="projector.")
    assert round(text / 1e9, 2) == 25.25
    assert round((text + vision) / 1e9, 1) == 25.8
    assert round(lora / 1e6, 2) == 22.98
    assert count(full_size, prefix="backbone.model.encoder.", part="lora_") * 2 == lora
    assert round(projector / 1e6, 2) == 19.11
    assert round(100 * (projector + lora) / (text + vision), 2) == 0.16
    trained = sum(p.numel() for p in full_size.parameters() if p.requires_grad)
    assert trained == projector + lora + count(full_size, prefix="ctc_tap.")


def test_full_size_reads_30_seconds_as_188_audio_tokens(full_size: CanvasASRModel) -> None:
    assert full_size.projector.n_audio_tokens(torch.tensor([1500, 500])).tolist() == [188, 63]
    frames = torch.empty(2, 1500, 768, device="meta")
    tokens, _ = full_size.projector(frames, torch.full((2,), 1500, device="meta"))
    assert tokens.shape == (2, 188, 2816)


def test_layers_of_full_attention_take_their_keys_for_values(full_size: CanvasASRModel) -> None:
    layers = full_size.backbone.model.decoder.layers
    assert [i for i, layer in enumerate(layers) if layer.self_attn.v_proj is None] == [5, 11, 17, 23, 29]
    assert layers[5].self_attn.k_proj.weight.shape == (2 * 512, 2816)
    assert layers[0].self_attn.v_proj.weight.shape == (8 * 256, 2816)


def test_the_published_geometry_survives_being_written_down() -> None:
    config = published_config(lora_rank=4)
    again = CanvasASRConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert (again.hidden_size, again.vocab_size, again.d_audio) == (2816, 262_144, 768)
    assert (again.lora_rank, again.projector_width, again.pad_to_30s) == (4, 1408, True)
    assert again.backbone_config.text_config.num_experts == 128
    # Each call gives a configuration that may be changed without changing the next one.
    config.backbone_config.text_config.layer_types.clear()
    assert len(published_config().backbone_config.text_config.layer_types) == 30


# Front ends and backbones, from folders laid out as on the hub


FRONT_ENDS = {
    "small": {},
    "medium": {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 3},
    "large-v3": {"num_mel_bins": 128, "d_model": 40, "encoder_layers": 2, "decoder_layers": 2},
    "large-v3-turbo": {"num_mel_bins": 128, "d_model": 40, "encoder_layers": 2, "decoder_layers": 4},
}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "small": {},
    "wider, fewer keys": {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "global_head_dim": 32,
        "final_logit_softcapping": 10.0,
    },
    "deeper, more experts": {
        "num_hidden_layers": 6,
        "layer_types": None,
        "num_experts": 8,
        "top_k_experts": 1,
        "sliding_window": 8,
    },
}


def write_whisper(folder: Path, **geometry: Any) -> None:
    """Write a whole Whisper and its feature extractor as on the hub: its decoder is to be left out."""
    rest = {
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "vocab_size": 60,
        "decoder_start_token_id": 1,
    }
    fields = {**AUDIO_ENCODER, "max_source_positions": 1500, "decoder_layers": 1, **rest, **geometry}
    config = WhisperConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2, **fields)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)


def write_backbone(folder: Path, **geometry: Any) -> None:
    config = DiffusionGemmaConfig(**{**BACKBONE, "text_config": {**BACKBONE["text_config"], **geometry}})
    build_backbone(config).save_pretrained(folder)


def decode(tmp_path: Path, fields: dict[str, Any]) -> tuple[CanvasASRModel, list[int]]:
    """Assemble the two folders and decode a clip of 0.9 s beside one of 0.4 s; gives their audio tokens."""
    settings = {"canvas_length": 8, "max_canvas_length": 16, **fields}
    model, processor = assemble(str(tmp_path / "backbone"), str(tmp_path / "whisper"), TINY, settings)
    decoder = CanvasDecoder(model.eval(), processor)
    mel, n_mel = processor.features([tones(0.9, 1), tones(0.4, 2)])
    assert mel.shape[1] == model.config.audio_encoder_config.num_mel_bins
    for init in ("noise", "draft"):
        together = decoder(mel, n_mel, clip_keys=[0, 1], steps=2, init=init)
        alone = decoder(mel[1:, :, : int(n_mel[1])], n_mel[1:], clip_keys=[1], steps=2, init=init)
        assert alone[0].ids == together[1].ids
        assert all(0 <= c <= 1.00001 for clip in together for c in clip.confidences)
    tokens, n_audio = model.audio_tokens(mel, n_mel)
    assert tokens.shape[-1] == model.config.hidden_size
    return model, n_audio.tolist()


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_every_size_of_whisper_is_a_front_end(name: str, tmp_path: Path) -> None:
    write_whisper(tmp_path / "whisper", **FRONT_ENDS[name])
    write_backbone(tmp_path / "backbone")
    released = {"projector_kind": "conv", "projector_stride": 8, "projector_width": 24}
    model, n_audio = decode(tmp_path, released)
    # 90 and 40 mel frames of 10 ms; 45 and 20 encoder frames
    assert n_audio == [6, 3]
    written = WhisperForConditionalGeneration.from_pretrained(tmp_path / "whisper").model.encoder.state_dict()
    ours = model.audio_encoder.state_dict()
    assert ours.keys() == written.keys()
    assert all(torch.equal(ours[key], written[key]) for key in ours)


def test_large_v3_padded_to_30_seconds_gives_the_released_number_of_audio_tokens(tmp_path: Path) -> None:
    write_whisper(tmp_path / "whisper", **{**FRONT_ENDS["large-v3"], "encoder_layers": 1})
    write_backbone(tmp_path / "backbone")
    fields = {"projector_kind": "conv", "projector_stride": 8, "projector_width": 8, "pad_to_30s": True}
    assert decode(tmp_path, fields)[1] == [188, 188]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_mlp_projector_feeds_every_geometry_of_the_backbone(name: str, tmp_path: Path) -> None:
    write_whisper(tmp_path / "whisper")
    write_backbone(tmp_path / "backbone", **GEOMETRIES[name])
    # Four encoder frames of 20 ms a token: 12.5 Hz.
    model, n_audio = decode(
        tmp_path, {"projector_kind": "stack_mlp", "projector_stride": 4, "projector_width": 24}
    )
    assert n_audio == [12, 5]
    layers = model.backbone.model.decoder.layers
    assert len(layers) == model.config.backbone_config.text_config.num_hidden_layers
    assert all("lora_A" in dict(layer.self_attn.q_proj.named_children()) for layer in layers)
    text = model.config.backbone_config.text_config
    expected = {"hidden_size": 32, "num_experts": 4, "num_attention_heads": 2, **GEOMETRIES[name]}
    assert all(getattr(text, key) == expected[key] for key in ("hidden_size", "num_experts"))
    assert layers[0].self_attn.q_proj.out_features == 16 * expected["num_attention_heads"]
