"""Hotwords: words that the reading of the CTC tap is bent towards, without training.

A word spotter over the CTC posteriors, after "Fast Context-Biasing for CTC and Transducer ASR models with
CTC-based Word Spotter" (Andrusenko et al. 2024, arXiv 2406.07096), which NeMo has. A path through the audio
tokens of a clip reads each either greedily or as part of a listed word. What a word costs is how much less
likely its labels are than the greedy ones, what it gains is the boost for each of its tokens, and the path of
the highest sum is taken. Other than there the search is exact (Viterbi, as for keywords beside a filler
model), a word may be spelt in any tokens that the vocabulary has for it, since an unseen name is seldom heard
in the tokens that the tokenizer would choose, and it takes the place of whole words only.

Where a word is found its labels are made the likeliest: the draft, the canvas that starts from it, and what a
prompt is told of the CTC reading all have it then.

Letters: B clips, T audio tokens (frames) of a clip, V vocabulary, S states of the graph, P states that may
come before one, L different labels.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .ctc import merged_runs
from .errors import OptionError
from .processing import CanvasASRProcessor
from .words import split_words

SPACE = "▁"  # what tokenizers write for a space
# Nats that a pass adds to the log probability of a token of a word that was found: enough to keep it. With
# the boost in its place (2 to 5 nats) passes of `tiny` spoilt words that were found ("lbarruena").
PASS_WEIGHT = 14.0


@dataclass
class _States:
    """States of a graph that grows: tokens of listed words, and the blanks around them.

    Attributes:
        labels: Token of each; the blank for those around tokens.
        before: States that may come before each, itself first.
        gains: Nats a unit of boost for a word that ends here; -inf where none does.
        enters: ``ANYWHERE``, ``FIRST`` (a word as it is spelt at the start of a text) or ``NEVER``.
    """

    labels: list[int] = field(default_factory=list)
    before: list[list[int]] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    enters: list[int] = field(default_factory=list)

    def add(self, label: int, before: Sequence[int], gain: float, enters: int) -> int:
        """Add a state and give its number."""
        state = len(self.labels)
        self.labels.append(label)
        self.before.append([state, *before])
        self.gains.append(gain)
        self.enters.append(enters)
        return state


NEVER, ANYWHERE, FIRST = range(3)


class HotwordGraph:
    """All spellings of the listed words, as states of CTC paths."""

    def __init__(
        self, words: Sequence[str], boost: float, processor: CanvasASRProcessor, text: Tensor, blank: int
    ) -> None:
        """Spell the words.

        Args:
            words: As they are to be written.
            boost: Nats that a word gains for each token that the tokenizer makes of it.
            processor: Of the checkpoint.
            text: Ids that may stand in a text, (V,) bool.
            blank: Id of the CTC blank.

        Raises:
            OptionError: If a word cannot be written with the model's tokens.
        """
        self.boost = boost
        self.blank = blank
        self._tokenizer = processor.tokenizer
        allowed = text.tolist()
        pieces = {name: i for name, i in self._tokenizer.get_vocab().items() if allowed[i]}
        longest = max(map(len, pieces), default=0)
        states = _States()
        for word in dict.fromkeys(words):
            ids = processor.text_ids(word)
            if not ids or not all(allowed[i] for i in ids):
                raise OptionError(
                    f"hotwords: {word!r} cannot be written with this model's tokens; leave it out."
                )
            for form, enters in self._forms(word):
                arcs = _spellings(form, ids, self._tokenizer.convert_ids_to_tokens(ids), pieces, longest)
                _add_word(states, arcs, len(form), blank, float(len(ids)), enters)
        self._finish(states)

    def _finish(self, states: _States) -> None:
        """Turn lists into arrays."""
        n_states = len(states.labels)
        self._labels, self._columns = np.unique(np.array(states.labels), return_inverse=True)  # (L,), (S,)
        width = max(map(len, states.before)) + 1  # the first row: the state begins a word
        self._before = np.full((width, n_states), n_states)  # (P, S); S stands for none
        for state, row in enumerate(states.before):
            self._before[1 : len(row) + 1, state] = row
        self._enters = np.array(states.enters)
        self._gains = np.array(states.gains) * self.boost
        self._is_blank = np.array(states.labels) == self.blank

    def _forms(self, word: str) -> list[tuple[str, int]]:
        """How a word is written behind another one and at the start of a text, as the tokenizer sees it."""
        normalizer = self._tokenizer.backend_tokenizer.normalizer

        def normal(text: str) -> str:
            return str(normalizer.normalize_str(text)) if normalizer is not None else text

        first = normal(word)
        if not _follows(word[0]):
            return [(first, ANYWHERE)]
        behind = normal(f"a {word}")[len(normal("a")) :]
        return [(behind, ANYWHERE)] if behind == first else [(behind, ANYWHERE), (first, FIRST)]

    def bend(self, logits: Tensor, n_states: Tensor) -> list[list[range]]:
        """Make the labels of listed words the likeliest where they are found; a batch is changed in place.

        Such a label then has the logit of the one that was the likeliest, and the boost.

        Args:
            logits: Of the CTC tap, (B, T, V).
            n_states: Valid audio tokens, (B,) int64.

        Returns:
            Audio tokens of every word found, in each clip.
        """
        found = []
        for row, n in zip(logits, n_states.tolist(), strict=True):
            best, greedy = row[:n].max(dim=-1)
            own = row[:n, self._labels.tolist()].float() - best.float()[:, None]
            costs = own.double().cpu().numpy()[:, self._columns]
            states, words = self._best_path(costs, greedy.tolist())
            frames = [t for word in words for t in word]
            labels = self._labels[self._columns[states[frames]]]
            row[frames, labels.tolist()] = best[frames] + self.boost
            found.append(words)
        return found

    def _boundaries(self, greedy: Sequence[int]) -> tuple[NDArray[np.bool_], int]:
        """Before which frames a word may begin or end, (T + 1,), and the first frame with a greedy token."""
        runs = merged_runs(greedy, self.blank)
        names = self._tokenizer.convert_ids_to_tokens([greedy[run[0]] for run in runs])
        is_boundary = np.ones(len(greedy) + 1, np.bool_)
        behind = 0
        for name, run in zip(names, runs, strict=True):
            if behind and _continues(name):
                is_boundary[behind : run[0] + 1] = False
            is_boundary[run[0] + 1 : run[-1] + 1] = False
            behind = run[-1] + 1
        return is_boundary, runs[0][0] if runs else len(greedy)

    def _best_path(
        self, costs: NDArray[np.float64], greedy: Sequence[int]
    ) -> tuple[NDArray[np.int64], list[range]]:
        """Find the listed words of the best path.

        Args:
            costs: Log posterior of each state's label less that of the greedy one, (T, S).
            greedy: Likeliest label of each frame.

        Returns:
            State of every frame, (T,), -1 outside words; and the frames of each word.
        """
        is_boundary, first = self._boundaries(greedy)
        n_frames, n_states = costs.shape
        labels, states = self._labels[self._columns], np.arange(n_states)
        moves = np.zeros((n_frames, n_states), np.int16)
        came = np.full(n_frames + 1, -1)  # state of the word that ended just before; -1: none did
        score = np.full(n_states + 1, -np.inf)  # the last one: of nothing
        filler = 0.0  # score of the best path that is in no word
        for t in range(n_frames + 1):
            ends = score[:n_states] + self._gains
            if t < n_frames:
                ends[(labels == greedy[t]) & ~self._is_blank] = -np.inf  # the two would be read as one
            end = int(ends.argmax())
            if is_boundary[t] and ends[end] > filler:
                filler, came[t] = float(ends[end]), end
            if t == n_frames:
                break
            before = score[self._before]
            if is_boundary[t]:
                before[0] = np.where(self._enters == ANYWHERE, filler, -np.inf)
                before[0, self._enters == FIRST] = 0.0 if t <= first and not filler else -np.inf
                last = labels[came[t]] if came[t] >= 0 else greedy[t - 1] if t else self.blank
                before[0, (labels == last) & ~self._is_blank] = -np.inf
            moves[t] = before.argmax(axis=0)
            score[:n_states] = before[moves[t], states] + costs[t]
        return self._trace(moves, came)

    def _trace(
        self, moves: NDArray[np.int16], came: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], list[range]]:
        """Follow a path back; see :meth:`_best_path`."""
        n_frames = len(moves)
        path = np.full(n_frames, -1)
        words: list[range] = []
        state, end = int(came[n_frames]), n_frames
        for t in range(n_frames - 1, -1, -1):
            path[t] = state
            if state < 0:
                state, end = int(came[t]), t
            elif moves[t, state] == 0:
                words.insert(0, range(t, end))
                state, end = int(came[t]), t
            else:
                state = int(self._before[moves[t, state], state])
        return path, words


def _follows(character: str) -> bool:
    """Whether it belongs to the word before it where no space is between: no mark, and no Han."""
    return unicodedata.category(character)[0] in "LMN" and len(split_words(f"a{character}")) == 1


def _continues(name: str) -> bool:
    """Whether a token goes on with the word before it."""
    return not name.startswith(SPACE) and _follows(name[0])


def _spellings(
    form: str, ids: Sequence[int], names: Sequence[str], pieces: dict[str, int], longest: int
) -> list[tuple[int, int, int]]:
    """All ways to write a word in tokens of the vocabulary.

    Args:
        form: The word, spaces as the tokenizer writes them.
        ids: Tokens that the tokenizer makes of it.
        names: Their names.
        pieces: The vocabulary.
        longest: Characters of its longest token.

    Returns:
        Places in the word between which each token stands, and its id: from 0 to the length of the word.
        Where tokens are bytes, further places are between them.
    """
    n = len(form)
    arcs = [
        (i, j, pieces[form[i:j]])
        for i in range(n)
        for j in range(i + 1, min(n, i + longest) + 1)
        if form[i:j] in pieces
    ]
    if "".join(names).lstrip(SPACE) != form.lstrip(SPACE):
        nodes = [0, *range(n + 1, n + len(ids)), n]
        arcs += [(nodes[k], nodes[k + 1], token) for k, token in enumerate(ids)]
    return arcs


def _add_word(
    states: _States, arcs: Sequence[tuple[int, int, int]], end: int, blank: int, gain: float, enters: int
) -> None:
    """Add the states of one word: a token for every arc, a blank at every place between them.

    Args:
        states: Added to.
        arcs: See :func:`_spellings`.
        end: The last place of the word.
        blank: Id of the blank.
        gain: Of the word.
        enters: Of the states that it may begin with.
    """
    leads = {end}  # places from which the end is reached
    places = sorted({place for arc in arcs for place in arc[:2]}, key=lambda place: (place == end, place))
    behind: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for first, last, token in arcs:
        behind[first].append((last, token))
    for place in reversed(places):
        if any(last in leads for last, _ in behind[place]):
            leads.add(place)
    arrived: dict[int, list[int]] = defaultdict(list)  # states of the tokens that end at a place
    for place in places:
        if place not in leads or (place and not arrived[place]):
            continue
        how = NEVER if place else enters
        between = states.add(blank, arrived[place], gain if place == end else -np.inf, how)
        for last, token in behind[place]:
            if last in leads:
                others = [state for state in arrived[place] if states.labels[state] != token]
                ends = gain if last == end else -np.inf
                arrived[last].append(states.add(token, [between, *others], ends, how))
