from __future__ import annotations

from collections import Counter

import numpy as np

from canvas_asr.training.batches import BatchPlan
from canvas_asr.training.mixture import Mixture


def epoch_of(mixture: Mixture, epoch: int) -> list[int]:
    return [mixture.clip_at(epoch, place) for place in range(len(mixture))]


def test_clips_of_weight_1_are_each_epoch_as_they_are() -> None:
    durations = [3.0, 1.0, 2.0]
    mixture = Mixture(durations, [1.0] * 3)
    assert mixture.lengths_s == durations
    assert epoch_of(mixture, 0) == epoch_of(mixture, 7) == [0, 1, 2]


def test_a_weight_says_how_often_an_epoch_has_a_clip() -> None:
    durations = np.random.default_rng(0).uniform(1, 10, 30)
    weights = [2.3] * 10 + [0.25] * 20
    mixture = Mixture(durations, weights, seed=3)
    assert len(mixture) == 23 + 5
    counts = [Counter(epoch_of(mixture, epoch)) for epoch in range(200)]
    for count in counts:
        assert all(count[i] in (2, 3) for i in range(10))
        assert sum(count[i] == 3 for i in range(10)) == 3
        assert sum(count[i] for i in range(10, 30)) == 5
    total = sum(counts, Counter[int]())
    assert all(0.15 < total[i] / 200 < 0.35 for i in range(10, 30))  # all take their turn


def test_places_keep_their_length_and_depend_on_seed_epoch_and_place_alone() -> None:
    durations = np.random.default_rng(1).uniform(1, 10, 100)
    first, again, other = (Mixture(durations, [0.2] * 100, seed=seed) for seed in (5, 5, 6))
    assert epoch_of(first, 3) == list(reversed([again.clip_at(3, i) for i in reversed(range(20))]))
    assert epoch_of(first, 3) != epoch_of(first, 4)
    assert epoch_of(first, 3) != epoch_of(other, 3)
    for epoch in range(5):
        for place, clip in enumerate(epoch_of(first, epoch)):
            assert abs(durations[clip] - first.lengths_s[place]) < 1.0


def test_batches_are_planned_over_places() -> None:
    mixture = Mixture([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.5, 0.5], seed=0)
    plan = [item for batch in BatchPlan(mixture.lengths_s, 3, 2, seed=0) for item in batch]
    assert {place for epoch, place in plan if epoch == 0} == {0, 1, 2}
    assert {mixture.clip_at(epoch, 2) for epoch in range(20)} == {2, 3}


def test_some_of_a_small_weight_is_left() -> None:
    assert len(Mixture([1.0, 2.0], [0.01, 0.01])) == 1
    assert len(Mixture([], [])) == 0
