"""Recipes: YAML files with one stage each, read into frozen dataclasses.

canvas-asr train recipes/tiny/acoustic_frames.yaml
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from canvas_asr.errors import RecipeError

STAGES = ("acoustic", "text", "adapter")
# Falls to zero at max_steps or max_minutes, whichever is nearer: for machines whose speed is not known.
TIMED_COSINE = "timed_cosine"
MUON = "muon"
OPTIMIZERS = ("adamw", MUON)
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "inverse_sqrt",
    "linear",
    "polynomial",
    TIMED_COSINE,
)

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class TrainingOptions:
    """How long, how fast and how carefully a stage trains.

    Attributes:
        max_steps: Optimiser steps in all.
        batch_size: Clips (or sentences) per step, grouped by similar length; of all processes together.
        accumulation_steps: Parts that each process cuts its share of a step into, to hold one at a time.
        gradient_checkpointing: Compute activations again in backward instead of keeping them.
        learning_rate: Peak learning rate.
        optimizer: ``adamw``, or ``muon``: Muon for the matrices of hidden layers, AdamW for the rest.
        muon_lr_scale: Learning rate of Muon's matrices relative to ``learning_rate``, with updates scaled
            to the size of AdamW's.
        warmup_steps: Steps of linear warm-up.
        schedule: Name of the ``transformers`` schedule after warm-up, or ``timed_cosine``.
        weight_decay: On matrices only.
        max_grad_norm: Gradient clipping.
        eval_steps: Steps between evaluations, each of which decodes.
        save_steps: Steps between checkpoints.
        log_steps: Steps between log lines.
        seed: Of order, augmentation, noise and initial weights.
        n_workers: Data-loader processes.
        n_threads: Threads of the training process on a CPU; 0 leaves torch's choice.
        bf16: Train under bfloat16 autocast.
        report_to: Programs beside ``log.jsonl`` that get the figures, by their name in ``transformers``.
        listening_gap: An evaluation warns when another clip's audio makes less difference than this.
        listening_steps: From this step on; 0 never warns.
        max_failed: Share of the clips that may be left out because they cannot be read; above it, stop.
        max_minutes: Stop cleanly, with a checkpoint, after this wall-clock time; 0 sets no limit.
        minutes_before: How much of ``max_minutes`` earlier runs of the same folder used.
    """

    max_steps: int
    batch_size: int
    learning_rate: float
    accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    muon_lr_scale: float = 2.0
    warmup_steps: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    eval_steps: int = 500
    save_steps: int = 500
    log_steps: int = 20
    seed: int = 0
    n_workers: int = 1
    n_threads: int = 0
    bf16: bool = True
    report_to: tuple[str, ...] = ("tensorboard",)
    listening_gap: float = 0.05
    listening_steps: int = 500
    max_failed: float = 0.01
    max_minutes: float = 0.0
    minutes_before: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        positive = ("max_steps", "batch_size", "accumulation_steps", "eval_steps", "save_steps", "log_steps")
        for key in positive:
            if getattr(self, key) < 1:
                raise RecipeError(f"training.{key} is {getattr(self, key)}; it must be at least 1.")
        not_negative = ("warmup_steps", "weight_decay", "max_grad_norm", "seed", "n_workers", "n_threads")
        for key in (*not_negative, "max_minutes", "minutes_before", "listening_steps", "max_failed"):
            if not 0 <= getattr(self, key) < math.inf:
                raise RecipeError(f"training.{key} is {getattr(self, key)}; it must be 0 or more.")
        for key in ("learning_rate", "muon_lr_scale"):
            if not 0 < getattr(self, key) < math.inf:
                raise RecipeError(f"training.{key} is {getattr(self, key)}; it must be above 0.")
        for key, known in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, key) not in known:
                raise RecipeError(
                    f"training.{key} is {getattr(self, key)!r}; choose one of {', '.join(known)}."
                )


@dataclass(frozen=True)
class Recipe:
    """One stage of a recipe.

    Attributes:
        stage: ``acoustic``, ``text`` or ``adapter``.
        output_dir: Folder of the run: checkpoints, ``log.jsonl`` and the trained part.
        options: Settings of the stage, read by the stage itself.
        training: Settings common to all stages.
    """

    stage: str
    output_dir: Path
    training: TrainingOptions
    options: dict[str, Any] = field(default_factory=dict)


def _fits(value: Any, annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    if origin is tuple:
        kinds = [kind for kind in typing.get_args(annotation) if kind is not Ellipsis]
        if not isinstance(value, (list, tuple)):
            return False
        same = len(kinds) == 1
        return (same or len(value) == len(kinds)) and all(
            _fits(item, kinds[0] if same else kinds[i]) for i, item in enumerate(value)
        )
    if origin is not None:
        return isinstance(value, origin)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is Path:
        return isinstance(value, (str, Path))
    return annotation is Any or isinstance(value, annotation)


def from_mapping(cls: type[OptionsT], mapping: Mapping[str, Any], where: str) -> OptionsT:
    """Make a dataclass from a mapping, nested dataclasses included.

    Args:
        cls: A dataclass type.
        mapping: Values by field name.
        where: How an error names the mapping, such as ``recipe.yaml: training``.

    Returns:
        The dataclass.

    Raises:
        RecipeError: For an unknown, missing or mistyped key.
    """
    if not isinstance(mapping, Mapping):
        raise RecipeError(f"{where}: expected keys and values, got {mapping!r}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(mapping) - set(fields), key=str)
    if unknown:
        raise RecipeError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(fields))}.")
    values: dict[str, Any] = {}
    for name, description in fields.items():
        if name not in mapping:
            if (
                description.default is dataclasses.MISSING
                and description.default_factory is dataclasses.MISSING
            ):
                raise RecipeError(f"{where}: key {name!r} is missing.")
            continue
        value, hint = mapping[name], hints[name]
        if dataclasses.is_dataclass(hint):
            value = from_mapping(typing.cast("type[Any]", hint), value, f"{where}.{name}")
        elif not _fits(value, hint):
            kind = str(hint).removeprefix("<class '").removesuffix("'>")
            raise RecipeError(f"{where}: key {name!r} has value {value!r}; expected {kind}.")
        elif hint is Path:
            value = Path(value)
        elif hint is float:
            value = float(value)
        elif typing.get_origin(hint) is tuple:
            value = tuple(value)
        values[name] = value
    return cls(**values)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read one file of a recipe.

    Raises:
        RecipeError: If it is missing, is not UTF-8 or YAML, or holds no keys and values.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe; give the path of a YAML file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 (byte {error.start}); save the recipe as UTF-8.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected keys and values.")
    return content


def _merge(base: Any, changes: Any, path: Path) -> Any:
    """Put the changes of a recipe over its base: mappings key by key, anything else whole.

    Raises:
        RecipeError: If a key with ``+``, whose list is added to the base's, has no list there.
    """
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(key, str) and key.endswith("+"):
            before = merged.get(key[:-1])
            if not (isinstance(before, list) and isinstance(value, list)):
                raise RecipeError(
                    f"{path}: key {key!r} adds a list to the base's {key[:-1]!r}; give a list, to a list."
                )
            merged[key[:-1]] = before + value
        else:
            merged[key] = _merge(merged[key], value, path) if key in merged else value
    return merged


def _with_bases(path: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe over the one that its ``base`` names, a path relative to its own folder.

    Args:
        path: The recipe.
        readers: The recipes whose base it is, the outermost first.

    Raises:
        RecipeError: If a file cannot be read, or a recipe is its own base by whatever way.
    """
    content = _read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise RecipeError(f"{path}: key 'base' is {base!r}; give the path of a recipe.")
    readers = (*readers, path.resolve())
    below = path.parent / base
    if below.resolve() in readers:
        raise RecipeError(f"{path}: base {base!r} is built on this recipe itself; leave one of them out.")
    merged: dict[str, Any] = _merge(_with_bases(below, readers), content, path)
    return merged


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file with ``stage``, ``output_dir``, ``training`` and ``options``; with ``base``, the
            path of another recipe, only what differs from that one. A key with ``+`` behind it, such as
            ``train+``, adds to a list of the base.
        overrides: Values by dotted key (``training.max_steps``) that replace the file's.

    Returns:
        The recipe, ``options`` not yet read by its stage.

    Raises:
        RecipeError: If the file is missing, is not YAML, or a key is unknown, missing or mistyped.
    """
    path = Path(path)
    content = _with_bases(path)
    for dotted, value in (overrides or {}).items():
        *parents, key = dotted.split(".")
        target = content
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise RecipeError(f"{path}: {dotted} cannot be set, {parent!r} is not a mapping.")
        target[key] = value
    recipe = from_mapping(Recipe, content, str(path))
    if recipe.stage not in STAGES:
        raise RecipeError(f"{path}: stage is {recipe.stage!r}; choose one of {', '.join(STAGES)}.")
    return recipe
