"""Autoregressive decoding with the same weights: the backbone's causal side writes the transcript.

The autoregressive loss trains it to go on behind the prompt with language tag, text and end token, so it is
a recogniser of its own: one token a call, each reading a cache that grows. The canvas is measured against it.

    decode = AutoregressiveDecoder(asr.model, asr.processor)
    decode(*asr.processor.features([samples]))[0].ids

Letters: B clips, P prompt places, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from .backbone import crop_cache
from .canvas import Vocabulary, place_tags
from .canvas_batch import FinishedCanvas
from .configuration import text_config
from .decoding import CanvasDecoder, Prefix
from .encoder import attention_mask, length_mask
from .errors import OptionError
from .modeling import CanvasASRModel
from .processing import CanvasASRProcessor
from .result import Decoded
from .sampler import read_canvas


@dataclass(frozen=True)
class Written:
    """What was written behind prompts.

    Attributes:
        ids: Tag, text and end token, the end token repeated to the longest, (B, U) int64.
        confidence: Probability of each among the allowed tokens, (B, U) float32.
        tag_probabilities: Of ``Vocabulary.tags``, (B, n_tags) float32; given tags have 1.
        n_written: Tokens of each up to and with its end token, (B,) int64.
    """

    ids: Tensor
    confidence: Tensor
    tag_probabilities: Tensor
    n_written: Tensor


@torch.no_grad()
def write_greedily(
    backbone: DiffusionGemmaForBlockDiffusion,
    prefix: Prefix,
    vocabulary: Vocabulary,
    max_tokens: int,
    tags: Sequence[int | None] | None = None,
) -> Written:
    """Write the likeliest token behind each prompt, again and again, until every row has ended.

    Args:
        backbone: The backbone.
        prefix: Encoded prompts; their cache stays as it is.
        vocabulary: Allowed ids.
        max_tokens: Most tokens a row, tag and end token included.
        tags: Language tag of each row where it is known.
    """
    n_prompt, device = prefix.n_prompt, prefix.n_prompt.device
    rows = torch.arange(len(n_prompt), device=device)
    vocabulary = replace(vocabulary, text=vocabulary.text.to(device))
    given = torch.tensor([-1 if t is None else t for t in tags or [None] * len(rows)], device=device)
    tag_ids = torch.tensor(vocabulary.tags, dtype=torch.long, device=device)
    behind = n_prompt[:, None]
    if prefix.positions is not None:
        behind = prefix.positions.gather(1, n_prompt[:, None] - 1) + 1
    n_places = prefix.ids.shape[1]
    cache = crop_cache(prefix.cache, n_places)  # of its own: it grows
    encoder = backbone.model.encoder.language_model
    embed = backbone.get_input_embeddings()
    hidden = prefix.hidden[rows, n_prompt - 1][:, None]
    written: list[Tensor] = []
    sure: list[Tensor] = []
    ended = torch.zeros_like(rows, dtype=torch.bool)
    tag_probabilities = hidden.new_zeros(len(rows), 0, dtype=torch.float32)
    while True:
        reading = read_canvas(backbone, hidden, vocabulary, wants_soft=False)
        tokens, confidence = reading.tokens, reading.confidence
        if not written:
            tokens, confidence, tag_probabilities = place_tags(reading, tag_ids, vocabulary, given)
        tokens = tokens.masked_fill(ended[:, None], vocabulary.eos)
        written.append(tokens)
        sure.append(confidence)
        ended = ended | (tokens[:, 0] == vocabulary.eos)
        if len(written) == max_tokens or bool(ended.all()):
            break
        hidden = encoder(
            inputs_embeds=embed(tokens),
            past_key_values=cache,
            attention_mask=_masks(backbone, n_prompt, n_places, len(written), hidden.dtype),
            position_ids=behind + len(written) - 1,
        ).last_hidden_state
    ids = torch.cat(written, dim=1)
    n_written = ((ids != vocabulary.eos).sum(dim=1) + 1).clamp(max=ids.shape[1])
    return Written(ids, torch.cat(sure, dim=1), tag_probabilities, n_written)


def _masks(
    backbone: DiffusionGemmaForBlockDiffusion,
    n_prompt: Tensor,
    n_places: int,
    n_written: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """What the last written token sees of P prompt places and all that is written, for each kind of layer."""
    geometry = text_config(backbone.config)
    device = n_prompt.device
    of_prompt = torch.arange(n_places, device=device).expand(len(n_prompt), -1)
    of_text = n_prompt[:, None] + torch.arange(n_written, device=device)
    seen = torch.cat([length_mask(n_prompt, n_places), torch.ones_like(of_text, dtype=torch.bool)], dim=1)
    near = torch.cat([of_prompt, of_text], dim=1) > of_text[:, -1:] - geometry.sliding_window
    return {
        kind: attention_mask(mask[:, None], geometry._attn_implementation, dtype)
        for kind, mask in (("full_attention", seen), ("sliding_attention", seen & near))
    }


class AutoregressiveDecoder:
    """Decodes batches of features token by token."""

    def __init__(self, model: CanvasASRModel, processor: CanvasASRProcessor) -> None:
        """Look up the ids that decoding needs.

        Args:
            model: In evaluation mode; trained with the autoregressive loss.
            processor: Of the same checkpoint.
        """
        self.decoder = CanvasDecoder(model, processor)

    @torch.no_grad()
    def __call__(
        self, mel: Tensor, n_mel: Tensor, *, language: str | None = None, max_tokens: int | None = None
    ) -> list[Decoded]:
        """Decode one batch.

        Args:
            mel: Log-mel features, (B, n_mels, T_mel), right-padded.
            n_mel: Valid mel frames, (B,) int64.
            language: Code of all clips; None finds it.
            max_tokens: Most tokens a clip, tag and end token included; None: as many as the checkpoint's
                longest canvas has.

        Returns:
            One result a clip; its ``passes`` are the tokens that were written for it, the end token included.

        Raises:
            OptionError: If the language is unknown or ``max_tokens`` below 1.
        """
        decoder, model = self.decoder, self.decoder.model
        if language is not None and decoder.languages and language not in decoder.languages:
            raise OptionError(f"language is {language!r}; this model knows {', '.join(decoder.languages)}.")
        if max_tokens is not None and max_tokens < 1:
            raise OptionError(f"max_tokens is {max_tokens}; give at least 1.")
        tokens, n_audio = model.audio_tokens(mel, n_mel)
        prefix = decoder.prefix(tokens, n_audio, model.ctc_logits(tokens))
        tag = None if language is None else decoder.languages.get(language)
        limit = decoder.config.max_canvas_length if max_tokens is None else max_tokens
        found = write_greedily(model.backbone, prefix, decoder.vocabulary, limit, [tag] * len(mel))
        columns = found.ids, found.confidence, found.tag_probabilities, found.n_written.tolist()
        rows = (FinishedCanvas(None, *row) for row in zip(*columns, strict=True))
        return [decoder.result(row, (), language) for row in rows]
