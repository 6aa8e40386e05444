"""The frozen audio encoder: Whisper's own layers, run on a clip's true length.

The stock ``WhisperEncoder.forward`` insists on 30 s of input. A checkpoint trained without that padding
(``pad_to_30s=False``) runs here on what there is, with padding masked, so that a clip in a batch gives
what it gives alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration import CanvasASRConfig


def n_encoder_frames(n_mel: Tensor) -> Tensor:
    """Encoder frames of clips with ``n_mel`` mel frames, (B,) int64: the second convolution has stride 2."""
    return (n_mel + 1) // 2


def n_audio_tokens(config: CanvasASRConfig, n_features: Tensor, *, are_frames: bool = False) -> Tensor:
    """How many audio tokens clips give, (B,) int64.

    Args:
        config: Of the model.
        n_features: Feature frames of each clip, (B,) int64.
        are_frames: Whether the features are what the projector takes already.
    """
    n_frames = n_features
    if not (are_frames or config.reads_waveform):
        n_frames = n_encoder_frames(n_features)
        if config.pad_to_30s:
            n_frames = torch.full_like(n_frames, config.audio_encoder_config.max_source_positions)
    return (n_frames + config.projector_stride - 1) // config.projector_stride


def length_mask(n_valid: Tensor, length: int) -> Tensor:
    """Mark the valid positions of right-padded rows.

    Args:
        n_valid: Valid positions of each row, (B,) int64.
        length: Positions of the padded batch.

    Returns:
        (B, length) bool, True where valid.
    """
    return torch.arange(length, device=n_valid.device)[None, :] < n_valid[:, None]


def attention_mask(seen: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor:
    """Write an explicit mask the way an attention implementation of ``transformers`` takes it.

    Args:
        seen: True where a key is attended, (B or 1, Q, K) bool.
        implementation: ``_attn_implementation`` of the configuration that the layers read.
        dtype: Of an additive mask.

    Returns:
        (B or 1, 1, Q, K): bool for ``sdpa``, additive for ``eager``, which None also runs.

    Raises:
        ValueError: For an implementation that takes no explicit mask.
    """
    if implementation == "sdpa":
        return seen[:, None]
    if implementation not in (None, "eager"):
        raise ValueError(f"attention implementation is {implementation!r}; load with 'sdpa' or 'eager'.")
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def encode_audio(
    encoder: WhisperEncoder, mel: Tensor, n_mel: Tensor, *, pad_to_30s: bool
) -> tuple[Tensor, Tensor]:
    """Turn log-mel features into encoder frames.

    Args:
        encoder: A ``transformers`` Whisper encoder.
        mel: Log-mel features, (B, n_mels, T_mel), right-padded.
        n_mel: Valid mel frames of each clip, (B,) int64.
        pad_to_30s: Use the stock forward on features of exactly 30 s, silence behind each clip.

    Returns:
        Frames (B, T, d_audio) and how many of them are valid (B,); with ``pad_to_30s`` all are, as the
        encoder saw the silence too.

    Raises:
        ValueError: If the clip is longer than the encoder's positions.
    """
    n_frames = n_encoder_frames(n_mel)
    max_frames = int(encoder.config.max_source_positions)
    if int(n_frames.max()) > max_frames:
        raise ValueError(
            f"{int(n_mel.max())} mel frames are more than the audio encoder holds ({2 * max_frames})."
        )
    if pad_to_30s:
        mel = _pad_with_silence(mel, n_mel, 2 * max_frames)
        hidden = encoder(mel.to(encoder.conv1.weight.dtype)).last_hidden_state
        return hidden, torch.full_like(n_frames, max_frames)

    # Zeroing the padding before each convolution makes it equal to the convolution's own zero padding.
    valid_mel = length_mask(n_mel, mel.shape[-1])[:, None, :]
    hidden = nn.functional.gelu(encoder.conv1(mel.to(encoder.conv1.weight.dtype) * valid_mel))
    hidden = nn.functional.gelu(encoder.conv2(hidden * valid_mel)).transpose(1, 2)  # (B, T, d_audio)
    n_positions = hidden.shape[1]
    hidden = hidden + encoder.embed_positions.weight[:n_positions]
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    valid = length_mask(n_frames, n_positions)
    mask = None
    if not bool(valid.all()):
        seen = valid[:, None, :].expand(-1, n_positions, -1)
        mask = attention_mask(seen, encoder.config._attn_implementation, hidden.dtype)
    for layer in encoder.layers:
        hidden = layer(hidden, mask)
    return encoder.layer_norm(hidden), n_frames


def _pad_with_silence(mel: Tensor, n_mel: Tensor, length: int) -> Tensor:
    """Write behind each clip what Whisper's features make of silence after it, (B, n_mels, length).

    They are decimal orders of power, plus 4, over 4, cut off eight orders below the clip's peak and at 1e-10.
    """
    mel = nn.functional.pad(mel, (0, length - mel.shape[-1]))
    valid = length_mask(n_mel, length)[:, None, :]
    peak = mel.masked_fill(~valid, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return torch.where(valid, mel, (peak - 2.0).clamp(min=-1.5))
