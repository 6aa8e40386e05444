"""Adapter files of unknown layout: the same model from each, or an error that names every tensor in doubt."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import (
    LAYOUTS,
    State,
    backbone_names,
    imported,
    logits,
    lora,
    projector,
    refused,
    saved,
    sequential,
    tap,
    with_adapter,
)
from safetensors.torch import save_file
from small_models import small_model

from canvas_asr.checkpoint import adapter_state, load_adapter
from canvas_asr.conversion import ImportSettings
from canvas_asr.conversion.matching import brief
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel

RANK = 4
CONV = {"projector_kind": "conv", "projector_width": 24, "projector_stride": 8, "lora_rank": RANK}


@pytest.fixture(scope="module")
def source() -> CanvasASRModel:
    return with_adapter(1, **CONV)


@pytest.fixture
def state(source: CanvasASRModel) -> State:
    return adapter_state(source)


@pytest.fixture(scope="module")
def other() -> CanvasASRModel:
    """Takes the imported tensors."""
    return with_adapter(2, **CONV)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_model_that_it_came_from(
    layout: str, source: CanvasASRModel, other: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    found = imported(saved(LAYOUTS[layout](state), tmp_path), source)
    assert found.fields["projector_kind"] == "conv"
    for name in ("projector_width", "projector_stride", "lora_rank", "lora_alpha"):
        assert found.fields[name] == getattr(source.config, name)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    without = logits(other)
    save_file(found.state, tmp_path / "model.safetensors")
    load_adapter(other, tmp_path / "model.safetensors")
    for expected, actual, none in zip(logits(source), logits(other), without, strict=True):
        assert (expected - none).abs().max() > 1e-3
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_stacked_projector_is_recognised_too(tmp_path: Path) -> None:
    model = with_adapter(3, lora_rank=RANK)
    state = adapter_state(model)
    found = imported(saved({"projector": projector(state), "lora": lora(state)}, tmp_path), model)
    shape = {key: found.fields[key] for key in ("projector_kind", "projector_width", "projector_stride")}
    assert shape == {"projector_kind": "stack_mlp", "projector_width": 512, "projector_stride": 2}
    assert found.fields["projector_activation"] == "silu"
    for name in projector(state):
        assert torch.equal(found.state[f"projector.{name}"], state[f"projector.{name}"])


def test_safetensors_and_the_old_torch_format_are_read(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "adapter.safetensors")
    old = saved(state, tmp_path, _use_new_zipfile_serialization=False)
    for path in (tmp_path / "adapter.safetensors", old):
        found = imported(path, source).state
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_half_precision_becomes_float32_and_a_missing_bias_zero(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items() if name != "projector.out.bias"}
    found = imported(saved(half, tmp_path), source)
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    assert not found.state["projector.out.bias"].any()
    assert "projector.out: no bias in the file; zero stands in" in found.report
    torch.testing.assert_close(
        found.state["projector.out.weight"], state["projector.out.weight"], rtol=0.01, atol=0
    )


def test_a_missing_tap_is_an_identity_and_said_so(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    found = imported(saved({"projector": sequential(state), "lora": lora(state)}, tmp_path), source)
    assert torch.equal(found.state["ctc_tap.norm.weight"], torch.ones(32))
    assert not found.state["ctc_tap.norm.bias"].any()
    assert found.state["ctc_tap.scale"] == 1
    assert "CTC tap: not in the file" in found.report
    assert 'init="draft"' in found.report


def test_a_list_may_begin_with_the_decoder(source: CanvasASRModel, state: State, tmp_path: Path) -> None:
    content = LAYOUTS["list of pairs"](state)
    half = len(content["lora"]) // 2
    content["lora"] = content["lora"][half:] + content["lora"][:half]
    found = imported(saved(content, tmp_path), source, ImportSettings(first_side="decoder"))
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    assert "the decoder first (guess)" in found.report


# The report


def test_the_report_tells_every_tensor_and_every_guess(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    content = {**LAYOUTS["nested"](state), "lr": 1e-4}
    report = imported(saved(content, tmp_path), source, ImportSettings(canvas_length=300)).report
    for told in (
        "projector.2.weight (24, 24, 3) -> projector.convs.1.weight",
        "lora.model.decoder.layers.{0-1}.self_attn.q_proj.lora_A.weight (4, 32) -> "
        "backbone.model.decoder.layers.{0-1}.self_attn.q_proj.lora_A.weight",
        "lora.model.decoder.layers.0.self_attn.v_proj.lora_B.weight (16, 4) -> ",
        "ctc.ctc_tap.scale () -> ctc_tap.scale",
        "lora_alpha = 8 (guess)",
        "projector_activation = 'gelu' (guess)",
        "language_tag_place = 'none' (guess)",
        "canvas_length = 300 (given)",
        "max_canvas_length = 300 (guess)",
        "stride 2 and padding 1 (guess)",
        "also in the file: step = '12', lr = '0.0001'",
    ):
        assert told in report
    n_arrows = sum("{0-1}" in line for line in report.splitlines() if " -> " in line)
    assert sum(" -> " in line for line in report.splitlines()) + n_arrows == len(state)


def test_alpha_is_taken_from_the_file_unless_given(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    path = saved({"model": state, "config": {"lora_alpha": 24, "lr": float("inf")}}, tmp_path)
    stated = imported(path, source)
    assert stated.fields["lora_alpha"] == 24
    assert "lora_alpha = 24 (in the file)" in stated.report
    assert "lora_alpha" not in stated.guesses
    assert imported(path, source, ImportSettings(lora_alpha=5)).fields["lora_alpha"] == 5


def test_equal_matrices_on_both_sides_are_noticed(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    tied = {
        name: state[name.replace(".decoder.", ".encoder.language_model.")] for name, tensor in state.items()
    }
    assert "may have been tied by mistake" in imported(saved(tied, tmp_path), source).report
    assert "tied" not in imported(saved(state, tmp_path), source).report


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ImportSettings(projector_activation="tanhh"), "projector_activation is 'tanhh'; choose one of"),
        (ImportSettings(blank_token_id=4096), "blank_token_id is 4096, outside the vocabulary"),
        (ImportSettings(lora_alpha=0), "lora_alpha is 0"),
        (ImportSettings(first_side="left"), "first_side is 'left'; choose one of encoder, decoder"),
        (ImportSettings(language_tag_place="prompt"), "language_tag_place is 'prompt'"),
    ],
)
def test_impossible_settings_are_refused(
    settings: ImportSettings, message: str, source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        imported(saved(state, tmp_path), source, settings)


# What does not fit


def test_every_tensor_without_a_place_is_named(source: CanvasASRModel, state: State, tmp_path: Path) -> None:
    extra = {
        "head.weight": torch.zeros(3, 5),
        "projector.gate": torch.zeros(7),
        "model.decoder.layers.1.self_attn.v_proj.lora_A.weight": torch.zeros(RANK, 32),  # full attention
        "model.decoder.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(RANK, 32),
        "ctc_tap.blank": torch.zeros(32, 2),
        "steps": torch.zeros(2, 2, dtype=torch.long),
    }
    message = refused(saved({**state, **extra}, tmp_path), source)
    for name in extra:
        assert name in message
    assert "projector.convs" not in message


def test_every_missing_tensor_is_named(source: CanvasASRModel, state: State, tmp_path: Path) -> None:
    one_side = {name: tensor for name, tensor in state.items() if ".decoder." not in name}
    message = refused(saved(one_side, tmp_path), source)
    assert "model.decoder.layers.{0-1}.self_attn.q_proj.lora_A.weight" in message
    assert "model.decoder.layers.0.self_attn.v_proj.lora_B.weight" in message
    assert "model.decoder.layers.{0-1}.self_attn.v_proj" not in message
    assert "encoder" not in message.partition("(missing from the file)")[0]
    message = refused(saved(lora(state), tmp_path), source)
    assert "projector (missing from the file)" in message


def test_convolutions_in_two_orders_are_ambiguous(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    names = list(state)
    last, middle = names.index("projector.convs.2.weight"), names.index("projector.convs.1.weight")
    names[last], names[middle] = names[middle], names[last]
    # The first has another shape where frames are not as wide as the convolutions.
    message = refused(saved({name: state[name] for name in names}, tmp_path), source)
    assert "projector.convs.{0-2}.weight" in message
    assert "ambiguous: their order in the file is not that of their names" in message


def test_two_tensors_for_one_place_are_ambiguous(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    name = "model.decoder.layers.0.self_attn.q_proj.lora_B.weight"
    twice = {"ema": {name: backbone_names(state)[name]}, "model": state}
    message = refused(saved(twice, tmp_path), source)
    assert f"ema.{name}, model.backbone.{name} (ambiguous: more than one for backbone.{name})" in message


def test_names_that_do_not_tell_the_side_are_refused(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    sideless = {
        name.replace("decoder.", "").replace("encoder.language_model.", "text."): tensor
        for name, tensor in state.items()
    }
    message = refused(saved(sideless, tmp_path), source)
    assert "the name does not tell the layer and the side" in message


def test_a_short_list_is_refused(source: CanvasASRModel, state: State, tmp_path: Path) -> None:
    content = LAYOUTS["list of pairs"](state)
    content["lora"] = content["lora"][:-1]
    message = refused(saved(content, tmp_path), source)
    assert "a list of 13 A and 13 B matrices, where the backbone has 14 projections" in message
    assert "lora.{0-12}.0" in message


def test_another_rank_or_shape_is_refused_by_name(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    name = "backbone.model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
    message = refused(saved({**state, name: torch.zeros(3, 32)}, tmp_path), source)
    assert f"{name} (shape (3, 32) where (4, 32) is needed)" in message
    wide = {**state, "projector.convs.1.weight": torch.zeros(24, 24, 5)}
    assert "projector.convs.1.weight" in refused(saved(wide, tmp_path), source)
    biased = {**state, "projector.out.bias": torch.zeros(31)}
    assert "projector.out.bias (shape (31,) where (32,) is needed)" in refused(
        saved(biased, tmp_path), source
    )


def test_a_backbone_of_another_width_is_refused(state: State, tmp_path: Path) -> None:
    wider = small_model(**CONV)
    wider.config.backbone_config.text_config.hidden_size = 64
    wider.config.backbone_config.text_config.head_dim = 32
    message = refused(saved(state, tmp_path), wider)
    assert "no linear map from 24 to the backbone's width 64" in message
    assert "shape (4, 32) where (4, 64) is needed" in message
    assert "Check that backbone and audio encoder are those" in message


# Files


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_malicious_file_leaves_no_trace(
    form: str, source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    content = {"projector": projector(state), "lora": Command(trace)}
    if form == "pickle":
        path = tmp_path / "adapter.pt"
        path.write_bytes(pickle.dumps(content))
    else:
        path = saved(content, tmp_path, _use_new_zipfile_serialization=form == "zip")
    message = refused(path, source)
    assert "cannot be read as tensors alone" in message
    assert "weights_only" not in message  # no advice to load it unsafely
    assert not trace.exists()
    with path.open("rb") as file:  # the file is what it seems: the unsafe way does run it
        if form == "pickle":
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_damaged_files_are_one_error(
    damage: str, suffix: str, source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    path = tmp_path / f"adapter{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"a letter, no model\n" * 9, "cut": whole[: len(whole) // 2]}[damage]
    )
    assert "it is damaged or holds objects" in refused(path, source)


def test_files_without_usable_tensors_are_refused(
    source: CanvasASRModel, state: State, tmp_path: Path
) -> None:
    assert "no such file" in refused(tmp_path / "none.pt", source)
    assert "holds no tensors" in refused(saved({"step": 3}, tmp_path), source)
    spoilt = {**state, "projector.out.bias": torch.full((32,), torch.nan)}
    assert "'projector.out.bias' has values that are NaN" in refused(saved(spoilt, tmp_path), source)
    twice = {"a.b": torch.zeros(2), "a": {"b": torch.ones(2)}}
    assert "two tensors have the path 'a.b'" in refused(saved(twice, tmp_path), source)
    endless: list[Any] = []
    endless.append(endless)
    assert "nested too deeply" in refused(saved(endless, tmp_path), source)


def test_brief_names_stand_for_exactly_those_given() -> None:
    assert brief(["a.0.b", "a.1.b", "a.3.b", "a.0.c", "d"]) == ["a.{0-1,3}.b", "a.0.c", "d"]
    assert brief(["x.10.0", "x.9.0", "x.9.1"]) == ["x.{9-10}.0", "x.9.1"]


def test_a_tap_needs_its_norm(source: CanvasASRModel, state: State, tmp_path: Path) -> None:
    rest = {name: tensor for name, tensor in state.items() if name not in tap(state)}
    message = refused(saved({**rest, "ctc_tap.scale": torch.ones(())}, tmp_path), source)
    assert "ctc_tap.scale (a CTC tap without its LayerNorm)" in message
