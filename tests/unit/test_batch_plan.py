from __future__ import annotations

import numpy as np
import pytest

from canvas_asr.training.batches import BatchPlan


def batches(plan: BatchPlan) -> list[list[tuple[int, int]]]:
    return list(plan)


def test_every_epoch_holds_every_example_once() -> None:
    plan = BatchPlan([float(i % 5) for i in range(13)], 4, 12, seed=3)
    assert len(plan) == len(batches(plan)) == 12
    for epoch in range(3):
        of_epoch = batches(plan)[4 * epoch : 4 * epoch + 4]
        items = [item for batch in of_epoch for item in batch]
        assert {e for e, _ in items} == {epoch}
        assert sorted(i for _, i in items) == list(range(13))
        assert sorted(map(len, of_epoch)) == [1, 4, 4, 4]


def test_batches_hold_examples_of_similar_length() -> None:
    lengths = np.random.default_rng(0).permutation(np.geomspace(1, 30, 400))
    made = batches(BatchPlan(lengths.tolist(), 10, 40, seed=0))
    ratios = [max(lengths[i] for _, i in b) / min(lengths[i] for _, i in b) for b in made]
    assert max(ratios) < 1.3 * 1.1 / 0.9  # ten neighbours and the jitter


def test_the_order_of_batches_and_their_members_change_from_epoch_to_epoch() -> None:
    lengths = [1.0 + 0.01 * i for i in range(40)]
    made = batches(BatchPlan(lengths, 4, 20, seed=0))
    members = [[frozenset(i for _, i in batch) for batch in made[k : k + 10]] for k in (0, 10)]
    assert members[0] != members[1]
    assert set(members[0]) != set(members[1])
    assert [min(b) for b in members[0]] != sorted(min(b) for b in members[0])


def test_a_plan_is_a_function_of_lengths_and_seed() -> None:
    lengths = [float(i) for i in range(13)]
    plans = [BatchPlan(lengths, 4, 30, seed) for seed in (1, 1, 2)]
    assert batches(plans[0]) == batches(plans[0]) == batches(plans[1])
    assert batches(plans[0]) != batches(plans[2])
    longer = BatchPlan(lengths, 4, 50, 1)
    assert batches(longer)[:30] == batches(plans[0])


def test_a_plan_ends_within_an_epoch() -> None:
    assert len(batches(BatchPlan([1.0] * 13, 4, 6, seed=0))) == 6


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no training examples"):
        BatchPlan([], 4, 6, seed=0)
