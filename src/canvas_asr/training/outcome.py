"""What a run leaves for others: a checkpoint with its model card, and a record of how it came about.

checkpoint/     config.json, model.safetensors, tokenizer, feature extractor, README.md; with backbone/ and
                audio_encoder/ where the checkpoint is whole
training.json   recipe, machine, versions
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from canvas_asr.card import TRAINING_NAME, CardFacts, has_own_card, write_model_card
from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.configuration import load_configuration
from canvas_asr.evaluation.machine import describe_machine, installed_versions
from canvas_asr.manifest import write_text
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

from .callbacks import say
from .processes import process_state
from .recipe import Recipe

CHECKPOINT_NAME = "checkpoint"


def leave_checkpoint(
    recipe: Recipe, model: CanvasASRModel, processor: CanvasASRProcessor, *, whole: bool
) -> Path:
    """Write checkpoint, record and card of a run that has ended; in its main process.

    Args:
        recipe: Of the run; its folder has ``data.json`` and ``log.jsonl`` by now.
        model: As trained.
        processor: Of the model.
        whole: Whether backbone and audio encoder are written beside the adapter.

    Returns:
        Folder of the checkpoint.
    """
    run, folder = recipe.output_dir, recipe.output_dir / CHECKPOINT_NAME
    save_checkpoint(model, processor, folder, whole=whole, dtype=None)
    record = {
        "recipe": dataclasses.asdict(recipe),
        "machine": describe_machine(),
        "versions": installed_versions(),
        "n_processes": process_state().num_processes,
    }
    text = json.dumps(record, ensure_ascii=False, indent=1, default=str)  # paths
    write_text(run / TRAINING_NAME, text + "\n")
    if has_own_card(folder):  # of someone who let the run go on
        say(f"{folder}: its model card was written by hand and stays as it is.")
    else:
        write_model_card(folder, load_configuration(folder), CardFacts.read(run))
    return folder
