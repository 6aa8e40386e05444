"""The losses at the vocabulary of the released system: values, gradients, and what is kept for backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from made_up_clips import SPEECH, tones
from small_models import TINY, small_model, small_processor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from canvas_asr.manifest import Clip
from canvas_asr.training import losses
from canvas_asr.training.adapter import AdapterModel, AdapterOptions
from canvas_asr.training.adapter_data import AdapterCollator
from canvas_asr.training.corruption import CorruptionOptions
from canvas_asr.training.losses import autoregressive_loss, ctc_loss, diffusion_loss
from canvas_asr.training.objective import ObjectiveOptions

V, D, BLANK, CAP = 262_144, 4, 6, 30.0
N_CLIPS, N_STATES, N_TARGETS = 2, 6, 3
CHUNK = 5  # of 12 states

Read = Callable[[Tensor], Tensor]


def read_with(weight: Tensor) -> Read:
    """An output layer with the backbone's soft-cap."""
    return lambda states: torch.tanh(states @ weight.T / CAP) * CAP


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(N_CLIPS, N_STATES, D, generator=generator, requires_grad=True)
    weight = (2 * torch.randn(V, D, generator=generator)).requires_grad_()
    targets = torch.randint(BLANK + 1, V, (N_CLIPS, N_STATES), generator=generator)
    return states, weight, targets


def ours(name: str, states: Tensor, targets: Tensor, read: Read, chunk: int = CHUNK) -> Tensor:
    n = torch.tensor([N_STATES, N_STATES - 2])
    if name == "diffusion":
        return diffusion_loss(states, targets, n, read, tail_weight=0.1, chunk=chunk)[0]
    if name == "autoregressive":
        return autoregressive_loss(states, targets, n, read, chunk=chunk)
    spoken = torch.tensor([N_TARGETS, N_TARGETS - 1])
    return ctc_loss(states, n, targets[:, :N_TARGETS], spoken, read, blank=BLANK, chunk=chunk)[0]


def plain(name: str, states: Tensor, targets: Tensor, read: Read) -> Tensor:
    """The same over all logits at once."""
    logits, n = read(states), torch.tensor([N_STATES, N_STATES - 2])
    if name == "ctc":
        spoken = torch.tensor([N_TARGETS, N_TARGETS - 1])
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        found = torch.nn.functional.ctc_loss(
            log_probs, targets[:, :N_TARGETS], n, spoken, blank=BLANK, reduction="none"
        )
        return (found / spoken).mean()
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    weights = (torch.arange(N_STATES) < n[:, None]).float()
    if name == "diffusion":
        weights = weights + 0.1 * (1 - weights)
    return (found * weights.flatten()).sum() / weights.sum()


@pytest.mark.parametrize("name", ["ctc", "diffusion", "autoregressive"])
def test_value_and_gradients_at_262144_tokens_are_those_of_the_plain_loss(name: str) -> None:
    states, weight, targets = problem()
    loss, expected = (
        ours(name, states, targets, read_with(weight)),
        plain(name, states, targets, read_with(weight)),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    found = torch.autograd.grad(loss, (states, weight))
    for gradient, wanted in zip(found, torch.autograd.grad(expected, (states, weight)), strict=True):
        assert (gradient - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_ctc_of_30_s_is_exact_where_float32_is_not() -> None:
    """188 states of a model that knows nothing: a loss of 1,700, which float32 knows to 0.0001."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 188, 8, generator=generator, requires_grad=True)
    weight = torch.randn(4096, 8, generator=generator)
    targets = torch.randint(BLANK + 1, 4096, (1, 60), generator=generator)
    n_states, n_targets = torch.tensor([188]), torch.tensor([60])
    read = read_with(weight)
    loss, _ = ctc_loss(states, n_states, targets, n_targets, read, blank=BLANK, chunk=100)
    exact = torch.nn.functional.ctc_loss(
        read_with(weight.double())(states.double()).log_softmax(-1).transpose(0, 1),
        targets,
        n_states,
        n_targets,
        blank=BLANK,
    )
    assert loss.dtype == torch.float32
    assert 60 * exact > 1500
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    (found,), (expected,) = torch.autograd.grad(loss, states), torch.autograd.grad(exact, states)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@contextmanager
def kept_for_backward(sizes: list[int]) -> Any:
    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes


@pytest.mark.parametrize("name", ["ctc", "diffusion", "autoregressive"])
def test_nothing_as_wide_as_the_vocabulary_is_kept_for_backward(name: str) -> None:
    states, weight, targets = problem()
    with kept_for_backward([]) as chunked:
        ours(name, states, targets, read_with(weight))
    assert max(chunked) < V / 1000
    with kept_for_backward([]) as at_once:  # what the other assertion would see
        plain(name, states, targets, read_with(weight))
    assert max(at_once) >= N_CLIPS * N_STATES * V


class WidestLogits(TorchDispatchMode):
    """Notes how many rows as wide as the vocabulary any operation gives, its weights apart."""

    def __init__(self, n_classes: int, weight: Tensor) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.storage = weight.untyped_storage().data_ptr()
        self.rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, Tensor) and result.ndim and result.shape[-1] == self.n_classes:
                if result.untyped_storage().data_ptr() != self.storage:
                    self.rows = max(self.rows, result.numel() // self.n_classes)
        return results


def test_a_training_step_never_makes_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts, the pass that conditions the next and all three losses, forward and backward."""
    model, processor = small_model(), small_processor()
    n_classes, n_rows = model.config.vocab_size, 32  # the longest clip has 19 audio tokens, all have 114
    monkeypatch.setattr(losses, "MAX_LOGITS", n_rows * n_classes)
    corruption = CorruptionOptions(uniform=0.3, draft=0.3, predictions=0.3, edits=0.1)
    options = AdapterOptions(
        TINY, "", "", (), (), canvas_choices=(), objective=ObjectiveOptions(corruption=corruption)
    )
    collate = AdapterCollator(processor, model.config, options)
    mels, lengths = processor.features([tones(1.0 + 0.1 * i, i) for i in range(6)])
    batch = collate(
        [
            {"entry": Clip(TINY, text, language), "mel": mel[:, :n].numpy()}
            for (text, language, _), mel, n in zip(SPEECH, mels, lengths.tolist(), strict=True)
        ]
    )
    module = AdapterModel(model.train(), options, processor.token_id(model.config.audio_token), [7, 8])
    torch.manual_seed(0)
    weight = model.backbone.lm_head.weight
    with WidestLogits(n_classes, weight) as seen, kept_for_backward([]) as kept:
        outputs = module(**batch)
        outputs["loss"].backward()
    assert batch["canvas"].numel() > 2 * n_rows
    assert 0 < seen.rows <= n_rows
    assert max(size for size in kept if size != weight.numel()) < n_rows * n_classes
