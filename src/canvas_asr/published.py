"""The geometry of the released system, diffusion-gemma-asr-small, as a configuration.

From the published configurations of its two frozen parts; the projector and the LoRA rank are deduced from
the published counts (19 M and 42 M parameters) and are to be checked against a checkpoint. The projector is
probably another of that size: the inner width in the system's ``model.py`` is 1280 by default, where these
layers have 16.4 M. Which layers make 19 M there is not known (:mod:`canvas_asr.conversion.chain` has two
ways); an adapter file is imported with the layers that it holds, not with these.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import DiffusionGemmaConfig, WhisperConfig

from .configuration import CanvasASRConfig

BACKBONE = "google/diffusiongemma-26B-A4B-it"
AUDIO_ENCODER = "openai/whisper-small"

_TEXT: dict[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    # Layers of full attention have no v_proj: their values are their keys.
    "num_global_key_value_heads": 2,
    "global_head_dim": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
    "sliding_window": 1024,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": "vision",
}
_VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
}
_AUDIO_ENCODER: dict[str, Any] = {
    "d_model": 768,
    "encoder_layers": 12,
    "encoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}


def published_config(**fields: Any) -> CanvasASRConfig:
    """Describe the released system: 30 s of audio are 188 audio tokens, 0.16 % of the weights are trained.

    Args:
        fields: Fields of :class:`CanvasASRConfig` to set otherwise.

    Returns:
        A configuration of its own. What neither tensors nor publications tell (prompt text, LoRA alpha, tags)
        has this package's defaults.
    """
    settings: dict[str, Any] = {
        "backbone": BACKBONE,
        "audio_encoder": AUDIO_ENCODER,
        "backbone_config": DiffusionGemmaConfig(
            text_config=copy.deepcopy(_TEXT), vision_config=dict(_VISION), canvas_length=256
        ),
        "audio_encoder_config": WhisperConfig(**_AUDIO_ENCODER),
        "projector_kind": "conv",
        "projector_width": 1408,
        "projector_stride": 8,
        "lora_rank": 16,
        "pad_to_30s": True,
        "canvas_length": 192,
        "max_canvas_length": 256,
    }
    return CanvasASRConfig(**{**settings, **fields})
