"""Recognise the projector and the CTC tap by shape and order."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .chain import KERNEL, match_chain
from .layers import FileLayer, join_layers, names_of, place_layer
from .matching import Match, Placed, natural_key

_TAP = re.compile(r"(?<![a-z])(ctc|tap)(?![a-z])")


def match_projector(
    tensors: Mapping[str, Tensor], *, d_audio: int, hidden_size: int, activation_after: str | None = None
) -> tuple[Match, dict[str, Any]]:
    """Recognise the projector.

    Args:
        tensors: All that are neither LoRA nor CTC tap, in the order of the file.
        d_audio: Width of the audio encoder's frames.
        hidden_size: Width D of the backbone.
        activation_after: Where the activations of a chain stand; None guesses.

    Returns:
        The match, and the fields ``projector_*`` that tensors tell.
    """
    match = Match()
    layers = join_layers(tensors, match)
    if not any(len(layer.shape) > 1 for layer in layers):
        _refuse_rest(match, layers)
        match.refuse(["projector"], "missing from the file")
        return match, _fields("conv", 1, 2)
    convs = [layer for layer in layers if len(layer.shape) == 3]
    known, chain = copy.deepcopy(match), copy.deepcopy(match)
    match_known = _match_convolutions if convs else _match_mlp
    fields = match_known(layers, known, d_audio, hidden_size)
    if known.problems == match.problems:
        return known, fields
    chain_fields = match_chain(
        layers, chain, d_audio=d_audio, hidden_size=hidden_size, activation_after=activation_after
    )
    # Where neither fits, the problems told are those of the kind that the layers look like.
    has_norms = any(len(layer.shape) == 1 for layer in layers)
    if chain.problems == match.problems or (convs and (has_norms or not _fitting(convs, d_audio))):
        return chain, chain_fields
    return known, fields


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


def _match_convolutions(
    layers: Sequence[FileLayer], match: Match, d_audio: int, hidden_size: int
) -> dict[str, Any]:
    """Stride-2 convolutions of one width, then a linear map to the backbone."""
    convs = [layer for layer in layers if len(layer.shape) == 3]
    width = convs[0].shape[0]
    fitting = _fitting(convs, d_audio)
    if not fitting:
        for layer in convs:
            match.refuse(
                layer.names,
                f"shape {layer.shape}: convolutions need ({width}, {d_audio}, {KERNEL}), then "
                f"({width}, {width}, {KERNEL}), for an audio encoder of width {d_audio}",
            )
    elif len(fitting) > 1:
        match.refuse(names_of(convs), "ambiguous: their order in the file is not that of their names")
    else:
        for index, layer in enumerate(fitting[0]):
            place_layer(match, f"projector.convs.{index}", layer)
    rest = [layer for layer in layers if layer not in convs]
    outs = [layer for layer in rest if layer.shape == (hidden_size, width)]
    _place_out(match, outs, rest, hidden_size, width)
    stride = 2 ** len(convs)
    match.notes.append(f"projector: each convolution taken to have stride 2 and padding 1 (guess): {stride}×")
    return _fields("conv", width, stride)


def _fitting(convs: Sequence[FileLayer], d_audio: int) -> list[tuple[FileLayer, ...]]:
    """Orders, of the file and of the names, in which convolutions of one width follow each other."""
    width = convs[0].shape[0]
    widths = [d_audio] + [width] * len(convs)
    orders = {tuple(convs), tuple(sorted(convs, key=lambda layer: natural_key(layer.weight)))}
    return [
        order
        for order in orders
        if all(layer.shape == (width, widths[i], KERNEL) for i, layer in enumerate(order))
    ]


def _match_mlp(layers: Sequence[FileLayer], match: Match, d_audio: int, hidden_size: int) -> dict[str, Any]:
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
        place_layer(match, "projector.norm", norms[0])
    else:
        names = names_of(norms) or ["projector.norm"]
        match.refuse(names, "ambiguous LayerNorms" if norms else "missing from the file")
    place_layer(match, "projector.hidden", hidden)
    place_layer(match, "projector.out", out)
    rest = [layer for layer in layers if layer not in (hidden, out, *norms)]
    _refuse_rest(match, rest)
    return _fields("stack_mlp", hidden.shape[0], hidden.shape[1] // d_audio)


def _place_out(
    match: Match, outs: Sequence[FileLayer], rest: Sequence[FileLayer], hidden_size: int, width: int
) -> None:
    """Place the one linear map to the backbone, and refuse what is left."""
    if len(outs) == 1:
        place_layer(match, "projector.out", outs[0])
    elif outs:
        for layer in outs:
            match.refuse(layer.names, "ambiguous: more than one for projector.out")
    else:
        match.refuse(
            [f"projector.out.weight {(hidden_size, width)}"],
            f"missing from the file: no linear map from {width} to the backbone's width {hidden_size}",
        )
    _refuse_rest(match, [layer for layer in rest if layer not in outs])


def _refuse_rest(match: Match, rest: Sequence[FileLayer]) -> None:
    for layer in rest:
        match.refuse(layer.names, f"shape {layer.shape}: no place in this model")
