"""``generate`` and its streamer: the decoder under the names that ``transformers`` has for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .decoding import CanvasDecoder
from .errors import OptionError
from .modeling import CanvasASRModel
from .processing import CanvasASRProcessor, pad_ids


class CanvasStreamer(BaseStreamer):
    """Print the draft and the canvas after every pass, a line each.

    A subclass that overrides :meth:`on_text` may show them otherwise.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | CanvasASRProcessor) -> None:
        """Prepare to read canvases.

        Args:
            tokenizer: Of the checkpoint, or its processor.
        """
        self.tokenizer = tokenizer.tokenizer if isinstance(tokenizer, CanvasASRProcessor) else tokenizer
        self.n_seen = 0

    def put(self, value: Tensor) -> None:
        """Take the draft, then one canvas after another.

        Args:
            value: Token ids, (L,) or (B, L) int64.
        """
        rows = value if value.dim() == 2 else value[None]
        for row, ids in enumerate(rows.tolist()):
            end = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else len(ids)
            text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
            self.on_text(text.strip(), self.n_seen, row)
        self.n_seen += 1

    def end(self) -> None:
        """Make ready for the next call of ``generate``."""
        self.n_seen = 0

    def on_text(self, text: str, step: int, row: int) -> None:
        """Print one text.

        Args:
            text: Of one clip.
            step: Number of the pass; 0 for the draft.
            row: The clip's place in the batch.
        """
        label = f"pass {step}" if step else "draft"
        print(f"{row}  {label:<8}{text}", flush=True)


def generate(
    model: CanvasASRModel,
    processor: CanvasASRProcessor,
    input_features: Tensor,
    attention_mask: Tensor | None,
    *,
    streamer: BaseStreamer | None,
    **options: Any,
) -> Tensor:
    """Decode features to padded token ids; :meth:`CanvasASRModel.generate` explains the arguments.

    Raises:
        OptionError: If an option or a shape is wrong.
    """
    n_mels = int(model.config.audio_encoder_config.num_mel_bins)
    if input_features.dim() != 3 or input_features.shape[1] != n_mels:
        raise OptionError(
            f"input_features have shape {tuple(input_features.shape)}; this model takes (B, {n_mels}, T)."
        )
    device = model.projector.device
    if attention_mask is None:
        n_mel = torch.full((len(input_features),), input_features.shape[-1])
    else:
        n_mel = attention_mask.sum(dim=-1).to(torch.long)
    decoder = CanvasDecoder(model, processor)
    eos = decoder.vocabulary.eos

    def show(_: int, canvas: Tensor) -> None:
        if streamer is not None:
            streamer.put(canvas.cpu())

    decoded = decoder(
        input_features.to(device),
        n_mel.to(device),
        on_draft=None if streamer is None else lambda drafts: streamer.put(pad_ids(drafts, eos)[0]),
        on_pass=show,
        **options,
    )
    if streamer is not None:
        streamer.end()
    pad = processor.tokenizer.pad_token_id
    return pad_ids([one.ids for one in decoded], eos if pad is None else int(pad))[0].to(device)
