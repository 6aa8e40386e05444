"""The least time that the published system can take: bytes over bandwidth, operations over matrix rate.

Weights are read once a pass, activations not at all, so no program is faster; with 128 experts and 8 a token
nearly all of them are read by the 192 tokens of a single canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from canvas_asr.configuration import CanvasASRConfig, text_config

PROMPT_TEXT = 12  # tokens of the prompt besides the audio tokens
MEL_PER_S = 100


@dataclass(frozen=True)
class Machine:
    """What a machine does at best.

    Attributes:
        name: Of the machine.
        bytes_per_s: Memory bandwidth, bytes read plus bytes written.
        flops_per_s: bf16 matrix products.
        source: Where the two figures come from.
    """

    name: str
    bytes_per_s: float
    flops_per_s: float
    source: str


H200 = Machine("NVIDIA H200", 4.8e12, 989e12, "both from its datasheet, the rate that without sparsity")


@dataclass(frozen=True)
class Clip:
    """A kind of clip.

    Attributes:
        name: How tables call it.
        audio_s: Its length in seconds.
        padded: Whether silence is put behind it up to 30 s before the audio encoder.
    """

    name: str
    audio_s: float
    padded: bool


CLIPS = (
    Clip("10 s, padded to 30 s", 10.0, True),
    Clip("10 s, own length", 10.0, False),
    Clip("30 s", 30.0, True),
)


@dataclass(frozen=True)
class Work:
    """Bytes that must be moved and operations that must be done."""

    n_bytes: float
    n_flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.n_bytes + other.n_bytes, self.n_flops + other.n_flops)

    def seconds(self, machine: Machine) -> float:
        """The larger of the two times."""
        return max(self.n_bytes / machine.bytes_per_s, self.n_flops / machine.flops_per_s)


def n_encoder_frames(config: CanvasASRConfig, clip: Clip) -> int:
    """Audio encoder frames of a clip; the encoder halves the mel frames."""
    whole = int(config.audio_encoder_config.max_source_positions)
    return whole if clip.padded else min(whole, round(clip.audio_s * MEL_PER_S / 2))


def n_audio_tokens(config: CanvasASRConfig, clip: Clip) -> int:
    """Audio tokens of a clip."""
    return -(-n_encoder_frames(config, clip) // config.projector_stride)


class Floor:
    """Work of every part of the system for one geometry."""

    def __init__(self, config: CanvasASRConfig, bytes_per_weight: int = 2) -> None:
        """Count the weights of every part.

        Args:
            config: Geometry.
            bytes_per_weight: Of all tensors.
        """
        self.config = config
        self.text: Any = text_config(config.backbone_config)
        self.width = bytes_per_weight
        text = self.text
        d, kinds = text.hidden_size, text.layer_types
        self.attention = self.scores = self.cache = self.lora = 0  # weights, then per pair, then per token
        for index in range(len(kinds)):
            layer = text.per_layer_config[index]
            q = text.num_attention_heads * layer.head_dim
            kv = layer.num_key_value_heads * layer.head_dim
            n_kv = 2 if kinds[index] == "sliding_attention" else 1
            self.attention += d * (2 * q + n_kv * kv)
            self.lora += config.lora_rank * (2 * (d + q) + n_kv * (d + kv))
            self.scores += 4 * q
            self.cache += 2 * kv
        self.mlp = 3 * d * text.intermediate_size
        self.router = d * text.num_experts
        self.expert = 3 * d * text.moe_intermediate_size
        self.n_layers = len(kinds)
        self.vocabulary = d * text.vocab_size

    def n_touched(self, n_tokens: int) -> float:
        """Experts of a layer that ``n_tokens`` are expected to use, were the router even."""
        n, k = self.text.num_experts, self.text.top_k_experts
        return float(n * (1 - (1 - k / n) ** n_tokens))

    def _layers(self, n_tokens: int, pairs: float) -> Work:
        dense = self.attention + self.lora + self.n_layers * (self.mlp + self.router)
        experts = self.n_layers * self.expert
        return Work(
            self.width * (dense + experts * self.n_touched(n_tokens)),
            2 * n_tokens * (dense + experts * self.text.top_k_experts) + self.scores * pairs,
        )

    def one_pass(self, n_batch: int, n_prompt: int, canvas: int, *, wants_soft: bool) -> Work:
        """One pass; with ``wants_soft`` the vocabulary is read twice: for logits and for the soft signal."""
        n = n_batch * canvas
        readings = 2 if wants_soft else 1
        return (
            self._layers(n, n * (n_prompt + canvas))
            + Work(self.width * self.mlp, 2 * n * self.mlp)  # self-conditioning
            + Work(self.width * self.vocabulary * readings, 2 * n * self.vocabulary * readings)
            + Work(self.width * self.cache * n_batch * n_prompt, 0)
        )

    def prefix(self, n_batch: int, n_prompt: int) -> Work:
        """The causal encoder over the prompts."""
        n = n_batch * n_prompt
        return self._layers(n, n * (n_prompt + 1) / 2) + Work(self.width * self.cache * n, 0)

    def front(self, n_batch: int, clip: Clip) -> Work:
        """Audio encoder and projector."""
        config, geometry = self.config, self.config.audio_encoder_config
        n_frames, d = n_encoder_frames(config, clip), geometry.d_model
        layers = geometry.encoder_layers * (4 * d * d + 2 * d * geometry.encoder_ffn_dim)
        first, second = 3 * d * geometry.num_mel_bins, 3 * d * d  # the first runs at twice the rate
        flops = 2 * n_frames * (layers + 2 * first + second) + geometry.encoder_layers * 4 * n_frames**2 * d
        width, out, n_weights = config.projector_width, config.hidden_size, layers + first + second
        n_tokens = n_audio_tokens(config, clip)
        if config.projector_kind == "conv":
            inputs, n_steps = d, n_frames
            for _ in range(config.projector_stride.bit_length() - 1):
                n_steps = -(-n_steps // 2)
                flops += 2 * n_steps * 3 * inputs * width
                n_weights += 3 * inputs * width
                inputs = width
        else:
            flops += 2 * n_tokens * d * config.projector_stride * width
            n_weights += d * config.projector_stride * width
        flops += 2 * n_tokens * width * out
        return Work(self.width * (n_weights + width * out), n_batch * flops)

    def draft(self, n_batch: int, clip: Clip) -> Work:
        """The CTC reading of the audio tokens."""
        n = n_batch * n_audio_tokens(self.config, clip)
        return Work(self.width * self.vocabulary, 2 * n * self.vocabulary)

    def seconds(self, machine: Machine, clip: Clip, n_batch: int, canvas: int, passes: int) -> float:
        """Least time of one cell of the grid; 0 passes are the draft alone."""
        n_prompt = n_audio_tokens(self.config, clip) + PROMPT_TEXT
        parts = [self.front(n_batch, clip), self.draft(n_batch, clip)]
        if passes:
            parts.append(self.prefix(n_batch, n_prompt))
            parts.append(self.one_pass(n_batch, n_prompt, canvas, wants_soft=False))
        more = self.one_pass(n_batch, n_prompt, canvas, wants_soft=True).seconds(machine)
        return sum(part.seconds(machine) for part in parts) + max(0, passes - 1) * more
