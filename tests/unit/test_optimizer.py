"""Which parameters each optimiser takes, at what rate, and that both resume to the last bit."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from canvas_asr.training.optimizer import JoinedOptimizer, build_optimizer
from canvas_asr.training.recipe import TrainingOptions


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.router = nn.Linear(4, 6, bias=False)
        self.lora_A = nn.Linear(6, 2, bias=False)
        self.experts = nn.Parameter(torch.randn(2, 4, 4))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 6)
        self.layers = nn.ModuleList([Layer()])
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        x = self.embed(ids)
        hidden = layer.linear(x) @ layer.experts[0] + layer.lora_A(x).sum()
        return (layer.router(hidden) - x).square().mean() + layer.experts[1].square().mean()


def options(**changes: Any) -> TrainingOptions:
    return TrainingOptions(max_steps=1, batch_size=1, learning_rate=0.01, **changes)


def names_of(optimizer: torch.optim.Optimizer, model: Model) -> set[str]:
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in own}


def step(model: Model, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(5)).backward()
    optimizer.step()


def test_adamw_takes_all_that_trains_and_decays_matrices_only() -> None:
    model = Model()
    optimizer = build_optimizer(model, options(weight_decay=0.1))
    assert isinstance(optimizer, AdamW)
    assert names_of(optimizer, model) == {n for n, p in model.named_parameters() if p.requires_grad}
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decay == (0.1 if p.ndim > 1 else 0.0) for p, decay in decays.items())


def test_muon_takes_the_matrices_of_layers_but_no_router_lora_or_experts() -> None:
    model = Model()
    optimizer = build_optimizer(model, options(optimizer="muon", muon_lr_scale=3.0))
    assert isinstance(optimizer, JoinedOptimizer)
    muon, adamw = optimizer.parts
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)
    assert names_of(muon, model) == {"layers.0.linear.weight"}
    assert "layers.0.router.weight" in names_of(adamw, model)
    assert {group["lr"] for group in muon.param_groups} == {0.03}
    assert {group["lr"] for group in adamw.param_groups} == {0.01}


def test_a_step_of_muon_is_orthogonal_and_as_long_as_adamws() -> None:
    model = Model()
    optimizer = build_optimizer(model, options(optimizer="muon", muon_lr_scale=1.0, weight_decay=0.0))
    weight = model.get_parameter("layers.0.linear.weight")
    before = weight.detach().clone()
    step(model, optimizer)
    change = weight.detach() - before
    values = torch.linalg.svdvals(change)
    assert values.min() > 0.5 * values.max()  # a plain gradient of so few rows is far from that
    assert 0.1 * 0.01 < change.square().mean().sqrt() < 0.3 * 0.01


def test_scales_apply_by_name() -> None:
    model = Model()
    optimizer = build_optimizer(
        model, options(optimizer="muon"), lambda name: 0.1 if name.startswith("layers") else 1.0
    )
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[model.embed.weight] == 0.01
    assert rates[model.get_parameter("layers.0.router.weight")] == 0.001
    assert rates[model.get_parameter("layers.0.linear.weight")] == 0.002


def test_a_schedule_drives_both_and_a_resumed_run_repeats_an_unbroken_one() -> None:
    def run(n_before: int, n_after: int) -> tuple[Model, list[float]]:
        model = Model()
        made = build_optimizer(model, options(optimizer="muon"))
        schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda n: 1.0 / (1 + n))
        for _ in range(n_before):
            step(model, made)
            schedule.step()
        file = io.BytesIO()
        torch.save([model.state_dict(), made.state_dict(), schedule.state_dict()], file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        resumed = Model()
        resumed.load_state_dict(states[0])
        optimizer = build_optimizer(resumed, options(optimizer="muon"))
        after = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 / (1 + n))
        optimizer.load_state_dict(states[1])
        after.load_state_dict(states[2])
        for _ in range(n_after):
            step(resumed, optimizer)
            after.step()
        assert isinstance(optimizer, JoinedOptimizer)
        return resumed, [part.param_groups[0]["lr"] for part in optimizer.parts]

    broken, rates = run(2, 3)
    unbroken, expected = run(0, 5)
    assert rates == expected == pytest.approx([0.02 / 6, 0.01 / 6])
    for name, parameter in unbroken.named_parameters():
        assert torch.equal(parameter, broken.get_parameter(name)), name
