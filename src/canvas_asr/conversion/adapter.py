"""Import an adapter: from a file of unknown layout to the tensors and fields of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaConfig, WhisperConfig

from canvas_asr.configuration import CanvasASRConfig, text_config
from canvas_asr.errors import CheckpointError, OptionError

from .chain import ACTIVATION_PLACES
from .files import AdapterFile, Value, read_adapter_file
from .lora import SIDES, is_lora, lora_modules, match_lora, unnamed_lora
from .matching import Match, brief
from .projector import is_tap, match_projector, match_tap
from .settings import ImportSettings, resolve

MAX_VALUES_SHOWN = 20


@dataclass(frozen=True)
class ImportedAdapter:
    """An adapter as this package keeps it.

    Attributes:
        fields: Fields of ``CanvasASRConfig``, frozen parts and their configurations apart.
        state: Tensors, float32, named as in ``checkpoint.adapter_state``.
        report: The mapping and the guesses, in lines.
        guesses: Names of the fields that no tensor tells and nobody gave.
    """

    fields: dict[str, Any]
    state: dict[str, Tensor]
    report: str
    guesses: tuple[str, ...]


def import_adapter(
    path: Path,
    backbone_config: DiffusionGemmaConfig,
    audio_encoder_config: WhisperConfig,
    settings: ImportSettings | None = None,
) -> ImportedAdapter:
    """Recognise the tensors of an adapter file by shape, rank and order.

    Args:
        path: A torch file or a safetensors file.
        backbone_config: Geometry of the backbone that it was trained for.
        audio_encoder_config: Geometry of its audio encoder.
        settings: What tensors cannot tell.

    Raises:
        CheckpointError: If the file cannot be read safely, or any of its tensors, or of those needed, has no
            certain place; the message lists them all.
        OptionError: If a setting has an impossible value.
    """
    settings = settings or ImportSettings()
    for key, choices in (("first_side", SIDES), ("activation_after", ACTIVATION_PLACES)):
        if getattr(settings, key) not in (None, *choices):
            raise OptionError(f"{key} is {getattr(settings, key)!r}; choose one of {', '.join(choices)}.")
    file = read_adapter_file(path)
    geometry = text_config(backbone_config)
    modules = lora_modules(backbone_config)
    matrices, rest = _split(file.tensors, is_lora)
    if not matrices:
        names = set(unnamed_lora(rest, len(modules)))
        matrices, rest = _split(rest, lambda name, _: name in names)
    tap, rest = _split(rest, lambda name, _: is_tap(name))
    lora, rank = match_lora(matrices, modules, settings.first_side or SIDES[0])
    projector, shape_fields = match_projector(
        rest,
        d_audio=int(audio_encoder_config.d_model),
        hidden_size=int(geometry.hidden_size),
        activation_after=settings.activation_after,
    )
    matches = [projector, match_tap(tap, int(geometry.hidden_size)), lora]
    _refuse_problems(file, matches)
    fields, origins = resolve(
        settings,
        file.values,
        rank=rank,
        kind=shape_fields["projector_kind"],
        pad_token_id=geometry.pad_token_id,
    )
    fields = {**shape_fields, "lora_rank": rank, **fields}
    config = _check_fields(path, fields, backbone_config, audio_encoder_config)
    state = _state(file, matches)
    guesses = tuple(name for name, origin in origins.items() if origin == "guess")
    return ImportedAdapter(fields, state, _report(file, matches, config, origins, state), guesses)


def _split(
    tensors: Mapping[str, Tensor], chosen: Callable[[str, Tensor], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide tensors into the chosen and the rest, both in order."""
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, tensor in tensors.items():
        parts[0 if chosen(name, tensor) else 1][name] = tensor
    return parts


def _refuse_problems(file: AdapterFile, matches: list[Match]) -> None:
    """Raise one error that lists every tensor without a certain place."""
    for match in matches:
        unusable = [p.source for p in match.placed if not file.tensors[p.source].is_floating_point()]
        if unusable:
            match.refuse(unusable, "not of floating point")
    problems = [
        f"{', '.join(brief(names))} ({reason})"
        for match in matches
        for reason, names in match.problems.items()
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{file.path}: not imported, as these tensors have no certain place: {'; '.join(problems)}. "
            "Check that backbone and audio encoder are those that the adapter was trained with."
        )


