"""Which runs the page on reproduction is made of, in what they differ, and what each figure compares.

All runs of the adapter stage are ``recipes/reproduction/adapter.yaml`` with the same frozen parts, and of the
text stage ``text.yaml`` beside it; a run states in what it departs from that. ``six`` departs in nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MASK_ID = 15  # <|spare0|> of tiny's tokenizer, which no text has
LANGUAGE = "en"


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        values: By dotted key of the recipe, in what it differs from the others of its stage.
        stage: ``adapter`` or ``text``.
        after: Another run, trained before it.
        takes: What it takes from that one: by dotted key, the path inside that run's folder.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    stage: str = "adapter"
    after: str = ""
    takes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        source: ``points`` (evaluations), ``losses`` (log lines), or ``before``: evaluations of the run that
            an arm starts from.
        figure: Name of the figure there.
        label: Of the axis.
        percent: Whether it is a share.
    """

    source: str
    figure: str
    label: str
    percent: bool = True


@dataclass(frozen=True)
class Experiment:
    """One figure of the page.

    Attributes:
        title: Of the figure.
        arms: Run by the label it is drawn with.
        panels: What is drawn.
        in_epochs: Whether the abscissa counts epochs of the clips of one language; else it counts steps.
    """

    title: str
    arms: Mapping[str, str]
    panels: tuple[Panel, ...]
    in_epochs: bool = False


NOISE8 = Panel("points", "noise8", "error rate, 8 passes from noise")
DRAFT = Panel("points", "draft", "error rate of the CTC draft")
GAP = Panel("points", "gap", "shuffled − true error rate, points")
DIFFUSION = Panel("losses", "diffusion", "diffusion loss, nats", percent=False)
READING = Panel("losses", "autoregressive", "autoregressive loss, nats", percent=False)

EXPERIMENTS = {
    "ctc": Experiment(
        "An encoder trained with CTC: the adapter with and without the CTC loss",
        {"CTC loss on": "six", "CTC loss off": "six-no-ctc"},
        (DIFFUSION, READING, GAP),
    ),
    "ctc-frames": Experiment(
        "An encoder never trained with CTC: the adapter with and without the CTC loss",
        {"CTC loss on": "frames", "CTC loss off": "frames-no-ctc"},
        (DIFFUSION, READING, GAP),
    ),
    "epochs": Experiment(
        "Error rate by epoch, English", {"English": "english"}, (NOISE8, DRAFT, GAP), in_epochs=True
    ),
    "languages": Experiment(
        "Six languages, from nothing and from the English adapter",
        {"from nothing": "six", "from the English adapter": "six-after-english"},
        (NOISE8, DRAFT, GAP),
    ),
    "lora": Experiment(
        "LoRA on and off",
        {"projector and LoRA": "english", "projector alone": "no-lora"},
        (NOISE8, DRAFT, GAP),
    ),
    "noise": Experiment(
        "Random tokens against absorbing masks",
        {"random tokens": "random", "masks": "masks"},
        (
            Panel("before", "wer_en", "WER of repaired text, 8 passes"),
            Panel("before", "wer_en_1pass", "WER of repaired text, 1 pass"),
            NOISE8,
            GAP,
        ),
    ),
    "front-end": Experiment(
        "Audio encoder against raw waveform",
        {"audio encoder": "english", "raw waveform": "waveform"},
        (NOISE8, DRAFT, GAP),
    ),
}
PASSES = "passes"
PASSES_TITLE = "Error rate and speed by passes from noise"
PASS_COUNTS = (1, 2, 4, 8, 16, 32, 48)


@dataclass(frozen=True)
class Places:
    """Where the frozen parts and the data of one language are.

    Attributes:
        frames_encoder: Folder of an audio encoder never trained with CTC.
        clips: Manifest of the clips of one language.
        dev: Manifest that is judged by.
    """

    frames_encoder: Path
    clips: Path
    dev: Path


def table(places: Places) -> dict[str, Run]:
    """Give all runs by name."""
    english = {
        "options.train": [{"path": str(places.clips)}],
        "options.dev": [{"path": str(places.dev), "languages": [LANGUAGE]}],
    }
    frames = {**english, "options.audio_encoder": str(places.frames_encoder)}
    no_ctc = {"options.ctc_weight": 0.0}
    waveform = {
        "options.model.audio_front_end": "waveform",
        # A frame is 40 ms here, as from the encoder; a sample's place in it is no frequency.
        "options.spec_augment": {"n_time": 2, "max_time": 10, "n_frequency": 0, "max_frequency": 0},
    }
    # One kind of noise and nothing else: drafts and edits would be the same in both arms.
    alone = {
        f"options.objective.corruption.{kind}": float(kind == "uniform")
        for kind in ("uniform", "draft", "predictions", "edits")
    }
    by_spikes = {**english, **alone, "options.model.audio_positions": "spikes"}
    masks = {"options.objective.corruption.mask_id": MASK_ID}
    from_backbone = {"options.backbone": "backbone"}
    return {
        "six": Run(),
        "six-no-ctc": Run(no_ctc),
        "english": Run(english),
        "six-after-english": Run(after="english", takes={"options.init": "trained.safetensors"}),
        "frames": Run(frames),
        "frames-no-ctc": Run({**frames, **no_ctc}),
        "no-lora": Run({**english, "options.model.lora_rank": 0}),
        "waveform": Run({**english, **waveform}),
        "text-random": Run(stage="text"),
        "text-masks": Run(masks, "text"),
        "random": Run(by_spikes, after="text-random", takes=from_backbone),
        "masks": Run(
            {**by_spikes, **masks, "options.model.mask_token_id": MASK_ID},
            after="text-masks",
            takes=from_backbone,
        ),
    }
