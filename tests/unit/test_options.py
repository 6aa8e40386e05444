"""Options of decoding: each wrong value is one error that names it."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_asr.errors import OptionError
from canvas_asr.options import DecodingOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "mask"}, "init is 'mask'; choose one of noise, draft, draft-slots"),
        (
            {"acceptance": "greedy"},
            "acceptance is 'greedy'; choose one of confidence, entropy-bound, threshold",
        ),
        ({"self_conditioning": True}, "self_conditioning is True; choose one of none, draft, posterior"),
        ({"risk": "phones"}, "risk is 'phones'; choose one of tokens, words, characters"),
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"steps": -1, "init": "draft"}, "steps is -1; give at least 0"),
        ({"steps": 1.5}, "steps is 1.5; give a whole number"),
        ({"canvas": "long"}, "canvas is 'long'; give a whole number, or 'auto'"),
        ({"canvas": 1}, "canvas is 1 tokens; give at least 2"),
        ({"seed": "x"}, "seed is 'x'; give a whole number"),
        ({"stability": -1}, "stability is -1; give at least 0"),
        ({"candidates": 0}, "candidates is 0; give at least 1"),
        ({"draft_threshold": 0.0, "init": "draft"}, "draft_threshold is 0.0; give a probability above 0"),
        (
            {"draft_threshold": 0.5, "steps": 2},
            "draft_threshold is given, but init='noise' starts from no draft",
        ),
        ({"accept_threshold": 1.2}, "accept_threshold is 1.2; give a probability above 0, at most 1"),
        ({"accept_threshold": None}, "accept_threshold is None; give a number"),
        ({"gate": -0.1}, "gate is -0.1; give a probability"),
        ({"gate": "high"}, "gate is 'high'; give a number"),
        ({"gate": float("nan")}, "gate is nan; give a number"),
        ({"entropy_bound": 0}, "entropy_bound is 0; give a number of nats above 0"),
        ({"stop_entropy": -1}, "stop_entropy is -1; give a number of nats above 0"),
        ({"fusion": -0.5}, "fusion is -0.5; give a weight of at least 0"),
        ({"fusion": True}, "fusion is True; give a number"),
        ({"hotwords": "Kent"}, "hotwords is 'Kent'; give a list of words or phrases"),
        ({"hotwords": ["Kent", "?!"]}, r"hotwords: '\?!' is no word; give texts with a letter or digit"),
        ({"hotwords": [3]}, "hotwords: 3 is no word"),
        ({"hotwords": ["a" * 101]}, "hotwords: 'aaaaaaaaaaaaaaaaaaaa'... is longer than 100 characters"),
        ({"hotwords": ["a"] * 1001}, "hotwords are 1001; give at most 1000"),
        ({"hotword_boost": 0}, "hotword_boost is 0; give nats above 0, at most 20"),
        ({"hotword_boost": 21.0}, "hotword_boost is 21.0; give nats above 0, at most 20"),
        ({"hotword_boost": float("inf")}, "hotword_boost is inf; give a number"),
        ({"prompt": ["Kent"]}, r"prompt is \['Kent'\]; give a text"),
    ],
)
def test_a_wrong_value_is_named_with_what_to_give(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DecodingOptions(**options)


@pytest.mark.parametrize(
    ("given", "alone", "for_a_draft"),
    [
        ({}, ("noise", 8), ("draft", 1)),
        ({"fusion": 0.3, "language": "de"}, ("noise", 8), ("draft", 1)),
        ({"steps": 8}, ("noise", 8), ("noise", 8)),
        ({"steps": 3}, ("noise", 3), ("noise", 3)),
        ({"init": "noise"}, ("noise", 8), ("noise", 8)),
        ({"init": "draft"}, ("draft", 1), ("draft", 1)),
        ({"init": "draft", "steps": 0}, ("draft", 0), ("draft", 0)),
        # One pass from a draft would not know these options.
        ({"acceptance": "threshold"}, ("noise", 8), ("noise", 8)),
        ({"stop_entropy": 0.1}, ("noise", 8), ("noise", 8)),
        ({"candidates": 4}, ("noise", 8), ("noise", 8)),
    ],
)
def test_start_and_passes_are_those_given_else_the_checkpoints(
    given: dict, alone: tuple[str, int], for_a_draft: tuple[str, int]
) -> None:
    for expected, defaults in ((alone, ()), (for_a_draft, ("draft", 1))):
        chosen = DecodingOptions(**given).resolved(*defaults)
        assert (chosen.init, chosen.steps) == expected
        assert chosen.resolved("draft-slots", 5) == chosen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 8}, "8 passes from noise"),
        ({"init": "draft"}, "1 pass from the draft"),
        ({"init": "draft", "steps": 0}, "the CTC draft alone"),
        ({"init": "draft-slots", "steps": 2}, "2 passes from the draft with free slots"),
    ],
)
def test_start_and_passes_are_told_in_words(options: dict, words: str) -> None:
    assert DecodingOptions(**options).described == words


def test_half_of_a_default_is_completed_like_half_of_a_call() -> None:
    assert DecodingOptions().resolved(steps=4) == DecodingOptions(steps=4).resolved()
    assert DecodingOptions().resolved("draft") == DecodingOptions(init="draft", steps=1).resolved()


def test_an_option_that_does_not_go_with_the_checkpoints_start_is_an_error() -> None:
    options = DecodingOptions(draft_threshold=0.5)
    assert options.resolved("draft").init == "draft"
    with pytest.raises(OptionError, match="draft_threshold is given, but init='noise' starts from no draft"):
        options.resolved()


def test_hotwords_are_kept_without_the_spaces_around_them() -> None:
    options = DecodingOptions(hotwords=[" Kent ", "Tim\n Kan"])
    assert options.hotwords == ("Kent", "Tim Kan")
    assert hash(options) == hash(DecodingOptions(hotwords=("Kent", "Tim Kan")))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "none"),
        ({"steps": 4}, "none"),
        ({"init": "draft"}, "posterior"),
        ({"init": "draft-slots"}, "posterior"),
        ({"init": "draft", "self_conditioning": "none"}, "none"),
        ({"init": "noise", "self_conditioning": "draft"}, "draft"),
    ],
)
def test_a_first_pass_from_the_draft_is_shown_what_the_checkpoint_says(options: dict, shown: str) -> None:
    assert DecodingOptions(**options).resolved("noise", 8, "posterior").self_conditioning == shown
    assert DecodingOptions(**options).resolved("draft", 2).self_conditioning in ("none", "draft")


def test_numbers_of_numpy_are_numbers() -> None:
    options = DecodingOptions(
        steps=np.int64(3), gate=np.float32(0.5), fusion=np.float64(1), canvas=np.int32(9)
    )
    assert (options.steps, options.canvas) == (3, 9)


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, ""),
        ({"canvas": 40, "stop_entropy": 0.1, "candidates": 3}, ""),
        ({"init": "draft-slots"}, "init=draft-slots"),
        ({"hotwords": ["Kent", "Bern"]}, "hotwords=Kent, Bern"),
        ({"canvas": "auto"}, "canvas=auto"),
        ({"self_conditioning": "posterior"}, "self_conditioning=posterior"),
        ({"fusion": 0.5}, "fusion=0.5"),
        ({"gate": 1}, "gate=1"),
    ],
)
def test_what_needs_a_draft_is_known(options: dict, needs: str) -> None:
    assert DecodingOptions(**options).needs_draft == needs
