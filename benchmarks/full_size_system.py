"""The published system with random weights, made on the device itself: 52 GB in bf16, and never more."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.sampler import Vocabulary

EOS = 1
_N_SPECIAL = 16


def build_system(config: CanvasASRConfig, device: torch.device, dtype: torch.dtype) -> CanvasASRModel:
    """Build on the meta device, tied, then make every distinct tensor once.

    ``Module.to_empty`` would make a tensor for each of its names, twice the memory.

    Args:
        config: Geometry.
        device: Where the tensors go.
        dtype: Of the parameters; buffers keep float32, which the rotary frequencies need.

    Returns:
        The model in evaluation mode, its weights random and scaled so that every state stays finite.

    Raises:
        ValueError: If a buffer is of a kind that is not known here.
    """
    with torch.device("meta"):
        model = CanvasASRModel(config)
    generator = torch.Generator(device).manual_seed(0)
    made: dict[int, nn.Parameter] = {}
    stand_ins = list(model.parameters())  # kept, so that no id is given twice
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for name, stand_in in module._parameters.items():
            if stand_in is None:
                continue
            if id(stand_in) not in made:
                tensor = torch.empty(stand_in.shape, dtype=dtype, device=device)
                _fill(names[id(stand_in)], tensor, generator)
                made[id(stand_in)] = nn.Parameter(tensor, requires_grad=False)
            module._parameters[name] = made[id(stand_in)]
        _make_buffers(module, device)
    del stand_ins
    return model.eval()


def _fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Give weights that keep the size of what passes through them; none is zero, which would be faster."""
    if tensor.ndim < 2:
        tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        if "q_norm" in name:  # see canvas_asr.backbone.build_backbone
            tensor.fill_(tensor.shape[0] ** -0.5)
        return
    fan_in = tensor.shape[-1] if "experts." in name else math.prod(tensor.shape[1:])
    # A router of unit weights spreads the tokens; one scaled by its width would leave it to rounding.
    std = 1.0 if "router." in name else 0.02 if "lora_B" in name else fan_in**-0.5
    tensor.normal_(0.0, std, generator=generator)


def _make_buffers(module: nn.Module, device: torch.device) -> None:
    """Give a module's own buffers the values that its constructor gives off the meta device."""
    stand_ins = {name: b for name, b in module._buffers.items() if b is not None and b.is_meta}
    if not stand_ins:
        return
    made: dict[str, Tensor | None] = {}
    if type(module).__name__.endswith("RotaryEmbedding"):
        made = dict(type(module)(module.config)._buffers)  # type: ignore[call-arg]
    elif hasattr(module, "scalar_embed_scale"):
        made = {"embed_scale": torch.tensor(module.scalar_embed_scale)}
    for name, stand_in in stand_ins.items():
        if name in ("layer_scalar", "std_scale"):
            made[name] = torch.ones(stand_in.shape)
        elif name == "std_bias":
            made[name] = torch.zeros(stand_in.shape)
        tensor = made.get(name)
        if tensor is None or tensor.shape != stand_in.shape:
            raise ValueError(f"{type(module).__name__}: its buffer {name!r} is not known to this benchmark.")
        module._buffers[name] = tensor.to(device)


def vocabulary_of(config: CanvasASRConfig) -> Vocabulary:
    """A vocabulary without language tags whose first ids are special, as the published one's are."""
    text = torch.ones(config.vocab_size, dtype=torch.bool)
    text[:_N_SPECIAL] = False
    text[EOS] = True
    return Vocabulary(config.vocab_size, EOS, (), text)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all distinct parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def compile_parts(backbone: Any, backend: str) -> int:
    """Let ``torch.compile`` fuse what lies between the matrix products of a layer, in place.

    Attention is left out: it knows its layer's number, and each would be compiled anew.

    Args:
        backbone: The backbone.
        backend: Of ``torch.compile``.

    Returns:
        How many modules were marked; they are compiled at their first call.
    """
    kinds = ("DiffusionGemmaText4MLP", "DiffusionGemmaTextExperts", "DiffusionGemmaTextRouter")
    parts = [module for module in backbone.modules() if type(module).__name__ in kinds]
    for part in parts:
        part.compile(dynamic=True, backend=backend)
    return len(parts)
