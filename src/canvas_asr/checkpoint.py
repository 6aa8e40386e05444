"""Checkpoints: a folder with the adapter and, where they ship together, its backbone and audio encoder.

    config.json  model.safetensors         configuration and adapter (projector, CTC tap, LoRA)
    tokenizer.json  preprocessor_config.json
    backbone/  audio_encoder/              the frozen parts, when the configuration names them so

Tensors are read from safetensors only; nothing unpickles.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import DiffusionGemmaConfig, PreTrainedModel, WhisperConfig

from .configuration import CanvasASRConfig
from .configuration import load_configuration as load_configuration
from .errors import CheckpointError
from .hub import UNREADABLE, cannot_load
from .modeling import CanvasASRModel
from .parts import (
    LoadOptions,
    OtherParts,
    Part,
    check_fit,
    compute_dtype,
    find_part,
    load_frozen,
    read_part_config,
)
from .processing import FEATURES_NAME as FEATURES_NAME
from .processing import CanvasASRProcessor, load_feature_extractor, load_processor, load_tokenizer

ADAPTER_NAME = "model.safetensors"


def assemble(
    backbone: str,
    audio_encoder: str,
    tokenizer: str | Path,
    fields: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Join pretrained frozen parts with a fresh adapter.

    Args:
        backbone: Folder or hub name of the backbone.
        audio_encoder: Folder or hub name of the audio encoder; its feature extractor lies in the folder, or
            in the one above.
        tokenizer: Folder or hub name of the backbone's tokenizer.
        fields: Further fields of ``CanvasASRConfig``.
        dtype: Of the frozen parts; the adapter, which is to learn, is float32.

    Returns:
        Model and processor.

    Raises:
        CheckpointError: If a part cannot be loaded.
    """
    options = LoadOptions(dtype=dtype)
    part = find_part(backbone, None)
    frozen_config = read_part_config(DiffusionGemmaConfig, part, options.access)
    frozen, encoder = load_frozen(part, find_part(audio_encoder, None), frozen_config, options)
    config = CanvasASRConfig(
        backbone=backbone,
        audio_encoder=audio_encoder,
        # Copies: a parent configuration resets the attention implementation of those it is given.
        backbone_config=copy.deepcopy(frozen.config),
        audio_encoder_config=copy.deepcopy(encoder.config),
        **fields,
    )
    folder = Path(audio_encoder)
    beside = folder.parent if (folder.parent / FEATURES_NAME).is_file() else folder
    try:
        extractor = load_feature_extractor(beside, config)
        processor = CanvasASRProcessor(extractor, load_tokenizer(tokenizer, config))
    except UNREADABLE as error:
        raise cannot_load(f"{beside} or {tokenizer}", error) from error
    model = CanvasASRModel(config, backbone=frozen, audio_encoder=encoder)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.float()  # peft makes LoRA in the precision of the weight beside it
    model.processor = processor
    return model, processor


def adapter_parameters(model: CanvasASRModel) -> dict[str, torch.nn.Parameter]:
    """Give the adapter's parameters, projector, CTC tap and LoRA, by name without peft's adapter name."""
    return {
        name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("projector.", "ctc_tap.")) or "lora_" in name
    }


def adapter_state(model: CanvasASRModel) -> dict[str, torch.Tensor]:
    """Give the tensors of :func:`adapter_parameters`, on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in adapter_parameters(model).items()}


def read_adapter(path: Path, config: CanvasASRConfig) -> dict[str, torch.Tensor]:
    """Read an adapter's tensors, before the frozen parts that they are for.

    Args:
        path: A safetensors file.
        config: Says the rank.

    Raises:
        CheckpointError: If the file is missing or damaged, or holds LoRA of another rank.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the checkpoint has no adapter.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch it again.") from error
    for name in sorted(state):
        if name.endswith("lora_A.weight") and len(state[name]) != config.lora_rank:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, which is rank "
                f"{len(state[name])}; its config.json says lora_rank {config.lora_rank}."
            )
    return state


