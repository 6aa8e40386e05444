"""Write an imported adapter as a checkpoint folder of this package, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from canvas_asr.checkpoint import write_adapter
from canvas_asr.configuration import CanvasASRConfig, load_configuration
from canvas_asr.errors import CheckpointError, OptionError
from canvas_asr.hub import DEFAULT_ACCESS, HubAccess
from canvas_asr.parts import OtherParts, find_part
from canvas_asr.processing import CanvasASRProcessor, processor_of_parts

from .adapter import ImportedAdapter
from .model import import_model
from .settings import ImportSettings, unknown_tokens


def convert(
    file: Path,
    out: Path,
    settings: ImportSettings | None = None,
    *,
    others: OtherParts = OtherParts(),  # noqa: B008 - frozen
    tokenizer: str | None = None,
    access: HubAccess = DEFAULT_ACCESS,
    overwrite: bool = False,
) -> ImportedAdapter:
    """Convert an adapter file; the weights of its frozen parts are not needed.

    Args:
        file: The adapter.
        out: Folder to write.
        settings: What tensors cannot tell.
        others: The frozen parts, which the checkpoint then names, where they are not the published ones; the
            audio encoder's feature extractor lies beside it.
        tokenizer: Folder or hub name of the backbone's tokenizer; None: with the backbone.
        access: To the hub.
        overwrite: Replace an adapter that lies at ``out``.

    Returns:
        What was imported.

    Raises:
        CheckpointError: If something cannot be read, does not fit, or would be overwritten.
        OptionError: If a setting is impossible, or the prompt needs tokens that the tokenizer lacks.
    """
    out = out.resolve()
    _check_free(out, overwrite)
    found = import_model(file, others, access, settings)
    words = found.backbone if tokenizer is None else find_part(tokenizer, None)
    processor = processor_of_parts(words, found.audio_encoder, found.config, access)
    _check_prompt(processor, found.config)
    _write(out, found.config, processor, found.adapter)
    return found.adapter


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse to replace anything but, if asked, the files of an adapter."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{out}: exists; give another folder, or --overwrite to replace an adapter.")
    load_configuration(out)
    if folders := sorted(path.name for path in out.iterdir() if path.is_dir()):
        raise CheckpointError(
            f"{out}: holds the folder {folders[0]!r} and is more than an adapter; give another folder."
        )


def _check_prompt(processor: CanvasASRProcessor, config: CanvasASRConfig) -> None:
    """Refuse a prompt that the tokenizer would spell in pieces."""
    for option in ("prompt_prefix", "prompt_suffix"):
        if unknown := unknown_tokens(processor, getattr(config, option)):
            raise OptionError(
                f"{option} {getattr(config, option)!r} names {unknown[0]}, which is no token of this "
                f"tokenizer; give --{option.replace('_', '-')}."
            )


def _write(
    out: Path, config: CanvasASRConfig, processor: CanvasASRProcessor, imported: ImportedAdapter
) -> None:
    """Write beside ``out``, then move there in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("partial", "old"))
    partial.mkdir()
    try:
        write_adapter(partial, config, processor, imported.state)
        if out.exists():
            out.rename(old)
        partial.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
