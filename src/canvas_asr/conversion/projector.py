"""Recognise the projector and the CTC tap by shape and order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .matching import Match, Placed, natural_key

_TAP = re.compile(r"(?<![a-z])(ctc|tap)(?![a-z])")
KERNEL = 3


@dataclass(frozen=True)
class _Layer:
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


def match_projector(
    tensors: Mapping[str, Tensor], *, d_audio: int, hidden_size: int
) -> tuple[Match, dict[str, Any]]:
    """Recognise the projector.

    Args:
        tensors: All that are neither LoRA nor CTC tap, in the order of the file.
        d_audio: Width of the audio encoder's frames.
        hidden_size: Width D of the backbone.

    Returns:
        The match, and the fields ``projector_kind``, ``projector_width`` and ``projector_stride``.
    """
    match = Match()
    layers = _layers(tensors, match)
    if not any(len(layer.shape) > 1 for layer in layers):
        _refuse_rest(match, layers)
        match.refuse(["projector"], "missing from the file")
        return match, _fields("conv", 1, 2)
    if any(len(layer.shape) == 3 for layer in layers):
        return match, _match_convolutions(layers, match, d_audio, hidden_size)
    return match, _match_mlp(layers, match, d_audio, hidden_size)


def match_tap(tensors: Mapping[str, Tensor], hidden_size: int) -> Match:
    """Recognise the CTC tap among tensors named so; one that is not there is filled in with an identity."""
    match = Match()
    for name, tensor in tensors.items():
        end = name.rpartition(".")[2]
        if tensor.numel() == 1 and hidden_size > 1:
            match.placed.append(Placed("ctc_tap.scale", name, ()))
        elif tuple(tensor.shape) == (hidden_size,) and end in ("weight", "bias"):
            match.placed.append(Placed(f"ctc_tap.norm.{end}", name, (hidden_size,)))
        else:
            match.refuse(
                [name],
                f"CTC tensor of shape {tuple(tensor.shape)}: here CTC has a LayerNorm, a scale and the "
                "backbone's output layer",
            )
    sources: dict[str, list[str]] = {}
    for placed in match.placed:
        sources.setdefault(placed.target, []).append(placed.source)
    for target, names in sources.items():
        if len(names) > 1:
            match.refuse(names, f"ambiguous: more than one for {target}")
    if sources and "ctc_tap.norm.weight" not in sources:
        match.refuse((p.source for p in match.placed), "a CTC tap without its LayerNorm")
    if not tensors:
        match.notes.append(
            "CTC tap: not in the file; a LayerNorm with gain 1 and scale 1 stands in, so the draft, "
            'init="draft" and CTC scores may be poor'
        )
    for target, shape, value in (
        ("ctc_tap.norm.weight", (hidden_size,), 1.0),
        ("ctc_tap.norm.bias", (hidden_size,), 0.0),
        ("ctc_tap.scale", (), 1.0),
    ):
        if target not in sources:
            match.filled[target] = (shape, value)
    return match


def is_tap(name: str) -> bool:
    """Whether a tensor's name says that it belongs to the CTC tap."""
    return bool(_TAP.search(name))


def _fields(kind: str, width: int, stride: int) -> dict[str, Any]:
    return {"projector_kind": kind, "projector_width": width, "projector_stride": stride}


def _layers(tensors: Mapping[str, Tensor], match: Match) -> list[_Layer]:
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
            _Layer(name, shape, bias, tuple(tensors[bias].shape)) if has_bias else _Layer(name, shape)
        )
        used |= {name, bias} if has_bias else {name}
    match.refuse((name for name in tensors if name not in used), "no place in this model")
    return layers


def _place(match: Match, target: str, layer: _Layer) -> None:
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


