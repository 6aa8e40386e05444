"""The whole model: audio encoder, projector, CTC tap and backbone with its LoRA."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache, PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .backbone import build_backbone, denoise, encode_prefix, inject_lora, output_logits
from .configuration import CanvasASRConfig
from .encoder import encode_audio
from .projector import AudioProjector, CTCTap


class CanvasASRModel(PreTrainedModel):
    """Speech recognition by denoising a canvas of tokens.

    Only the projector, the CTC tap and the LoRA matrices (the adapter) require gradients.
    """

    config: CanvasASRConfig
    config_class = CanvasASRConfig
    main_input_name = "mel"
    _supports_sdpa = True
    # transformers declares it, a class's constant, as an instance's variable.
    _no_split_modules: ClassVar[list[str]] = [  # type: ignore[misc]
        "DiffusionGemmaDecoderTextLayer",
        "DiffusionGemmaEncoderTextLayer",
    ]

    def __init__(
        self,
        config: CanvasASRConfig,
        *,
        backbone: DiffusionGemmaForBlockDiffusion | None = None,
        audio_encoder: WhisperEncoder | None = None,
    ) -> None:
        """Build around the frozen parts, with random weights where none are given.

        Args:
            config: Geometry of all parts.
            backbone: A loaded backbone; LoRA is injected into it.
            audio_encoder: A loaded audio encoder.
        """
        super().__init__(config)
        self.audio_encoder = audio_encoder or WhisperEncoder(config.audio_encoder_config)
        self.audio_encoder.requires_grad_(False)
        self.projector = AudioProjector(config)
        self.ctc_tap = CTCTap(config)
        self.backbone = backbone or build_backbone(config.backbone_config)
        inject_lora(self.backbone, config.lora_rank, config.lora_alpha)

    def _init_weights(self, module: Any) -> None:
        """Leave weights alone: each part initialises its own, and stock initialisation would undo LoRA's."""

    def audio_tokens(self, mel: Tensor, n_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio and project it.

        Args:
            mel: Log-mel features, (B, n_mels, T_mel), right-padded.
            n_mel: Valid mel frames of each clip, (B,) int64.

        Returns:
            Audio tokens (B, A, D) and how many of them are valid (B,).
        """
        # A frozen encoder keeps no activations.
        trains = self.audio_encoder.conv1.weight.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(trains):
            frames, n_frames = encode_audio(self.audio_encoder, mel, n_mel, pad_to_30s=self.config.pad_to_30s)
        tokens: tuple[Tensor, Tensor] = self.projector(frames, n_frames)
        return tokens

    def ctc_logits(self, audio_tokens: Tensor) -> Tensor:
        """Read audio tokens (B, A, D) through the frozen output layer, (B, A, V)."""
        return self.read_ctc_states(self.ctc_tap(audio_tokens))

    def read_ctc_states(self, states: Tensor) -> Tensor:
        """Read states of the CTC tap (..., D) through the frozen output layer, (..., V)."""
        return output_logits(self.backbone, states, softcap=self.config.ctc_softcap)

    def embed_prompt(
        self, prompt_ids: Tensor, audio_tokens: Tensor, n_audio: Tensor, audio_id: int
    ) -> Tensor:
        """Embed a prompt and scatter the audio tokens into its placeholder slots.

        Args:
            prompt_ids: (B, P) int64, right-padded.
            audio_tokens: (B, A, D).
            n_audio: Valid audio tokens of each clip, (B,) int64.
            audio_id: Id of the placeholder token.

        Returns:
            Scaled input embeddings, (B, P, D).

        Raises:
            ValueError: If a row's placeholders and audio tokens differ in number.
        """
        slots = prompt_ids == audio_id
        if not torch.equal(slots.sum(dim=1), n_audio):
            raise ValueError(
                f"the prompt has {slots.sum(dim=1).tolist()} audio slots for {n_audio.tolist()} audio tokens."
            )
        embeds: Tensor = self.backbone.get_input_embeddings()(prompt_ids)
        valid = torch.arange(audio_tokens.shape[1], device=n_audio.device)[None, :] < n_audio[:, None]
        return embeds.masked_scatter(slots[..., None], audio_tokens[valid].to(embeds.dtype))

    def encode_prefix(self, embeds: Tensor) -> tuple[Tensor, DynamicCache]:
        """See :func:`canvas_asr.backbone.encode_prefix`."""
        return encode_prefix(self.backbone, embeds)

    def denoise(self, canvas: Tensor, prefix: DynamicCache, n_prompt: Tensor, **kwargs: Any) -> Tensor:
        """See :func:`canvas_asr.backbone.denoise`."""
        return denoise(self.backbone, canvas, prefix, n_prompt, **kwargs)

    def output_logits(self, hidden: Tensor) -> Tensor:
        """Read decoder states (..., D) through the output layer, (..., V)."""
        return output_logits(self.backbone, hidden)
