"""From a name to a loaded model: the embedded one, a folder, one on the hub, or a released file."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoint import build_model, load_checkpoint
from .configuration import CanvasASRConfig
from .errors import CheckpointError, OptionError
from .hub import MODEL_TYPE, RELEASED_SUFFIXES, HubAccess, model_folder, model_type, released_file
from .modeling import CanvasASRModel
from .parts import NAMED_MAPS, LoadOptions
from .processing import CanvasASRProcessor, processor_of_parts

logger = logging.getLogger(__name__)


def find_device(device: Any, option: str = "device") -> torch.device:
    """Find a device that works.

    Args:
        device: As PyTorch takes it; None takes the GPU if there is one.
        option: What an error calls it.

    Raises:
        OptionError: If it does not exist here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).tolist()  # a device may have a name and yet not be there
        return torch.device(device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise OptionError(f"{option} is {str(device)!r}, which is not usable here; use 'cpu'.") from error


def check_one_gpu(devices: Collection[torch.device]) -> None:
    """Refuse to record the passes of a model that is not on one CUDA device.

    Raises:
        OptionError: Naming where it is.
    """
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        places = ", ".join(sorted(map(str, devices)))
        raise OptionError(
            f"cuda_graphs: needs the whole model on one CUDA GPU, and it is on {places}; leave it out."
        )


def load_model(
    model: str | os.PathLike[str],
    options: LoadOptions,
    *,
    config: CanvasASRConfig | None = None,
) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Load a model by whatever names it.

    Args:
        model: ``tiny``, a folder, ``owner/name``, or a released adapter file.
        options: Of the load.
        config: In place of the checkpoint's.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        CheckpointError: If something is missing, damaged or does not fit; what to do is said.
    """
    _check_map(options.device_map)
    place = find_model(model, options.access)
    if place.is_file():
        return _load_released(place, options)
    return load_checkpoint(place, options=options, config=config)


def _check_map(device_map: Any) -> None:
    """Refuse a device map that names a device which is not here.

    Raises:
        OptionError: Naming it.
    """
    if device_map is None or device_map in NAMED_MAPS:
        return
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for place in {str(place): place for place in places}.values():
        if place != "disk":  # refused once it is known to be used
            find_device(place, "device_map")


def find_model(model: str | os.PathLike[str], access: HubAccess) -> Path:
    """Find what a name stands for: the folder of a checkpoint, or a released adapter file.

    Args:
        model: See :func:`load_model`.
        access: To the hub.

    Raises:
        CheckpointError: If there is no such model, or it cannot be had.
    """
    if is_released_file(model):
        return Path(model)
    folder = model_folder(model, access)
    return released_file(folder) or folder


def is_released_file(model: str | os.PathLike[str]) -> bool:
    """Whether a path is that of an adapter file of some other program.

    Raises:
        CheckpointError: If it is part of a checkpoint of ours, which is loaded by its folder.
    """
    path = Path(model)
    if not path.is_file() or path.suffix not in RELEASED_SUFFIXES:
        return False
    if model_type(path.parent) == MODEL_TYPE:
        raise CheckpointError(f"{path}: is part of a checkpoint; give its folder, {path.parent}.")
    return True


def _load_released(file: Path, options: LoadOptions) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Import a released adapter file onto its frozen parts, and say what had to be guessed.

    Raises:
        CheckpointError: If a tensor has no certain place, or a part cannot be loaded.
    """
    from .conversion.model import import_model  # builds on this package's checkpoints
    from .conversion.settings import unknown_tokens

    found = import_model(file, options.others, options.access)
    config, adapter = found.config, found.adapter
    logger.info("%s", adapter.report)
    if adapter.guesses:
        logger.warning(
            "%s does not say %s: these are guesses, which `canvas-asr convert` shows and can score.",
            file.name,
            ", ".join(adapter.guesses),
        )
    processor = processor_of_parts(found.backbone, found.audio_encoder, config, options.access)
    if unknown := unknown_tokens(processor, config.prompt_prefix, config.prompt_suffix):
        logger.warning(
            "%s: the prompt that is guessed names %s, which the tokenizer of %s does not have and spells in "
            "pieces; `canvas-asr convert` takes another as --prompt-prefix and --prompt-suffix.",
            file.name,
            ", ".join(dict.fromkeys(unknown)),
            config.backbone,
        )
    model = build_model(config, adapter.state, file, found.backbone, found.audio_encoder, options)
    model.processor = processor
    return model, processor
