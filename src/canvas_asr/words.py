"""Words of a transcript: which tokens they are, when they were said, and how sure the model is of them.

A word is what stands between two spaces; where a script has none (Chinese, Japanese), a character.
Punctuation belongs to the word before it, opening marks to the word behind them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from .result import Word

# A token's last frame ends before its sound does, by a median of 72 ms over 3,031 words of espeak-ng heard by
# `tiny`. Starts need no correction: 4 ms late (docs/word_times.md has the figures of the present model).
END_S = 0.08

_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_OPENING = ("Ps", "Pi")
_OPENING_MARKS = "¿¡"
_DIGITS = 7  # of a number of samples in seconds


def _is_mark(character: str) -> bool:
    """Whether it is neither letter, sign of one, nor digit."""
    return unicodedata.category(character)[0] not in "LMN"


def _is_opening(character: str) -> bool:
    return unicodedata.category(character) in _OPENING or character in _OPENING_MARKS


def _marks(piece: str) -> tuple[int, int]:
    """How many marks a piece begins with: all of them, and the opening ones among the last of these."""
    n_marks = next((i for i, character in enumerate(piece) if not _is_mark(character)), len(piece))
    n_others = max((i + 1 for i in range(n_marks) if not _is_opening(piece[i])), default=0)
    return n_marks, n_marks - n_others


def split_words(text: str) -> list[tuple[int, int]]:
    """Find the words of a text.

    Returns:
        First character of each and the one behind its last. A text of punctuation alone is one word.
    """
    words: list[tuple[int, int]] = []
    waiting: int | None = None  # where marks begin that belong to the next word
    for piece in _PIECE.finditer(text):
        start, end = piece.span()
        n_marks, n_opening = _marks(piece[0])
        alone = n_marks == end - start
        if words and waiting is None and n_marks > n_opening and (alone or words[-1][1] == start):
            start += n_marks - n_opening
            words[-1] = (words[-1][0], start)
        if start == end:
            continue
        waiting = start if waiting is None else waiting
        if not alone:
            words.append((waiting, end))
            waiting = None
    if waiting is not None:  # no word came
        first = words.pop()[0] if words else waiting
        words.append((first, len(text.rstrip())))
    return words


def _characters(texts: Sequence[str]) -> list[range]:
    """Tokens of every character of a text; several where it is spelt in bytes."""
    tokens: list[range] = []
    first = 0
    for last, text in enumerate(texts):
        if text:
            tokens += [range(first, last + 1)] * len(text)
            first = last + 1
    return tokens


def make_words(
    texts: Sequence[str],
    confidences: Sequence[float],
    spans: Sequence[tuple[float, float]],
    audio_s: float,
) -> tuple[Word, ...]:
    """Group the tokens of a transcript to words.

    A word starts with its first token and ends ``END_S`` after its last one, or where the next word starts,
    or the clip ends. Its confidence is the product of its tokens': they are predicted side by side, and the
    word is right if all of them are. Punctuation counts for neither.

    Args:
        texts: What each token adds to the text, leading space included.
        confidences: Probability of each.
        spans: Start and end of each in seconds, in order.
        audio_s: Length of the clip.

    Returns:
        Words in order, 0 <= start < end <= ``audio_s``, none starting before the one before it has ended.
    """
    text = "".join(texts)
    tokens = _characters(texts)
    words = split_words(text)
    if not words:
        return ()
    shown = [i for first, last in words for i in range(first, last) if not _is_mark(text[i])]
    spoken = set(shown or range(len(text)))
    shares: dict[range, list[int]] = {}  # characters that share the time of a token
    for i in sorted(spoken):
        shares.setdefault(tokens[i], []).append(i)

    # Tokens crowded into the last frame may lie behind the end of the clip, where that frame is not full.
    squeeze = audio_s / spans[-1][1] if spans[-1][0] >= audio_s else 1.0

    def time(character: int, behind: int) -> float:
        mine = tokens[character]
        start, end = spans[mine[0]][0], spans[mine[-1]][1]
        share = (shares[mine].index(character) + behind) / len(shares[mine])
        return (start + (end - start) * share) * squeeze

    said = [[i for i in range(first, last) if i in spoken] for first, last in words]
    starts = [time(characters[0], 0) for characters in said]
    limits = [*starts[1:], audio_s]
    found = []
    for (first, last), characters, start, limit in zip(words, said, starts, limits, strict=True):
        end = min(time(characters[-1], 1) + END_S, limit, audio_s)
        own = range(tokens[characters[0]][0], tokens[characters[-1]][-1] + 1)
        sure = math.prod(confidences[k] for k in own)
        found.append(Word(text[first:last], round(start, _DIGITS), round(end, _DIGITS), sure))
    return tuple(found)
