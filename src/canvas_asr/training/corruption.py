"""The noising process: what a canvas looks like before the decoder repairs it.

Uniform noise alone leaves accuracy at one or two passes on the table: the decoder never sees errors that look
like those of a draft or its own. The mixture follows arXiv 2602.18952 (own errors) and 2603.08397 (drafts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from canvas_asr.errors import RecipeError

KINDS = ("uniform", "draft", "predictions", "edits")


@dataclass(frozen=True)
class CorruptionOptions:
    """Weights of the kinds (0 switches a kind off) and their strength.

    Attributes:
        uniform: A fraction t of the canvas replaced by noise.
        draft: The clip's CTC draft laid on the canvas.
        predictions: The model's own predictions of an earlier pass, a fraction of them re-randomised.
        edits: Clean text with insertions, deletions and substitutions.
        max_edit_rate: Most edits per token for ``edits``; each clip draws its rate.
        max_renoise: Largest fraction of noise put on a draft or edited canvas.
        max_draft_threshold: Tokens of a draft whose CTC posterior is below a threshold, which each clip draws
            from 0 to this, are replaced by noise, as decoding does with ``draft_threshold``.
        mask_id: What noise is. None: uniformly random ids, as the backbone and the released system were
            trained with. An id: this one everywhere, the absorbing masks of LLaDA and Whisfusion
            (arXiv 2508.07048), to compare with; ``mask_token_id`` of the model's configuration must be it.
    """

    uniform: float = 1.0
    draft: float = 0.0
    predictions: float = 0.0
    edits: float = 0.0
    max_edit_rate: float = 0.4
    max_renoise: float = 0.3
    max_draft_threshold: float = 0.0
    mask_id: int | None = None

    def __post_init__(self) -> None:
        """Refuse weights that leave nothing to draw."""
        weights = [getattr(self, kind) for kind in KINDS]
        if min(weights) < 0 or sum(weights) <= 0:
            raise RecipeError(f"corruption weights are {weights}; give at least one above 0, none below.")
        if not 0 <= self.max_draft_threshold <= 1:
            raise RecipeError(
                f"corruption max_draft_threshold is {self.max_draft_threshold}; give a posterior from 0 to 1."
            )
        if self.max_draft_threshold and not self.draft:
            raise RecipeError(
                "corruption max_draft_threshold is given, and draft 0: no canvas starts from one."
            )
        if self.mask_id is not None and self.mask_id < 0:
            raise RecipeError(f"corruption mask_id is {self.mask_id}; give a reserved id of the tokenizer.")


def lay_out(rows: Sequence[Sequence[int]], length: int, eos: int) -> Tensor:
    """Put token rows on canvases of ``length``, the end token filling the tail; what is too long is cut.

    Returns:
        (B, length) int64.
    """
    canvas = torch.full((len(rows), length), eos, dtype=torch.long)
    for index, row in enumerate(rows):
        kept = torch.as_tensor(list(row[:length]), dtype=torch.long)
        canvas[index, : len(kept)] = kept
    return canvas


class Corruption:
    """Draws a kind for every clip and corrupts its canvas accordingly."""

    def __init__(self, options: CorruptionOptions, vocab_size: int, eos: int) -> None:
        """Keep the mixture.

        Args:
            options: Weights and strengths.
            vocab_size: Random ids are drawn from all V ids.
            eos: The token that fills the tail.
        """
        self.options = options
        self.vocab_size = vocab_size
        self.eos = eos

    def draw_kinds(self, n_clips: int, *, drafts: bool, generator: torch.Generator | None = None) -> Tensor:
        """Draw the kind of every clip, (B,) int64 indices into ``KINDS``.

        Args:
            n_clips: B.
            drafts: Whether drafts are at hand; without them that kind counts as ``edits``.
            generator: Source of randomness.
        """
        weights = torch.tensor([float(getattr(self.options, kind)) for kind in KINDS])
        if not drafts:
            weights[KINDS.index("edits")] += weights[KINDS.index("draft")]
            weights[KINDS.index("draft")] = 0.0
        return torch.multinomial(weights, n_clips, replacement=True, generator=generator)

    def uniform(self, canvas: Tensor, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Replace a fraction of each row by noise: random ids, or the mask's.

        Args:
            canvas: (B, C) int64.
            levels: Probability of replacement, (B,) in [0, 1].
            generator: Source of randomness.

        Returns:
            (B, C) int64.
        """
        replaced = torch.rand(canvas.shape, generator=generator) < levels[:, None].cpu()
        noise = torch.randint(self.vocab_size, canvas.shape, generator=generator)
        if self.options.mask_id is not None:
            noise.fill_(self.options.mask_id)
        return torch.where(replaced.to(canvas.device), noise.to(canvas.device), canvas)

    def edit(self, row: Sequence[int], rate: float, generator: torch.Generator | None = None) -> list[int]:
        """Insert, delete and substitute tokens, each with a third of ``rate`` per token."""
        edited: list[int] = []
        draws = torch.rand(len(row), generator=generator).tolist()
        noise = torch.randint(self.vocab_size, (len(row),), generator=generator).tolist()
        for token, draw, random_id in zip(row, draws, noise, strict=True):
            if draw < rate / 3:
                continue
            if draw < 2 * rate / 3:
                edited.append(random_id)
            elif draw < rate:
                edited += [token, random_id]
            else:
                edited.append(token)
        return edited

    def __call__(
        self,
        canvas: Tensor,
        n_text: Tensor,
        levels: Tensor,
        kinds: Tensor,
        drafts: Sequence[Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Corrupt the canvases of all kinds but ``predictions``, which start as ``uniform``.

        Args:
            canvas: Clean canvas, (B, C) int64.
            n_text: Positions of each canvas before its tail, (B,) int64.
            levels: Noise level of each clip, (B,) in [0, 1].
            kinds: From :meth:`draw_kinds`, (B,) int64.
            drafts: Canvas-ready draft ids of each clip (tag included where the canvas has one).
            generator: Source of randomness.

        Returns:
            (B, C) int64.
        """
        # On the CPU: row by row on a GPU, each row would wait for it several times.
        device, canvas, n_text, levels = canvas.device, canvas.cpu(), n_text.cpu(), levels.cpu()
        base = canvas.clone()
        noise = levels.clone().float()
        for row in range(len(canvas)):
            kind = KINDS[int(kinds[row])]
            if kind == "draft" and drafts is not None:
                base[row] = lay_out([drafts[row]], canvas.shape[1], self.eos)[0]
            elif kind == "edits":
                rate = self.options.max_edit_rate * float(torch.rand((), generator=generator))
                edited = self.edit(canvas[row, : int(n_text[row])].tolist(), rate, generator)
                base[row] = lay_out([edited], canvas.shape[1], self.eos)[0]
            else:
                continue
            # Half of the drafts stay as they are: inference starts from one without further noise.
            clean = bool(torch.rand((), generator=generator) < 0.5)
            noise[row] = 0.0 if clean else self.options.max_renoise * float(levels[row])
        return self.uniform(base, noise, generator).to(device)


def forget_unsure(
    drafts: Sequence[Sequence[int]],
    confidences: Sequence[Sequence[float]],
    options: CorruptionOptions,
    vocab_size: int,
    generators: Sequence[torch.Generator],
) -> list[list[int]]:
    """Replace tokens of drafts that CTC is unsure of by noise, up to a threshold drawn for each.

    Args:
        drafts: Token ids as CTC reads them.
        confidences: CTC posterior of each token.
        options: The largest threshold; what noise is.
        vocab_size: Random ids are drawn from all V ids.
        generators: Source of randomness of each draft.
    """
    found = []
    for ids, sure, generator in zip(drafts, confidences, generators, strict=True):
        threshold = options.max_draft_threshold * float(torch.rand((), generator=generator))
        noise = torch.randint(vocab_size, (len(ids),), generator=generator).tolist()
        if options.mask_id is not None:
            noise = [options.mask_id] * len(ids)
        found.append(
            [one if p >= threshold else other for one, p, other in zip(ids, sure, noise, strict=True)]
        )
    return found


def tagged_drafts(
    drafts: Sequence[Sequence[int]], tags: Sequence[int], generators: Sequence[torch.Generator]
) -> list[list[int]]:
    """Put a random language tag before each draft, as canvases start from them; none where there are no tags.

    Args:
        drafts: Token ids as CTC reads them.
        tags: Ids of the language tags.
        generators: Source of randomness of each draft.
    """
    if not tags:
        return [list(draft) for draft in drafts]
    choice = [int(torch.randint(len(tags), (), generator=generator)) for generator in generators]
    return [[tags[tag], *draft] for tag, draft in zip(choice, drafts, strict=True)]
