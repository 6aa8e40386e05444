"""Recognise LoRA matrices by name, or by shape and order, against the modules that the backbone has.

Layers of full attention have no v_proj, so the expected set comes from the backbone's configuration.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from canvas_asr.backbone import inject_lora

from .matching import Match, Placed

_PROJECTION = re.compile(r"(?<![a-z])([qkvo])_proj(?![a-z])")
# Not that of audio or vision, which carry no LoRA here.
_SIDE = re.compile(r"(?<!audio[_.])(?<!whisper[_.])(?<!vision[_.])(?<![a-z])(encoder|decoder)(?![a-z])")
_ROLE = re.compile(r"(?:lora[_.]?|[._])(?:([ab])|(down)|(up))(?=\.|_?weight|$)", re.IGNORECASE)
_ELSEWHERE = re.compile(r"(?<![a-z])(projector|convs?\d*|ctc|tap)(?![a-z])")
SIDES = ("encoder", "decoder")


@dataclass(frozen=True)
class LoraModule:
    """A projection of the backbone that carries LoRA.

    Attributes:
        name: Of the module in the backbone.
        side: ``encoder`` or ``decoder``.
        layer: Number of the layer.
        projection: ``q``, ``k``, ``v`` or ``o``.
        n_in: Width of its input.
        n_out: Width of its output.
    """

    name: str
    side: str
    layer: int
    projection: str
    n_in: int
    n_out: int

    def shape(self, role: str, rank: int) -> tuple[int, int]:
        """Shape of its matrix A (down to the rank) or B (up from it)."""
        return (rank, self.n_in) if role == "A" else (self.n_out, rank)

    def target(self, role: str) -> str:
        """Name of its matrix in an adapter."""
        return f"backbone.{self.name}.lora_{role}.weight"


def lora_modules(config: DiffusionGemmaConfig) -> list[LoraModule]:
    """List the projections that carry LoRA, in module order, from a backbone that exists in name only."""
    with torch.device("meta"):
        # A copy: a parent configuration resets the attention implementation of those it is given.
        backbone = DiffusionGemmaForBlockDiffusion(copy.deepcopy(config))
        inject_lora(backbone, 1, 1)
    widths: dict[str, dict[str, int]] = {}
    for name, parameter in backbone.named_parameters():
        module, dot, rest = name.partition(".lora_")
        if dot:
            widths.setdefault(module, {})[rest[0]] = max(parameter.shape)
    modules = []
    for name, width in widths.items():
        projection = _PROJECTION.search(name)
        side, layer = _SIDE.search(name), re.search(r"layers\.(\d+)\.", name)
        if not (projection and side and layer):
            raise ValueError(f"module {name!r} of the backbone has LoRA and an unknown name.")
        modules.append(LoraModule(name, side[1], int(layer[1]), projection[1], width["A"], width["B"]))
    return modules


def is_lora(name: str, tensor: Tensor) -> bool:
    """Whether a tensor's name says that it is a LoRA matrix."""
    if tensor.dim() != 2 or _ELSEWHERE.search(name):
        return False
    return "lora" in name.lower() or bool(_PROJECTION.search(name))


def unnamed_lora(tensors: Mapping[str, Tensor], n_modules: int) -> list[str]:
    """Find a list of LoRA matrices whose names say nothing: two per module, all with one side of one size.

    Args:
        tensors: Those not recognised by name.
        n_modules: Projections that carry LoRA.

    Returns:
        Their names; none if no size, or more than one, is shared by exactly so many.
    """
    by_rank: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            by_rank.setdefault(min(tensor.shape), []).append(name)
    found = [names for names in by_rank.values() if len(names) == 2 * n_modules]
    return found[0] if len(found) == 1 else []


