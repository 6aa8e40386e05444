"""The three losses: one case of each by hand, and CTC against torch's over the whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from canvas_asr.training.losses import (
    MIN_NOISE,
    autoregressive_loss,
    ctc_loss,
    diffusion_loss,
    min_ctc_frames,
    sample_noise_levels,
    states_per_chunk,
)


def logits_of(probabilities: list) -> Tensor:
    return torch.tensor(probabilities).log()


def as_they_are(states: Tensor) -> Tensor:
    """An output layer for states that are logits already."""
    return states


# Noise levels


def test_noise_levels_are_uniform_between_the_least_and_one() -> None:
    levels = sample_noise_levels(20_000, torch.Generator().manual_seed(0))
    assert levels.shape == (20_000,)
    assert MIN_NOISE == 0.001
    assert MIN_NOISE <= levels.min() < 0.002
    assert 0.999 < levels.max() <= 1
    in_tenths = torch.histc(levels, bins=10, min=0, max=1) / 20_000
    torch.testing.assert_close(in_tenths, torch.full((10,), 0.1), atol=0.01, rtol=0)
    again = sample_noise_levels(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(levels, again)


# Diffusion

CANVAS = torch.tensor([[2, 1, 1, 1]])  # one piece of text, the end token, a tail of two
PREDICTED = logits_of([[[0.2, 0.3, 0.5], [0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.05, 0.9, 0.05]]])


def test_diffusion_loss_is_the_flat_mean_over_all_positions() -> None:
    loss, tokens = diffusion_loss(PREDICTED, CANVAS, torch.tensor([2]), as_they_are)
    assert tokens.right.tolist() == [[True] * 4]
    assert float(tokens.losses.mean()) == pytest.approx(float(loss))
    expected = -(math.log(0.5) + math.log(0.5) + math.log(0.8) + math.log(0.9)) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_the_tail_counts_by_its_weight(weight: float) -> None:
    loss, _ = diffusion_loss(PREDICTED, CANVAS, torch.tensor([2]), as_they_are, tail_weight=weight)
    text, tail = -2 * math.log(0.5), -(math.log(0.8) + math.log(0.9))
    assert float(loss) == pytest.approx((text + weight * tail) / (2 + 2 * weight), rel=1e-6)


def test_diffusion_loss_over_clips_of_unequal_text() -> None:
    logits, canvas = PREDICTED.repeat(2, 1, 1), CANVAS.repeat(2, 1)
    loss, _ = diffusion_loss(logits, canvas, torch.tensor([2, 4]), as_they_are, tail_weight=0.0)
    text, tail = -2 * math.log(0.5), -(math.log(0.8) + math.log(0.9))
    assert float(loss) == pytest.approx((2 * text + tail) / 6, rel=1e-6)


def test_diffusion_loss_of_half_precision_logits_is_taken_in_float32() -> None:
    loss, _ = diffusion_loss(PREDICTED.bfloat16(), CANVAS, torch.tensor([2]), as_they_are)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(0.4293, abs=0.01)


# Autoregressive


def test_autoregressive_loss_is_the_mean_over_valid_targets() -> None:
    logits = logits_of([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], [[0.4, 0.6], [0.3, 0.7], [0.1, 0.9]]])
    targets = torch.tensor([[1, 0, 0], [1, 0, 0]])
    loss = autoregressive_loss(logits, targets, torch.tensor([3, 1]), as_they_are)
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.9) + math.log(0.6)) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    padding_changed = targets.clone()
    padding_changed[1, 1:] = 1
    assert torch.equal(autoregressive_loss(logits, padding_changed, torch.tensor([3, 1]), as_they_are), loss)


def test_autoregressive_loss_of_nothing_is_zero() -> None:
    loss = autoregressive_loss(
        torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 0]), as_they_are
    )
    assert float(loss) == 0


def plain_loss(name: str, logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    in_text = (torch.arange(targets.shape[1])[None, :] < lengths[:, None]).flatten()
    weights = in_text + (0.0 if name == "autoregressive" else 0.3) * ~in_text
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("name", ["diffusion", "autoregressive"])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_values_and_gradients_are_those_of_the_plain_loss_in_any_chunks(name: str, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, requires_grad=True)
    targets = torch.randint(50, (3, 5), generator=generator)
    lengths = torch.tensor([5, 2, 3])
    sizes: list[int] = []

    def read(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part @ weight.T

    if name == "diffusion":
        loss, tokens = diffusion_loss(states, targets, lengths, read, tail_weight=0.3, chunk=chunk)
        assert torch.equal(tokens.right, (states @ weight.T).argmax(-1) == targets)
    else:
        loss = autoregressive_loss(states, targets, lengths, read, chunk=chunk)
    n_forward = len(sizes)
    assert max(sizes) <= max(chunk, 1)
    found = value_and_gradients(loss, states, weight)
    # Several chunks are read again for the gradient, their logits not kept; a single one is kept.
    assert len(sizes) == (1 if chunk == 100 else 2 * n_forward)
    expected = value_and_gradients(plain_loss(name, states @ weight.T, targets, lengths), states, weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_clip_of_30_s_at_262144_tokens_is_never_read_in_one_chunk_that_is_kept() -> None:
    assert states_per_chunk(262_144) == 128 < 188
    assert states_per_chunk(1 << 40) == 1


# CTC

V, D, BLANK = 23, 6, 4


def read_with(weight: Tensor):  # the output layer, in the weight's own precision
    return lambda states: states.to(weight.dtype) @ weight.T


def stock_ctc(
    states: Tensor, n_states: Tensor, targets: Tensor, n_targets: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """torch's own CTC over all V columns: loss of each clip per target token, and their mean."""
    log_probs = (states @ weight.T).log_softmax(-1).transpose(0, 1)
    losses = torch.nn.functional.ctc_loss(
        log_probs, targets, n_states, n_targets, blank=BLANK, reduction="none", zero_infinity=True
    )
    return (losses / torch.where(n_targets > 0, n_targets, n_states)).mean(), losses


