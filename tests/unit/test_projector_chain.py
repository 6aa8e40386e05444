"""A projector as any chain of linear layers, stride-2 convolutions, LayerNorms and activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from padded_batch import check_padded_batch
from small_models import AUDIO_ENCODER, BACKBONE, small_model, small_processor
from transformers import DiffusionGemmaConfig, WhisperConfig

import canvas_asr
from canvas_asr import cli
from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.projector import AudioProjector

FRONT = ["linear 24", "activation", *["conv 24", "activation"] * 3, "norm", "linear 32"]
LAST = ["norm", "conv 24", "norm", "activation", "conv 28", "activation", "conv 32"]
# Both shapes of about 19 M parameters at the released width of 1280.
FULL_SIZE = {
    "linear in front": (["linear 1280", *["conv 1280"] * 3, "linear 2816"], 19_341_056),
    "last convolution to the backbone": (["conv 1280", "conv 1280", "conv 2816"], 18_683_136),
    "normed": (["linear 1280", *["conv 1280"] * 3, "norm", "linear 2816"], 19_343_616),
}


def config_of(layers: list[str], **fields: object) -> CanvasASRConfig:
    return CanvasASRConfig(
        backbone_config=BACKBONE,
        audio_encoder_config={**AUDIO_ENCODER, "d_model": 20},
        projector_kind="chain",
        projector_layers=layers,
        **fields,
    )


@pytest.mark.parametrize("layers", [FRONT, LAST])
def test_a_clip_in_a_padded_batch_gives_what_it_gives_alone(layers: list[str]) -> None:
    check_padded_batch(config_of(layers), 8)


@torch.no_grad()
def test_layers_run_in_the_order_that_is_written() -> None:
    torch.manual_seed(0)
    projector = AudioProjector(config_of(LAST, projector_activation="relu"))
    frames = torch.randn(1, 8, 20)
    norm_in, conv_1, norm, conv_2, conv_3 = projector.layers
    hidden = conv_1(norm_in(frames).mT)
    hidden = conv_2(norm(hidden.mT).relu().mT)
    expected = conv_3(hidden.relu()).mT
    torch.testing.assert_close(projector(frames, torch.tensor([8]))[0], expected)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_released_width_in_other_shapes(name: str) -> None:
    layers, n_parameters = FULL_SIZE[name]
    backbone = DiffusionGemmaConfig()
    backbone.text_config.hidden_size = 2816
    config = CanvasASRConfig(
        backbone_config=backbone,
        audio_encoder_config=WhisperConfig(d_model=768),
        projector_kind="chain",
        projector_layers=layers,
    )
    assert (config.projector_width, config.projector_stride) == (1280, 8)
    with torch.device("meta"):
        projector = AudioProjector(config)
        tokens, _ = projector(torch.empty(1, 1500, 768), torch.empty(1, dtype=torch.long))
    assert sum(p.numel() for p in projector.parameters()) == n_parameters
    assert tokens.shape == (1, 188, 2816)
    assert projector.n_audio_tokens(torch.tensor([1500])).tolist() == [188]


def test_a_chain_is_saved_loaded_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(projector_kind="chain", projector_layers=FRONT)
    save_checkpoint(model, small_processor(), tmp_path, whole=True)
    assert json.loads((tmp_path / "config.json").read_text())["projector_layers"] == FRONT
    again = canvas_asr.load(tmp_path, device="cpu").model
    assert again.config.projector_layers == FRONT
    assert again.config.projector_stride == 8
    for name, parameter in model.projector.named_parameters():
        assert torch.equal(again.projector.get_parameter(name), parameter)
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    told = "chain of linear 24 + gelu, 3 × conv 24 + gelu, norm, linear 32, 3.125 audio tokens a second"
    assert facts["projector"] == told
    assert facts["parameters"]["projector"] == sum(p.numel() for p in model.projector.parameters())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, "projector_layers is None; a chain is a list of texts"),
        ("conv 32", "projector_layers is 'conv 32'; a chain is a list of texts"),
        (["conv 24"], r"it has to lead from 20 to the backbone's 32"),
        (["norm"], r"it has to lead from 20 to the backbone's 32"),
        (["pool 2", "linear 32"], "projector_layers has 'pool 2'; write 'linear WIDTH'"),
        (["linear -4", "linear 32"], "projector_layers has 'linear -4'"),
        (["norm 20", "linear 32"], "projector_layers has 'norm 20'"),
    ],
)
def test_an_impossible_chain_is_refused(layers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(layers)


def test_layers_are_for_a_chain_alone() -> None:
    with pytest.raises(ValueError, match="projector_kind is 'conv', not 'chain'"):
        CanvasASRConfig(backbone_config=BACKBONE, projector_kind="conv", projector_layers=["linear 32"])
