"""An adapter file and the frozen parts that it is for, as one model; of the parts, no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import DiffusionGemmaConfig, WhisperConfig

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.hub import HubAccess
from canvas_asr.parts import OtherParts, Part, find_part, read_part_config
from canvas_asr.published import AUDIO_ENCODER, BACKBONE

from .adapter import ImportedAdapter, import_adapter
from .settings import ImportSettings


@dataclass(frozen=True)
class ImportedModel:
    """What an adapter file and its frozen parts make together.

    Attributes:
        config: Of the whole, the parts by name.
        adapter: What the file holds.
        backbone: Where the backbone lies.
        audio_encoder: Where the audio encoder lies.
    """

    config: CanvasASRConfig
    adapter: ImportedAdapter
    backbone: Part
    audio_encoder: Part


def import_model(
    file: Path, others: OtherParts, access: HubAccess, settings: ImportSettings | None = None
) -> ImportedModel:
    """Import an adapter file onto its frozen parts.

    Args:
        file: The adapter.
        others: The parts; those not named are the published ones.
        access: To the hub.
        settings: What tensors cannot tell.

    Raises:
        CheckpointError: If a part cannot be had, or a tensor has no certain place.
        OptionError: If a setting has an impossible value.
    """
    backbone = find_part(others.name("backbone") or BACKBONE, others.backbone_revision)
    encoder = find_part(others.name("audio_encoder") or AUDIO_ENCODER, others.audio_encoder_revision)
    backbone_config = read_part_config(DiffusionGemmaConfig, backbone, access)
    encoder_config = read_part_config(WhisperConfig, encoder, access)
    adapter = import_adapter(file, backbone_config, encoder_config, settings)
    config = CanvasASRConfig(
        backbone=backbone.source,
        audio_encoder=encoder.source,
        backbone_revision=backbone.revision,
        audio_encoder_revision=encoder.revision,
        backbone_config=backbone_config,
        audio_encoder_config=encoder_config,
        **adapter.fields,
    )
    return ImportedModel(config, adapter, backbone, encoder)
