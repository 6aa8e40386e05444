from __future__ import annotations

import pytest
import torch
from torch import Tensor

from canvas_asr.errors import RecipeError
from canvas_asr.training.corruption import KINDS, Corruption, CorruptionOptions, forget_unsure, lay_out

V, EOS = 1000, 1
UNIFORM, DRAFT, PREDICTIONS, EDITS = range(4)
ROW = list(range(500, 520))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corruption(**options: float) -> Corruption:
    return Corruption(CorruptionOptions(**options), V, EOS)


def only(kind: int, n_clips: int) -> Tensor:
    return torch.full((n_clips,), kind)


# The mixture


def test_the_kinds_have_a_fixed_order() -> None:
    assert KINDS == ("uniform", "draft", "predictions", "edits")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_can_be_the_only_one(kind: str) -> None:
    options = {name: float(name == kind) for name in KINDS}
    assert set(corruption(**options).draw_kinds(200, drafts=True).tolist()) == {KINDS.index(kind)}


def test_kinds_are_drawn_by_weight() -> None:
    kinds = corruption(uniform=2, draft=1, predictions=0, edits=1).draw_kinds(
        40_000, drafts=True, generator=generator()
    )
    shares = torch.bincount(kinds, minlength=4) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.0, 0.25]), atol=0.01, rtol=0)


def test_without_drafts_their_share_goes_to_edits() -> None:
    kinds = corruption(uniform=2, draft=1, edits=1).draw_kinds(40_000, drafts=False, generator=generator())
    shares = torch.bincount(kinds, minlength=4) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.0, 0.5]), atol=0.01, rtol=0)
    draft_alone = corruption(uniform=0, draft=1)
    assert set(draft_alone.draw_kinds(50, drafts=False).tolist()) == {EDITS}


@pytest.mark.parametrize("weights", [(0, 0, 0, 0), (1, -0.1, 0, 0)])
def test_weights_that_leave_nothing_to_draw_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match="at least one above 0, none below"):
        CorruptionOptions(**dict(zip(KINDS, weights, strict=True)))


# Laying out


def test_lay_out_fills_the_tail_with_the_end_token_and_cuts_what_is_too_long() -> None:
    canvas = lay_out([[5, 6], [], [5, 6, 7, 8, 9]], 4, EOS)
    assert canvas.tolist() == [[5, 6, 1, 1], [1, 1, 1, 1], [5, 6, 7, 8]]


# Uniform


def test_uniform_replaces_a_fraction_t_of_each_row_by_any_id() -> None:
    canvas = torch.full((3, 50_000), 7)
    levels = torch.tensor([0.0, 0.3, 1.0])
    noisy = corruption().uniform(canvas, levels, generator())
    assert torch.equal(noisy[0], canvas[0])
    changed = (noisy != 7).float().mean(dim=1)
    torch.testing.assert_close(changed, levels * (1 - 1 / V), atol=0.01, rtol=0)
    drawn = torch.bincount(noisy[2], minlength=V)
    assert len(drawn) == V
    assert drawn.min() > 15  # 50 of each are expected
    assert drawn.max() < 110
    assert (canvas == 7).all()


def test_uniform_reaches_the_tail_too() -> None:
    canvas = lay_out([ROW], 64, EOS)
    noisy = corruption()(canvas, torch.tensor([21]), torch.ones(1), only(UNIFORM, 1), generator=generator())
    assert (noisy[0, 21:] != EOS).float().mean() > 0.9


