"""Optimisers of the stages: AdamW, or Muon for the matrices of hidden layers beside AdamW for the rest.

Muon orthogonalises the momentum of a matrix before each step (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). Small models that learn to read their prompt from random weights
need about a third of AdamW's steps with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from .recipe import MUON, TrainingOptions


class JoinedOptimizer(Optimizer):
    """Several optimisers over disjoint parameters that step, save and load as one."""

    def __init__(self, parts: list[Optimizer]) -> None:
        """Join.

        Args:
            parts: The optimisers; their parameter groups are shared, not copied, so that one learning-rate
                schedule drives all.
        """
        self.parts = parts
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every part; ``closure`` is not used."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Give the parts' states in order, under ``parts``."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether Muon applies: not to embeddings, heads, LoRA, routers or stacked experts."""
    apart = any(word in name for word in ("lora_", "router"))
    return parameter.ndim == 2 and ".layers." in f".{name}" and not apart


def build_optimizer(
    module: nn.Module, options: TrainingOptions, scale_of: Callable[[str], float] | None = None
) -> Optimizer:
    """Make the optimiser of a run.

    Args:
        module: Its parameters that require gradients are trained; weight decay applies to matrices.
        options: Optimiser, learning rate and weight decay.
        scale_of: Factor on the learning rate by parameter name; None: 1 for all.

    Returns:
        The optimiser.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            by_muon = options.optimizer == MUON and _is_hidden_matrix(name, parameter)
            scale = (scale_of(name) if scale_of else 1.0) * (options.muon_lr_scale if by_muon else 1.0)
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
            groups[by_muon, options.learning_rate * scale, decay].append(parameter)
    muon, adamw = (
        [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (by_muon, rate, decay), parameters in groups.items()
            if by_muon is wanted
        ]
        for wanted in (True, False)
    )
    parts: list[Optimizer] = []
    if muon:
        parts.append(Muon(muon, lr=options.learning_rate, adjust_lr_fn="match_rms_adamw"))
    if adamw:
        parts.append(AdamW(adamw, lr=options.learning_rate, fused=True))
    return parts[0] if len(parts) == 1 else JoinedOptimizer(parts)
