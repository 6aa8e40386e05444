"""A whole model with random weights, small enough for unit tests, with the embedded model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor

import canvas_asr
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

TINY = Path(canvas_asr.__file__).parent / "models" / "tiny"

BACKBONE = {
    "canvas_length": 32,
    "text_config": {
        "vocab_size": 4096,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "sliding_window": 1024,
        "max_position_embeddings": 2048,
        "use_bidirectional_attention": "vision",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    },
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "position_embedding_size": 16,
        "patch_size": 2,
    },
}
AUDIO_ENCODER = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 80,
    "max_source_positions": 750,
}


def small_model(seed: int = 0, **fields: object) -> CanvasASRModel:
    """Build a model whose LoRA is not zero, in evaluation mode."""
    torch.manual_seed(seed)
    settings = {"canvas_length": 32, "max_canvas_length": 64, **fields}
    config = CanvasASRConfig(backbone_config=BACKBONE, audio_encoder_config=AUDIO_ENCODER, **settings)
    model = CanvasASRModel(config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def small_processor() -> CanvasASRProcessor:
    """Give the embedded model's tokenizer with a 20 ms feature extractor."""
    extractor = WhisperFeatureExtractor(feature_size=80, hop_length=320, n_fft=400)
    return CanvasASRProcessor(extractor, AutoTokenizer.from_pretrained(TINY))
