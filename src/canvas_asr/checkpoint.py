"""Checkpoints: a folder with the adapter and, where they ship together, its backbone and audio encoder.

    config.json  model.safetensors         configuration and adapter (projector, CTC tap, LoRA)
    tokenizer.json  preprocessor_config.json
    backbone/  audio_encoder/              the frozen parts, when the configuration names them so

Tensors are read from safetensors only; nothing unpickles.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    DiffusionGemmaForBlockDiffusion,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

from .configuration import CanvasASRConfig
from .errors import CheckpointError
from .modeling import CanvasASRModel
from .processing import CanvasASRProcessor

ADAPTER_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.json"
FEATURES_NAME = "preprocessor_config.json"

# A stock Whisper checkpoint holds its encoder under this prefix.
_WHISPER_KEYS = {r"^model\.encoder\.": ""}


# What transformers and its libraries raise for files that they cannot make sense of.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold back the progress bars and advice of transformers: what is wrong is raised, as one sentence."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _cannot_load(source: str | Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())  # some span lines
    kind = f"no key {reason}" if isinstance(error, KeyError) else reason
    return CheckpointError(f"{source}: cannot be loaded ({kind}).")


def _load_part(cls: Any, source: str, **options: Any) -> Any:
    """Load a frozen part and refuse one with missing or misshaped tensors."""
    try:
        with _quietly():
            model, report = cls.from_pretrained(
                source,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the tensor's name
                use_safetensors=True,
                **options,
            )
    except SafetensorError as error:
        raise CheckpointError(f"{source}: its weights are damaged ({error}); fetch them again.") from error
    except (*_UNREADABLE, RuntimeError) as error:
        raise _cannot_load(source, error) from error
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"{source}: tensor {name!r} has shape {tuple(found)}; its config.json says {tuple(expected)}."
        )
    for name in sorted(report["missing_keys"]):
        raise CheckpointError(f"{source}: tensor {name!r} is missing.")
    return model


def _part_source(folder: Path, name: str) -> str:
    """Where a frozen part lies: in a folder of the checkpoint, or where its name says."""
    if (folder / name).is_dir():
        return str(folder / name)
    if "/" not in name:
        raise CheckpointError(
            f"{folder / name}: no such folder; the checkpoint is not whole, fetch it again."
        )
    return name


def _load_tokenizer(source: str | Path, config: CanvasASRConfig) -> PreTrainedTokenizerBase:
    """Load a tokenizer whose ids the backbone has."""
    with _quietly():
        # Given the configuration, transformers does not guess at one from config.json.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source), config=config)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the backbone {config.vocab_size}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer names no eos_token, which ends a text")
    return tokenizer


def assemble(
    backbone: str, audio_encoder: str, tokenizer: str | Path, fields: dict[str, Any]
) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Join pretrained frozen parts with a fresh adapter.

    Args:
        backbone: Folder or hub name of the backbone.
        audio_encoder: Folder or hub name of the audio encoder; its feature extractor lies in the folder, or
            in the one above.
        tokenizer: Folder or hub name of the backbone's tokenizer.
        fields: Further fields of ``CanvasASRConfig``.

    Returns:
        Model, float32, and processor.

    Raises:
        CheckpointError: If a part cannot be loaded.
    """
    frozen = _load_part(DiffusionGemmaForBlockDiffusion, backbone, dtype=torch.float32)
    encoder = _load_part(WhisperEncoder, audio_encoder, dtype=torch.float32, key_mapping=_WHISPER_KEYS)
    config = CanvasASRConfig(
        backbone=backbone,
        audio_encoder=audio_encoder,
        # Copies: a parent configuration resets the attention implementation of those it is given.
        backbone_config=copy.deepcopy(frozen.config),
        audio_encoder_config=copy.deepcopy(encoder.config),
        **fields,
    )
    folder = Path(audio_encoder)
    beside = folder.parent if (folder.parent / "preprocessor_config.json").is_file() else folder
    try:
        extractor = WhisperFeatureExtractor.from_pretrained(str(beside))
        processor = CanvasASRProcessor(extractor, _load_tokenizer(tokenizer, config))
    except _UNREADABLE as error:
        raise _cannot_load(f"{beside} or {tokenizer}", error) from error
    return CanvasASRModel(config, backbone=frozen, audio_encoder=encoder), processor


def adapter_state(model: CanvasASRModel) -> dict[str, torch.Tensor]:
    """Give the adapter's tensors: projector, CTC tap and LoRA, without peft's adapter name."""
    return {
        name.replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if name.startswith(("projector.", "ctc_tap.")) or "lora_" in name
    }