def _match_convolutions(
    layers: Sequence[_Layer], match: Match, d_audio: int, hidden_size: int
) -> dict[str, Any]:
    """Stride-2 convolutions of one width, then a linear map to the backbone."""
    convs = [layer for layer in layers if len(layer.shape) == 3]
    width = convs[0].shape[0]
    orders = {tuple(convs), tuple(sorted(convs, key=lambda layer: natural_key(layer.weight)))}
    fitting = [order for order in orders if _is_chain(order, d_audio, width)]
    if not fitting:
        for layer in convs:
            match.refuse(
                layer.names,
                f"shape {layer.shape}: convolutions need ({width}, {d_audio}, {KERNEL}), then "
                f"({width}, {width}, {KERNEL}), for an audio encoder of width {d_audio}",
            )
    elif len(fitting) > 1:
        names = [name for layer in convs for name in layer.names]
        match.refuse(names, "ambiguous: their order in the file is not that of their names")
    else:
        for index, layer in enumerate(fitting[0]):
            _place(match, f"projector.convs.{index}", layer)
    rest = [layer for layer in layers if layer not in convs]
    outs = [layer for layer in rest if layer.shape == (hidden_size, width)]
    _place_out(match, outs, rest, hidden_size, width)
    stride = 2 ** len(convs)
    match.notes.append(f"projector: each convolution taken to have stride 2 and padding 1 (guess): {stride}×")
    return _fields("conv", width, stride)


def _is_chain(convs: Sequence[_Layer], d_audio: int, width: int) -> bool:
    widths = [d_audio] + [width] * len(convs)
    return all(layer.shape == (width, widths[i], KERNEL) for i, layer in enumerate(convs))


def _match_mlp(layers: Sequence[_Layer], match: Match, d_audio: int, hidden_size: int) -> dict[str, Any]:
    """LayerNorm, then two linear maps, the first over stacked frames."""
    maps = [layer for layer in layers if len(layer.shape) == 2]
    pairs = [
        (hidden, out)
        for hidden in maps
        for out in maps
        if hidden is not out
        and hidden.shape[1] % d_audio == 0
        and out.shape == (hidden_size, hidden.shape[0])
    ]
    norms = [layer for layer in layers if layer.shape == (d_audio,)]
    if len(pairs) != 1:
        reason = (
            f"ambiguous: {len(pairs)} pairs of linear maps could be the projector's"
            if pairs
            else f"no two linear maps lead from frames of width {d_audio} to the backbone's {hidden_size}"
        )
        for layer in layers:
            match.refuse(layer.names, f"shape {layer.shape}: {reason}")
        return _fields("stack_mlp", 1, 1)
    hidden, out = pairs[0]
    if len(norms) == 1:
        _place(match, "projector.norm", norms[0])
    else:
        names = [name for layer in norms for name in layer.names] or ["projector.norm"]
        match.refuse(names, "ambiguous LayerNorms" if norms else "missing from the file")
    _place(match, "projector.hidden", hidden)
    _place(match, "projector.out", out)
    rest = [layer for layer in layers if layer not in (hidden, out, *norms)]
    _refuse_rest(match, rest)
    return _fields("stack_mlp", hidden.shape[0], hidden.shape[1] // d_audio)


def _place_out(
    match: Match, outs: Sequence[_Layer], rest: Sequence[_Layer], hidden_size: int, width: int
) -> None:
    """Place the one linear map to the backbone, and refuse what is left."""
    if len(outs) == 1:
        _place(match, "projector.out", outs[0])
    elif outs:
        for layer in outs:
            match.refuse(layer.names, "ambiguous: more than one for projector.out")
    else:
        match.refuse(
            [f"projector.out.weight {(hidden_size, width)}"],
            f"missing from the file: no linear map from {width} to the backbone's width {hidden_size}",
        )
    _refuse_rest(match, [layer for layer in rest if layer not in outs])


def _refuse_rest(match: Match, rest: Sequence[_Layer]) -> None:
    for layer in rest:
        match.refuse(layer.names, f"shape {layer.shape}: no place in this model")
