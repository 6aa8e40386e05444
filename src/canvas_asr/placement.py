"""How large a backbone is, and how it is divided over several GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.quantizers.quantizers_utils import should_convert_module

LAYERS = ("model.encoder.language_model.layers", "model.decoder.layers")


def _on_meta(config: DiffusionGemmaConfig) -> DiffusionGemmaForBlockDiffusion:
    """Build a backbone that exists in name only; its own configuration stays as it is."""
    with torch.device("meta"):
        return DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_dict(config.to_dict()))


def quantization_method(quantization_config: Any) -> str | None:
    """Name of the method of a quantisation configuration, an object or a dictionary; None of None."""
    if quantization_config is None:
        return None
    method = _settings(quantization_config).get("quant_method")
    return str(getattr(method, "value", method))


def _settings(quantization_config: Any) -> dict[str, Any]:
    found: dict[str, Any] = (
        quantization_config if isinstance(quantization_config, dict) else quantization_config.to_dict()
    )
    return found


def backbone_bytes(
    config: DiffusionGemmaConfig, dtype: torch.dtype, quantization_config: Any = None
) -> int | None:
    """Estimate the bytes of a backbone's weights from its configuration, tied ones once.

    Args:
        config: Its geometry, and how it is stored if that is quantised.
        dtype: Of what is not quantised.
        quantization_config: Asked for; None: as the configuration says.

    Returns:
        Bytes; None for a method of quantisation that is not known here.
    """
    quantized = quantization_config or getattr(config, "quantization_config", None)
    backbone = _on_meta(config)
    n_all = {id(p): p.numel() for p in backbone.parameters()}
    method = quantization_method(quantized)
    if method in (None, "compressed-tensors"):  # which is brought back to the dtype when it is loaded
        return sum(n_all.values()) * dtype.itemsize
    if method not in ("bitsandbytes", "fp8"):
        return None
    n_quantized = {id(p): p.numel() for p in _quantised(backbone, method, _settings(quantized))}
    n_small = sum(n_quantized.values())
    bits = 4 if _settings(quantized).get("load_in_4bit") else 8
    return (sum(n_all.values()) - n_small) * dtype.itemsize + n_small * bits // 8


def _quantised(backbone: nn.Module, method: str, settings: dict[str, Any]) -> Iterator[nn.Parameter]:
    """Yield the parameters that a method quantises; tied ones come more than once.

    Of a configuration that names no modules to leave, transformers leaves every linear map whose weight is
    shared: here, all layers of the language model.
    """
    kept = settings.get("llm_int8_skip_modules") or settings.get("modules_to_not_convert")
    uses = Counter(id(p) for _, p in backbone.named_parameters(remove_duplicate=False))
    for name, module in backbone.named_modules(remove_duplicate=False):
        # bitsandbytes leaves the experts, three-dimensional parameters, as they are.
        is_experts = method == "fp8" and name.endswith(".experts")
        if not (is_experts or isinstance(module, nn.Linear)):
            continue
        if kept is None:
            converted = is_experts or uses[id(module.weight)] == 1
        else:
            converted = should_convert_module(name, kept)
        if converted:
            yield from module.parameters()


def divide_backbone(config: DiffusionGemmaConfig, n_bytes: int, room: Sequence[int]) -> dict[str, int] | None:
    """Divide a backbone over GPUs, a layer of the encoder beside that of the decoder with the same weights.

    Args:
        config: Of the backbone.
        n_bytes: Of all its weights; 0 where that is not known, which puts all of it on the first GPU.
        room: Bytes that each GPU has for it.

    Returns:
        A GPU for every module, as ``from_pretrained`` takes it: the first that has room for all, else what is
        no layer on the first and the layers in order on this and the next ones. None if there is too little.
    """
    for gpu, n_free in enumerate(room):
        if n_bytes <= n_free:
            return {"": gpu}
    backbone = _on_meta(config)
    counts: dict[int, int] = {}  # by layer; -1: all that is no layer
    counted: set[int] = set()
    for name, parameter in backbone.named_parameters():
        if id(parameter) not in counted:
            layer = _layer_of(name)
            counts[layer] = counts.get(layer, 0) + parameter.numel()
            counted.add(id(parameter))
    scale = n_bytes / sum(counts.values())
    gpu, left, gpu_of = 0, float(room[0]), {}
    for layer in sorted(counts):
        while counts[layer] * scale > left:
            gpu += 1
            # What is no layer has its place beside the prompt and the canvas, on the first GPU.
            if layer < 0 or gpu == len(room):
                return None
            left = room[gpu]
        left -= counts[layer] * scale
        gpu_of[layer] = gpu
    return {name: gpu_of.get(_layer_of(name), 0) for name in _modules(backbone, "")}


def _layer_of(name: str) -> int:
    """Number of the layer that a module or parameter is of or in; -1 if it is of none."""
    for layers in LAYERS:
        if name.startswith(f"{layers}."):
            return int(name[len(layers) + 1 :].partition(".")[0])
    return -1


def _modules(module: nn.Module, name: str) -> Iterator[str]:
    """Names of modules that hold every parameter once, each layer as a whole."""
    if any(f"{layers}.".startswith(f"{name}." if name else "") for layers in LAYERS):
        for child_name, child in module.named_children():
            yield from _modules(child, f"{name}.{child_name}" if name else child_name)
    else:
        yield name
