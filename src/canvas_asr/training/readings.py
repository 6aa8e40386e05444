"""What the CTC tap says of the audio tokens of a training batch; no gradient goes through it.

Letters: B clips, A audio tokens, S tokens of a draft, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from canvas_asr.backbone import soft_embed
from canvas_asr.ctc import merge_labels, state_certainty, surest_states
from canvas_asr.modeling import CanvasASRModel

from .losses import states_per_chunk


@dataclass(frozen=True)
class Readings:
    """CTC readings of a batch.

    Attributes:
        labels: Likeliest id of every audio token, (B, A) int64.
        expected: Mean input embedding under the posteriors of every audio token, (B, A, D); None where
            prompts hold none.
        n_audio: Valid audio tokens, (B,) int64.
        blank: Id of the blank.
        confidences: CTC posterior of each token of the drafts; empty where it was not asked for.
        signals: What CTC expects at each token of the drafts, as decoding shows it, (S, D) for every clip;
            empty likewise.
    """

    labels: Tensor
    expected: Tensor | None
    n_audio: Tensor
    blank: int
    confidences: list[list[float]]
    signals: list[Tensor]

    def drafts(self) -> list[list[int]]:
        """Token ids of every clip, as CTC reads them."""
        return merge_labels(self.labels, self.n_audio, self.blank)


@torch.no_grad()
def read_tokens(
    model: CanvasASRModel, tokens: Tensor, n_audio: Tensor, *, heard: Tensor | None = None
) -> Readings:
    """Read audio tokens.

    Args:
        model: Its tap and embeddings.
        tokens: (B, A, D).
        n_audio: Valid ones, (B,) int64.
        heard: Ids that decoding lets the tap say, (V,) bool, where confidences and signals are asked for.
    """
    heard = None if heard is None else heard.to(tokens.device)
    labels, expected = [], []
    confidences: list[list[float]] = []
    signals: list[Tensor] = []
    # A few clips at a time: logits of a whole batch would fill a GPU.
    n_clips = max(1, states_per_chunk(model.config.vocab_size) // tokens.shape[1])
    for some, n_states in zip(torch.split(tokens, n_clips), torch.split(n_audio, n_clips), strict=True):
        logits = model.ctc_logits(some)
        labels.append(logits.argmax(-1))
        expected.append(model.expected_embeddings(logits))
        if heard is None:
            continue
        certainty = state_certainty(logits)
        states = surest_states(labels[-1], certainty, n_states, model.config.blank_token_id)
        for row, spikes in enumerate(states):
            confidences.append(certainty[row, spikes].tolist())
            shown = logits[row, spikes].masked_fill(~heard, -torch.inf)
            signals.append(soft_embed(model.backbone, shown))
    found = [part for part in expected if part is not None]
    return Readings(
        torch.cat(labels),
        torch.cat(found) if found else None,
        n_audio,
        model.config.blank_token_id,
        confidences,
        signals,
    )


def tagged_signals(
    backbone: DiffusionGemmaForBlockDiffusion, signals: Sequence[Tensor], tags: Sequence[int]
) -> list[Tensor]:
    """Put the mean of all tags, as decoding shows at an open one, before signals (S, D); nothing without."""
    if not tags:
        return list(signals)
    embed = backbone.get_input_embeddings()
    tag = embed(torch.tensor(list(tags), device=signals[0].device)).detach().mean(dim=0, keepdim=True)
    return [torch.cat([tag, signal]) for signal in signals]
