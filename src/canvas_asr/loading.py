"""From a name to a loaded model: the embedded one, a folder, one on the hub, or a released file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import DiffusionGemmaConfig, WhisperConfig

from .checkpoint import build_model, load_checkpoint
from .configuration import CanvasASRConfig
from .errors import CheckpointError, OptionError
from .hub import MODEL_TYPE, RELEASED_SUFFIXES, HubAccess, model_folder, model_type, released_file
from .modeling import CanvasASRModel
from .parts import LoadOptions, find_part, read_part_config
from .processing import CanvasASRProcessor, processor_of_parts
from .published import AUDIO_ENCODER, BACKBONE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger(__name__)


def find_device(device: str | torch.device | None) -> torch.device:
    """Find a device that works; None takes the GPU if there is one.

    Raises:
        OptionError: If it does not exist here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).tolist()  # a device may have a name and yet not be there
        return torch.device(device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise OptionError(f"device is {str(device)!r}, which is not usable here; use 'cpu'.") from error


def load_options(
    *,
    device: torch.device | None = None,
    dtype: str | torch.dtype,
    device_map: Any = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    cache_dir: str | None = None,
) -> LoadOptions:
    """Check options and put them together.

    Args:
        device: None: the CPU.
        dtype: A type or its name; ``auto``: as the backbone is stored.
        device_map: See :class:`LoadOptions`, as for the others.
        quantization_config: For the backbone.
        attn_implementation: ``sdpa`` or ``eager``.
        revision: Of the adapter.
        token: Of an account on the hub.
        local_files_only: Make no connection.
        cache_dir: Of the hub's files.

    Raises:
        OptionError: If the dtype or the attention implementation is unknown.
    """
    kind = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if kind != "auto" and kind not in DTYPES.values():
        raise OptionError(f"dtype is {str(dtype)!r}; choose one of {', '.join(DTYPES)}.")
    if attn_implementation not in (None, "sdpa", "eager"):  # others take no explicit mask
        raise OptionError(f"attn_implementation is {attn_implementation!r}; choose 'sdpa' or 'eager'.")
    return LoadOptions(
        device=str(device or "cpu"),
        dtype=kind,
        device_map=device_map,
        quantization_config=quantization_config,
        attn_implementation=attn_implementation,
        access=HubAccess(revision, token, local_files_only, cache_dir),
    )


def load_model(
    model: str | os.PathLike[str],
    options: LoadOptions,
    *,
    folder: Path | None = None,
    backbone: str | os.PathLike[str] | None = None,
    audio_encoder: str | os.PathLike[str] | None = None,
    config: CanvasASRConfig | None = None,
) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Load a model by whatever names it.

    Args:
        model: ``tiny``, a folder, ``owner/name``, or a released adapter file.
        options: Of the load.
        folder: Of the model, where it is known already.
        backbone: Folder or hub name, in place of the one that the checkpoint names.
        audio_encoder: The same for the audio encoder.
        config: In place of the checkpoint's.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        CheckpointError: If something is missing, damaged or does not fit; what to do is said.
    """
    names = [None if name is None else os.fspath(name) for name in (backbone, audio_encoder)]
    file = Path(model) if is_released_file(model) else None
    if file is None:
        folder = folder or model_folder(model, options.access)
        file = released_file(folder)
        if file is None:
            return load_checkpoint(
                folder, options=options, backbone=names[0], audio_encoder=names[1], config=config
            )
    return _load_released(file, options, names[0] or BACKBONE, names[1] or AUDIO_ENCODER)


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


def _load_released(
    file: Path, options: LoadOptions, backbone: str, audio_encoder: str
) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Import a released adapter file onto its frozen parts.

    Raises:
        CheckpointError: If a tensor has no certain place, or a part cannot be loaded.
    """
    from .conversion import import_adapter  # builds on this package's checkpoints

    backbone_part, encoder_part = find_part(backbone, None), find_part(audio_encoder, None)
    backbone_config = read_part_config(DiffusionGemmaConfig, backbone_part, options.access)
    encoder_config = read_part_config(WhisperConfig, encoder_part, options.access)
    imported = import_adapter(file, backbone_config, encoder_config)
    logger.info("%s", imported.report)
    if imported.guesses:
        logger.warning(
            "%s does not say %s: these are guesses, which `canvas-asr convert` shows and can score.",
            file.name,
            ", ".join(imported.guesses),
        )
    try:
        config = CanvasASRConfig(
            backbone=backbone,
            audio_encoder=audio_encoder,
            backbone_config=backbone_config,
            audio_encoder_config=encoder_config,
            **imported.fields,
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    processor = processor_of_parts(backbone_part, encoder_part, config, options.access)
    model = build_model(config, imported.state, file, backbone_part, encoder_part, options)
    model.processor = processor
    return model, processor
