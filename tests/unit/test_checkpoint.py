from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_up_clips import tones
from safetensors.torch import load_file, save_file
from small_models import TINY, small_model
from transformers import DiffusionGemmaForBlockDiffusion, WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from canvas_asr.checkpoint import (
    ADAPTER_NAME,
    adapter_state,
    assemble,
    load_adapter,
    load_checkpoint,
    load_configuration,
    save_checkpoint,
)
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.errors import CheckpointError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor


@pytest.fixture(scope="module")
def saved(
    model: CanvasASRModel, processor: CanvasASRProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole checkpoint; tests change copies of it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(model, processor, folder, whole=True)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Round trip


def test_a_checkpoint_gives_the_same_model_again(
    model: CanvasASRModel, processor: CanvasASRProcessor, saved: Path
) -> None:
    loaded, own = load_checkpoint(saved)
    assert not loaded.training
    before, after = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert {n for n, p in after.items() if p.requires_grad} == {
        n for n, p in before.items() if p.requires_grad
    }
    mel, n_mel = processor.features([tones(0.8, 1), tones(0.5, 2)])
    ours, theirs = (
        CanvasDecoder(m, p)(mel, n_mel, clip_keys=[0, 1], steps=2)
        for m, p in ((model, processor), (loaded, own))
    )
    for result, expected in zip(theirs, ours, strict=True):
        assert (result.ids, result.draft, result.language) == (
            expected.ids,
            expected.draft,
            expected.language,
        )
        assert result.confidences == pytest.approx(expected.confidences, rel=1e-4)


def test_the_folder_is_named_in_the_configuration_and_can_be_moved(saved: Path, folder: Path) -> None:
    config = load_configuration(saved)
    assert (config.backbone, config.audio_encoder) == ("backbone", "audio_encoder")
    load_checkpoint(folder)


def test_the_adapter_file_holds_the_adapter_alone(saved: Path, model: CanvasASRModel) -> None:
    names = set(load_file(saved / ADAPTER_NAME))
    assert names == set(adapter_state(model))
    assert all(n.startswith(("projector.", "ctc_tap.")) or "lora_" in n for n in names)
    assert not any("default" in n for n in names)
    n_lora = sum("lora_" in n for n in names)
    assert n_lora == sum("lora_" in n for n, _ in model.named_parameters())


def test_the_frozen_parts_are_stock_checkpoints_without_lora(saved: Path, model: CanvasASRModel) -> None:
    backbone, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        saved / "backbone", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = model.backbone.model.decoder.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(backbone.model.decoder.layers[0].self_attn.q_proj.weight, ours)
    encoder = WhisperEncoder.from_pretrained(saved / "audio_encoder")
    assert torch.equal(encoder.conv1.weight, model.audio_encoder.conv1.weight)
    # Each tied tensor once: the encoder's copy of a layer is not written.
    names = load_file(saved / "backbone" / "model.safetensors").keys()
    assert (
        sum(name.endswith("layers.0.self_attn.q_proj.weight") and "vision" not in name for name in names) == 1
    )


def test_half_precision_files_load_in_the_precision_asked_for(
    processor: CanvasASRProcessor, tmp_path: Path
) -> None:
    model = small_model()
    save_checkpoint(model, processor, tmp_path, whole=True, dtype=torch.bfloat16)
    for path in tmp_path.rglob("*.safetensors"):
        kinds = {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()}
        assert kinds == {torch.bfloat16}
    for dtype in (torch.float32, torch.bfloat16):
        loaded, _ = load_checkpoint(tmp_path, dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
    expected = model.projector.out.weight.bfloat16()
    assert torch.equal(loaded.projector.out.weight, expected)


def test_an_adapter_alone_loads_onto_parts_that_lie_elsewhere(
    processor: CanvasASRProcessor, saved: Path, tmp_path: Path
) -> None:
    model = small_model()
    model.config.backbone = str(saved / "backbone")
    model.config.audio_encoder = str(saved / "audio_encoder")
    with torch.no_grad():
        model.projector.out.weight.add_(1)
    save_checkpoint(model, processor, tmp_path)
    assert not (tmp_path / "backbone").exists()
    loaded, _ = load_checkpoint(tmp_path)
    assert torch.equal(loaded.projector.out.weight, model.projector.out.weight)


def test_loading_an_adapter_leaves_the_frozen_parts_alone(saved: Path) -> None:
    model = small_model(seed=7)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    load_adapter(model, saved / ADAPTER_NAME)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in frozen.items())
    state = load_file(saved / ADAPTER_NAME)
    assert all(torch.equal(adapter_state(model)[name], tensor) for name, tensor in state.items())


def test_an_adapter_without_lora_leaves_the_models_lora(tmp_path: Path) -> None:
    """LoRA may be added to what CTC alone has made; the file itself has none to be missed."""
    plain, model = small_model(seed=3, lora_rank=0), small_model(seed=7)
    save_checkpoint(plain, None, tmp_path)
    before = adapter_state(model)
    with pytest.raises(CheckpointError, match=r"lora_A\.weight' is missing"):
        load_adapter(model, tmp_path / ADAPTER_NAME)
    load_adapter(model, tmp_path / ADAPTER_NAME, plain.config)
    after, given = adapter_state(model), adapter_state(plain)
    assert any("lora_" in name for name in after)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] if "lora_" in name else given[name])


# Assembling from stock parts


