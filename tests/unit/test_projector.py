from __future__ import annotations

import pytest
import torch
from padded_batch import check_padded_batch
from small_models import AUDIO_ENCODER, BACKBONE
from transformers import DiffusionGemmaConfig, WhisperConfig

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.projector import AudioProjector, CTCTap

KINDS = [("conv", 4), ("conv", 8), ("stack_mlp", 2), ("stack_mlp", 3)]


def config_of(kind: str, stride: int) -> CanvasASRConfig:
    return CanvasASRConfig(
        backbone_config=BACKBONE,
        audio_encoder_config={**AUDIO_ENCODER, "d_model": 20},
        projector_kind=kind,
        projector_stride=stride,
        projector_width=24,
    )


@pytest.mark.parametrize(("kind", "stride"), KINDS)
def test_a_clip_in_a_padded_batch_gives_what_it_gives_alone(kind: str, stride: int) -> None:
    check_padded_batch(config_of(kind, stride), stride)


@torch.no_grad()
def test_stacked_frames_are_normed_one_by_one_then_joined() -> None:
    torch.manual_seed(0)
    projector = AudioProjector(config_of("stack_mlp", 2))
    frames = torch.randn(1, 3, 20)
    tokens, _ = projector(frames, torch.tensor([3]))
    normed = torch.nn.functional.layer_norm(frames[0], (20,))
    last = torch.cat([normed[2], torch.zeros(20)])
    hidden = projector.hidden.weight @ last + projector.hidden.bias
    expected = projector.out.weight @ (hidden * torch.sigmoid(hidden)) + projector.out.bias
    torch.testing.assert_close(tokens[0, 1], expected)


@torch.no_grad()
def test_convolutions_are_stride_two_with_gelu_and_a_linear_map() -> None:
    torch.manual_seed(0)
    projector = AudioProjector(config_of("conv", 4))
    frames = torch.randn(1, 8, 20)
    hidden = frames.transpose(1, 2)
    for conv in projector.convs:
        hidden = torch.nn.functional.gelu(
            torch.nn.functional.conv1d(hidden, conv.weight, conv.bias, stride=2, padding=1)
        )
    tokens, n_audio = projector(frames, torch.tensor([8]))
    torch.testing.assert_close(tokens, projector.out(hidden.transpose(1, 2)))
    assert n_audio.tolist() == [2]


@pytest.mark.parametrize(("kind", "stride"), KINDS)
def test_frames_of_another_width_are_refused(kind: str, stride: int) -> None:
    with pytest.raises(ValueError, match="frames are 19 wide; this projector takes 20"):
        AudioProjector(config_of(kind, stride))(torch.randn(1, 8, 19), torch.tensor([8]))


def test_the_released_geometry() -> None:
    backbone = DiffusionGemmaConfig()
    backbone.text_config.hidden_size = 2816
    config = CanvasASRConfig(
        backbone_config=backbone,
        audio_encoder_config=WhisperConfig(d_model=768),
        projector_kind="conv",
        projector_width=1408,
        projector_stride=8,
    )
    with torch.device("meta"):
        projector = AudioProjector(config)
        tokens, _ = projector(torch.empty(1, 1500, 768), torch.empty(1, dtype=torch.long))
    # 768*1408*3 + 1408 + 2 * (1408*1408*3 + 1408) + 1408*2816 + 2816
    assert sum(p.numel() for p in projector.parameters()) == 19_110_784
    assert tokens.shape == (1, 188, 2816)
    assert projector.n_audio_tokens(torch.tensor([1500])).tolist() == [188]


@torch.no_grad()
def test_the_tap_norms_and_scales() -> None:
    tap = CTCTap(config_of("conv", 4))
    tap.scale.fill_(3.0)
    token = torch.zeros(32)
    token[:16], token[16:] = 50.0, 54.0  # mean 52, standard deviation 2
    states = tap(token[None, None])
    expected = torch.cat([torch.full((16,), -3.0), torch.full((16,), 3.0)])
    torch.testing.assert_close(states[0, 0], expected, atol=1e-4, rtol=1e-5)
    assert {name for name, p in tap.named_parameters() if p.requires_grad} == {
        "norm.weight",
        "norm.bias",
        "scale",
    }
