"""Small random checkpoints as they lie on the hub, and a cache of the hub that holds them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_models import AUDIO_ENCODER, BACKBONE, TINY
from transformers import (
    AutoTokenizer,
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_backbone(folder: Path, **text: Any) -> Path:
    """Write a DiffusionGemma with its own ``save_pretrained``, and a tokenizer beside it."""
    torch.manual_seed(1)
    config = DiffusionGemmaConfig(**{**BACKBONE, "text_config": {**BACKBONE["text_config"], **text}})
    DiffusionGemmaForBlockDiffusion(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def write_whisper(folder: Path, **geometry: Any) -> Path:
    """Write a Whisper whole, decoder included, and its feature extractor."""
    torch.manual_seed(2)
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 60}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(**{**AUDIO_ENCODER, "max_source_positions": 1500, **decoder, **ids, **geometry})
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    return folder


def put_in_cache(cache: Path, name: str, folder: Path, *, revision: str = "main") -> Path:
    """Copy a folder to where the hub's library would have downloaded it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def compress_backbone(source: Path, folder: Path) -> Path:
    """Write a backbone as it is published in FP8: compressed-tensors, each expert alone, a scale a row."""
    shutil.copytree(source, folder)
    compressed: dict[str, torch.Tensor] = {}

    def compress(name: str, weight: torch.Tensor) -> None:
        scale = (weight.abs().amax(dim=1, keepdim=True) / 448).clamp(min=1e-12)
        compressed[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        compressed[f"{name}.weight_scale"] = scale

    for name, tensor in load_file(source / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        if stem.endswith(".experts"):
            for i, expert in enumerate(tensor):
                pair = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True)
                for part, weight in pair if end == "gate_up_proj" else [(end, expert)]:
                    compress(f"{stem}.{i}.{part}", weight)
        elif re.search(r"decoder\.layers\.\d+\.(self_attn|mlp)\.\w_?\w*_?proj\.weight$", name):
            compress(stem, tensor)
        else:
            compressed[name] = tensor
    save_file(compressed, folder / "model.safetensors", metadata={"format": "pt"})
    number = {"num_bits": 8, "symmetric": True, "type": "float"}
    group = {
        "targets": ["Linear"],
        "weights": {**number, "dynamic": False, "strategy": "channel"},
        "input_activations": {**number, "dynamic": True, "strategy": "token"},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*vision.*", "re:.*embed.*", "re:.*router.*", "re:.*self_conditioning.*"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