def test_stock_parts_are_joined_with_a_fresh_adapter(saved: Path) -> None:
    fields = {"projector_width": 20, "canvas_length": 24, "lora_rank": 4}
    model, processor = assemble(str(saved / "backbone"), str(saved / "audio_encoder"), TINY, fields)
    assert model.config.hidden_size == 32
    assert model.config.canvas_length == 24
    assert model.projector.hidden.weight.shape[0] == 20
    assert processor.feature_extractor.hop_length == 320  # found in the folder above
    new = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert new
    assert not any(p.any() for p in new)


def test_the_encoder_of_a_whole_whisper_is_taken(saved: Path, tmp_path: Path) -> None:
    config = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    whisper = WhisperForConditionalGeneration(config)
    whisper.save_pretrained(tmp_path / "whisper")
    shutil.copy(saved / "preprocessor_config.json", tmp_path / "whisper")
    model, _ = assemble(str(saved / "backbone"), str(tmp_path / "whisper"), TINY, {})
    assert torch.equal(model.audio_encoder.conv1.weight, whisper.model.encoder.conv1.weight)
    layers = model.audio_encoder.layers[0], whisper.model.encoder.layers[0]
    assert torch.equal(layers[0].fc1.weight, layers[1].fc1.weight)


# Bad tensors

ADAPTER_TENSOR = "projector.out.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(ADAPTER_TENSOR), f"tensor '{ADAPTER_TENSOR}' is missing"),
        (lambda s: s.update(extra=torch.zeros(2)), "tensor 'extra' has no place in this model"),
        (
            lambda s: s.update({ADAPTER_TENSOR: torch.zeros(3, 5)}),
            f"tensor '{ADAPTER_TENSOR}' has shape (3, 5), not (32, 512)",
        ),
        (
            lambda s: s.update({name: s[name][:4].clone() for name in s if name.endswith("lora_A.weight")}),
            "has shape (4, 32), which is rank 4; its config.json says lora_rank 16",
        ),
    ],
)
def test_a_bad_tensor_of_the_adapter_is_named(folder: Path, change: Callable, message: str) -> None:
    rewrite(folder / ADAPTER_NAME, change)
    found = refused(folder)
    assert str(folder / ADAPTER_NAME) in found
    assert message in found


@pytest.mark.parametrize("kind", ["missing", "misshaped"])
@pytest.mark.parametrize(
    ("part", "tensor"),
    [("backbone", "layers.1.self_attn.o_proj.weight"), ("audio_encoder", "layers.0.fc1.weight")],
)
def test_a_bad_tensor_of_a_frozen_part_is_named(folder: Path, part: str, tensor: str, kind: str) -> None:
    path = folder / part / "model.safetensors"
    (name,) = [name for name in load_file(path) if name.endswith(tensor) and "vision" not in name]

    def change(state: dict[str, torch.Tensor]) -> None:
        if kind == "missing":
            del state[name]
        else:
            state[name] = torch.zeros(3, 5)

    rewrite(path, change)
    found = refused(folder)
    assert str(folder / part) in found
    assert tensor in found  # tied tensors have two names, of which the message may give either
    assert ("is missing" if kind == "missing" else "(3, 5)") in found


@pytest.mark.parametrize(
    "name", [ADAPTER_NAME, "backbone/model.safetensors", "audio_encoder/model.safetensors"]
)
@pytest.mark.parametrize("kind", ["cut short", "empty", "text", "absent"])
def test_a_damaged_file_is_named(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    content = path.read_bytes()
    if kind == "absent":
        path.unlink()
    else:
        path.write_bytes({"cut short": content[:-100], "empty": b"", "text": b"not a tensor" * 10}[kind])
    assert Path(name).parent.name in refused(folder) or name in refused(folder)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("part", ["", "backbone", "audio_encoder"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_nothing_is_unpickled(folder: Path, tmp_path: Path, part: str, name: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Bomb(canary)))
    canary.rmdir()  # it does go off
    (folder / part / "model.safetensors").unlink()
    (folder / part / name).write_bytes(pickle.dumps(Bomb(canary)))
    refused(folder)
    torch.save({"weight": Bomb(canary)}, folder / part / name)
    refused(folder)
    assert not canary.exists()


# Bad configurations and files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "model_type is None"),
        ('{"model_type": "whisper"}', "model_type is 'whisper', not 'canvas_asr'"),
        (b"\xff\xfe{}", "not valid JSON"),
    ],
)
def test_a_bad_config_file_is_named(folder: Path, content: str | bytes, message: str) -> None:
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = refused(folder)
    assert str(path) in found
    assert message in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(projector_kind="linear"), "projector_kind is 'linear'"),
        (lambda c: c["backbone_config"]["text_config"].update(hidden_size="wide"), "hidden_size"),
        (lambda c: c.update(lora_rank="x"), "config.json"),
        (lambda c: c.update(audio_token="<|video|>"), "<|video|>"),
        (lambda c: c["language_tags"].update(it="<|it|>"), "<|it|>"),
        (lambda c: c.update(projector_width=100), "projector.hidden"),
        (lambda c: c.update(backbone="elsewhere"), "elsewhere"),
    ],
)
def test_a_bad_value_in_the_configuration_is_named(folder: Path, change: Callable, words: str) -> None:
    edit_json(folder / "config.json", change)
    found = refused(folder)
    assert words in found
    assert str(folder) in found


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "preprocessor_config.json", "backbone", "audio_encoder"]
)
def test_a_missing_file_or_folder_is_named(folder: Path, name: str) -> None:
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    found = refused(folder)
    assert name in found
    assert str(folder) in found


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_file_of_the_processor_that_is_no_json_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    assert name in refused(folder)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no config\.json"):
        load_checkpoint(tmp_path / "nowhere")
