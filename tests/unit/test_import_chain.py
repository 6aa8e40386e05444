"""Adapter files whose projector is a chain of layers: the same model from each, or an error with names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import State, imported, logits, lora, projector, refused, saved, tap, with_adapter
from safetensors.torch import save_file
from transformers import DiffusionGemmaConfig, WhisperConfig

from canvas_asr.checkpoint import adapter_state, load_adapter
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.conversion import ImportSettings
from canvas_asr.conversion.projector import match_projector
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.projector import AudioProjector

FRONT = ["linear 24", "activation", *["conv 24", "activation"] * 3, "norm", "linear 32"]
LAST = ["conv 24", "activation", "conv 28", "activation", "conv 32"]
NORMED = [*["conv 24", "norm", "activation"] * 3, "linear 32"]
MIXED = ["norm", "linear 24", "conv 24", "activation", "linear 20", "activation", "conv 32", "norm"]
NAMES = {
    "front": (FRONT, ["in_proj", "conv1", "conv2", "conv3", "norm", "out_proj"]),
    "last": (LAST, ["conv1", "conv2", "conv3"]),
    "normed": (NORMED, ["conv1", "norm1", "conv2", "norm2", "conv3", "norm3", "proj"]),
}


def model_of(layers: list[str], seed: int = 1) -> CanvasASRModel:
    return with_adapter(seed, projector_kind="chain", projector_layers=layers, lora_rank=4)


def renamed(state: State, names: Sequence[str]) -> dict[str, Any]:
    """A file whose projector's layers have these names, in this order."""
    layers = {
        f"{name}.{end}": projector(state)[f"layers.{index}.{end}"]
        for index, name in enumerate(names)
        for end in ("weight", "bias")
    }
    return {"projector": layers, "lora": lora(state), "ctc": tap(state)}


def numbers(layers: Sequence[str]) -> list[str]:
    """Names in a ``Sequential`` in which activations take numbers too."""
    return [str(index) for index, text in enumerate(layers) if text != "activation"]