def load_adapter(model: CanvasASRModel, path: Path) -> None:
    """Load an adapter's tensors into a model.

    Args:
        model: Of the same geometry.
        path: A safetensors file.

    Raises:
        CheckpointError: Naming the file and the first missing, extra or misshaped tensor.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the checkpoint has no adapter.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch it again.") from error
    own = adapter_state(model)
    for name in sorted(set(own) | set(state)):
        if name not in state:
            raise CheckpointError(f"{path}: tensor {name!r} is missing.")
        if name not in own:
            raise CheckpointError(f"{path}: tensor {name!r} has no place in this model.")
        if own[name].shape != state[name].shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}."
            )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            full = name if name in parameters else name.replace(".weight", ".default.weight")
            parameters[full].copy_(tensor)


def save_checkpoint(
    model: CanvasASRModel,
    processor: CanvasASRProcessor,
    folder: Path,
    *,
    whole: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint.

    Args:
        model: The model.
        processor: Its processor.
        folder: Made if it does not exist.
        whole: Write backbone and audio encoder beside the adapter, and name them so in the configuration.
        dtype: Of all tensors written.

    Raises:
        CheckpointError: If the adapter alone is asked for and its frozen parts were trained too.
    """
    adapter = adapter_state(model)
    n_trained = sum(parameter.requires_grad for parameter in model.parameters())
    if not whole and n_trained > len(adapter):
        raise CheckpointError(f"{folder}: backbone or audio encoder were trained too; write the whole model.")
    folder.mkdir(parents=True, exist_ok=True)
    config = CanvasASRConfig.from_dict(model.config.to_dict())
    if whole:
        config.backbone, config.audio_encoder = "backbone", "audio_encoder"
        for part_config in (config.backbone_config, config.audio_encoder_config):
            part_config._name_or_path = ""  # where it was loaded from means nothing elsewhere
        for name, part in (("backbone", model.backbone), ("audio_encoder", model.audio_encoder)):
            _save_part(part, folder / name, dtype)
    write_adapter(folder, config, processor, {name: tensor.to(dtype) for name, tensor in adapter.items()})


def write_adapter(
    folder: Path, config: CanvasASRConfig, processor: CanvasASRProcessor, state: dict[str, torch.Tensor]
) -> None:
    """Write the files of an adapter, without its frozen parts.

    Args:
        folder: That exists.
        config: Names the frozen parts.
        processor: Tokenizer and feature extractor.
        state: Tensors, as :func:`adapter_state` names them.
    """
    config.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    save_file(state, folder / ADAPTER_NAME, metadata={"format": "pt"})


def _save_part(part: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Save a frozen part as its own class would without LoRA, each tied tensor once."""
    folder.mkdir(parents=True, exist_ok=True)
    part.config.save_pretrained(folder)
    state = {
        name.replace(".base_layer.", "."): parameter.detach().to(dtype).cpu().contiguous()
        for name, parameter in [*part.named_parameters(), *_persistent_buffers(part)]
        if "lora_" not in name
    }
    save_file(state, folder / ADAPTER_NAME, metadata={"format": "pt"})


def _persistent_buffers(part: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    kept = set(part.state_dict())
    return [(name, buffer) for name, buffer in part.named_buffers() if name in kept]


def _load_processor(folder: Path, config: CanvasASRConfig) -> CanvasASRProcessor:
    """Load tokenizer and feature extractor of a checkpoint folder.

    Raises:
        CheckpointError: Naming the file that is missing or unusable.
    """
    paths = folder / TOKENIZER_NAME, folder / FEATURES_NAME
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; the checkpoint is not whole, fetch it again.")
    path = paths[0]
    try:
        tokenizer = _load_tokenizer(folder, config)
        path = paths[1]
        processor = CanvasASRProcessor(WhisperFeatureExtractor.from_pretrained(str(folder)), tokenizer)
        path = folder / CONFIG_NAME
        processor.prompt_ids(config, [1])
        processor.language_ids(config)
    except _UNREADABLE as error:
        raise _cannot_load(path, error) from error
    return processor


def load_configuration(folder: Path) -> CanvasASRConfig:
    """Read the configuration of a checkpoint folder, without its tensors.

    Raises:
        CheckpointError: If there is none, or it is not one of this package's, naming the file.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_NAME}; give the folder of a canvas-asr checkpoint.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}).") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != CanvasASRConfig.model_type:
        raise CheckpointError(f"{path}: model_type is {kind!r}, not {CanvasASRConfig.model_type!r}.")
    try:
        return CanvasASRConfig.from_dict(fields)
    except _UNREADABLE as error:
        raise _cannot_load(path, error) from error


def load_checkpoint(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Load a checkpoint folder.

    Args:
        folder: As :func:`save_checkpoint` writes it.
        device: Where the model goes.
        dtype: Of its tensors.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        CheckpointError: Naming the file or the tensor that is missing or does not fit.
    """
    config = load_configuration(folder)
    processor = _load_processor(folder, config)
    backbone, encoder = (
        _load_part(cls, _part_source(folder, name), dtype=dtype, **options)
        for cls, name, options in (
            (
                DiffusionGemmaForBlockDiffusion,
                config.backbone,
                {"revision": config.backbone_revision or "main"},
            ),
            (
                WhisperEncoder,
                config.audio_encoder,
                {"revision": config.audio_encoder_revision or "main", "key_mapping": _WHISPER_KEYS},
            ),
        )
    )
    model = CanvasASRModel(config, backbone=backbone, audio_encoder=encoder)
    load_adapter(model, folder / ADAPTER_NAME)
    # Parameters only: the rotary frequencies are buffers, which a lower precision would spoil.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.to(device)  # type: ignore[arg-type]
    model.eval()  # type: ignore[no-untyped-call]
    return model, processor
