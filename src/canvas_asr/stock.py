"""DiffusionGemma's own ``generate`` on a prompt of this package: what the canvas is measured against.

``generate`` takes token ids and an encoded past. The past is the prompt without its last token, and that
token is the input. Where prompts stand, it does not ask: it counts places. Hooks give it the positions that
the checkpoint was trained with, so that it reads batches of unequal prompts, and both layouts of
``audio_positions``.

Letters: B clips, P prompt places, C canvas length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from .backbone import keys_values
from .configuration import text_config
from .decoding import Prefix
from .encoder import length_mask


@torch.no_grad()
def generate_stock(
    backbone: DiffusionGemmaForBlockDiffusion,
    prefix: Prefix,
    *,
    canvas_start: int | None = None,
    canvas_length: int | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Denoise one canvas a clip as ``transformers`` does: entropy-bound sampler, adaptive stopping.

    Args:
        backbone: The backbone.
        prefix: Encoded prompts; their cache stays as it is.
        canvas_start: Position of the first canvas token; None: behind the prompt.
        canvas_length: Tokens of the canvas; None: the backbone's.
        steps: Denoising steps at most; None: as its generation configuration says, 48 unless changed.
        seed: Of the noise, which is drawn for the batch as a whole.

    Returns:
        Canvases (B, C) int64, and how many steps each clip took (B,) int64.
    """
    n_prompt, n_places = prefix.n_prompt, prefix.ids.shape[1]
    last = n_prompt[:, None] - 1
    equal = bool((n_prompt == n_places).all())
    n_kept = n_places - 1 if equal else n_places
    # Of prompts of one length nothing is masked, and generate goes its fastest way.
    past = length_mask(n_prompt - 1, n_kept)
    mask = torch.cat([past, torch.ones_like(past[:, :1])], dim=1)
    at = last if prefix.positions is None else prefix.positions.gather(1, last)
    model: Any = backbone  # its own annotations are narrower than what it takes
    length: int = canvas_length or model.config.canvas_length
    start = n_prompt[:, None] if canvas_start is None else torch.full_like(last, canvas_start)
    canvas_at = start + torch.arange(length, device=start.device)
    options: dict[str, Any] = {} if steps is None else {"max_denoising_steps": steps}
    devices = [n_prompt.device] if n_prompt.device.type == "cuda" else []
    with _canvas(backbone, length), _positions(backbone, at, canvas_at), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        output = model.generate(
            prefix.ids.gather(1, last),
            past_key_values=_past(backbone, prefix.cache, n_kept),
            attention_mask=mask,
            max_new_tokens=length,
            **options,
        )
    canvas: Tensor = output.sequences[:, 1:]
    # Tokens a step are counted without what a finished row is padded with, if it is.
    pad = backbone.generation_config.pad_token_id
    n_tokens = torch.full_like(n_prompt, length) if pad is None else (canvas != pad).sum(dim=1)
    return canvas, (n_tokens / output.tokens_per_forward).round().long()


def _past(backbone: DiffusionGemmaForBlockDiffusion, cache: DynamicCache, n_kept: int) -> DynamicCache:
    """The first places of a cache, in one whose layers say their kind, by which masks are made."""
    past = DynamicCache(config=text_config(backbone.config))
    for index, (keys, values) in enumerate(keys_values(cache)):
        past.update(keys[:, :, :n_kept], values[:, :, :n_kept], index)
    return past


@contextmanager
def _canvas(backbone: DiffusionGemmaForBlockDiffusion, length: int) -> Iterator[None]:
    """Let the backbone's canvas be so long: ``generate`` reads it from the configuration alone."""
    own = backbone.config.canvas_length
    backbone.config.canvas_length = length
    try:
        yield
    finally:
        backbone.config.canvas_length = own


@contextmanager
def _positions(backbone: DiffusionGemmaForBlockDiffusion, last: Tensor, canvas: Tensor) -> Iterator[None]:
    """Give the last prompt token (B, 1) and the canvas (B, C) positions of their own."""

    def give(name: str, positions: Tensor) -> Any:
        return lambda _module, args, kwargs: (args, {**kwargs, name: positions})

    model = backbone.model
    hooks = [
        model.encoder.register_forward_pre_hook(give("position_ids", last), with_kwargs=True),
        model.decoder.register_forward_pre_hook(give("decoder_position_ids", canvas), with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
