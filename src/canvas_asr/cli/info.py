"""``canvas-asr info``: geometry and parameters of a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas_asr.errors import CheckpointError, OptionError

from .model_options import add_model_options, part_arguments

if TYPE_CHECKING:
    from canvas_asr.configuration import CanvasASRConfig

SAMPLE_RATE_HZ = 16_000  # audio.SAMPLE_RATE_HZ, without what reading audio imports
_IN_PROMPT = {"projector": "audio tokens", "posterior": "embeddings that CTC expects"}
_POSITIONS = {"frames": "a position each", "spikes": "a position a CTC spike"}
WHISPER_HOP = 160  # samples from one frame of features to the next, in all of them


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser("info", help="geometry and parameters of a model", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="tiny, a folder with a checkpoint's config.json, a name of the hub, or an adapter file",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print geometry and parameters of a model; of tensors, those of an adapter file alone are read."""
    from canvas_asr.configuration import load_configuration
    from canvas_asr.conversion.model import import_model
    from canvas_asr.hub import HubAccess
    from canvas_asr.loading import find_model
    from canvas_asr.parts import OtherParts

    access = HubAccess(options.revision, local_files_only=options.local_files_only)
    others = OtherParts(**part_arguments(options))
    place = find_model(options.model, access)
    if place.is_file():
        config, hop_length, files = import_model(place, others, access).config, WHISPER_HOP, [place]
    elif any(part_arguments(options).values()):
        raise OptionError(
            f"{options.model}: has the geometry of its parts in its config.json; leave out --backbone and "
            "--audio-encoder, which are for an adapter file."
        )
    else:
        config, hop_length = load_configuration(place), _hop_length(place)
        files = [*place.rglob("*.safetensors")]
    facts = {
        "model": options.model,
        **_geometry(config, hop_length),
        "parameters": _count_parameters(config),
        "weights here": sum(path.stat().st_size for path in files),
    }
    print(json.dumps(facts, ensure_ascii=False) if options.json else _facts_table(facts))
    return 0


def _hop_length(folder: Path) -> int:
    """Samples from one frame to the next, as the feature extractor of a checkpoint has them."""
    path = folder / "preprocessor_config.json"  # processing.FEATURES_NAME, likewise
    if not path.is_file():
        return WHISPER_HOP
    try:
        return int(json.loads(path.read_text("utf-8"))["hop_length"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no JSON object with hop_length ({error}).") from error


def _geometry(config: CanvasASRConfig, hop_length: int) -> dict[str, Any]:
    encoder = config.audio_encoder_config
    text: Any = config.backbone_config.text_config
    frames_per_s = SAMPLE_RATE_HZ / hop_length / 2
    return {
        "languages": " ".join(config.language_tags),
        "longest clip": f"{config.max_audio_s:g} s",
        "canvas": f"{config.canvas_length} tokens, at most {config.max_canvas_length}",
        "decoding": config.decoding.described,
        "audio encoder": (
            f"Whisper, {encoder.encoder_layers} layers, {encoder.d_model} wide, "
            f"{encoder.num_mel_bins} mel bins, {frames_per_s:g} frames a second"
        ),
        "projector": (
            f"{config.projector_described}, {frames_per_s / config.projector_stride:g} audio tokens a second"
        ),
        "in the prompt": f"{_IN_PROMPT[config.audio_embeddings]}, {_POSITIONS[config.audio_positions]}",
        "backbone": (
            f"DiffusionGemma, {text.num_hidden_layers} layers, {text.hidden_size} wide, "
            f"{text.num_attention_heads} heads, {text.num_experts or 0} experts "
            f"({text.top_k_experts or 0} active), vocabulary {text.vocab_size}"
        ),
        "LoRA": (
            f"rank {config.lora_rank}, alpha {config.lora_alpha}, on q k v o of encoder and decoder"
            if config.lora_rank
            else "none"
        ),
    }


def _count_parameters(config: CanvasASRConfig) -> dict[str, float]:
    """Parameters by part, shared ones once, of a model that exists in name only."""
    import torch

    from canvas_asr.modeling import CanvasASRModel

    with torch.device("meta"):
        model = CanvasASRModel(config)
    counts: dict[str, float] = dict.fromkeys(
        ("total", "frozen", "trained", "audio encoder", "backbone", "projector", "CTC tap", "LoRA"), 0
    )
    parts = {"audio_encoder": "audio encoder", "ctc_tap": "CTC tap"}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        counts["LoRA" if "lora_" in name else parts.get(part, part)] += parameter.numel()
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
        counts["total"] += parameter.numel()
    return {**counts, "trained share": counts["trained"] / counts["total"]}


def _facts_table(facts: Mapping[str, Any]) -> str:
    parameters = facts["parameters"]
    lines = [(key, value) for key, value in facts.items() if isinstance(value, str)]
    lines.append(("parameters", f"{parameters['total']:,}"))
    for kind, parts in (
        ("frozen", ("audio encoder", "backbone")),
        ("trained", ("projector", "CTC tap", "LoRA")),
    ):
        share = f"{100 * parameters[kind] / parameters['total']:.3g} %"
        lines.append((f"  {kind}", f"{parameters[kind]:,} ({share})"))
        lines += [(f"    {part}", f"{parameters[part]:,}") for part in parts]
    lines.append(("weights here", f"{facts['weights here'] / 1e6:.1f} MB"))
    return "\n".join(f"{key:<19}{value}" for key, value in lines)
