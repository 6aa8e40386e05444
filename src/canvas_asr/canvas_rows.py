"""What a batch keeps of every canvas, and how canvases are laid before their first pass.

Letters: B canvases, C longest canvas, D width, S spikes, K candidates of a spike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from .canvas import Vocabulary
from .ctc import Draft
from .strategies import SamplerConfig
from .strategies.fusion import weigh
from .strategies.starts import Layout


@dataclass(frozen=True)
class CanvasRow:
    """A canvas to be denoised.

    Attributes:
        key: Comes back with the result.
        noise_key: What identifies the clip, whatever batch it is in: its noise is drawn from (seed, this).
        seed: Of the noise.
        length: Tokens of the canvas, at least 2.
        tag: Language tag where it is known.
        draft: Of the clip, where a strategy needs one; its ``soft`` goes to the first pass.
    """

    key: Any
    noise_key: int
    seed: int
    length: int
    tag: int | None = None
    draft: Draft | None = None


@dataclass(frozen=True)
class Rows:
    """What is kept of every canvas: the first dimension of each tensor is B.

    Attributes:
        canvas: Before the next pass, (B, C) int64.
        n_canvas: Length of each, (B,) int64.
        n_prompt: Valid prompt positions, (B,) int64.
        given: Language tag, -1 where it is to be found, (B,) int64.
        noise: For after each pass, (B, steps - 1, C) int64.
        step: Passes taken, (B,) int64.
        before: Prediction of the pass before, at first the canvas, (B, C) int64.
        streak: Passes in a row with the same text, (B,) int64.
        spike: Spike of every place, -1 for none, (B, C) int64.
        spike_tokens: See :class:`~canvas_asr.strategies.fusion.Spikes`, (B, S, K) int64; S is 0 where
            nothing is fused or boosted.
        spike_weights: Likewise, (B, S, K) float32.
        soft: Self-conditioning of the next pass, (B, C, D); None: none for all.
    """

    canvas: Tensor
    n_canvas: Tensor
    n_prompt: Tensor
    given: Tensor
    noise: Tensor
    step: Tensor
    before: Tensor
    streak: Tensor
    spike: Tensor
    spike_tokens: Tensor
    spike_weights: Tensor
    soft: Tensor | None

    def select(self, rows: Tensor) -> Rows:
        """Give the chosen rows, (B',) int64."""
        kept: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, tensor in kept.items():
            kept[name] = None if tensor is None else tensor[rows]
        return Rows(**kept)

    def join(self, other: Rows) -> Rows:
        """Put other rows behind these, everything padded to the larger."""
        names = [field.name for field in fields(self)]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        soft = pairs.pop("soft")
        joined = Rows(**{name: _join(*pair) for name, pair in pairs.items()}, soft=None)
        shown = next((signal for signal in soft if signal is not None), None)
        if shown is None:
            return joined
        # Rows of zeros have no signal.
        signals = [
            shown.new_zeros(*rows.canvas.shape, shown.shape[-1]) if signal is None else signal
            for rows, signal in zip((self, other), soft, strict=True)
        ]
        return replace(joined, soft=_join(*signals))


def _join(first: Tensor, second: Tensor) -> Tensor:
    shape = [max(sizes) for sizes in zip(first.shape[1:], second.shape[1:], strict=True)]
    return torch.cat([_pad(tensor, shape) for tensor in (first, second)])


def _pad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Pad all dimensions but the first with zeros."""
    if list(tensor.shape[1:]) == list(shape):
        return tensor
    larger = tensor.new_zeros(len(tensor), *shape)
    larger[(slice(None), *(slice(size) for size in tensor.shape[1:]))] = tensor
    return larger


def lay_rows(
    backbone: DiffusionGemmaForBlockDiffusion,
    vocabulary: Vocabulary,
    config: SamplerConfig,
    n_prompt: Tensor,
    rows: Sequence[CanvasRow],
) -> Rows:
    """Lay canvases on the host, draw all their noise, and send it to the device at once.

    Args:
        backbone: The backbone.
        vocabulary: Allowed ids.
        config: Strategies and number of passes.
        n_prompt: Valid prompt positions, (B,) int64, on the device.
        rows: The canvases, B of them, at least one.

    Raises:
        OptionError: If a draft is needed and missing.
    """
    start, length = config.start, max(row.length for row in rows)
    device = n_prompt.device
    canvas = torch.zeros(len(rows), length, dtype=torch.long)
    noise = torch.zeros(len(rows), config.steps - 1, length, dtype=torch.long)
    spike = torch.full((len(rows), length), -1)
    layouts = []
    for i, row in enumerate(rows):
        generator = torch.Generator().manual_seed((row.seed * 1_000_003 + row.noise_key) & ((1 << 63) - 1))
        drawn = torch.randint(vocabulary.size, (config.steps, row.length), generator=generator)
        layout = start.lay(drawn[0], vocabulary, row.draft)
        canvas[i, : row.length] = layout.canvas
        noise[i, :, : row.length] = vocabulary.undecided(drawn[1:])
        if row.draft is not None and row.draft.candidates is not None:
            spike[i, list(layout.places)] = torch.arange(len(layout.places))
        layouts.append(layout)
    given = torch.tensor([-1 if row.tag is None else row.tag for row in rows])
    if vocabulary.tags:
        canvas[:, 0] = torch.where(given >= 0, given, canvas[:, 0])
    canvas, noise, spike, given = (tensor.to(device) for tensor in (canvas, noise, spike, given))
    n_canvas = torch.tensor([row.length for row in rows], device=device)
    tokens, weights = _spikes(rows, config.fusion, device)
    return Rows(
        canvas=canvas,
        n_canvas=n_canvas,
        n_prompt=n_prompt,
        given=given,
        noise=noise,
        step=torch.zeros_like(n_canvas),
        before=canvas,
        streak=torch.zeros_like(n_canvas),
        spike=spike,
        spike_tokens=tokens,
        spike_weights=weights,
        soft=_first_signal(backbone, vocabulary, rows, layouts, canvas),
    )


def _spikes(rows: Sequence[CanvasRow], weight: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Candidates of every spike and what they weigh, (B, S, K) each; S is 0 without fusion and hotwords."""
    heard = [
        (i, row.draft.candidates, row.draft.log_posteriors, row.draft.weights)
        for i, row in enumerate(rows)
        if row.draft and row.draft.candidates is not None and row.draft.log_posteriors is not None
    ]
    n_spikes = max((len(candidates) for _, candidates, _, _ in heard), default=0)
    n_candidates = heard[0][1].shape[-1] if heard else 0
    tokens = torch.full((len(rows), n_spikes, n_candidates), -1, device=device)
    weights = torch.zeros(tokens.shape, device=device)
    for i, candidates, log_posteriors, own in heard:
        tokens[i, : len(candidates)] = candidates
        weights[i, : len(candidates)] = weigh(log_posteriors, weight)
        if own:
            weights[i, : len(own), 0] += torch.tensor(own, device=device)
    return tokens, weights


def _first_signal(
    backbone: DiffusionGemmaForBlockDiffusion,
    vocabulary: Vocabulary,
    rows: Sequence[CanvasRow],
    layouts: Sequence[Layout],
    canvas: Tensor,
) -> Tensor | None:
    """Self-conditioning of the first pass from the drafts' soft embeddings, laid like the drafts.

    The tag has the mean of those it may be, the tail the end token's; places left free have none. None where
    no draft has soft embeddings.
    """
    softs = [None if row.draft is None else row.draft.soft for row in rows]
    if all(soft is None for soft in softs):
        return None
    embed = backbone.model.decoder.embed_tokens
    eos = embed(torch.tensor(vocabulary.eos, device=canvas.device))
    signal: Tensor = eos.new_zeros(*canvas.shape, eos.shape[-1])
    for i, (row, layout, soft) in enumerate(zip(rows, layouts, softs, strict=True)):
        if soft is None:
            continue
        places = list(layout.places)
        signal[i, places] = soft[: len(places)].to(signal.dtype)
        first = int(bool(vocabulary.tags))
        n_text = layout.n_text if layout.n_text < row.length else max(places, default=first - 1) + 1
        signal[i, n_text : row.length] = eos
        if first:
            tags = [tag for tag in vocabulary.tags if row.tag in (None, tag)]
            signal[i, 0] = embed(torch.tensor(tags, device=canvas.device)).mean(dim=0)
    return signal
