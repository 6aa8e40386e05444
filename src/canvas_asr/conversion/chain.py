"""Recognise a projector that is a chain: linear maps, stride-2 convolutions and LayerNorms, in any order.

The released adapter may be one: the beginning of its ``model.py`` states an inner width of 1280 and a stride
of 8, and its card about 19 M parameters. At that width three convolutions and a linear map have 16.4 M; with
a linear map in front, 19.3 M; where the last of three convolutions leads to the backbone, 18.7 M.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import Any

from .layers import FileLayer, names_of, place_layer
from .matching import Match, natural_key

KERNEL = 3
# Where activations stand, which no tensor tells; the first is the guess.
ACTIVATION_PLACES = {
    "maps": "after every linear map and convolution but the last",
    "norms": "after every linear map and convolution but the last, behind a LayerNorm that follows it",
    "convs": "after every convolution, unless it is the last layer but for LayerNorms",
}
MAX_LINEAR = 5
Order = tuple[FileLayer, ...]


def match_chain(
    layers: Sequence[FileLayer],
    match: Match,
    *,
    d_audio: int,
    hidden_size: int,
    activation_after: str | None = None,
) -> dict[str, Any]:
    """Find the order in which layers join, and place them.

    Args:
        layers: Of the file, in its order.
        match: Takes places, problems and notes.
        d_audio: Width that the first layer takes.
        hidden_size: Width that the last gives.
        activation_after: Of ``ACTIVATION_PLACES``; None guesses.

    Returns:
        The fields ``projector_kind`` and ``projector_layers``; empty if the layers are refused.
    """
    unknown = [layer for layer in layers if len(layer.shape) == 3 and layer.shape[2] != KERNEL]
    for layer in unknown:
        match.refuse(layer.names, f"shape {layer.shape}: a convolution that is not over {KERNEL} frames")
    order = None if unknown else _order(layers, match, d_audio, hidden_size)
    if order is None:
        return {}
    for index, layer in enumerate(order):
        place_layer(match, f"projector.layers.{index}", layer)
    n_convs = sum(_kind(layer) == "conv" for layer in order)
    match.notes.append(
        f"projector: each convolution taken to have stride 2 and padding 1 (guess): {2**n_convs}×"
    )
    return {"projector_kind": "chain", "projector_layers": _texts(order, match, activation_after)}


def _kind(layer: FileLayer) -> str:
    return ("norm", "linear", "conv")[len(layer.shape) - 1]


def _n_in(layer: FileLayer) -> int:
    """Width that a layer takes."""
    return layer.shape[0] if len(layer.shape) == 1 else layer.shape[1]


def _order(layers: Sequence[FileLayer], match: Match, d_audio: int, hidden_size: int) -> Order | None:
    """The order of the file or of its numbers, else the natural one of named layers; None if refused."""
    file = tuple(layers)
    fitting = [order for order in {file, _renumbered(file)} if not _breaks(order, d_audio, hidden_size)]
    if len(fitting) > 1:
        match.refuse(names_of(file), "ambiguous: their order in the file is not that of their names")
        return None
    numbered = _numbers(file)
    if fitting and (numbered or not _has_norms_in_a_row(fitting[0])):
        if not numbered:
            match.notes.append(f"projector: order of the layers as in the file (guess): {_told(fitting[0])}")
        return fitting[0]
    natural = [] if numbered else _natural_orders(file, d_audio, hidden_size)
    if len(natural) == 1:
        match.notes.append(f"projector: the natural order of the layers (guess): {_told(natural[0])}")
        return natural[0]
    if natural or fitting:
        match.refuse(names_of(file), "ambiguous: they join to a projector in more than one order")
        return None
    for names, reason in _breaks(_renumbered(file), d_audio, hidden_size):
        match.refuse(names, reason)
    return None


def _told(order: Order) -> str:
    return ", ".join(layer.weight.removesuffix(".weight") for layer in order)


def _numbers(layers: Sequence[FileLayer]) -> list[int]:
    """Numbers of the layers if all are of one ``Sequential``."""
    parts = [layer.weight.removesuffix(".weight").rpartition(".") for layer in layers]
    is_sequential = len({stem for stem, _, _ in parts}) == 1 and all(end.isdecimal() for _, _, end in parts)
    return [int(end) for _, _, end in parts] if is_sequential else []


def _renumbered(layers: Order) -> Order:
    """Layers whose names differ in numbers alone, put into the order of these, in the places they take."""
    groups: dict[str, list[FileLayer]] = {}
    for layer in layers:
        groups.setdefault(re.sub(r"\d+", "#", layer.weight), []).append(layer)
    following = {
        stem: iter(sorted(group, key=lambda layer: natural_key(layer.weight)))
        for stem, group in groups.items()
    }
    return tuple(next(following[re.sub(r"\d+", "#", layer.weight)]) for layer in layers)


def _breaks(order: Order, d_audio: int, hidden_size: int) -> list[tuple[list[str], str]]:
    """Tensors between which widths do not join, and why."""
    breaks: list[tuple[list[str], str]] = []
    first, last = order[0], order[-1]
    if _n_in(first) != d_audio:
        breaks.append(
            ([first.weight], f"shape {first.shape}: the first layer has to take frames of width {d_audio}")
        )
    for before, after in pairwise(order):
        if before.shape[0] != _n_in(after):
            reason = f"widths do not join: {before.shape[0]} is given and {_n_in(after)} is taken"
            breaks.append(([before.weight, after.weight], reason))
    if last.shape[0] != hidden_size:
        reason = f"shape {last.shape}: the last layer has to give the backbone's width {hidden_size}"
        breaks.append(([last.weight], reason))
    return breaks


def _has_norms_in_a_row(order: Order) -> bool:
    """Whether LayerNorms follow each other: an order that no projector has, but sorted names may have."""
    return any(_kind(before) == _kind(after) == "norm" for before, after in pairwise(order))


def _natural_orders(layers: Order, d_audio: int, hidden_size: int) -> list[Order]:
    """Orders that join: linear maps in, convolutions by number, linear maps out, and LayerNorms between."""
    convs = [layer for layer in _renumbered(layers) if _kind(layer) == "conv"]
    linear = [layer for layer in layers if _kind(layer) == "linear"]
    norms = [layer for layer in layers if _kind(layer) == "norm"]
    if len(linear) > MAX_LINEAR:
        return []
    orders = {
        (*some[:n_before], *convs, *some[n_before:])
        for some in permutations(linear)
        for n_before in range(len(some) + 1)
    }
    skeletons = [order for order in orders if order and not _breaks(order, d_audio, hidden_size)]
    if len(skeletons) != 1:
        return skeletons
    return _with_norms(skeletons[0], norms, d_audio)


def _with_norms(order: Order, norms: Sequence[FileLayer], d_audio: int) -> list[Order]:
    """Put LayerNorms behind the convolutions of their numbers, or where their width is.

    Returns:
        No order if one of them fits nowhere, more than one if their places are not certain.
    """
    convs = [layer for layer in order if _kind(layer) == "conv"]
    by_number = {_number(layer): layer for layer in convs if _number(layer)} if len(norms) > 1 else {}
    behind: dict[FileLayer | None, list[FileLayer]] = {}
    for norm in norms:
        ends: list[FileLayer | None] = [x for x in order if x.shape[0] == norm.shape[0]]
        own = by_number.get(_number(norm))
        # Behind the convolution of its number, else the last one, else at the end, else in front of all.
        places = [place for place in (own, *convs[-1:], *reversed(ends)) if place in ends]
        places += [None] if norm.shape[0] == d_audio else []
        if not places:
            return []
        behind.setdefault(places[0], []).append(norm)
    slots: list[FileLayer | None] = [None, *order]
    ways = (1, -1) if any(len(same) > 1 for same in behind.values()) else (1,)
    return [
        tuple(x for slot in slots for x in (slot, *behind.get(slot, [])[::way]) if x is not None)
        for way in ways
    ]


def _number(layer: FileLayer) -> str:
    """Last number of a layer's name; empty if it has none."""
    numbers = re.findall(r"\d+", layer.weight)
    return numbers[-1] if numbers else ""


def _texts(order: Order, match: Match, activation_after: str | None) -> list[str]:
    """Layers as the configuration has them, with activations where they are said or guessed to be."""
    kinds = [_kind(layer) for layer in order]
    maps = [index for index, kind in enumerate(kinds) if kind != "norm"]
    steps = enumerate(pairwise(_numbers(order)))
    gaps = [index for index, (a, b) in steps if b > a + 1 and maps[0] <= index < maps[-1]]
    if activation_after is None and gaps:
        places, told = gaps, "where the numbers of the layers leave room (guess)"
    else:
        place = activation_after or next(iter(ACTIVATION_PLACES))
        places = [i for i in maps[:-1] if place != "convs" or kinds[i] == "conv"]
        if place == "norms":
            places = [i + 1 if kinds[i + 1] == "norm" else i for i in places]
        told = f"{ACTIVATION_PLACES[place]} ({'given' if activation_after else 'guess'})"
    match.notes.append(f"projector: activations {told}")
    texts = []
    for index, layer in enumerate(order):
        texts.append("norm" if kinds[index] == "norm" else f"{kinds[index]} {layer.shape[0]}")
        texts += ["activation"] if index in places else []
    return texts
