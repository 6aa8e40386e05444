"""Drafts with all that the strategies of a decoding need to know of them, and no more.

Letters: B clips, A audio tokens, V vocabulary, S tokens of a draft, K candidates of a token, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from .backbone import soft_embed
from .biasing import PASS_WEIGHT
from .canvas import Vocabulary, likeliest
from .ctc import Draft, merge_labels, state_certainty, surest_states
from .options import DecodingOptions
from .strategies.fusion import N_CANDIDATES


class DraftReader:
    """Reads the CTC tap for one way of decoding."""

    def __init__(
        self,
        backbone: DiffusionGemmaForBlockDiffusion,
        vocabulary: Vocabulary,
        blank: int,
        options: DecodingOptions,
    ) -> None:
        """See what is needed.

        Args:
            backbone: Its input embeddings.
            vocabulary: Allowed ids.
            blank: Id of the blank.
            options: Of the decoding.
        """
        self.backbone = backbone
        self.vocabulary = vocabulary
        self.blank = blank
        self.self_conditioning = None if options.draft_alone else options.self_conditioning
        self.fuses = options.fusion > 0
        self.needs_certainty = (
            options.draft_alone
            or self.fuses
            or bool(options.hotwords)
            or self.self_conditioning == "posterior"
            or options.draft_threshold is not None
            or options.gate is not None
        )

    def given(self, ids: Sequence[int]) -> Draft:
        """Make a draft that nothing is known of but its ids."""
        return Draft(ids, soft=self._embed(ids) if self.self_conditioning == "draft" else None)

    def read(
        self, logits: Tensor, n_states: Tensor, words: Sequence[Sequence[range]] | None = None
    ) -> list[Draft]:
        """Read a batch.

        Args:
            logits: Of the CTC tap, (B, A, V).
            n_states: Valid states, (B,) int64.
            words: States of hotwords in each row; None: none.
        """
        _, labels = likeliest(logits)
        readings = merge_labels(labels, n_states, self.blank)
        if not self.needs_certainty:
            return [self.given(ids) for ids in readings]
        certainty = state_certainty(logits)
        states = surest_states(labels, certainty, n_states, self.blank)
        found = words or [()] * len(readings)
        return [
            self._draft(logits[i, states[i]], ids, sure[:n], states[i], found[i])
            for i, (ids, sure, n) in enumerate(
                zip(readings, certainty.tolist(), n_states.tolist(), strict=True)
            )
        ]

    def _draft(
        self,
        spikes: Tensor,
        ids: Sequence[int],
        certainty: Sequence[float],
        states: Sequence[int],
        words: Sequence[range],
    ) -> Draft:
        """Make a draft of the logits of its spikes, (S, V)."""
        candidates = log_posteriors = soft = None
        allowed = self.vocabulary.heard.to(spikes.device)
        if self.fuses or words:
            heard = spikes.float().log_softmax(dim=-1).masked_fill(~allowed, -torch.inf)
            log_posteriors, candidates = heard.topk(min(N_CANDIDATES, heard.shape[-1]), dim=-1)
        if self.self_conditioning == "draft":
            soft = self._embed(ids)
        elif self.self_conditioning == "posterior":
            soft = soft_embed(self.backbone, spikes.masked_fill(~allowed, -torch.inf))
        return Draft(
            ids=ids,
            confidences=[certainty[i] for i in states],
            certainty=min(certainty, default=1.0),
            candidates=candidates,
            log_posteriors=log_posteriors,
            weights=[PASS_WEIGHT * any(i in word for word in words) for i in states] if words else (),
            soft=soft,
        )

    def _embed(self, ids: Sequence[int]) -> Tensor:
        embed = self.backbone.model.decoder.embed_tokens
        embedded: Tensor = embed(torch.tensor(list(ids), dtype=torch.long, device=embed.weight.device))
        return embedded
