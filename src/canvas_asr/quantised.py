"""Quantised backbones: what transformers does not know of this one, whose two sides share their weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import transformers
from torch import nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from .errors import CheckpointError
from .placement import LAYERS, quantization_method

_FP8_SCALE = "_scale_inv"


def share_scales(model: nn.Module, missing: Collection[str]) -> list[str]:
    """Give the encoder's layers the scales of the decoder's, whose weights they share.

    A checkpoint has them once. transformers ties weights by name, before a method of quantisation puts its
    scales beside them, and would leave the encoder's with whatever they begin with.

    Args:
        model: As it was loaded, of any kind.
        missing: Names of parameters and buffers that the checkpoint does not have.

    Returns:
        Those that are missing all the same.
    """
    left = []
    encoder, decoder = LAYERS
    for name in missing:
        twin = name.replace(encoder, decoder, 1)
        if twin == name or twin in missing:
            left.append(name)
            continue
        of_module, _, last = name.rpartition(".")
        module, other = model.get_submodule(of_module), model.get_submodule(twin.rpartition(".")[0])
        setattr(module, last, getattr(other, last))
    return left


def missing_tensor(source: str, name: str, quantization_config: Any) -> CheckpointError:
    """Say which tensor of a part is missing, or why quantisation on loading has not made it.

    Args:
        source: Where the part lies.
        name: Of the tensor.
        quantization_config: That was asked for.
    """
    if quantization_method(quantization_config) == "fp8" and name.endswith(_FP8_SCALE):
        weight = name.removesuffix(_FP8_SCALE)
        return CheckpointError(
            f"{source}: {weight!r} cannot be cut into FP8 blocks of the size asked for; give "
            "FineGrainedFP8Config(weight_block_size=(64, 64), modules_to_not_convert=['lm_head'])."
        )
    return CheckpointError(f"{source}: tensor {name!r} is missing.")


def stored_compressed(source: str, config: DiffusionGemmaConfig) -> Any:
    """Make a backbone in the format of compressed-tensors readable, as RedHatAI publishes it in FP8.

    It has each expert by itself, where the model has a layer's experts in one tensor; transformers brings
    weights back to the precision asked for before it stacks them, and the format's other ways do not know
    that encoder and decoder share them.

    Args:
        source: Where it lies.
        config: Its configuration, as stored with it.

    Returns:
        The configuration to load with; None for a backbone in another format.

    Raises:
        CheckpointError: If the library of the format is not installed, or transformers too old for it.
    """
    if quantization_method(getattr(config, "quantization_config", None)) != "compressed-tensors":
        return None
    from transformers import CompressedTensorsConfig
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
    from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

    if not hasattr(CompressedTensorsHfQuantizer, "get_load_operations"):  # as in 5.17: it loses shared scales
        raise CheckpointError(
            f"{source}: is in the format of compressed-tensors, which transformers "
            f"{transformers.__version__} cannot read here; pip install -U transformers."
        )

    stack = MergeModulelist(dim=0)
    gate_up = ["experts.*.gate_proj.weight", "experts.*.up_proj.weight"]
    converters: list[Any] = [
        WeightConverter(gate_up, "experts.gate_up_proj", operations=[stack, Concatenate(dim=1)]),
        WeightConverter("experts.*.down_proj.weight", "experts.down_proj", operations=[stack]),
    ]
    register_checkpoint_conversion_mapping(
        DiffusionGemmaForBlockDiffusion.__name__, converters, overwrite=True
    )
    try:
        return CompressedTensorsConfig(dequantize=True)
    except ImportError as error:
        raise CheckpointError(
            f"{source}: is in the format of compressed-tensors; pip install compressed-tensors."
        ) from error
