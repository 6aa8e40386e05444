"""Clocks of the decoding benchmark: parts of one batch, whole systems in turn, and the floor of one pass."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from decoding_accuracy import Record
from full_size_timing import Timer
from torch import Tensor, nn

from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.ctc import greedy_ctc
from canvas_asr.decoding import Prefix
from canvas_asr.evaluation.modes import Samples
from canvas_asr.sampler import read_pass, sample
from canvas_asr.strategies import SamplerConfig
from canvas_asr.transcriber import Transcriber

SLOW_S = 5.0
"""What takes longer is timed twice, its first run included."""
Product = tuple[int, int, int, int]
"""Batch, rows, inner size and columns of a matrix product."""


def long_clips(clips: Sequence[Samples], n_clips: int, audio_s: float) -> list[Samples]:
    """Clips of one length: utterances of the set behind each other, each clip beginning with another one."""
    length = round(audio_s * SAMPLE_RATE_HZ)
    joined = []
    for first in range(n_clips):
        parts: list[Samples] = []
        place = first
        while sum(map(len, parts)) < length:
            parts.append(clips[place % len(clips)])
            place += n_clips
        joined.append(np.concatenate(parts)[:length])
    return joined


class Parts:
    """Times the parts of one batch of equal clips."""

    def __init__(self, transcriber: Transcriber, repeats: int) -> None:
        self.transcriber = transcriber
        self.timer = Timer(transcriber.device, repeats)

    def _front(self, clips: Sequence[Samples]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Audio tokens, how many are valid, and CTC logits of each share of the clips."""
        decoder, device = self.transcriber.decoder, self.transcriber.device
        mel, n_mel = (tensor.to(device) for tensor in decoder.features(clips))
        shares = decoder.threads.shares(len(clips), device)
        return decoder.threads.each(lambda rows: self._tap(mel[rows], n_mel[rows]), shares)

    def _tap(self, mel: Tensor, n_mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model = self.transcriber.model
        tokens, n_audio = model.audio_tokens(mel, n_mel)
        ctc = model.ctc_logits(tokens)
        greedy_ctc(ctc, n_audio, model.config.blank_token_id)
        return tokens, n_audio, ctc

    @torch.no_grad()
    def prefix(self, clips: Sequence[Samples]) -> Prefix:
        """Encode the prompts of clips."""
        decoder, device = self.transcriber.decoder, self.transcriber.device
        mel, n_mel = (tensor.to(device) for tensor in decoder.features(clips))
        return decoder.prefix(*self._tap(mel, n_mel))

    def _passes(self, prefix: Prefix, canvas: int, steps: int) -> None:
        decoder = self.transcriber.decoder
        sample(
            decoder.model.backbone,
            prefix.cache,
            prefix.n_prompt,
            decoder.vocabulary,
            SamplerConfig(steps, canvas),
            clip_keys=range(len(prefix.n_prompt)),
            run_pass=partial(decoder.read_pass, canvas_start=decoder.canvas_start),
        )

    @torch.no_grad()
    def measure(self, clips: Sequence[Samples], canvases: Sequence[int], passes: Sequence[int]) -> Record:
        """Time a batch: seconds of each part, and seconds a clip by canvas and passes made up of them.

        A pass is timed through the sampler: one pass, and half of what three take more than one.
        """
        decoder = self.transcriber.decoder
        front = self._front(clips)
        front_s = self.timer.median(lambda: self._front(clips))
        prefix = self.prefix(clips)
        prefix_s = self.timer.median(
            lambda: decoder.threads.each(lambda share: decoder.prefix_keys(*share), front)
        )
        record: Record = {"batch": len(clips), "front_s": front_s, "prefix_s": prefix_s, "canvases": {}}
        for canvas in canvases:
            one_s, three_s = (self.timer.median(partial(self._passes, prefix, canvas, n)) for n in (1, 3))
            next_s = (three_s - one_s) / 2
            total = {n: front_s + (prefix_s + one_s + (n - 1) * next_s if n else 0.0) for n in passes}
            record["canvases"][canvas] = {
                "first_s": one_s,
                "next_s": next_s,
                "clip_s": {n: seconds / len(clips) for n, seconds in total.items()},
            }
        return record


def in_turn(systems: dict[str, Callable[[], object]], rounds: int, tell: Callable[[str], None]) -> Record:
    """Time systems in turn, so that whatever else the machine does falls on all of them.

    Args:
        systems: What is timed, by name.
        rounds: Timed runs after a first one; that one counts too for what takes longer than `SLOW_S`.
        tell: Told of each time.

    Returns:
        Median, least and greatest seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for number in range(rounds + 1):
        # Each round begins with another one: none is always first.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if number > 1 and max(seconds[name], default=0.0) > SLOW_S:
                continue
            started = time.perf_counter()
            systems[name]()
            taken = time.perf_counter() - started
            if number or taken > SLOW_S:
                seconds[name].append(taken)
            tell(f"{name}: {taken:.3f} s")
    return {
        name: {"median_s": statistics.median(found), "min_s": min(found), "max_s": max(found)}
        for name, found in seconds.items()
    }


@contextmanager
def _recorded(backbone: Any, products: Counter[Product]) -> Iterator[None]:
    """Note every matrix product of the decoder while it runs; those of the experts as an even router has."""

    def linear(module: nn.Linear, args: Any, kwargs: Any, _output: Any) -> None:
        given = args[0] if args else kwargs["input"]
        products[1, given.numel() // module.in_features, module.in_features, module.out_features] += 1

    def experts(module: Any, args: Any, _kwargs: Any, _output: Any) -> None:
        n_tokens, n_each = args[0].shape[0], args[1].shape[-1]
        rows = max(1, n_tokens * n_each // module.num_experts)
        for weight in (module.gate_up_proj, module.down_proj):
            products[1, rows, weight.shape[2], weight.shape[1]] += module.num_experts

    def attention(module: Any, args: Any, kwargs: Any, _output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        n_batch, length = hidden.shape[:2]
        n_heads = module.config.num_attention_heads
        seen = length + kwargs["past_key_values"].layers[module.layer_idx].keys.shape[-2]
        products[n_batch * n_heads, length, module.head_dim, seen] += 1
        products[n_batch * n_heads, length, seen, module.head_dim] += 1

    kinds = {"TextExperts": experts, "DecoderTextAttention": attention}
    hooks = []
    for module in backbone.modules():
        hook = linear if isinstance(module, nn.Linear) else None
        for name, candidate in kinds.items():
            hook = candidate if type(module).__name__.endswith(name) else hook
        if hook is not None:
            hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def products_of_a_pass(
    transcriber: Transcriber, prefix: Prefix, canvas: int, *, wants_soft: bool
) -> Counter[Product]:
    """Count the matrix products of one pass by their shapes."""
    decoder = transcriber.decoder
    backbone, products = decoder.model.backbone, Counter[Product]()
    ids = torch.zeros(len(prefix.n_prompt), canvas, dtype=torch.long, device=prefix.n_prompt.device)
    # A pass with another behind it has one before it as well, which conditions it.
    soft = backbone.get_input_embeddings()(ids).detach() if wants_soft else None
    with torch.no_grad(), _recorded(backbone, products):
        read_pass(
            backbone,
            ids,
            prefix.cache,
            prefix.n_prompt,
            decoder.vocabulary,
            soft,
            wants_soft=wants_soft,
            canvas_start=decoder.canvas_start,
        )
    if wants_soft:  # the expected embedding is a product with the embedding's own matrix
        vocabulary, width = backbone.get_input_embeddings().weight.shape
        products[1, ids.numel(), vocabulary, width] += 1
    return products


def floor(
    products: Counter[Product], device: torch.device, dtype: torch.dtype, repeats: int, side: int
) -> Record:
    """The least time of a pass: its matrix products alone, each timed by itself on random data.

    Args:
        products: Of the pass.
        device: Where.
        dtype: Of the matrices.
        repeats: Timed runs of each shape.
        side: Of the large square product that is timed beside them.

    Returns:
        Seconds, operations and rate of the products; the rate of the square one, and the seconds at it.
    """
    timer = Timer(device, repeats)
    total_s, total_flops = 0.0, 0.0
    for (n_batch, rows, inner, columns), count in products.items():
        a = torch.randn(n_batch, rows, inner, device=device, dtype=dtype)
        b = torch.randn(n_batch, columns, inner, device=device, dtype=dtype).mT
        total_s += count * timer.median(lambda: a @ b, warm_ups=2)  # noqa: B023
        total_flops += count * 2.0 * n_batch * rows * inner * columns
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    square = 2.0 * side**3 / timer.median(lambda: a @ b, warm_ups=2)
    return {
        "products_s": total_s,
        "flops": total_flops,
        "products_flops_per_s": total_flops / total_s,
        "square_flops_per_s": square,
        "at_square_rate_s": total_flops / square,
        "side": side,
    }