def apply_adapter(model: CanvasASRModel, state: dict[str, torch.Tensor], origin: Path) -> None:
    """Copy an adapter's tensors into a model.

    Args:
        model: Of the same geometry.
        state: Tensors, as :func:`adapter_state` names them.
        origin: The file they are from.

    Raises:
        CheckpointError: Naming the file and the first missing, extra or misshaped tensor.
    """
    parameters = adapter_parameters(model)
    for name in sorted(set(parameters) | set(state)):
        if name not in state:
            raise CheckpointError(f"{origin}: tensor {name!r} is missing.")
        if name not in parameters:
            raise CheckpointError(f"{origin}: tensor {name!r} has no place in this model.")
        found, expected = tuple(state[name].shape), tuple(parameters[name].shape)
        if found != expected:
            raise CheckpointError(f"{origin}: tensor {name!r} has shape {found}, not {expected}.")
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def load_adapter(model: CanvasASRModel, path: Path, config: CanvasASRConfig | None = None) -> None:
    """Load an adapter's tensors into a model.

    Args:
        model: Of the same geometry.
        path: A safetensors file.
        config: Of the checkpoint that the file is of; None: the model's. One without LoRA leaves the model's
            LoRA as it is.

    Raises:
        CheckpointError: Naming the file and the first missing, extra or misshaped tensor.
    """
    config = config or model.config
    state = read_adapter(path, config)
    if not config.lora_rank:
        state |= {name: tensor for name, tensor in adapter_state(model).items() if "lora_" in name}
    apply_adapter(model, state, path)


def save_checkpoint(
    model: CanvasASRModel,
    processor: CanvasASRProcessor | None,
    folder: Path,
    *,
    whole: bool = False,
    dtype: torch.dtype | None = torch.float32,
) -> None:
    """Write a checkpoint.

    Args:
        model: The model.
        processor: Its processor; None writes none.
        folder: Made if it does not exist.
        whole: Write backbone and audio encoder beside the adapter, and name them so in the configuration.
        dtype: Of all tensors written; None: the model's own.

    Raises:
        CheckpointError: If the adapter alone is asked for and its frozen parts were trained too, or the whole
            and its backbone is quantised.
    """
    adapter = adapter_state(model)
    n_trained = sum(parameter.requires_grad for parameter in model.parameters())
    if not whole and n_trained > len(adapter):
        raise CheckpointError(f"{folder}: backbone or audio encoder were trained too; write the whole model.")
    if whole and getattr(model.backbone, "hf_quantizer", None) is not None:
        raise CheckpointError(f"{folder}: a quantised backbone is not written; save the adapter alone.")
    folder.mkdir(parents=True, exist_ok=True)
    config = CanvasASRConfig.from_dict(model.config.to_dict())
    if whole:
        config.backbone, config.audio_encoder = "backbone", "audio_encoder"
        for part_config in (config.backbone_config, config.audio_encoder_config):
            part_config._name_or_path = ""  # where it was loaded from means nothing elsewhere
        for name, part in (("backbone", model.backbone), ("audio_encoder", model.audio_encoder)):
            _save_part(part, folder / name, dtype)
    state = {name: tensor.to(dtype or tensor.dtype) for name, tensor in adapter.items()}
    write_adapter(folder, config, processor, state)


def write_adapter(
    folder: Path,
    config: CanvasASRConfig,
    processor: CanvasASRProcessor | None,
    state: dict[str, torch.Tensor],
) -> None:
    """Write the files of an adapter, without its frozen parts.

    Args:
        folder: That exists.
        config: Names the frozen parts.
        processor: Tokenizer and feature extractor; None writes neither.
        state: Tensors, as :func:`adapter_state` names them.
    """
    config.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    save_file(state, folder / ADAPTER_NAME, metadata={"format": "pt"})


def _save_part(part: PreTrainedModel, folder: Path, dtype: torch.dtype | None) -> None:
    """Save a frozen part as its own class would without LoRA, each tied tensor once."""
    folder.mkdir(parents=True, exist_ok=True)
    part.config.save_pretrained(folder)
    state = {
        name.replace(".base_layer.", "."): parameter.detach().to(dtype or parameter.dtype).cpu().contiguous()
        for name, parameter in [*part.named_parameters(), *_persistent_buffers(part)]
        if "lora_" not in name
    }
    save_file(state, folder / ADAPTER_NAME, metadata={"format": "pt"})


