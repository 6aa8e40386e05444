"""Products with the weights of a layer, by oneDNN where it is faster than what PyTorch takes on its own.

For float32 on an x86 CPU PyTorch calls MKL, which on AMD's processors computes a tenth to a fifth slower, and
it writes a bias to all of the output first. oneDNN comes with PyTorch; it makes a kernel for every shape,
once, in about half a millisecond.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor, nn

# Fewer rows save less than a kernel takes to be made, which is lost where every clip has another length: of a
# layer of some hundred outputs, and of the vocabulary's thousands.
MIN_ROWS = 512
MIN_VOCABULARY_ROWS = 64
# oneDNN copies the weights into an order of its own for each product.
MAX_WEIGHTS = 1 << 26


@cache
def _has_onednn() -> bool:
    is_built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_built and is_x86 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, min_rows: int = 1) -> Tensor:
    """Multiply as ``torch.nn.functional.linear`` does, up to rounding.

    Args:
        x: (..., D).
        weight: (N, D).
        bias: (N,); None: none.
        min_rows: Of x, at least 1; with fewer PyTorch's own product is taken.

    Returns:
        (..., N).
    """
    if (
        not torch.compiler.is_compiling()  # which chooses for itself
        and x.numel() >= min_rows * x.shape[-1]
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)  # and not a quantised one
        and weight.numel() <= MAX_WEIGHTS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    ):
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return output
    return nn.functional.linear(x, weight, bias)


class RowsLinear(nn.Linear):
    """A linear layer for many rows at once."""

    min_rows = MIN_ROWS

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., N)."""
        return product(x, self.weight, self.bias, min_rows=self.min_rows)


class VocabularyLinear(RowsLinear):
    """An output layer."""

    min_rows = MIN_VOCABULARY_ROWS


def quicken_linears(module: nn.Module) -> None:
    """Let linear layers with a bias be :class:`RowsLinear`, in place; what trains goes on as it began."""
    for layer in module.modules():
        if type(layer) is nn.Linear and layer.bias is not None:
            layer.__class__ = RowsLinear