def match_lora(
    tensors: Mapping[str, Tensor], modules: Sequence[LoraModule], first_side: str
) -> tuple[Match, int]:
    """Give every LoRA matrix its place.

    Args:
        tensors: The matrices, in the order of the file.
        modules: The backbone's, in module order.
        first_side: Whose matrices come first in a list that names no sides.

    Returns:
        The match, and the rank.
    """
    match = Match()
    rank = _rank(tensors)
    named = {name: tensor for name, tensor in tensors.items() if _PROJECTION.search(name)}
    found: dict[str, list[str]] = {}
    shapes = {module.target(role): module.shape(role, rank) for module in modules for role in "AB"}
    _place_named(named, modules, rank, found, match)
    listed = {name: tensor for name, tensor in tensors.items() if name not in named}
    if listed and named:
        match.refuse(listed, "LoRA of no attention projection")
    elif listed:
        in_order = sorted(modules, key=lambda module: module.side != first_side)
        _place_listed(listed, in_order, rank, found, match)
    for target, sources in found.items():
        if len(sources) > 1:
            match.refuse(sources, f"ambiguous: more than one for {target}")
            continue
        shape = tuple(tensors[sources[0]].shape)
        if shape != shapes[target]:
            match.refuse(sources, f"shape {shape} where {shapes[target]} is needed")
        else:
            match.placed.append(Placed(target, sources[0], shape))
    match.refuse((target for target in shapes if target not in found), "missing from the file")
    return match, rank


def _rank(tensors: Mapping[str, Tensor]) -> int:
    """The size that most matrices share as their smaller side."""
    sizes = Counter(min(tensor.shape) for tensor in tensors.values())
    return sizes.most_common(1)[0][0] if sizes else 1


def _place_named(
    tensors: Mapping[str, Tensor],
    modules: Sequence[LoraModule],
    rank: int,
    found: dict[str, list[str]],
    match: Match,
) -> None:
    """Place matrices whose names tell side, layer and projection."""
    known = {(module.side, module.layer, module.projection): module for module in modules}
    for name, tensor in tensors.items():
        projection = [*_PROJECTION.finditer(name)][-1]
        before = name[: projection.start()]
        numbers, sides = re.findall(r"\d+", before), set(_SIDE.findall(before))
        if not numbers or len(sides) != 1:
            match.refuse([name], "the name does not tell the layer and the side (encoder or decoder)")
            continue
        module = known.get((sides.pop(), int(numbers[-1]), projection[1]))
        role = _role(name[projection.end() :], tensor, rank)
        if module is None:
            match.refuse([name], "the backbone has no such projection")
        elif not role:
            match.refuse([name], "ambiguous: neither its name nor its shape tells LoRA's A from B")
        else:
            found.setdefault(module.target(role), []).append(name)


def _place_listed(
    tensors: Mapping[str, Tensor],
    modules: Sequence[LoraModule],
    rank: int,
    found: dict[str, list[str]],
    match: Match,
) -> None:
    """Place matrices that come as a list, in module order."""
    roles: dict[str, list[str]] = {"A": [], "B": [], "": []}
    for name, tensor in tensors.items():
        roles[_role(name, tensor, rank)].append(name)
    if roles[""]:
        match.refuse(roles[""], "ambiguous: neither its name nor its shape tells LoRA's A from B")
    elif not len(roles["A"]) == len(roles["B"]) == len(modules):
        match.refuse(
            tensors,
            f"a list of {len(roles['A'])} A and {len(roles['B'])} B matrices, where the backbone has "
            f"{len(modules)} projections",
        )
    else:
        for role in "AB":
            for module, name in zip(modules, roles[role], strict=True):
                found.setdefault(module.target(role), []).append(name)
        match.notes.append(
            f"LoRA comes as a list without names: taken in module order, the {modules[0].side} first (guess)"
        )


def _role(name: str, tensor: Tensor, rank: int) -> str:
    """``A``, ``B``, or nothing where neither name nor shape tells."""
    if named := _ROLE.search(name):
        letter, down, _up = named.groups()
        return str(letter).upper() if letter else "A" if down else "B"
    n_rows, n_columns = tensor.shape
    if (n_rows == rank) != (n_columns == rank):
        return "A" if n_rows == rank else "B"
    return ""
