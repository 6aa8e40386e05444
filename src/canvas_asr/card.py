"""The model card of a saved checkpoint: what it is, how to use it, and under which licences its parts are."""

from __future__ import annotations

from pathlib import Path

from .configuration import CanvasASRConfig
from .hub import HUB, is_hub_name

CARD_NAME = "README.md"


def write_model_card(folder: Path, config: CanvasASRConfig) -> None:
    """Write the card of a checkpoint, unless there is one.

    Args:
        folder: Of the checkpoint.
        config: Of the model.
    """
    path = folder / CARD_NAME
    if not path.exists():
        path.write_text(model_card(config), encoding="utf-8")


def model_card(config: CanvasASRConfig) -> str:
    """Compose the card.

    Args:
        config: Of the model.

    Returns:
        Markdown with the hub's metadata.
    """
    parts = {"backbone": config.backbone, "audio encoder": config.audio_encoder}
    named = [name for name in parts.values() if is_hub_name(name)]
    languages = ", ".join(config.language_tags)
    metadata = [
        "---",
        # The hub knows one licence for all: the adapter's, where it is all that is here.
        f"license: {'apache-2.0' if len(named) == len(parts) else 'other'}",
        "library_name: canvas-asr",
        "pipeline_tag: automatic-speech-recognition",
        "tags: [diffusion, speech-recognition]",
        f"language: [{languages}]",
        *(["base_model:", *(f"- {name}" for name in named)] if named else []),
        "---",
    ]
    table = [f"| {part} | {_source(name)} | {_licence(name)} |" for part, name in parts.items()]
    return "\n".join(
        [
            *metadata,
            "",
            "# Speech recognition by parallel denoising",
            "",
            f"An adapter (projector, CTC tap, LoRA of rank {config.lora_rank}) that lets a frozen diffusion",
            "language model transcribe what a frozen audio encoder hears, in the format of canvas-asr.",
            "",
            "```python",
            "import canvas_asr",
            "",
            'asr = canvas_asr.load("this/repository")  # or the folder that holds this file',
            'print(asr.transcribe("talk.mp3").text)',
            "```",
            "",
            f"Languages: {languages}. A clip may be {config.max_audio_s:g} s long.",
            "",
            "## Parts and licences",
            "",
            "| part | from | licence |",
            "|---|---|---|",
            "| adapter | this repository | Apache-2.0 |",
            *table,
            "",
            "## Training data and scores",
            "",
            "Not stated by whoever saved this checkpoint.",
            "",
        ]
    )


def _source(name: str) -> str:
    if is_hub_name(name):
        return f"[{name}]({HUB}/{name})"
    return "a folder of the maker's computer" if "/" in name else f"`{name}/` in this repository"


def _licence(name: str) -> str:
    return f"its own: see [its page]({HUB}/{name})" if is_hub_name(name) else "its own"
