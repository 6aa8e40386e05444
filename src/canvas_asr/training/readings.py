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
            neither prompts nor canvases hold any.
        certainty: Probability of the likeliest id, (B, A) float32; None where it was not asked for.
        n_audio: Valid audio tokens, (B,) int64.
        blank: Id of the blank.
    """

    labels: Tensor
    expected: Tensor | None
    certainty: Tensor | None
    n_audio: Tensor
    blank: int

    def drafts(self) -> list[list[int]]:
        """Token ids of every clip, as CTC reads them."""
        return merge_labels(self.labels, self.n_audio, self.blank)

    def signals(self) -> list[Tensor]:
        """What CTC expects at each token of the drafts, (S, D) for every clip; none without certainty."""
        if self.expected is None or self.certainty is None:
            return []
        return [expected[some] for expected, some in zip(self.expected, self._states(), strict=True)]

    def confidences(self) -> list[list[float]]:
        """CTC posterior of each token of the drafts; none without certainty."""
        if self.certainty is None:
            return []
        rows = zip(self.certainty.tolist(), self._states(), strict=True)
        return [[sure[state] for state in states] for sure, states in rows]

    def _states(self) -> list[list[int]]:
        """The surest state of each token."""
        if self.certainty is None:
            return []
        return surest_states(self.labels, self.certainty, self.n_audio, self.blank)


@torch.no_grad()
def read_tokens(model: CanvasASRModel, tokens: Tensor, n_audio: Tensor, *, signals: bool) -> Readings:
    """Read audio tokens.

    Args:
        model: Its tap and embeddings.
        tokens: (B, A, D).
        n_audio: Valid ones, (B,) int64.
        signals: Whether :meth:`Readings.signals` or :meth:`Readings.confidences` will be asked for.
    """
    expects = signals or model.config.audio_embeddings == "posterior"
    labels, expected, certainty = [], [], []
    # A few clips at a time: logits of a whole batch would fill a GPU.
    for some in torch.split(tokens, max(1, states_per_chunk(model.config.vocab_size) // tokens.shape[1])):
        logits = model.ctc_logits(some)
        labels.append(logits.argmax(-1))
        if expects:
            expected.append(soft_embed(model.backbone, logits))
        if signals:
            certainty.append(state_certainty(logits))
    return Readings(
        torch.cat(labels),
        torch.cat(expected) if expects else None,
        torch.cat(certainty) if signals else None,
        n_audio,
        model.config.blank_token_id,
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
