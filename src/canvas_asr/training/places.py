"""Transcripts written in the places of their drafts, so that correcting one token never moves another.

Where a draft lost or gained a token, all that follows stands one place off, and a decoder that writes every
place at once has to guess between two shifts. In the draft's own places it has nothing to guess: right tokens
stay, wrong ones are replaced, and what the audio encoder made up becomes the CTC blank, which writes nothing.
Align-Refine (arXiv 2010.14233) edits CTC alignments for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein
from torch import Tensor

from .corruption import lay_out


def in_places_of(draft: Sequence[int], text: Sequence[int], blank: int) -> list[int]:
    """Write a text in the places of a draft, by the fewest edits between the two.

    Args:
        draft: Greedy CTC reading.
        text: Token ids of the transcript.
        blank: Takes the places of tokens that the text does not have.

    Returns:
        As many ids as the draft has. Tokens of the text that the draft has no place for are left out.
    """
    placed: list[int] = []
    for edit in Levenshtein.opcodes(draft, text):
        if edit.tag == "delete":
            placed += [blank] * (edit.src_end - edit.src_start)
        elif edit.tag != "insert":
            placed += text[edit.dest_start : edit.dest_end]
    return placed


def canvases_in_places(
    canvas: Tensor,
    n_targets: Tensor,
    text: Tensor,
    n_text: Tensor,
    drafts: Sequence[Sequence[int]],
    blank: int,
) -> tuple[Tensor, Tensor]:
    """Lay out clean canvases in the places of their drafts; a clip without a text keeps its own.

    Args:
        canvas: A tag where there are any, the text, the end token and more of them, (B, C) int64.
        n_targets: Places up to and with the first end token, (B,) int64.
        text: Token ids of the texts alone, (B, U) int64.
        n_text: Valid ones, (B,) int64.
        drafts: Greedy CTC readings.
        blank: See :func:`in_places_of`.

    Returns:
        (B, C') int64, C' >= C, and places up to and with the first end token, (B,) int64.
    """
    end = int(canvas[0, -1])
    rows = []
    for laid, n_places, ids, n_ids, draft in zip(
        canvas.tolist(), n_targets.tolist(), text.tolist(), n_text.tolist(), drafts, strict=True
    ):
        placed = in_places_of(draft, ids[:n_ids], blank) if n_ids else []
        rows.append([*laid[: n_places - 1 - n_ids], *placed, end])
    longest = max(map(len, rows))
    length = max(canvas.shape[1], -(-longest // 8) * 8)
    return lay_out(rows, length, end).to(canvas.device), n_targets.new_tensor([len(row) for row in rows])
