"""The model card of a saved checkpoint: what it is, how to use it, what it was made from, how well it reads.

What is not in the configuration comes from files: ``data.json``, ``training.json`` and ``log.jsonl`` of the
run that made it, and the ``evaluation.json`` of evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .card_sections import data_section, headlines, scores_section, training_section
from .configuration import CanvasASRConfig
from .errors import DataError, OptionError
from .hub import HUB, is_hub_name
from .manifest import write_text

CARD_NAME = "README.md"
# Files of a run.
DATA_NAME = "data.json"
TRAINING_NAME = "training.json"
LOG_NAME = "log.jsonl"

MADE_BY = "<!-- Made by canvas-asr; a card without this line is never replaced. -->"
TASK = "automatic-speech-recognition"


@dataclass(frozen=True)
class CardFacts:
    """What a card tells beside the configuration.

    Attributes:
        data: What it was trained on, a record a source.
        training: How: recipe, machine, versions.
        log: Lines of the run's log.
        evaluations: What evaluations found.
    """

    data: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    evaluations: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, run: Path | None = None, evaluations: Sequence[Path] = ()) -> CardFacts:
        """Read what there is.

        Args:
            run: Folder of a training run; what it does not hold is not told.
            evaluations: ``evaluation.json`` files.

        Raises:
            DataError: If a file is not what it should be.
        """
        found: dict[str, Any] = {"evaluations": [_read_evaluation(path) for path in evaluations]}
        if run is not None:
            if (run / DATA_NAME).is_file():
                found["data"] = _read_json(run / DATA_NAME, list)
            if (run / TRAINING_NAME).is_file():
                found["training"] = _read_json(run / TRAINING_NAME, dict)
            if (run / LOG_NAME).is_file():
                found["log"] = _read_log(run / LOG_NAME)
        return cls(**found)


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: holds no {'list' if kind is list else 'object'} of JSON.")
    return content


def _read_log(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"]), "wall_s": float(record["wall_s"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}:{number}: not a line of a training log ({error!r}).") from error
    return records


def _read_evaluation(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _read_json(path, dict)
    try:
        scores_section(content)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: is no evaluation.json of canvas-asr evaluate: {reason}.") from error
    return content


def has_own_card(folder: Path) -> bool:
    """Whether the card of a checkpoint was written by hand."""
    path = folder / CARD_NAME
    return path.exists() and MADE_BY not in path.read_text(encoding="utf-8", errors="replace")


def write_model_card(
    folder: Path,
    config: CanvasASRConfig,
    facts: CardFacts | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the card of a checkpoint, unless there is one that someone else wrote.

    Args:
        folder: Of the checkpoint.
        config: Of the model.
        facts: To be told; None: of a model that was only saved, which keeps any card that is there.
        overwrite: Replace a card of whatever origin.

    Raises:
        OptionError: If there are facts to tell and a card that is not to be replaced.
    """
    path = folder / CARD_NAME
    if path.exists() and not overwrite:
        if facts is None:
            return
        if has_own_card(folder):
            raise OptionError(f"{path}: was not made by canvas-asr; give --overwrite to replace it.")
    write_text(path, model_card(config, facts or CardFacts()))


def model_card(config: CanvasASRConfig, facts: CardFacts | None = None) -> str:
    """Compose the card.

    Args:
        config: Of the model.
        facts: What is known beside it.

    Returns:
        Markdown with the hub's metadata.
    """
    facts = facts or CardFacts()
    parts = {"backbone": config.backbone, "audio encoder": config.audio_encoder}
    languages = ", ".join(config.language_tags)
    lora = f"LoRA of rank {config.lora_rank}" if config.lora_rank else "no LoRA"
    table = [f"| {part} | {_source(name)} | {_licence(name)} |" for part, name in parts.items()]
    lines = [
        "---",
        _metadata(config, facts),
        "---",
        MADE_BY,
        "",
        "# Speech recognition by parallel denoising",
        "",
        f"An adapter (projector, CTC tap, {lora}) that lets a frozen diffusion",
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
        f"Decoding, unless a call says otherwise: {config.decoding.described}.",
        "",
        "## Parts and licences",
        "",
        "| part | from | licence |",
        "|---|---|---|",
        "| adapter | this repository | Apache-2.0 |",
        *table,
        "",
        *data_section(facts.data),
        *training_section(facts.training, facts.log),
    ]
    for evaluation in facts.evaluations:
        lines += scores_section(evaluation)
    if not facts.evaluations:
        lines += ["## Scores", "", "Not evaluated, or not stated by whoever saved this checkpoint.", ""]
    return "\n".join(lines)


def _metadata(config: CanvasASRConfig, facts: CardFacts) -> str:
    """The hub's metadata, as YAML."""
    named = [name for name in (config.backbone, config.audio_encoder) if is_hub_name(name)]
    found = [one for evaluation in facts.evaluations for one in headlines(evaluation, config.decoding)]
    data = ModelCardData(
        language=list(config.language_tags),
        # The hub knows one licence for all: the adapter's, where it is all that is here.
        license="apache-2.0" if len(named) == 2 else "other",
        library_name="canvas-asr",
        pipeline_tag=TASK,
        tags=["diffusion", "speech-recognition"],
        base_model=named or None,
        metrics=sorted({headline.unit for headline in found}) or None,
        model_name="canvas-asr adapter" if found else None,
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=headline.testset,
                dataset_name=f"{headline.testset} ({headline.language})",
                dataset_config=headline.language,
                metric_type=headline.unit,
                metric_name=headline.name,
                metric_value=headline.percent,
            )
            for headline in found
        ]
        or None,
    )
    return str(data.to_yaml())


def _source(name: str) -> str:
    if is_hub_name(name):
        return f"[{name}]({HUB}/{name})"
    return "a folder of the maker's computer" if "/" in name else f"`{name}/` in this repository"


def _licence(name: str) -> str:
    return f"its own: see [its page]({HUB}/{name})" if is_hub_name(name) else "its own"
