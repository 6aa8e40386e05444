"""Options that say which model is meant and how it is loaded, for every command that takes one."""

from __future__ import annotations

import argparse
from typing import Any

BACKBONE = "google/diffusiongemma-26B-A4B-it"  # published.BACKBONE, without what it imports
AUDIO_ENCODER = "openai/whisper-small"
HUB_ACCOUNT = "For repositories that ask for an account: `hf auth login`, or HF_TOKEN in the environment."
# Options that are arguments of canvas_asr.load.
_PLACE = ("device", "device_map", "dtype")
_ACCESS = ("revision", "local_files_only")
_PARTS = ("backbone", "audio_encoder", "backbone_revision", "audio_encoder_revision")


def add_model_options(parser: Any) -> None:
    """Add where a model and its parts are found."""
    group = parser.add_argument_group("where the model is found", HUB_ACCOUNT)
    group.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    add_part_options(group, "default: as the model says")


def add_part_options(group: Any, default: str, encoder_default: str | None = None) -> None:
    """Add the frozen parts.

    Args:
        group: Of a parser.
        default: What the help says of the parts' names, or of the backbone's.
        encoder_default: What it says of the audio encoder's.
    """
    group.add_argument("--backbone", metavar="NAME", help=f"folder or hub name ({default})")
    group.add_argument(
        "--audio-encoder", metavar="NAME", help=f"folder or hub name ({encoder_default or default})"
    )
    group.add_argument(
        "--backbone-revision", metavar="REVISION", help="branch, tag or commit of the backbone"
    )
    group.add_argument("--audio-encoder-revision", metavar="REVISION", help="the same of the audio encoder")
    group.add_argument(
        "--local-files-only", action="store_true", help="make no connection, as with HF_HUB_OFFLINE=1"
    )


def add_place_options(group: Any) -> None:
    """Add where the tensors go, and in which precision."""
    group.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    group.add_argument(
        "--device-map",
        metavar="MAP",
        help="spread the backbone over GPUs: auto, balanced, ...; not with --device",
    )
    group.add_argument(
        "--dtype",
        help="float32, bfloat16, float16 or auto, as stored (default: float32 on a CPU, else bfloat16)",
    )


def load_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Give what was said as arguments of :func:`canvas_asr.load`."""
    return {name: getattr(options, name) for name in (*_PLACE, *_ACCESS, *_PARTS)}


def part_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Give what was said of the frozen parts as arguments of ``OtherParts``."""
    return {name: getattr(options, name) for name in _PARTS}


def place_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Give where the tensors go as arguments of :func:`canvas_asr.load`."""
    return {name: getattr(options, name) for name in _PLACE}
