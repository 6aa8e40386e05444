"""What a canvas holds before its first pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..canvas import Vocabulary
from ..ctc import Draft
from ..errors import OptionError
from ..options import STARTS

# Canvas lengths that are chosen by themselves, above which multiples of 64 follow: few, so that a compiled or
# recorded pass is used again.
SIZES = (16, 32, 48, 64, 96, 128)
# Text that a draft has missed: a quarter more tokens than it has, and these.
SPARE_TOKENS = 4


@dataclass(frozen=True)
class Layout:
    """A canvas before its first pass.

    Attributes:
        canvas: (C,) int64.
        places: Of the draft's tokens, as many as there is room for.
        n_text: Places up to the tail, which end tokens fill; C where nothing says how long the text is.
    """

    canvas: Tensor
    places: tuple[int, ...]
    n_text: int


class Start(Protocol):
    """Lays a canvas."""

    def lay(self, noise: Tensor, vocabulary: Vocabulary, draft: Draft | None) -> Layout:
        """Fill a canvas of the length of ``noise``.

        Args:
            noise: Random ids, (C,) int64, drawn for the clip.
            vocabulary: Its end token and tags.
            draft: Of the clip; a start that needs none takes places from it.

        Raises:
            OptionError: If a draft is needed and missing.
        """

    def n_places(self, n_draft: int, *, tagged: bool) -> int:
        """Say how many places a draft of ``n_draft`` tokens takes, an end token and room to grow included."""


@dataclass(frozen=True)
class NoiseStart:
    """Random tokens."""

    def lay(self, noise: Tensor, vocabulary: Vocabulary, draft: Draft | None) -> Layout:
        """See :class:`Start`."""
        first = int(bool(vocabulary.tags))
        n_draft = 0 if draft is None else len(draft.ids)
        places = range(first, min(first + n_draft, len(noise)))
        return Layout(vocabulary.undecided(noise), tuple(places), len(noise))

    def n_places(self, n_draft: int, *, tagged: bool) -> int:
        """See :class:`Start`."""
        return tagged + n_draft + n_draft // 4 + SPARE_TOKENS + 1


@dataclass(frozen=True)
class DraftStart:
    """The draft behind a tag, the end token in the tail.

    Attributes:
        threshold: Tokens of a lower CTC posterior are left as noise; None: none.
        slots: Whether a place of noise stands before, between and behind the tokens: a draft laid end to end
            leaves no room for what it has missed. Where the canvas is too short for all, the first tokens
            have them.
    """

    threshold: float | None = None
    slots: bool = False

    def lay(self, noise: Tensor, vocabulary: Vocabulary, draft: Draft | None) -> Layout:
        """See :class:`Start`."""
        if draft is None:
            raise OptionError("init='draft' needs CTC drafts.")
        canvas = vocabulary.undecided(noise)
        first = int(bool(vocabulary.tags))
        if first:
            # Training lays a random tag before a draft too.
            canvas[0] = torch.tensor(vocabulary.tags)[noise[0] % len(vocabulary.tags)]
        ids = list(draft.ids[: len(noise) - first])
        n_slots = min(len(ids) + 1, len(noise) - first - len(ids)) if self.slots else 0
        places = tuple(first + k + min(k + 1, n_slots) for k in range(len(ids)))
        n_text = first + len(ids) + n_slots
        canvas[n_text:] = vocabulary.eos
        kept = [k for k in range(len(ids)) if self._is_sure(draft.confidences, k)]
        canvas[[places[k] for k in kept]] = torch.tensor([ids[k] for k in kept], dtype=torch.long)
        return Layout(canvas, places, n_text)

    def _is_sure(self, confidences: Sequence[float], k: int) -> bool:
        return self.threshold is None or not confidences or confidences[k] >= self.threshold

    def n_places(self, n_draft: int, *, tagged: bool) -> int:
        """See :class:`Start`."""
        spare = n_draft + 1 if self.slots else n_draft // 4 + SPARE_TOKENS
        return tagged + n_draft + spare + 1


def make_start(init: str, threshold: float | None = None) -> Start:
    """Give the start of a name.

    Args:
        init: One of ``options.STARTS``.
        threshold: See :class:`DraftStart`.

    Raises:
        OptionError: If there is none of that name.
    """
    if init not in STARTS:
        raise OptionError(f"init is {init!r}; choose one of {', '.join(STARTS)}.")
    return NoiseStart() if init == "noise" else DraftStart(threshold, init == "draft-slots")


def fit_canvas(n_places: int, longest: int) -> int:
    """Round a number of places up to a canvas length, the longest at most."""
    sizes = [*SIZES, -(-n_places // 64) * 64]
    return min(longest, next(size for size in sizes if size >= n_places))
