from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import AUDIO_ENCODER, BACKBONE

from canvas_asr.configuration import LANGUAGES, CanvasASRConfig


def small_config(**fields: object) -> CanvasASRConfig:
    return CanvasASRConfig(backbone_config=BACKBONE, audio_encoder_config=AUDIO_ENCODER, **fields)


def test_widths_are_those_of_the_parts() -> None:
    config = small_config()
    assert (config.hidden_size, config.vocab_size, config.d_audio) == (32, 4096, 32)
    assert config.backbone_config.text_config.layer_types == ["sliding_attention", "full_attention"]
    assert config.language_tags == {code: f"<|{code}|>" for code in LANGUAGES}


def test_saved_and_read_again_every_field_is_the_same(tmp_path: Path) -> None:
    config = small_config(
        backbone="some/backbone",
        backbone_revision="abc",
        projector_kind="conv",
        projector_stride=8,
        projector_width=48,
        lora_rank=4,
        language_tags={"en": "<|en|>"},
        language_tag_place="none",
        blank_token_id=9,
        ctc_softcap=True,
        pad_to_30s=True,
        canvas_length=40,
        max_canvas_length=50,
        decoding_init="draft",
        decoding_steps=2,
        decoding_self_conditioning="posterior",
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "canvas_asr"
    again = CanvasASRConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.backbone_config.text_config.hidden_size == 32
    assert again.audio_encoder_config.d_model == 32
    assert CanvasASRConfig.from_dict(config.to_dict()).projector_stride == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("projector_kind", "linear"),
        ("language_tag_place", "prompt"),
        ("projector_width", 0),
        ("projector_stride", 0),
        ("lora_rank", -1),
        ("canvas_length", 0),
        ("max_canvas_length", 0),
        ("blank_token_id", 4096),
        ("blank_token_id", -1),
        ("decoding_init", "mask"),
        ("decoding_steps", 0),
        ("decoding_steps", "two"),
        ("decoding_self_conditioning", "mask"),
    ],
)
def test_an_impossible_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is .*{value}"):
        small_config(**{field: value})


def test_convolutions_need_a_power_of_two_and_frames_of_an_mlp_do_not() -> None:
    with pytest.raises(ValueError, match="projector_stride is 6"):
        small_config(projector_kind="conv", projector_stride=6)
    assert small_config(projector_kind="stack_mlp", projector_stride=6).projector_stride == 6


def test_the_default_canvas_must_be_one_that_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"canvas_length 65 .*max_canvas_length 64"):
        small_config(canvas_length=65, max_canvas_length=64)


def test_a_call_that_says_nothing_is_decoded_as_the_checkpoint_says() -> None:
    def defaults(**fields: object) -> tuple[str | None, int | None]:
        decoding = small_config(**fields).decoding
        return decoding.init, decoding.steps

    assert defaults() == ("noise", 8)
    assert defaults(decoding_steps=16) == ("noise", 16)
    assert defaults(decoding_init="draft") == ("draft", 1)
    assert defaults(decoding_init="draft", decoding_steps=0) == ("draft", 0)
    posterior = small_config(decoding_self_conditioning="posterior", decoding_init="draft")
    assert posterior.decoding.self_conditioning == "posterior"
    with pytest.raises(ValueError, match=r"^decoding_init is 'draft', but has_draft is False"):
        small_config(decoding_init="draft", has_draft=False)
