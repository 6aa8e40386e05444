"""Small random checkpoints as they lie on the hub, and a cache of the hub that holds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
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