def sorted_file(content: dict[str, Any], folder: Path) -> Path:
    """A safetensors file, whose layers stand in the order of their names."""
    flat = {f"{part}.{name}": tensor for part, state in content.items() for name, tensor in state.items()}
    save_file({name: flat[name] for name in sorted(flat)}, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def check_equal(
    path: Path, source: CanvasASRModel, layers: list[str], settings: ImportSettings | None = None
) -> str:
    """Import, and compare layers and logits; gives the report."""
    found = imported(path, source, settings)
    assert found.fields["projector_kind"] == "chain"
    assert found.fields["projector_layers"] == layers
    other = model_of(found.fields["projector_layers"], seed=2)
    save_file(found.state, path.parent / "model.safetensors")
    before = logits(other)
    load_adapter(other, path.parent / "model.safetensors")
    for expected, actual, none in zip(logits(source), logits(other), before, strict=True):
        assert (expected - none).abs().max() > 1e-3
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    return found.report


@pytest.mark.parametrize("layers", [FRONT, NORMED, MIXED])
def test_numbers_of_a_sequential_tell_order_and_activations(layers: list[str], tmp_path: Path) -> None:
    source = model_of(layers)
    path = saved(renamed(adapter_state(source), numbers(layers)), tmp_path)
    report = check_equal(path, source, layers)
    assert "activations where the numbers of the layers leave room (guess)" in report
    assert "order of the layers" not in report


@pytest.mark.parametrize("name", NAMES)
def test_named_layers_are_taken_in_the_order_of_the_file(name: str, tmp_path: Path) -> None:
    layers, names = NAMES[name]
    source = model_of(layers)
    settings = ImportSettings(activation_after="norms") if layers is NORMED else None
    report = check_equal(saved(renamed(adapter_state(source), names), tmp_path), source, layers, settings)
    told = ", ".join(f"projector.{each}" for each in names)
    assert f"order of the layers as in the file (guess): {told}" in report
    place = "behind a LayerNorm that follows it (given)" if settings else "but the last (guess)"
    assert place in report


@pytest.mark.parametrize("name", ["front", "normed"])
def test_sorted_names_are_put_into_the_natural_order(name: str, tmp_path: Path) -> None:
    layers, names = NAMES[name]
    source = model_of(layers)
    settings = ImportSettings(activation_after="norms") if layers is NORMED else None
    path = sorted_file(renamed(adapter_state(source), names), tmp_path)
    report = check_equal(path, source, layers, settings)
    told = ", ".join(f"projector.{each}" for each in names)
    assert f"the natural order of the layers (guess): {told}" in report
    assert "each convolution taken to have stride 2 and padding 1 (guess): 8×" in report


def test_own_names_and_a_list_of_modules_say_nothing_of_activations(tmp_path: Path) -> None:
    source = model_of(FRONT)
    report = check_equal(saved(adapter_state(source), tmp_path), source, FRONT)
    assert "activations after every linear map and convolution but the last (guess)" in report
    assert "projector: chain of linear 24 + gelu, 3 × conv 24 + gelu, norm, linear 32, 8 frames per" in report


def test_activations_stand_where_they_are_said_to_stand(tmp_path: Path) -> None:
    layers = ["linear 24", "conv 24", "activation", "conv 24", "activation", "linear 32"]
    source = model_of(layers)
    path = saved(renamed(adapter_state(source), ["in", "conv1", "conv2", "out"]), tmp_path)
    report = check_equal(path, source, layers, ImportSettings(activation_after="convs"))
    assert "activations after every convolution, unless it is the last" in report
    with pytest.raises(OptionError, match="activation_after is 'all'; choose one of maps, norms, convs"):
        imported(path, source, ImportSettings(activation_after="all"))


# What is not certain, or does not fit


def test_convolutions_against_their_numbers_are_ambiguous(tmp_path: Path) -> None:
    source = model_of(FRONT)
    names = ["in_proj", "conv2", "conv1", "conv3", "norm", "out_proj"]
    message = refused(saved(renamed(adapter_state(source), names), tmp_path), source)
    assert "projector.conv{1-3}.weight" in message
    assert "projector.in_proj.weight" in message
    assert "ambiguous: their order in the file is not that of their names" in message


def test_layer_norms_without_a_certain_place_are_ambiguous(tmp_path: Path) -> None:
    source = model_of(NORMED)
    names = ["conv1", "ln_a", "conv2", "ln_b", "conv3", "ln_c", "proj"]
    message = refused(sorted_file(renamed(adapter_state(source), names), tmp_path), source)
    assert "projector.ln_a.weight" in message
    assert "ambiguous: they join to a projector in more than one order" in message


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "in_proj.weight",
            (28, 32),
            "projector.in_proj.weight, projector.conv1.weight (widths do not join: 28 is given and ",
        ),
        ("in_proj.weight", (24, 20), "(shape (24, 20): the first layer has to take frames of width 32)"),
        ("out_proj.weight", (40, 24), "(shape (40, 24): the last layer has to give the backbone's width 32)"),
        ("norm.weight", (7,), "projector.norm.weight (widths do not join: 24 is given and 7 is taken)"),
        ("conv2.weight", (24, 24, 5), "(shape (24, 24, 5): a convolution that is not over 3 frames)"),
        ("conv2.bias", (23,), "projector.conv2.bias (shape (23,) where (24,) is needed)"),
        ("gate", (24,), "projector.gate (no place in this model)"),
    ],
)
def test_layers_that_do_not_join_are_refused_by_name(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    source = model_of(FRONT)
    content = renamed(adapter_state(source), NAMES["front"][1])
    content["projector"][name] = torch.zeros(shape)
    told = refused(saved(content, tmp_path), source)
    assert f"projector.{name}" in told
    assert message in told


# Full size


@pytest.mark.parametrize(
    ("shapes", "millions"),
    [
        ([(1280, 768), *[(1280, 1280, 3)] * 3, (2816, 1280)], 19.34),
        ([(1280, 768, 3), (1280, 1280, 3), (2816, 1280, 3)], 18.68),
    ],
)
def test_the_released_width_is_imported_in_both_shapes_of_its_size(
    shapes: list[tuple[int, ...]], millions: float
) -> None:
    tensors = {}
    with torch.device("meta"):
        for index, shape in enumerate(shapes):
            tensors[f"projector.net.{2 * index}.weight"] = torch.empty(shape)
            tensors[f"projector.net.{2 * index}.bias"] = torch.empty(shape[0])
    match, fields = match_projector(tensors, d_audio=768, hidden_size=2816)
    assert not any(match.problems.values())
    backbone = DiffusionGemmaConfig()
    backbone.text_config.hidden_size = 2816
    config = CanvasASRConfig(
        backbone_config=backbone, audio_encoder_config=WhisperConfig(d_model=768), **fields
    )
    with torch.device("meta"):
        module = AudioProjector(config)
    assert {name: tuple(p.shape) for name, p in module.named_parameters(prefix="projector")} == {
        placed.target: placed.shape for placed in match.placed
    }
    assert round(sum(p.numel() for p in module.parameters()) / 1e6, 2) == millions
    assert module.n_audio_tokens(torch.tensor([1500])).tolist() == [188]
