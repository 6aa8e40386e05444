"""The projector: encoder frames to audio tokens, and the CTC tap that grounds them.

Trained under CTC through the frozen output layer: attention ignores a random projector, so no other loss
reaches it (design of diffusion-gemma-asr-small; the stacked-frame MLP follows arXiv 2509.16622).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration import CanvasASRConfig
from .encoder import length_mask
from .projector_layers import ChainLayer, parse_layers


class AudioProjector(nn.Module):
    """Compress encoder frames in time and map them to the backbone's width."""

    def __init__(self, config: CanvasASRConfig) -> None:
        """Build the shape that the configuration names.

        Args:
            config: Its ``projector_*`` fields, ``d_audio`` and ``hidden_size``.
        """
        super().__init__()
        self.d_audio = config.d_audio
        self.stride = config.projector_stride
        self.kind = config.projector_kind
        self.activation: nn.Module = ACT2FN[config.projector_activation]
        width = config.projector_width
        if self.kind == "conv":
            n_convs = self.stride.bit_length() - 1
            channels = [self.d_audio] + [width] * n_convs
            self.convs = nn.ModuleList(
                nn.Conv1d(channels[i], channels[i + 1], kernel_size=3, stride=2, padding=1)
                for i in range(n_convs)
            )
            self.out = nn.Linear(channels[-1], config.hidden_size)
        elif self.kind == "chain":
            self.chain = parse_layers(config.projector_layers, self.d_audio, config.hidden_size)
            self.layers = nn.ModuleList(_layer(layer) for layer in self.chain if layer.kind != "activation")
        else:
            self.norm = nn.LayerNorm(self.d_audio)
            self.hidden = nn.Linear(self.d_audio * self.stride, width)
            self.out = nn.Linear(width, config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def n_audio_tokens(self, n_frames: Tensor) -> Tensor:
        """How many audio tokens clips of ``n_frames`` encoder frames give, (B,) int64."""
        return (n_frames + self.stride - 1) // self.stride

    def forward(self, frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Project one batch.

        Args:
            frames: Encoder output, (B, T, d_audio), any float dtype.
            n_frames: Valid frames of each clip, (B,), int64, 1 <= n <= T.

        Returns:
            Audio tokens (B, A, D) and how many of them are valid (B,).

        Raises:
            ValueError: If the last dimension of ``frames`` is not ``d_audio``.
        """
        if frames.shape[-1] != self.d_audio:
            raise ValueError(f"frames are {frames.shape[-1]} wide; this projector takes {self.d_audio}.")
        frames = frames * length_mask(n_frames, frames.shape[1])[..., None]
        if self.kind == "conv":
            return self._convolve(frames, n_frames), self.n_audio_tokens(n_frames)
        if self.kind == "chain":
            return self._run_chain(frames, n_frames), self.n_audio_tokens(n_frames)
        hidden = self.norm(frames) * length_mask(n_frames, frames.shape[1])[..., None]
        hidden = nn.functional.pad(hidden, (0, 0, 0, -hidden.shape[1] % self.stride))
        hidden = hidden.reshape(hidden.shape[0], -1, self.d_audio * self.stride)  # (B, A, stride * d_audio)
        return self.out(self.activation(self.hidden(hidden))), self.n_audio_tokens(n_frames)

    def _convolve(self, hidden: Tensor, n_valid: Tensor) -> Tensor:
        """Stride-2 convolutions with their activation, (B, T, d_audio) to (B, A, D), padding kept at zero."""
        hidden = hidden.transpose(1, 2)
        for conv in self.convs:
            n_valid = (n_valid + 1) // 2
            hidden = self.activation(conv(hidden))
            hidden = hidden * length_mask(n_valid, hidden.shape[-1])[:, None, :]
        projected: Tensor = self.out(hidden.transpose(1, 2))
        return projected

    def _run_chain(self, hidden: Tensor, n_valid: Tensor) -> Tensor:
        """One layer after the other, (B, T, d_audio) to (B, A, D); convolutions see padding as zero."""
        modules = iter(self.layers)
        for layer in self.chain:
            if layer.kind == "activation":
                hidden = self.activation(hidden)
            elif layer.kind == "conv":
                hidden = hidden * length_mask(n_valid, hidden.shape[1])[..., None]
                hidden = next(modules)(hidden.transpose(1, 2)).transpose(1, 2)
                n_valid = (n_valid + 1) // 2
            else:
                hidden = next(modules)(hidden)
        return hidden


def _layer(layer: ChainLayer) -> nn.Module:
    """A layer of a chain that has weights."""
    if layer.kind == "conv":
        return nn.Conv1d(layer.n_in, layer.n_out, kernel_size=3, stride=2, padding=1)
    return nn.Linear(layer.n_in, layer.n_out) if layer.kind == "linear" else nn.LayerNorm(layer.n_in)


class CTCTap(nn.Module):
    """Make audio tokens readable by the frozen output layer.

    Input embeddings are scaled by the square root of the width while the output layer expects normed
    states; one vector serves both badly, so the tap has its own LayerNorm and a learned scale. Where the
    prompt holds what the tap expects (``audio_embeddings: posterior``), ``prompt_scale`` says how much of the
    audio token stands there too; it starts at zero.
    """

    def __init__(self, config: CanvasASRConfig) -> None:
        """Build for the backbone's width.

        Args:
            config: Its ``hidden_size`` and ``audio_embeddings``.
        """
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.scale = nn.Parameter(torch.ones(()))
        if config.audio_embeddings == "posterior":
            self.prompt_scale = nn.Parameter(torch.zeros(()))

    def forward(self, audio_tokens: Tensor) -> Tensor:
        """Map audio tokens (B, A, D) to states of the output layer, (B, A, D)."""
        states: Tensor = self.norm(audio_tokens) * self.scale
        return states
