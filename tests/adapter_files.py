"""Adapter files as other programs might write them, made from this package's own tensors; their import."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_model
from torch import Tensor

from canvas_asr.conversion import ImportedAdapter, ImportSettings, import_adapter
from canvas_asr.errors import CheckpointError
from canvas_asr.modeling import CanvasASRModel

State = dict[str, Tensor]


def backbone_names(state: State) -> State:
    """LoRA named as in the backbone, without this package's prefix."""
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


def projector(state: State) -> State:
    return {n.removeprefix("projector."): t for n, t in state.items() if n.startswith("projector.")}


def lora(state: State) -> State:
    return {n: t for n, t in backbone_names(state).items() if "lora_" in n}


def tap(state: State) -> State:
    return {n: t for n, t in state.items() if n.startswith("ctc_tap.")}


def sequential(state: State) -> State:
    """The projector as ``Sequential``: activations between the layers take every second number."""
    n_convs = sum(re.fullmatch(r"convs\.\d+\.weight", name) is not None for name in projector(state))
    return {
        re.sub(r"^convs\.(\d+)", lambda m: str(2 * int(m[1])), name).replace("out", str(2 * n_convs)): tensor
        for name, tensor in projector(state).items()
    }


def named_layers(state: State) -> State:
    """The projector as ``conv1``, ``conv2``, ... and ``proj``."""
    return {
        re.sub(r"^convs\.(\d+)", lambda m: f"conv{int(m[1]) + 1}", name).replace("out", "proj"): tensor
        for name, tensor in projector(state).items()
    }


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def peft(state: State, adapter: str = ".default") -> State:
    named = {n.replace(".weight", f"{adapter}.weight"): t for n, t in lora(state).items()}
    return under("base_model.model.", named)


def matrices(state: State, role: str) -> list[Tensor]:
    return [tensor for name, tensor in lora(state).items() if f"lora_{role}" in name]


def pairs(state: State) -> list[tuple[Tensor, Tensor]]:
    return list(zip(matrices(state, "A"), matrices(state, "B"), strict=True))


def by_module(state: State) -> dict[str, Any]:
    modules = [name.partition(".lora_")[0] for name in lora(state) if "lora_A" in name]
    return dict(zip(modules, pairs(state), strict=True))


def pointwise(state: State) -> State:
    """The linear map as a convolution over one frame."""
    return {
        name: tensor[:, :, None] if name == "out.weight" else tensor
        for name, tensor in projector(state).items()
    }


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "own names": lambda s: s,
    "bare": lambda s: {**under("projector.", sequential(s)), **lora(s), **tap(s)},
    "nested": lambda s: {"projector": sequential(s), "lora": lora(s), "ctc": tap(s), "step": 12},
    "state_dict": lambda s: {
        "state_dict": {**under("module.projector.", named_layers(s)), **peft(s), **tap(s)}
    },
    "model": lambda s: {"model": backbone_names(s), "epoch": 3, "note": "final"},
    "adapter": lambda s: {"adapter": {"audio_proj": named_layers(s), "peft": peft(s)}, "ctc_head": tap(s)},
    "peft without its name": lambda s: {"projector": projector(s), "lora": peft(s, ""), "ctc": tap(s)},
    "list of pairs": lambda s: {"projector": sequential(s), "lora": pairs(s), "tap": tap(s)},
    "list of matrices": lambda s: {
        "projector": sequential(s),
        "adapter": [matrix for pair in pairs(s) for matrix in pair],
        "tap": tap(s),
    },
    "lists of A and B": lambda s: {
        "lora": {"A": matrices(s, "A"), "B": matrices(s, "B")},
        "projector": named_layers(s),
        "ctc": tap(s),
    },
    "pairs by module": lambda s: {"projector": projector(s), "adapters": by_module(s), "ctc": tap(s)},
    "pointwise": lambda s: {"projector": pointwise(s), "lora": lora(s), "ctc": tap(s)},
}


def with_adapter(seed: int, **fields: Any) -> CanvasASRModel:
    """A model whose frozen parts are those of every other, and whose adapter is its own, tap included."""
    model = small_model(**{"lora_alpha": 8, **fields})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert name.startswith(("projector.", "ctc_tap.")) or "lora_" in name
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def saved(content: Any, folder: Path, **options: Any) -> Path:
    path = folder / "adapter.pt"
    torch.save(content, path, **options)
    return path


def imported(path: Path, model: CanvasASRModel, settings: ImportSettings | None = None) -> ImportedAdapter:
    return import_adapter(path, model.config.backbone_config, model.config.audio_encoder_config, settings)


def refused(path: Path, model: CanvasASRModel) -> str:
    with pytest.raises(CheckpointError) as error:
        imported(path, model)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@torch.no_grad()
def logits(model: CanvasASRModel) -> list[torch.Tensor]:
    """CTC logits of a clip, and those of a canvas that reads it."""
    mel = torch.randn(1, 80, 64, generator=torch.Generator().manual_seed(5))
    tokens, n_audio = model.audio_tokens(mel, torch.tensor([64]))
    prefix = model.encode_prefix(tokens)[1]
    canvas = torch.arange(40, 48)[None]
    return [model.ctc_logits(tokens), model.output_logits(model.denoise(canvas, prefix, n_audio))]
