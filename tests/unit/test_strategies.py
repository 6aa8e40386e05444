"""Strategies one by one, on tensors made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
)

from canvas_asr.canvas import PassResult, Vocabulary
from canvas_asr.ctc import Draft
from canvas_asr.errors import OptionError
from canvas_asr.options import DecodingOptions
from canvas_asr.strategies import sampler_config
from canvas_asr.strategies.acceptance import EntropyBound, MostConfident, StableAndConfident, SureEnough, rank
from canvas_asr.strategies.candidates import edit_distance, least_risk
from canvas_asr.strategies.fusion import FLOOR, Spikes, weigh
from canvas_asr.strategies.starts import DraftStart, Layout, fit_canvas, make_start

V, EOS, EN, DE, MASK = 40, 1, 2, 3, 5


def vocabulary(tags: tuple[int, ...] = (EN, DE), mask: int | None = None) -> Vocabulary:
    return Vocabulary(V, EOS, tags, torch.ones(V, dtype=torch.bool), mask)


def lay(
    init: str, noise: list[int], ids: list[int], threshold: float | None = None, **draft: object
) -> Layout:
    start = make_start(init, threshold)
    return start.lay(torch.tensor(noise), vocabulary(), Draft(ids, **draft))  # type: ignore[arg-type]


# Starts

NOISE = [30, 31, 32, 33, 34, 35, 36, 37]


def test_noise_fills_the_canvas_and_the_drafts_places_are_known_all_the_same() -> None:
    layout = lay("noise", NOISE, [10, 11])
    assert layout.canvas.tolist() == NOISE
    assert (layout.places, layout.n_text) == ((1, 2), 8)


def test_a_draft_lies_behind_the_tag_and_the_end_token_fills_the_tail() -> None:
    for ids, canvas in (
        ([10, 11], [10, 11, EOS, EOS, EOS, EOS, EOS]),
        ([], [EOS] * 7),
        (list(range(10, 25)), list(range(10, 17))),
    ):
        assert lay("draft", NOISE, ids).canvas.tolist() == [(EN, DE)[30 % 2], *canvas]
    without = make_start("draft").lay(torch.tensor(NOISE), vocabulary(()), Draft([10, 11]))
    assert without.canvas.tolist() == [10, 11, *[EOS] * 6]


def test_slots_of_noise_stand_before_between_and_behind_the_drafts_tokens() -> None:
    layout = lay("draft-slots", NOISE, [10, 11])
    assert layout.canvas.tolist() == [EN, 31, 10, 33, 11, 35, EOS, EOS]
    assert (layout.places, layout.n_text) == ((2, 4), 6)


def test_where_room_is_short_the_first_tokens_have_slots() -> None:
    layout = lay("draft-slots", NOISE, [10, 11, 12, 13, 14])
    assert layout.canvas.tolist() == [EN, 31, 10, 33, 11, 12, 13, 14]
    assert layout.places == (2, 4, 5, 6, 7)
    assert lay("draft-slots", NOISE, list(range(10, 20))).canvas.tolist() == [EN, *range(10, 17)]


def test_draft_tokens_of_low_posterior_are_left_as_noise() -> None:
    layout = lay("draft", NOISE, [10, 11, 12], 0.5, confidences=[0.9, 0.4, 0.5])
    assert layout.canvas.tolist() == [EN, 10, 32, 12, EOS, EOS, EOS, EOS]
    assert layout.places == (1, 2, 3)


def test_masks_stand_for_noise_but_not_for_the_tag_of_a_draft() -> None:
    masked = vocabulary(mask=MASK)
    assert make_start("noise").lay(torch.tensor(NOISE), masked, None).canvas.tolist() == [MASK] * 8
    layout = make_start("draft-slots").lay(torch.tensor(NOISE), masked, Draft([10]))
    assert layout.canvas.tolist() == [EN, MASK, 10, MASK, *[EOS] * 4]


def test_a_missing_draft_or_an_unknown_start_is_an_error() -> None:
    with pytest.raises(OptionError, match="needs CTC drafts"):
        DraftStart().lay(torch.tensor(NOISE), vocabulary(), None)
    with pytest.raises(OptionError, match="init is 'random'; choose one of noise, draft, draft-slots"):
        make_start("random")


def test_a_canvas_chosen_by_the_draft_has_one_of_few_sizes_and_room_to_grow() -> None:
    for init in ("noise", "draft", "draft-slots"):
        lengths = [fit_canvas(make_start(init).n_places(n, tagged=True), 256) for n in range(120)]
        assert lengths == sorted(lengths)
        assert len(set(lengths)) <= 8
        assert all(length >= n + 2 for n, length in enumerate(lengths))
    assert fit_canvas(make_start("draft-slots").n_places(31, tagged=True), 256) == 96  # 31 + 32 and two
    assert (fit_canvas(300, 256), fit_canvas(130, 1000), fit_canvas(16, 10)) == (256, 192, 10)


# Acceptance


def result(
    confidence: list[float],
    *,
    entropy: list[float] | None = None,
    n_text: int | None = None,
    step: int = 1,
    steps: int = 4,
    streak: int = 0,
) -> PassResult:
    places = torch.arange(len(confidence))[None]
    return PassResult(
        canvas=places + 10,
        confidence=torch.tensor([confidence]),
        entropy=None if entropy is None else torch.tensor([entropy]),
        in_text=places < (len(confidence) if n_text is None else n_text),
        step=torch.tensor([step]),
        steps=steps,
        streak=torch.tensor([streak]),
    )


def kept(mask: Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


def test_equal_scores_rank_in_order() -> None:
    assert rank(torch.tensor([[0.5, 0.9, 0.5, 0.9]])).tolist() == [[2, 0, 3, 1]]


def test_the_most_confident_share_of_the_text_is_kept_each_row_at_its_own_pass() -> None:
    one, other = (result([0.1, 0.9, 0.5, 0.7, 1.0, 1.0], n_text=4, step=step) for step in (1, 3))
    assert kept(MostConfident().keep(one)) == [1]
    assert kept(MostConfident().keep(other)) == [1, 2, 3]


def test_the_entropy_bound_is_diffusion_gemmas_on_the_text_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(1, 12, V, generator=generator)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    for bound in (0.05, 0.3, 1.0, 5.0):
        theirs = EntropyBoundSampler(EntropyBoundSamplerConfig(entropy_bound=bound), 12, V, 4)
        ids = torch.zeros(1, 12, dtype=torch.long)
        theirs.accept_canvas(ids, ids, logits, 1)
        seen = result([0.5] * 12, entropy=entropy[0].tolist())
        assert torch.equal(EntropyBound(bound).keep(seen), theirs.accepted_token_mask)
    # A tail of near-certain places changes nothing: neither what is kept nor what the budget is.
    tail = result([0.5] * 20, entropy=[*entropy[0].tolist(), *[0.02] * 8], n_text=12)
    alone = result([0.5] * 12, entropy=entropy[0].tolist())
    assert kept(EntropyBound(0.3).keep(tail) & tail.in_text) == kept(EntropyBound(0.3).keep(alone))


def test_only_unsure_places_are_written_anew_and_without_any_the_canvas_is_done() -> None:
    seen = result([0.95, 0.2, 0.9, 0.1], n_text=3)
    assert kept(SureEnough(0.9).keep(seen)) == [0, 2]
    assert not SureEnough(0.9).done(seen)
    assert SureEnough(0.2).done(seen)  # the tail's 0.1 plays no part


def test_a_canvas_is_done_when_its_text_is_stable_and_of_low_mean_entropy() -> None:
    rule = StableAndConfident(0.1, stability=2)
    low, high = [0.1, 0.05, 9.0], [0.1, 0.3, 0.0]
    assert rule.done(result([1.0] * 3, entropy=low, n_text=2, streak=2)).tolist() == [True]
    assert rule.done(result([1.0] * 3, entropy=low, n_text=2, streak=1)).tolist() == [False]
    assert rule.done(result([1.0] * 3, entropy=high, n_text=2, streak=2)).tolist() == [False]
    assert StableAndConfident(0.1, stability=0).done(result([1.0] * 3, entropy=low, n_text=2)).tolist() == [
        True
    ]


def test_entropies_that_nobody_asked_for_are_an_error_not_zeros() -> None:
    with pytest.raises(ValueError, match="without entropies"):
        EntropyBound().keep(result([0.5]))


def test_options_choose_the_strategies() -> None:
    plain = sampler_config(DecodingOptions().resolved(), 64)
    assert (plain.acceptance, plain.stops, plain.wants_entropy) == (MostConfident(), (), False)
    bound = sampler_config(
        DecodingOptions(acceptance="entropy-bound", entropy_bound=0.2, stop_entropy=0.1), 64
    )
    assert (bound.acceptance, bound.stops) == (EntropyBound(0.2), (StableAndConfident(0.1, 1),))
    assert bound.wants_entropy
    sure = sampler_config(DecodingOptions(acceptance="threshold", accept_threshold=0.7), 64)
    assert (sure.acceptance, sure.stops, sure.wants_entropy) == (SureEnough(0.7), (SureEnough(0.7),), False)
    with pytest.raises(ValueError, match="start and passes are open"):
        sampler_config(DecodingOptions(), 64)


# Fusion


def spikes(ids: list[int], weight: float = 1.0) -> Spikes:
    tokens = torch.tensor([[[i, 39] for i in ids]])
    return Spikes(tokens, torch.full(tokens.shape, weight))


def test_a_weight_is_the_log_posterior_above_the_floor() -> None:
    log_posteriors = torch.tensor([1.0, 0.5, FLOOR, FLOOR / 10, 0.0]).log()
    expected = [2 * math.log(1 / FLOOR), 2 * math.log(0.5 / FLOOR), 0.0, 0.0, 0.0]
    torch.testing.assert_close(weigh(log_posteriors, 2.0), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_evidence_stands_at_the_places_of_its_spikes_and_nowhere_else() -> None:
    evidence = spikes([10, 11]).at(torch.tensor([[-1, 0, -1, 1]]))
    assert evidence.weights[0].sum(dim=-1).tolist() == [0, 2, 0, 2]
    assert evidence.tokens[0, [1, 3], 0].tolist() == [10, 11]


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        # As drafted; the tag and the end have no spike.
        ([EN, 10, 11, 12, 13, 14, 15, 16, EOS], [-1, 0, 1, 2, 3, 4, 5, 6, -1]),
        # 13 was left out: what follows moves up, once enough of it is near.
        ([EN, 10, 11, 12, 14, 15, 16, EOS, EOS], [-1, 0, 1, 2, 4, 5, 6, -1, -1]),
        # 30 was put in before 11: what follows moves down.
        ([EN, 10, 30, 11, 12, 13, 14, 15, 16], [-1, 0, 0, 1, 2, 3, 4, 5, 6]),
        # Nothing agrees.
        ([EN, 30, 31, 32, 33, 34, 35, 36, 37], [-1] * 9),
    ],
)
def test_spikes_are_shifted_to_where_the_text_agrees_with_them(
    canvas: list[int], expected: list[int]
) -> None:
    ids = torch.tensor([canvas])
    in_text = (ids == EOS).cumsum(dim=1) <= (ids == EOS).int()
    found = spikes([10, 11, 12, 13, 14, 15, 16]).align(ids, in_text, 1)[0].tolist()
    wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
    # Beside an insertion or deletion a place may go either way.
    assert len(wrong) <= 1, found


def test_rows_without_spikes_get_none() -> None:
    some = Spikes(torch.tensor([[[10, 39]], [[-1, -1]]]), torch.ones(2, 1, 2))
    canvas = torch.tensor([[EN, 10, EOS], [EN, 10, EOS]])
    assert some.align(canvas, canvas != 0, 1).tolist() == [[-1, 0, -1], [-1, -1, -1]]
    nothing = Spikes(torch.zeros(1, 0, 0, dtype=torch.long), torch.zeros(1, 0, 0))
    assert nothing.align(canvas[:1], canvas[:1] != 0, 1).tolist() == [[-1, -1, -1]]


# Candidates


def test_edit_distance_counts_what_it_takes() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([], [1, 2]) == 2
    assert edit_distance(["a", "b"], ["a", "b"]) == 0


def test_the_candidate_nearest_to_all_is_chosen_and_the_first_of_equals() -> None:
    assert least_risk(["abcd", "abxd", "abxy"]) == 1
    assert least_risk(["far away", "near", "nearby", "near"]) == 1
    assert least_risk(["a", "b"]) == 0
    assert least_risk([[5]]) == 0