def test_corruption_repeats_itself_from_its_generator() -> None:
    canvas, n_text = lay_out([ROW] * 8, 32, EOS), torch.full((8,), 21)
    drafts, kinds = [ROW[:5]] * 8, torch.arange(8) % 4
    mixed = corruption(uniform=1, draft=1, predictions=1, edits=1)
    results = [mixed(canvas, n_text, torch.full((8,), 0.5), kinds, drafts, generator(s)) for s in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# Predictions start as uniform noise


def test_predictions_begin_as_uniform_noise_does() -> None:
    canvas, n_text, levels = lay_out([ROW], 32, EOS), torch.tensor([21]), torch.tensor([0.6])
    noisy = [
        corruption()(canvas, n_text, levels, only(k, 1), None, generator(3)) for k in (UNIFORM, PREDICTIONS)
    ]
    assert torch.equal(*noisy)


# Drafts


def test_drafts_lie_on_the_canvas_and_half_of_them_as_they_are() -> None:
    n_clips = 600
    canvas, n_text = lay_out([ROW] * n_clips, 32, EOS), torch.full((n_clips,), 21)
    draft = [9, *ROW[3:10], 44]
    expected = lay_out([draft], 32, EOS)[0]
    noisy = corruption(max_renoise=0.5)(
        canvas, n_text, torch.full((n_clips,), 0.8), only(DRAFT, n_clips), [draft] * n_clips, generator()
    )
    changed = (noisy != expected).float().mean(dim=1)
    untouched = changed == 0
    assert 0.43 < untouched.float().mean() < 0.57
    # The others get the draft's share of noise, max_renoise * t, not t.
    assert float(changed[~untouched].mean()) == pytest.approx(0.5 * 0.8, abs=0.02)


def test_a_draft_longer_than_the_canvas_is_cut() -> None:
    noisy = corruption(max_renoise=0.0)(
        lay_out([ROW], 8, EOS),
        torch.tensor([8]),
        torch.ones(1),
        only(DRAFT, 1),
        [list(range(30))],
        generator(),
    )
    assert noisy.tolist() == [list(range(8))]


# Edits


@pytest.mark.parametrize("mask", [None, 999])
def test_unsure_tokens_of_a_draft_are_noise_up_to_a_threshold_of_each_clip(mask: int | None) -> None:
    options = CorruptionOptions(draft=1, max_draft_threshold=0.5, mask_id=mask)
    sure = [0.05 * k for k in range(20)]
    n_clips = 400
    found = forget_unsure(
        [ROW] * n_clips, [sure] * n_clips, options, ROW[0], [generator(k) for k in range(n_clips)]
    )
    kept = torch.tensor(found) == torch.tensor(ROW)
    n_lost = (~kept).sum(dim=1)
    assert bool(kept[:, 10:].all())  # at 0.5 and above
    for clip, n in enumerate(n_lost.tolist()):
        assert bool((~kept[clip, :n]).all())  # the least sure ones
    assert 4.5 < float(n_lost.float().mean()) < 6.0  # from 0 to 10, each threshold as often
    lost = torch.tensor(found)[~kept]
    assert set(lost.tolist()) == {999} if mask else len(set(lost.tolist())) > 450
    never = CorruptionOptions(draft=1)
    assert forget_unsure([ROW], [sure], never, V, [generator()]) == [ROW]


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_that_is_no_posterior_is_refused(threshold: float) -> None:
    with pytest.raises(RecipeError, match=f"max_draft_threshold is {threshold}"):
        CorruptionOptions(max_draft_threshold=threshold)


def test_edits_delete_substitute_and_insert_a_third_each() -> None:
    # Text ids lie above the vocabulary that noise is drawn from, so that every edit can be told.
    edits = Corruption(CorruptionOptions(), 500, EOS)
    row = list(range(500, 100_500))
    edited = edits.edit(row, 0.3, generator())
    n_noise = sum(token < 500 for token in edited)
    kept = [token for token in edited if token >= 500]
    assert kept == sorted(kept)
    # 10 % are deleted and 10 % replaced by noise, so 80 % are kept; behind another 10 % noise is put in.
    assert len(kept) / len(row) == pytest.approx(0.8, abs=0.005)
    assert n_noise / len(row) == pytest.approx(0.2, abs=0.005)
    # Noise between two neighbours was inserted; a fifth of it stands before a loss, where it cannot be told.
    inserted = sum(
        left >= 500 and noise < 500 and right == left + 1
        for left, noise, right in zip(edited, edited[1:], edited[2:], strict=False)
    )
    assert inserted / len(row) == pytest.approx(0.1 * 0.8, abs=0.005)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, ROW), (3.0, [])])
def test_edits_at_the_extremes(rate: float, expected: list[int]) -> None:
    """At rate 3 every draw lies below a third of it: all is deleted."""
    assert corruption().edit(ROW, rate, generator()) == expected


def test_edited_canvases_keep_their_tail_and_stay_below_the_largest_rate() -> None:
    n_clips, n_text = 2000, 21
    canvas = lay_out([[*ROW]] * n_clips, 64, EOS)
    options = CorruptionOptions(edits=1.0, max_edit_rate=0.4, max_renoise=0.0)
    noisy = Corruption(options, 500, EOS)(
        canvas, torch.full((n_clips,), n_text), torch.ones(n_clips), only(EDITS, n_clips), None, generator()
    )
    kept = torch.isin(noisy, torch.tensor(ROW)).sum(dim=1) / len(ROW)
    # Rates are uniform from 0 to 0.4; two thirds of the edits lose a token.
    assert float(kept.mean()) == pytest.approx(1 - 0.2 * 2 / 3, abs=0.01)
    assert (kept == 1).any()
    assert (noisy[:, 40:] == EOS).all()


def test_noise_on_an_edited_canvas_is_limited() -> None:
    n_clips = 600
    canvas = lay_out([ROW] * n_clips, 64, EOS)
    quiet = CorruptionOptions(edits=1.0, max_edit_rate=0.0, max_renoise=0.25)
    noisy = Corruption(quiet, V, EOS)(
        canvas, torch.full((n_clips,), 21), torch.ones(n_clips), only(EDITS, n_clips), None, generator()
    )
    changed = (noisy != canvas).float().mean(dim=1)
    untouched = changed == 0
    assert 0.43 < untouched.float().mean() < 0.57
    assert float(changed[~untouched].mean()) == pytest.approx(0.25, abs=0.02)
