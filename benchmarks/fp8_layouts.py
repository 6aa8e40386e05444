"""Write a backbone in the two layouts in which FP8 checkpoints are published, from one in full precision.

compressed-tensors holds each expert alone and a scale for every row of a weight; ``transformers`` itself
holds the experts stacked and a scale for every block (``quant_method: fp8``). Vision, embeddings, router,
norms and self-conditioning stay as they are in both.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LARGEST = 448.0  # of float8_e4m3fn
WEIGHTS = "model.safetensors"
_LINEAR = re.compile(r"decoder\.layers\.\d+\.(self_attn|mlp)\.\w_?\w*_?proj\.weight$")
NOT_CONVERTED = ["lm_head", ".*vision.*", ".*embed.*", ".*router.*", ".*self_conditioning.*"]


def _quantise(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Give a weight (..., M, N) in FP8 and the factors of its blocks, which cover it without a rest."""
    rows, columns = (side // size for side, size in zip(weight.shape[-2:], block, strict=True))
    blocks = weight.float().unflatten(-1, (columns, block[1])).unflatten(-3, (rows, block[0]))
    scale = (blocks.abs().amax(dim=(-3, -1)) / LARGEST).clamp(min=1e-12)
    small = (blocks / scale[..., :, None, :, None]).to(torch.float8_e4m3fn)
    return small.reshape(weight.shape), scale


def _write(source: Path, folder: Path, state: dict[str, Tensor], quantization: Mapping[str, Any]) -> Path:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "quantization_config": quantization}), encoding="utf-8")
    return folder


def compress_backbone(source: Path, folder: Path) -> Path:
    """Write a backbone in the format of compressed-tensors.

    Args:
        source: Folder of one in full precision, in one file.
        folder: To make.
    """
    state: dict[str, Tensor] = {}

    def compress(name: str, weight: Tensor) -> None:
        state[f"{name}.weight"], state[f"{name}.weight_scale"] = _quantise(weight, (1, weight.shape[1]))

    for name, tensor in load_file(source / WEIGHTS).items():
        stem, _, end = name.rpartition(".")
        if stem.endswith(".experts"):
            for i, expert in enumerate(tensor):
                pair = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True)
                for part, weight in pair if end == "gate_up_proj" else [(end, expert)]:
                    compress(f"{stem}.{i}.{part}", weight)
        elif _LINEAR.search(name):
            compress(stem, tensor)
        else:
            state[name] = tensor
    number = {"num_bits": 8, "symmetric": True, "type": "float"}
    group = {
        "targets": ["Linear"],
        "weights": {**number, "dynamic": False, "strategy": "channel"},
        "input_activations": {**number, "dynamic": True, "strategy": "token"},
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [name if name == "lm_head" else f"re:{name}" for name in NOT_CONVERTED],
    }
    return _write(source, folder, state, quantization)


def block_backbone(source: Path, folder: Path, block: tuple[int, int]) -> Path:
    """Write a backbone in FP8 by blocks, experts included, as ``transformers`` stores and keeps it.

    Args:
        source: Folder of one in full precision, in one file.
        folder: To make.
        block: Rows and columns that share a factor, divisors of every side of a weight.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(source / WEIGHTS).items():
        if ".experts." in name or _LINEAR.search(name):
            suffix = "_scale_inv"  # the inverse of what the weight was multiplied by
            state[name], state[f"{name}{suffix}"] = _quantise(tensor, block)
        else:
            state[name] = tensor
    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": list(block),
        "modules_to_not_convert": NOT_CONVERTED,
    }
    return _write(source, folder, state, quantization)