def example(sharpness: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.tensor(
        [
            [7, 7, 0, 7, 22],  # repeats, next to each other and apart; the padding id is a token too
            [3, 5, 0, 0, 0],
            [0, 0, 0, 0, 0],  # nothing is said
            [9, 0, 0, 0, 0],
        ]
    )
    states = torch.randn(4, 9, D, generator=generator, dtype=torch.float64)
    weight = sharpness * torch.randn(V, D, generator=generator, dtype=torch.float64)
    return states, torch.tensor([9, 4, 6, 9]), targets, torch.tensor([5, 2, 0, 1]), weight


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_ctc_equals_the_stock_loss_over_the_whole_vocabulary(sharpness: float) -> None:
    states, n_states, targets, n_targets, weight = example(sharpness)
    states.requires_grad_()
    weight.requires_grad_()
    ours, infeasible = ctc_loss(states, n_states, targets, n_targets, read_with(weight), blank=BLANK)
    stock, losses = stock_ctc(states, n_states, targets, n_targets, weight)
    assert losses.min() > 0
    assert not infeasible.any()
    found = value_and_gradients(ours, states, weight)
    expected = value_and_gradients(stock, states, weight)
    # The loss itself is computed in float32.
    for ours_, stock_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_.double(), stock_, rtol=1e-4, atol=2e-6)


def test_without_the_column_of_the_rest_the_gradient_would_be_wrong() -> None:
    """The trap that the extra column is for: value right, gradient wrong, in torch's own function."""
    states, n_states, targets, n_targets, weight = example()
    states.requires_grad_()
    log_probs = (states @ weight.T).log_softmax(-1)[:, :, [BLANK, 3, 5]].transpose(0, 1)
    classes = torch.tensor([[1, 2]])
    cut = torch.nn.functional.ctc_loss(
        log_probs[:, 1:2], classes, n_states[1:2], n_targets[1:2], blank=0, reduction="sum"
    )
    _, losses = stock_ctc(states, n_states, targets, n_targets, weight)
    torch.testing.assert_close(cut, losses[1])
    (wrong,) = torch.autograd.grad(cut, states, retain_graph=True)
    (right,) = torch.autograd.grad(losses[1], states)
    assert (wrong - right).abs().max() > 0.01


