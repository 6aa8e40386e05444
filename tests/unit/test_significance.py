"""Intervals and p-values against exact enumeration, simulation and kaldialign's own bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kaldialign import bootstrap_wer_ci

from canvas_asr.errors import DataError
from canvas_asr.evaluation.metrics import ErrorCounts, clip_wer
from canvas_asr.evaluation.significance import compare, intervals


def counts(errors, length=10):
    return [ErrorCounts(substitutions=int(e), hits=length - int(e)) for e in errors]


def interval(clips, *arguments, **options):
    return intervals({"rate": clips}, *arguments, **options)["rate"]


def test_rates_of_the_same_clips_share_the_draws():
    clips = counts(np.random.default_rng(0).integers(0, 10, 50))
    empty = [ErrorCounts()] * 50
    found = intervals({"a": clips, "b": empty, "c": clips})
    assert found == {"a": interval(clips), "b": None, "c": interval(clips)}


def test_interval_of_equal_clips_is_the_rate():
    assert interval(counts([3] * 20)) == (0.3, 0.3)


def test_interval_is_drawn_by_seed():
    clips = counts(np.random.default_rng(0).integers(0, 10, 50))
    assert interval(clips, seed=1) == interval(clips, seed=1) != interval(clips, seed=2)


def test_interval_agrees_with_kaldialign():
    rng = np.random.default_rng(3)
    words = np.array(list("abcdefgh"))
    references = [" ".join(rng.choice(words, 8)) for _ in range(60)]
    hypotheses = [" ".join(rng.choice(words, 8)) if i % 3 else r for i, r in enumerate(references)]
    theirs = bootstrap_wer_ci([r.split() for r in references], [h.split() for h in hypotheses])
    low, high = interval(clip_wer(references, hypotheses), n_draws=10_000)
    assert (high - low) / 2 == pytest.approx(theirs["ci95"], rel=0.1)
    assert (high + low) / 2 == pytest.approx(theirs["wer"], abs=0.02)


def test_interval_covers_the_true_rate_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        clips = counts(np.random.default_rng((seed, 9)).binomial(10, 0.2, 80))
        low, high = interval(clips, seed, n_draws=300)
        covered += low <= 0.2 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_no_reference_words_no_interval():
    empty = [ErrorCounts(insertions=2)] * 3
    assert interval(empty) is None
    assert compare(empty, empty) is None
    assert interval([]) is None


def test_a_draw_without_reference_words_is_left_out():
    low, high = interval([ErrorCounts(insertions=1), ErrorCounts(hits=1)])
    assert np.isfinite([low, high]).all()


def test_equal_systems_do_not_differ():
    clips = counts([1, 5, 0, 2])
    found = compare(clips, clips)
    assert (found.difference, found.low, found.high, found.p, found.n_clips) == (0.0, 0.0, 0.0, 1.0, 4)


def test_permutation_p_is_that_of_all_sign_flips():
    first, second = counts([4, 3, 6, 2, 5, 3, 3]), counts([3, 3, 2, 2, 3, 4, 2])
    apart = np.array([-1, 0, -4, 0, -2, 1, -1])
    sums = [abs(apart @ np.array(signs)) for signs in itertools.product((-1, 1), repeat=7)]
    exact = np.mean([s >= abs(apart.sum()) for s in sums])
    assert compare(first, second, n_draws=20_000).p == pytest.approx(exact, abs=0.01)
    assert compare(first, second).difference == pytest.approx(-0.1)


def test_a_clear_difference_is_found_and_its_sign_is_that_of_the_second():
    rng = np.random.default_rng(5)
    worse, better = rng.binomial(10, 0.5, 100), rng.binomial(10, 0.3, 100)
    found = compare(counts(worse), counts(better))
    assert found.high < 0
    assert found.p < 0.01
    back = compare(counts(better), counts(worse))
    assert back.difference == pytest.approx(-found.difference)


def test_no_difference_is_seldom_found_significant():
    n = sum(
        compare(*(counts(np.random.default_rng((s, k)).binomial(10, 0.4, 30)) for k in (0, 1)), n_draws=200).p
        <= 0.05
        for s in range(200)
    )
    assert n <= 20


def test_other_clips_cannot_be_compared():
    for other in (counts([1, 2]), counts([1, 2, 3], length=11)):
        with pytest.raises(DataError, match="not scored on the same references"):
            compare(counts([1, 2, 3]), other)
