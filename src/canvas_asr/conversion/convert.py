"""Write an imported adapter as a checkpoint folder of this package, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, DiffusionGemmaConfig, WhisperConfig, WhisperFeatureExtractor

from canvas_asr.checkpoint import load_configuration, write_adapter
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.errors import CheckpointError, OptionError
from canvas_asr.processing import CanvasASRProcessor

from .adapter import ImportedAdapter, import_adapter
from .settings import ImportSettings, unknown_tokens


def convert(
    file: Path,
    out: Path,
    settings: ImportSettings | None = None,
    *,
    backbone: str,
    audio_encoder: str,
    tokenizer: str | None = None,
    overwrite: bool = False,
) -> ImportedAdapter:
    """Convert an adapter file; the weights of its frozen parts are not needed.

    Args:
        file: The adapter.
        out: Folder to write.
        settings: What tensors cannot tell.
        backbone: Folder or hub name of the backbone, which the checkpoint then names.
        audio_encoder: The same for the audio encoder, its feature extractor beside it.
        tokenizer: Folder or hub name of the backbone's tokenizer; None: with the backbone.
        overwrite: Replace an adapter that lies at ``out``.

    Returns:
        What was imported.

    Raises:
        CheckpointError: If something cannot be read, does not fit, or would be overwritten.
        OptionError: If a setting is impossible, or the prompt needs tokens that the tokenizer lacks.
    """
    out = out.resolve()
    _check_free(out, overwrite)
    backbone, audio_encoder, tokenizer = (
        str(Path(name).resolve()) if Path(name).is_dir() else name
        for name in (backbone, audio_encoder, tokenizer or backbone)
    )
    backbone_config = _load(DiffusionGemmaConfig, backbone)
    encoder_config = _load(WhisperConfig, audio_encoder)
    imported = import_adapter(file, backbone_config, encoder_config, settings)
    processor = CanvasASRProcessor(
        _load(WhisperFeatureExtractor, audio_encoder), _load(AutoTokenizer, tokenizer)
    )
    config = CanvasASRConfig(
        backbone=backbone,
        audio_encoder=audio_encoder,
        backbone_config=backbone_config,
        audio_encoder_config=encoder_config,
        **imported.fields,
    )
    _check_prompt(processor, config)
    _write(out, config, processor, imported)
    return imported


def _load(kind: Any, source: str) -> Any:
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: no {kind.__name__} can be loaded from it ({reason}).") from error


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
    """Refuse a prompt, placeholder or tag that the tokenizer would spell in pieces."""
    for option in ("prompt_prefix", "prompt_suffix", "audio_token"):
        if unknown := unknown_tokens(processor, getattr(config, option)):
            raise OptionError(
                f"{option} {getattr(config, option)!r} names {unknown[0]}, which is no token of this "
                f"tokenizer; give --{option.replace('_', '-')}."
            )
    try:
        processor.token_id(config.audio_token)
        processor.language_ids(config)
    except ValueError as error:
        raise OptionError(f"audio_token or language_tag_place: {error}") from error


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