def _persistent_buffers(part: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    kept = set(part.state_dict())
    return [(name, buffer) for name, buffer in part.named_buffers() if name in kept]


def load_checkpoint(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    options: LoadOptions | None = None,
    config: CanvasASRConfig | None = None,
) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Load a checkpoint folder.

    Args:
        folder: As :func:`save_checkpoint` writes it.
        device: Where the model goes.
        dtype: Of its tensors.
        options: More than device and dtype, in place of them.
        config: In place of the folder's.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        CheckpointError: Naming the file or the tensor that is missing or does not fit.
    """
    options = options or LoadOptions(device=device, dtype=dtype)
    config = config or load_configuration(folder)
    processor = load_processor(folder, config)
    path = folder / ADAPTER_NAME
    state = read_adapter(path, config)
    backbone = _choose_part("backbone", config, options.others, folder)
    encoder = _choose_part("audio_encoder", config, options.others, folder)
    model = build_model(config, state, path, backbone, encoder, options)
    model.processor = processor
    return model, processor


def _choose_part(kind: str, config: CanvasASRConfig, others: OtherParts, folder: Path) -> Part:
    """Find a frozen part, the configuration's or another, and let the configuration name what is taken."""
    other, revision = others.name(kind), getattr(others, f"{kind}_revision")
    if other:
        setattr(config, kind, other)
    if other or revision:
        setattr(config, f"{kind}_revision", revision)
    return find_part(getattr(config, kind), getattr(config, f"{kind}_revision"), None if other else folder)


def build_model(
    config: CanvasASRConfig,
    state: dict[str, torch.Tensor],
    origin: Path,
    backbone: Part,
    encoder: Part,
    options: LoadOptions,
) -> CanvasASRModel:
    """Load the frozen parts and put an adapter on them.

    Args:
        config: Of the whole model.
        state: The adapter's tensors.
        origin: The file they are from.
        backbone: Where the backbone lies.
        encoder: Where the audio encoder lies.
        options: Of the load.

    Returns:
        The model in evaluation mode, in its place.

    Raises:
        CheckpointError: If a part or tensor is missing, damaged, or does not fit.
    """
    backbone_config = read_part_config(DiffusionGemmaConfig, backbone, options.access)
    encoder_config = read_part_config(WhisperConfig, encoder, options.access)
    check_fit(config, backbone, backbone_config, encoder, encoder_config)
    frozen, audio_encoder = load_frozen(backbone, encoder, backbone_config, options)
    device_map = getattr(frozen, "hf_device_map", None)
    if device_map is not None and "disk" in device_map.values():
        raise CheckpointError(
            f"{backbone.source}: device_map leaves some of it on disk, where weights that both sides of it "
            "share cannot be; give a quantised checkpoint as backbone=, or more memory."
        )
    model = CanvasASRModel(config, backbone=frozen, audio_encoder=audio_encoder)
    _ready_adapter(model, compute_dtype(frozen))
    apply_adapter(model, state, origin)
    if device_map is None:
        model.to(options.device)  # type: ignore[arg-type]
    else:
        # What accelerate or a quantiser has placed stays there; the rest joins its first layer.
        embeddings: Any = frozen.get_input_embeddings()
        parts: list[torch.nn.Module] = [model.audio_encoder, model.projector, model.ctc_tap]
        for part in parts:
            part.to(embeddings.weight.device)
        if len(set(device_map.values())) > 1:
            model.hf_device_map = device_map
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _ready_adapter(model: CanvasASRModel, dtype: torch.dtype) -> None:
    """Give the adapter the precision that the backbone computes in, and memory of its own.

    peft makes LoRA matrices in the likeness of the weight beside them: in FP8 where that is FP8, and without
    memory where accelerate keeps that elsewhere until it is used. Nothing else is cast: the frozen parts have
    their precision already, and the rotary frequencies are buffers, which a lower one would spoil.
    """
    model.projector.to(dtype)
    model.ctc_tap.to(dtype)
    for module in model.backbone.modules():
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            for linear in [*module.lora_A.values(), *module.lora_B.values()]:
                if linear.weight.is_meta:
                    linear.to_empty(device=base._hf_hook.execution_device)
                linear.to(dtype)