def _check_fields(
    path: Path, fields: dict[str, Any], backbone: DiffusionGemmaConfig, audio_encoder: WhisperConfig
) -> CanvasASRConfig:
    try:
        config = CanvasASRConfig(
            backbone_config=copy.deepcopy(backbone),
            audio_encoder_config=copy.deepcopy(audio_encoder),
            **fields,
        )
    except (TypeError, ValueError) as error:
        raise OptionError(f"{path}: {error}") from error
    if not isinstance(fields["lora_alpha"], int) or fields["lora_alpha"] < 1:
        raise OptionError(f"lora_alpha is {fields['lora_alpha']!r}; give a whole number of at least 1.")
    return config


def _state(file: AdapterFile, matches: list[Match]) -> dict[str, Tensor]:
    """Copies, float32: the file's own may be mapped, and may share memory."""
    state = {}
    for match in matches:
        for placed in match.placed:
            tensor = file.tensors[placed.source].detach()
            state[placed.target] = tensor.to(torch.float32, copy=True).reshape(placed.shape).contiguous()
        for target, (shape, value) in match.filled.items():
            state[target] = torch.full(shape, value)
    return state


def _report(
    file: AdapterFile,
    matches: list[Match],
    config: CanvasASRConfig,
    origins: Mapping[str, str],
    state: Mapping[str, Tensor],
) -> str:
    """Say in lines what was found where, and what was guessed."""
    n_values = sum(tensor.numel() for tensor in file.tensors.values())
    lines = [
        f"{file.path}: {len(file.tensors)} tensors, {n_values:,} numbers",
        f"projector: {config.projector_described}, {config.projector_stride} frames per audio token; "
        f"LoRA: rank {config.lora_rank}",
    ]
    for match in matches:
        # Sources and targets whose layers run alike are told in one line.
        pairs = [f"{p.source} {p.shape} -> {p.target}" for p in match.placed]
        lines += [f"  {line}" for line in _brief_pairs(pairs)]
    lines += [note for match in matches for note in match.notes]
    if _same_sides(state):
        lines.append("LoRA: encoder and decoder have the same matrices; they may have been tied by mistake")
    lines.append("what the tensors do not tell:")
    lines += [f"  {name} = {getattr(config, name)!r} ({origin})" for name, origin in origins.items()]
    if file.values:
        lines.append(f"also in the file: {_shown(file.values)}")
    return "\n".join(lines)


def _brief_pairs(pairs: list[str]) -> list[str]:
    """Join lines ``source shape -> target`` that differ in the layer's number alone."""
    groups: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        source, _, target = pair.partition(" -> ")
        layer = next((part for part in target.split(".") if part.isdigit()), "")
        # The number must be the same on both sides, or the two cannot be told together.
        alike = layer and f".{layer}." in source
        key = (source.replace(f".{layer}.", ".{}.", 1), target.replace(f".{layer}.", ".{}.", 1))
        groups.setdefault(key if alike else (source, target), []).append(layer if alike else "")
    lines = []
    for (source, target), layers in groups.items():
        told = brief(layers)[0] if layers[0] else ""
        lines.append(f"{source.replace('{}', told)} -> {target.replace('{}', told)}")
    return lines


def _same_sides(state: Mapping[str, Tensor]) -> bool:
    encoder = {name: tensor for name, tensor in state.items() if ".encoder.language_model." in name}
    return bool(encoder) and all(
        torch.equal(tensor, state[name.replace(".encoder.language_model.", ".decoder.")])
        for name, tensor in encoder.items()
    )


def _shown(values: Mapping[str, Value]) -> str:
    shown = [f"{name} = {str(value)[:60]!r}" for name, value in [*values.items()][:MAX_VALUES_SHOWN]]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
