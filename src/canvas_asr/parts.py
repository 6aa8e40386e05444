"""The frozen parts: read their configurations, check that they fit and have room, load their weights.

A backbone of 26 billion parameters exists once, in the precision asked for: it is loaded in it, and on the
device that it is for where ``accelerate`` is installed.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, PreTrainedConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration import CanvasASRConfig
from .errors import CheckpointError, OptionError
from .hub import DEFAULT_ACCESS, UNREADABLE, HubAccess, cannot_load, is_hub_name, quietly
from .placement import backbone_bytes, divide_backbone
from .quantised import missing_tensor, share_scales, stored_compressed

# A stock Whisper checkpoint holds its encoder under this prefix.
_WHISPER_KEYS = {r"^model\.encoder\.": ""}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMED_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
WORKING_BYTES = 2 << 30  # left free on each of several GPUs, for caches and activations
ATTENTION = ("sdpa", "eager")  # others take no explicit mask
# Geometry that an adapter's tensors depend on.
_BACKBONE_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_global_key_value_heads",
    "global_head_dim",
    "vocab_size",
)
_ENCODER_KEYS = ("d_model", "num_mel_bins")


@dataclass(frozen=True)
class OtherParts:
    """Frozen parts to take in place of those that a checkpoint names; None keeps what it says.

    Attributes:
        backbone: Folder or hub name.
        audio_encoder: The same.
        backbone_revision: Branch, tag or commit of the backbone on the hub.
        audio_encoder_revision: The same of the audio encoder.
    """

    backbone: str | os.PathLike[str] | None = None
    audio_encoder: str | os.PathLike[str] | None = None
    backbone_revision: str | None = None
    audio_encoder_revision: str | None = None

    def name(self, kind: str) -> str | None:
        """Give the name of ``backbone`` or ``audio_encoder``; a folder's is one that holds from anywhere."""
        name: str | os.PathLike[str] | None = getattr(self, kind)
        if name is None:
            return None
        return os.path.abspath(name) if Path(name).is_dir() else os.fspath(name)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        device: Where the model goes, unless there is a device map.
        dtype: Of its tensors, or the type's name; ``auto``: as the backbone is stored.
        device_map: For the backbone, as ``from_pretrained`` takes it.
        quantization_config: For the backbone, likewise.
        attn_implementation: ``sdpa`` or ``eager``, for both parts; None: the library's choice.
        access: To the hub.
        others: In place of the parts that the checkpoint names.
    """

    device: str = "cpu"
    dtype: torch.dtype | str = torch.float32
    device_map: Any = None
    quantization_config: Any = None
    attn_implementation: str | None = None
    access: HubAccess = DEFAULT_ACCESS
    others: OtherParts = OtherParts()

    def __post_init__(self) -> None:
        """Raise OptionError for a dtype or an attention implementation that is unknown."""
        dtype = DTYPES.get(self.dtype, self.dtype) if isinstance(self.dtype, str) else self.dtype
        if dtype != "auto" and dtype not in DTYPES.values():
            raise OptionError(f"dtype is {str(self.dtype)!r}; choose one of {', '.join(DTYPES)}, auto.")
        if self.attn_implementation not in (None, *ATTENTION):
            raise OptionError(
                f"attn_implementation is {self.attn_implementation!r}; choose one of {', '.join(ATTENTION)}."
            )
        object.__setattr__(self, "dtype", dtype)


@dataclass(frozen=True)
class Part:
    """Where a frozen part lies.

    Attributes:
        source: A folder, or the name of a repository.
        revision: Of the repository.
    """

    source: str
    revision: str | None = None


def find_part(name: str, revision: str | None, folder: Path | None = None) -> Part:
    """Find a frozen part: in a folder of the checkpoint, at a path, or on the hub.

    Args:
        name: As a configuration or a caller names it.
        revision: Of a repository.
        folder: Of the checkpoint.

    Raises:
        CheckpointError: If the name is none of these.
    """
    if folder is not None and (folder / name).is_dir():
        return Part(str(folder / name))
    if folder is not None and "/" not in name:
        raise CheckpointError(
            f"{folder / name}: no such folder; the checkpoint is not whole, fetch it again."
        )
    if Path(name).is_dir():
        return Part(name)
    if is_hub_name(name):
        return Part(name, revision)
    raise CheckpointError(f"{name}: no such folder, and no owner/name of the hub.")


def read_part_config(kind: type[PreTrainedConfig], part: Part, access: HubAccess) -> Any:
    """Read the configuration of a frozen part.

    Args:
        kind: Its class.
        part: Where it lies.
        access: To the hub.

    Raises:
        CheckpointError: If there is none, or it is another kind's.
    """
    try:
        with quietly(), access.kept():
            content, _ = kind.get_config_dict(part.source, **access.options(part.revision))
            found = content.get("model_type")
            if not content:
                raise CheckpointError(
                    f"{part.source}: no config.json; the part is not whole, fetch it again."
                )
            if found != kind.model_type:
                raise CheckpointError(f"{part.source}: is a {found!r} model, not {kind.model_type!r}.")
            return kind.from_dict(content)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise cannot_load(part.source, error, part.revision) from error


def check_fit(config: CanvasASRConfig, backbone: Part, found: Any, encoder: Part, found_encoder: Any) -> None:
    """Refuse frozen parts whose geometry is not what the adapter was trained for.

    Raises:
        CheckpointError: Naming the part and the key.
    """
    for part, own, other, keys in (
        (backbone, config.backbone_config.text_config, found.text_config, _BACKBONE_KEYS),
        (encoder, config.audio_encoder_config, found_encoder, _ENCODER_KEYS),
    ):
        for key in keys:
            expected, given = getattr(own, key, None), getattr(other, key, None)
            if expected != given:
                raise CheckpointError(
                    f"{part.source}: its {key} is {given}, and the adapter is for {key} {expected}; give the "
                    "part that it was trained with."
                )


def load_frozen(
    backbone: Part, encoder: Part, backbone_config: Any, options: LoadOptions
) -> tuple[DiffusionGemmaForBlockDiffusion, WhisperEncoder]:
    """Load backbone and audio encoder, the encoder in the backbone's precision.

    Args:
        backbone: Where the backbone lies.
        encoder: Where the audio encoder lies.
        backbone_config: Configuration of the backbone, as stored with it.
        options: Of the load.

    Raises:
        CheckpointError: If one cannot be loaded, does not hold what its configuration says, or does not fit
            in the memory of the GPU.
    """
    check_memory(backbone.source, backbone_config, options)
    device_map = place_backbone(backbone.source, backbone_config, options)
    quantization = options.quantization_config or stored_compressed(backbone.source, backbone_config)
    placed = {
        key: value
        for key, value in (("device_map", device_map), ("quantization_config", quantization))
        if value is not None
    }
    model = load_part(DiffusionGemmaForBlockDiffusion, backbone, options, dtype=options.dtype, **placed)
    return model, load_part(
        WhisperEncoder, encoder, options, dtype=compute_dtype(model), key_mapping=_WHISPER_KEYS
    )


def load_part(kind: Any, part: Part, options: LoadOptions, **arguments: Any) -> Any:
    """Load a frozen part and refuse one with missing or misshaped tensors.

    Args:
        kind: Class of the model.
        part: Where it lies.
        options: Of the load.
        arguments: Further ones of ``from_pretrained``.

    Raises:
        CheckpointError: Naming the folder or repository, and the tensor if there is one to name.
    """
    source = part.source
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    try:
        bars = quietly(keep_bars=not Path(source).is_dir())
        with bars, options.access.kept(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            model, report = kind.from_pretrained(
                source,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the tensor's name
                use_safetensors=True,
                **options.access.options(part.revision),
                **arguments,
            )
    except SafetensorError as error:
        raise CheckpointError(f"{source}: its weights are damaged ({error}); fetch them again.") from error
    except torch.OutOfMemoryError as error:
        raise CheckpointError(f"{source}: the memory of {options.device} is full; {_ADVICE}.") from error
    except (*UNREADABLE, RuntimeError) as error:
        raise cannot_load(source, error, part.revision) from error
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"{source}: tensor {name!r} has shape {tuple(found)}; its config.json says {tuple(expected)}."
        )
    for name in sorted(share_scales(model, report["missing_keys"])):
        raise missing_tensor(source, name, arguments.get("quantization_config"))
    return model


def compute_dtype(backbone: DiffusionGemmaForBlockDiffusion) -> torch.dtype:
    """Give the precision that a backbone computes in: that of its embeddings, which no method quantises."""
    embeddings: Any = backbone.get_input_embeddings()
    found: torch.dtype = embeddings.weight.dtype
    return found if found in DTYPES.values() else torch.bfloat16


# Room on the GPU

_ADVICE = (
    "take a larger GPU, several of them with device_map='auto', or a backbone whose experts are in FP8 too"
)


def check_memory(source: str, config: DiffusionGemmaConfig, options: LoadOptions) -> None:
    """Refuse a backbone that the GPU has no room for, before its weights are fetched or read.

    Args:
        source: Where it lies.
        config: Its configuration.
        options: Device, precision and quantisation.

    Raises:
        CheckpointError: Saying what is needed, what is free and what to choose instead.
    """
    place = options.device if options.device_map is None else options.device_map
    if isinstance(place, dict) and len(set(place.values())) == 1:
        place = next(iter(place.values()))
    device = torch.device("cuda", place) if isinstance(place, int) else place
    if not str(device).startswith("cuda"):
        return  # the computer's own memory, or a map that is made to fit
    dtype = _stored_dtype(config, options)
    needed = backbone_bytes(config, dtype, options.quantization_config)
    free, _ = torch.cuda.mem_get_info(device)
    if needed is not None and needed > free:
        raise _too_little(source, needed, free, str(device), dtype)


def _stored_dtype(config: DiffusionGemmaConfig, options: LoadOptions) -> torch.dtype:
    dtype = options.dtype if isinstance(options.dtype, torch.dtype) else getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


def _too_little(source: str, needed: int, free: int, place: str, dtype: torch.dtype) -> CheckpointError:
    smaller = 'give dtype="bfloat16", which needs half, ' if dtype == torch.float32 else ""
    return CheckpointError(
        f"{source}: needs {needed / 1e9:.1f} GB on {place} in {str(dtype).removeprefix('torch.')}, and "
        f"{free / 1e9:.1f} GB are free; {smaller}{_ADVICE}."
    )


def place_backbone(source: str, config: DiffusionGemmaConfig, options: LoadOptions) -> Any:
    """Give the device map of a backbone: a name such as ``auto`` becomes a place for every module.

    accelerate cannot divide this backbone, whose encoder and decoder share their weights layer by layer: it
    fails, or parts two halves of a pair. Here each pair of layers has one place, on as few GPUs as it takes.

    Args:
        source: Where it lies.
        config: Its configuration.
        options: Device map, device, precision and quantisation.

    Returns:
        What ``from_pretrained`` takes; None: to the CPU.

    Raises:
        CheckpointError: If the GPUs have too little room together.
    """
    if options.device_map not in NAMED_MAPS:
        if options.device_map is None and options.device != "cpu" and importlib.util.find_spec("accelerate"):
            return {"": options.device}  # straight there, not by way of the computer's own memory
        return options.device_map
    if not torch.cuda.is_available():
        return {"": "cpu"}
    free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
    dtype = _stored_dtype(config, options)
    needed = backbone_bytes(config, dtype, options.quantization_config)
    places = divide_backbone(config, needed or 0, [max(0, room - WORKING_BYTES) for room in free])
    if places is None:
        raise _too_little(source, needed or 0, sum(free), f"{len(free)} GPUs", dtype)
    return places
