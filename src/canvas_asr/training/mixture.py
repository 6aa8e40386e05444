"""Mixing clips by weight: which clip a place of an epoch holds, a pure function of seed, epoch and place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Mixture:
    """The places of an epoch.

    A weight says how often an epoch has a clip: of weight 2.3, each twice and three in ten once more, others
    every epoch; of weight 0.25, one in four. Where clips take turns, each place draws from a few of similar
    length, so that its length, which batches are sorted by, hardly changes.
    """

    def __init__(self, durations_s: Sequence[float], weights: Sequence[float], seed: int = 0) -> None:
        """Lay out the places.

        Args:
            durations_s: Of every clip, seconds.
            weights: Of every clip, above 0; those of equal weight share their places.
            seed: Of what is drawn.
        """
        durations, all_weights = np.asarray(durations_s, np.float64), np.asarray(weights, np.float64)
        self.seed = seed
        candidates: list[NDArray[np.int64]] = []
        for weight in dict.fromkeys(all_weights.tolist()):
            own = np.flatnonzero(all_weights == weight)
            whole = int(weight)
            n_drawn = round((weight - whole) * len(own))
            candidates += [own[i : i + 1] for i in range(len(own))] * whole
            if n_drawn or not whole:
                by_length = own[np.argsort(durations[own], kind="stable")]
                candidates += np.array_split(by_length, max(1, n_drawn))
        self._clips = np.concatenate(candidates) if candidates else np.zeros(0, np.int64)
        self._ends = np.cumsum([len(some) for some in candidates], dtype=np.int64)
        self._starts = self._ends - [len(some) for some in candidates]
        self.lengths_s = [float(durations[some].mean()) for some in candidates]

    def __len__(self) -> int:
        """Places of an epoch."""
        return len(self._ends)

    def clip_at(self, epoch: int, place: int) -> int:
        """Index of the clip that a place holds in an epoch."""
        start, end = int(self._starts[place]), int(self._ends[place])
        if end - start == 1:
            return int(self._clips[start])
        rng = np.random.default_rng((self.seed, epoch, place, 1))  # not the one of the augmentation
        return int(self._clips[int(rng.integers(start, end))])
