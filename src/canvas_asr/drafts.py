"""Drafts with all that the strategies of a decoding need to know of them, and no more.

Letters: B clips, A audio tokens, V vocabulary, S tokens of a draft, K candidates of a token, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from .backbone import soft_embed
from .biasing import PASS_WEIGHT, HotwordGraph, Reading
from .canvas import Vocabulary
from .ctc import Draft, merge_labels, merged_runs, state_certainty, surest_states
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
        hotwords: HotwordGraph | None = None,
    ) -> None:
        """See what is needed.

        Args:
            backbone: Its input embeddings.
            vocabulary: Allowed ids.
            blank: Id of the blank.
            options: Of the decoding.
            hotwords: What readings are bent towards; None: nothing.
        """
        self.backbone = backbone
        self.vocabulary = vocabulary
        self.blank = blank
        self.self_conditioning = options.self_conditioning
        self.hotwords = hotwords
        self.fuses = options.fusion > 0
        self.needs_certainty = (
            options.draft_alone
            or self.fuses
            or hotwords is not None
            or options.self_conditioning == "posterior"
            or options.draft_threshold is not None
            or options.gate is not None
        )

    def given(self, ids: Sequence[int]) -> Draft:
        """Make a draft that nothing is known of but its ids."""
        return Draft(ids, soft=self._embed(ids) if self.self_conditioning == "draft" else None)

    def read(self, logits: Tensor, n_states: Tensor) -> list[Draft]:
        """Read a batch.

        Args:
            logits: Of the CTC tap, (B, A, V).
            n_states: Valid states, (B,) int64.
        """
        labels = logits.argmax(-1)
        readings = merge_labels(labels, n_states, self.blank)
        if not self.needs_certainty:
            return [self.given(ids) for ids in readings]
        certainty = state_certainty(logits)
        states = surest_states(labels, certainty, n_states, self.blank)
        drafts = []
        for i, (ids, sure, n) in enumerate(zip(readings, certainty.tolist(), n_states.tolist(), strict=True)):
            reading = Reading(ids, states[i], [])
            if self.hotwords is not None:
                runs = merged_runs(labels[i, :n].tolist(), self.blank)
                reading = self.hotwords.read(logits[i, :n], runs, states[i])
            drafts.append(self._draft(logits[i, reading.states], reading, sure[:n]))
        return drafts

    def _draft(self, spikes: Tensor, reading: Reading, certainty: Sequence[float]) -> Draft:
        """Make a draft of the logits of its spikes, (S, V)."""
        candidates = log_posteriors = soft = None
        confidences = [certainty[i] for i in reading.states]
        allowed = self.vocabulary.text.to(spikes.device).clone()
        allowed[self.vocabulary.eos] = False  # the tap says nothing of where a text ends
        boosted = [k for k, boost in enumerate(reading.boosts) if boost]
        if self.fuses or boosted:
            heard = spikes.float().log_softmax(dim=-1).masked_fill(~allowed, -torch.inf)
            ranked = heard.clone()
            ranked[boosted, [reading.ids[k] for k in boosted]] = torch.inf  # the draft's come first
            candidates = ranked.topk(min(N_CANDIDATES, heard.shape[-1]), dim=-1).indices
            log_posteriors = heard.gather(1, candidates)
            for k in boosted:
                odds = heard[k, reading.ids[k]] - torch.log1p(-heard[k, reading.ids[k]].exp())
                confidences[k] = float(torch.sigmoid(odds + reading.boosts[k]))
        if self.self_conditioning == "draft":
            soft = self._embed(reading.ids)
        elif self.self_conditioning == "posterior":
            soft = soft_embed(self.backbone, spikes.masked_fill(~allowed, -torch.inf))
        return Draft(
            ids=reading.ids,
            confidences=confidences,
            certainty=min(certainty, default=1.0),
            candidates=candidates,
            log_posteriors=log_posteriors,
            weights=[PASS_WEIGHT if boost else 0.0 for boost in reading.boosts] if boosted else (),
            soft=soft,
        )

    def _embed(self, ids: Sequence[int]) -> Tensor:
        embed = self.backbone.model.decoder.embed_tokens
        embedded: Tensor = embed(torch.tensor(list(ids), dtype=torch.long, device=embed.weight.device))
        return embedded
