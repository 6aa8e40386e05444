"""Layers of a projector in an adapter file: weights joined with their biases, and put into their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .matching import Match, Placed


@dataclass(frozen=True)
class FileLayer:
    """Weight and bias of one layer of the file.

    Attributes:
        weight: Path of the weight.
        shape: Of the weight; a convolution over one frame counts as a linear map.
        bias: Path of the bias; empty if there is none.
        bias_shape: Of the bias.
    """

    weight: str
    shape: tuple[int, ...]
    bias: str = ""
    bias_shape: tuple[int, ...] = ()

    @property
    def names(self) -> list[str]:
        """Paths of its tensors."""
        return [self.weight, self.bias] if self.bias else [self.weight]


def join_layers(tensors: Mapping[str, Tensor], match: Match) -> list[FileLayer]:
    """Join weights with the biases of the same layer; what is neither is refused."""
    layers, used = [], set()
    for name, tensor in tensors.items():
        stem, _, end = name.rpartition(".")
        if end == "bias" or tensor.dim() not in (1, 2, 3):
            continue
        if end != "weight" and tensor.dim() == 1:
            continue
        bias = f"{stem}.bias" if stem else "bias"
        has_bias = end == "weight" and bias in tensors
        shape = tuple(tensor.shape)
        if len(shape) == 3 and shape[2] == 1:
            shape = shape[:2]
        layers.append(
            FileLayer(name, shape, bias, tuple(tensors[bias].shape)) if has_bias else FileLayer(name, shape)
        )
        used |= {name, bias} if has_bias else {name}
    match.refuse((name for name in tensors if name not in used), "no place in this model")
    return layers


def place_layer(match: Match, target: str, layer: FileLayer) -> None:
    """Place a layer as ``target.weight`` and ``target.bias``; a bias that is not there is zero."""
    n_out = layer.shape[0]
    match.placed.append(Placed(f"{target}.weight", layer.weight, layer.shape))
    if not layer.bias:
        match.filled[f"{target}.bias"] = ((n_out,), 0.0)
        match.notes.append(f"{target}: no bias in the file; zero stands in")
    elif layer.bias_shape != (n_out,):
        match.refuse([layer.bias], f"shape {layer.bias_shape} where {(n_out,)} is needed")
    else:
        match.placed.append(Placed(f"{target}.bias", layer.bias, (n_out,)))


def names_of(layers: Iterable[FileLayer]) -> list[str]:
    """Paths of the tensors of several layers."""
    return [name for layer in layers for name in layer.names]