def test_ctc_by_hand() -> None:
    # Two states, target "a": the paths are a a, a -, - a.
    log_probs = logits_of([[[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]]])  # blank, a, b
    loss, infeasible = ctc_loss(
        log_probs, torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1]), lambda states: states, blank=0
    )
    assert float(loss) == pytest.approx(-math.log(0.3 * 0.1 + 0.3 * 0.6 + 0.5 * 0.1), rel=1e-5)
    assert infeasible.tolist() == [False]


def test_ctc_of_an_empty_target_asks_for_blanks() -> None:
    log_probs = logits_of([[[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]]]).requires_grad_()
    loss, infeasible = ctc_loss(
        log_probs, torch.tensor([2]), torch.tensor([[0]]), torch.tensor([0]), lambda states: states, blank=0
    )
    assert float(loss.detach()) == pytest.approx(-(math.log(0.5) + math.log(0.6)) / 2, rel=1e-5)
    assert infeasible.tolist() == [False]
    (gradient,) = torch.autograd.grad(loss, log_probs)
    expected = torch.tensor([[-0.5, 0.3, 0.2], [-0.4, 0.1, 0.3], [0.0, 0.0, 0.0]]) / 2
    torch.testing.assert_close(gradient[0], expected, atol=1e-5, rtol=1e-4)


def test_fewest_frames_count_a_blank_between_repeats() -> None:
    targets = torch.tensor([[5, 5, 5, 6], [5, 6, 5, 6], [5, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
    assert min_ctc_frames(targets, torch.tensor([4, 4, 2, 1, 0])).tolist() == [6, 4, 3, 1, 0]


def test_infeasible_clips_are_counted_and_weigh_nothing() -> None:
    states, _, targets, n_targets, weight = example()
    states.requires_grad_()
    n_states = torch.tensor([5, 2, 6, 1])  # the first needs 6: five tokens and a blank between 7 and 7
    loss, infeasible = ctc_loss(states, n_states, targets, n_targets, read_with(weight), blank=BLANK)
    assert infeasible.tolist() == [True, False, False, False]
    stock, losses = stock_ctc(states, n_states, targets, n_targets, weight)
    assert losses[0] == 0
    torch.testing.assert_close(loss.double(), stock, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, states)
    assert not gradient[0].any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 7, 35])
def test_ctc_is_the_same_in_chunks_of_any_size(chunk: int) -> None:
    states, n_states, targets, n_targets, weight = example()
    states.requires_grad_()
    results = [
        value_and_gradients(
            ctc_loss(states, n_states, targets, n_targets, read_with(weight), blank=BLANK, chunk=size)[0],
            states,
        )
        for size in (chunk, 4096)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_ctc_reads_every_state_in_chunks_and_again_for_the_gradient() -> None:
    """No (B, A, V) tensor is kept for backward: logits are made a chunk at a time, twice."""
    states, n_states, targets, n_targets, weight = example()
    states.requires_grad_()
    sizes: list[int] = []

    def read(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part @ weight.T

    loss, _ = ctc_loss(states, n_states, targets, n_targets, read, blank=BLANK, chunk=10)
    assert sizes == [10, 10, 10, 6]
    loss.backward()
    assert sorted(sizes) == sorted(2 * [10, 10, 10, 6])


def test_padding_of_targets_and_states_does_not_matter() -> None:
    states, n_states, targets, n_targets, weight = example()
    read = read_with(weight)
    loss, _ = ctc_loss(states, n_states, targets, n_targets, read, blank=BLANK)
    padded = torch.where(torch.arange(5)[None] < n_targets[:, None], targets, 7)
    states = torch.where(torch.arange(9)[None, :, None] < n_states[:, None, None], states, 99.0)
    again, _ = ctc_loss(states, n_states, padded, n_targets, read, blank=BLANK)
    torch.testing.assert_close(again, loss)
