"""The jobs of the whole recipe: what each makes, what it needs, and how long it may take.

Sized for 25 minutes on one large GPU and 16 cores: the longest way through the jobs (check, synthesis, both
acoustic stages, projector, reading, in_place, checkpoint, evaluation) takes 24.5. Recipes say what a stage
does and what it starts from; here stands only what differs by machine.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas_asr.errors import DataError

from .recipe import TIMED_COSINE, Recipe, load_recipe

MINUTES = {
    "check": 0.5,
    "testsets": 3.0,
    "synthesis": 3.0,
    "acoustic_frames": 2.5,
    "acoustic_ctc": 4.5,
    "text_copy": 1.0,
    "text_short": 2.0,
    "text": 7.0,
    "projector": 6.0,
    "reading": 2.0,
    "in_place": 3.0,
    "checkpoint": 0.5,
    "evaluation": 2.5,
}
# Of every job in small: its few steps end long before, on however busy a machine.
SMALL_MINUTES = 15.0
TRACKS = (
    ("acoustic_frames", "acoustic_ctc"),
    ("text_copy", "text_short", "text"),
    ("projector", "reading", "in_place"),
)
RUNS = "runs/tiny"  # where recipes look for what earlier stages made: in the work folder here
# A stage spends this long at most before its first step and after its last.
OVERHEAD_MINUTES = 0.5
LONGEST_SENTENCE = {"zh": 26}
LONGEST_OTHERS = 90  # characters
NON_SPEECH_SHARE = 0.05
RECORDED_SHARE = 0.3
PACKAGES = (
    "accelerate", "jiwer", "numpy", "peft", "pypinyin", "safetensors", "soundfile", "soxr", "tokenizers",
    "torch", "transformers", "whisper_normalizer", "yaml",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Settings of all jobs.

    Attributes:
        sentences: Folder of sentence lists.
        real: Folder of real speech; None for synthetic speech alone.
        work: Folder for everything made on the way.
        out: Folder for the results.
        recipes: Folder of the recipes.
        tokenizer: Folder of the tokenizer.
        small: Whether everything is a miniature.
        device: ``cuda`` or ``cpu``.
        n_workers: Processes that make data, over all jobs that run at one time.
        n_clips: Synthetic clips, if there is time for them.
        limit: Clips evaluated of each set, language and kind of speaker.
        minutes: Time of each job.
        overrides: Values of a stage's recipe by dotted key, above all others.
    """

    sentences: Path
    real: Path | None
    work: Path
    out: Path
    recipes: Path
    tokenizer: Path
    small: bool
    device: str
    n_workers: int
    n_clips: int
    limit: int
    minutes: dict[str, float]
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def lists(self) -> Path:
        """Folder of the sentence lists that are used."""
        return self.work / "sentences" if self.small else self.sentences

    @property
    def n_text_workers(self) -> int:
        """Share of the processes that the text stages take while others run."""
        return max(1, self.n_workers // 3)

    @property
    def n_other_workers(self) -> int:
        """Share of the processes that is left beside the text stages."""
        return max(1, self.n_workers - self.n_text_workers)


def check(name: str, settings: Settings, minutes_before: float) -> None:
    """See that nothing is missing before a costly machine loses time, and note what the machine is."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise DataError(f"Python packages are missing: {', '.join(missing)}; install them, or carry wheels.")
    import torch

    from canvas_asr.synthesis import espeak

    espeak.say("a", "en")
    gpu = None
    if settings.device == "cuda":
        if not torch.cuda.is_available():
            raise DataError("no CUDA device is usable here; use --device cpu, or --small for a first try.")
        gpu = torch.cuda.get_device_name()
    if settings.small:
        _cut_lists(settings)
    versions = {package: _version(package) for package in PACKAGES}
    cpu = [line for line in lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    found = {
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "n_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions,
    }
    (settings.work / "machine.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    distribution = {"yaml": "pyyaml", "whisper_normalizer": "whisper-normalizer"}.get(package, package)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def lines(path: Path) -> list[str]:
    """Lines of a text file; none where there is no file."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _cut_lists(settings: Settings, n_sentences: int = 600) -> None:
    """Keep the first sentences of each language, of every split as many as there are up to a third."""
    from .sentences import read_sentences

    lists = read_sentences(settings.sentences)
    settings.lists.mkdir(parents=True, exist_ok=True)
    for language in lists.train:
        splits = (lists.train[language], lists.dev[language], lists.test[language])
        kept = [sentence for split in splits for sentence in split[: n_sentences // 3]]
        (settings.lists / f"{language}.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")


def testsets(name: str, settings: Settings, minutes_before: float) -> None:
    """Build the test sets, and the manifest of the real speech that training may use."""
    from canvas_asr.evaluation import testsets as sets

    n = 2 if settings.small else 100
    print(sets.summary(sets.build(settings.lists, settings.real, settings.work / "testsets", n=n)))


def synthesis(name: str, settings: Settings, minutes_before: float) -> None:
    """Say sentences on all cores until there are enough clips or the time is up."""
    from canvas_asr.synthesis import festival, flite
    from canvas_asr.synthesis.corpus import mixed_sentences, write_manifest

    from .sentences import read_sentences

    end = time.monotonic() + 60 * (settings.minutes[name] - minutes_before) - 5
    lists = read_sentences(settings.lists)
    recorded = flite.available() and all(festival.available(voice) for voice in festival.VOICES)
    print(f"voices made from recordings: {recorded}")

    def until_the_end(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        return itertools.takewhile(lambda _: time.monotonic() < end, pairs)

    n_dev, share = (6, 0.2) if settings.small else (360, NON_SPEECH_SHARE)
    for split, n, seed in (("dev", n_dev, 5), ("train", settings.n_clips, 1)):
        texts = {
            language: [t for t in lines if len(t) <= LONGEST_SENTENCE.get(language, LONGEST_OTHERS)]
            for language, lines in getattr(lists, split).items()
        }
        pairs = mixed_sentences(texts, seed, share if split == "train" else 0.0)
        summary = write_manifest(
            settings.work / "speech" / split,
            until_the_end(pairs) if split == "train" else pairs,
            n=n,
            seed=seed,
            n_workers=settings.n_other_workers,
            recorded_share=RECORDED_SHARE if recorded else 0.0,
            chunk=8 if settings.small else 32,
        )
        print(f"{split}: {summary}")


def _data(settings: Settings, *, real: bool) -> dict[str, Any]:
    train = [{"path": str(settings.work / "speech" / "train" / "manifest.jsonl")}]
    recorded = settings.work / "testsets" / "train_real.jsonl"
    if real and recorded.is_file():
        train.append({"path": str(recorded)})
    dev = [{"path": str(settings.work / "speech" / "dev" / "manifest.jsonl")}]
    return {"options.train": train, "options.dev": dev}


_SMALL_TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "global_head_dim": 32, "num_global_key_value_heads": 1,
    "layer_types": ["sliding_attention", "full_attention"], "num_experts": 2, "top_k_experts": 1,
    "moe_intermediate_size": 32,
}  # fmt: skip
_SMALL_ENCODER = {
    "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
}  # fmt: skip
_SMALL_STEPS = 8


def recipe_overrides(name: str, settings: Settings, minutes_before: float) -> dict[str, Any]:
    """Say in what this machine's run of a stage differs from its recipe.

    Args:
        name: The stage.
        settings: Of the run.
        minutes_before: Used by earlier calls.

    Returns:
        Values by dotted key.
    """
    values: dict[str, Any] = {
        "output_dir": str(settings.work / name),
        "options.tokenizer": str(settings.tokenizer),
        "training.n_threads": 1 if settings.small else 0,
        "training.max_minutes": max(settings.minutes[name] / 2, settings.minutes[name] - OVERHEAD_MINUTES),
        "training.minutes_before": minutes_before,
    }
    recipe = load_recipe(settings.recipes / f"{name}.yaml")
    for key in ("init", "backbone", "audio_encoder"):
        if str(place := recipe.options.get(key, "")).startswith(RUNS):
            values[f"options.{key}"] = str(settings.work / Path(place).relative_to(RUNS))
    if recipe.stage == "text":
        values["options.sentences"] = str(settings.lists)
    else:
        values |= _data(settings, real=name != "acoustic_frames")
    values |= _small_values(recipe) if settings.small else _big_values(recipe, settings)
    return {**values, **settings.overrides.get(name, {})}


def _big_values(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Give steps without end, large batches and many workers: a GPU must not wait for its data."""
    alone = recipe.output_dir.name in TRACKS[2]
    n_workers = settings.n_text_workers if recipe.stage == "text" else settings.n_other_workers
    return {
        "training.max_steps": 200_000,
        "training.batch_size": 192 if recipe.stage == "adapter" else 256,
        "training.n_workers": settings.n_workers if alone else n_workers,
        "training.eval_steps": 500,
        "training.save_steps": 500,
        "training.log_steps": 50,
    }


def _small_values(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {
        "training.max_steps": _SMALL_STEPS,
        "training.batch_size": 4,
        "training.n_workers": 0,
        "training.eval_steps": _SMALL_STEPS,
        "training.save_steps": _SMALL_STEPS // 2,
        "training.log_steps": 2,
        "training.warmup_steps": 2,
        "options.n_dev": 1 if recipe.stage == "text" else 4,
    }
    if recipe.stage == "acoustic":
        values |= {f"options.encoder.{key}": value for key, value in _SMALL_ENCODER.items()}
    elif recipe.stage == "text":
        values |= {f"options.backbone.text_config.{key}": value for key, value in _SMALL_TEXT.items()}
        values["options.max_target_tokens"] = 48
    else:
        values["options.model.projector_width"] = 64
    return values


def train(name: str, settings: Settings, minutes_before: float) -> None:
    """Run a stage, from its newest checkpoint where there is one."""
    path = settings.recipes / f"{name}.yaml"
    values = recipe_overrides(name, settings, minutes_before)
    if load_recipe(path).training.schedule == "cosine":
        values.setdefault("training.schedule", TIMED_COSINE)
    recipe = load_recipe(path, values)
    importlib.import_module(f"canvas_asr.training.{recipe.stage}").run(recipe)


def checkpoint(name: str, settings: Settings, minutes_before: float) -> None:
    """Write the whole checkpoint in bfloat16."""
    import torch

    from canvas_asr.checkpoint import load_checkpoint, save_checkpoint

    model, processor = load_checkpoint(settings.work / TRACKS[2][-1] / "checkpoint")
    partial = settings.work / "checkpoint.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_checkpoint(model, processor, partial, whole=True, dtype=torch.bfloat16)
    shutil.rmtree(settings.work / "checkpoint", ignore_errors=True)
    partial.rename(settings.work / "checkpoint")


def evaluation(name: str, settings: Settings, minutes_before: float) -> None:
    """Evaluate the checkpoint as it is carried away."""
    from canvas_asr.evaluation.evaluate import main

    modes = ["--modes", "draft", "noise-1", "noise-8", "shuffled-noise-8"] if settings.small else []
    arguments = [
        *(str(settings.work / "checkpoint"), "--testsets", str(settings.work / "testsets")),
        *("--out", str(settings.work / "evaluation"), "--limit", str(settings.limit)),
        *("--batch-size", "4" if settings.small else "64", "--device", settings.device, *modes),
    ]
    if main(arguments) != 0:
        raise DataError("the evaluation failed; its message stands above.")


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        run: Called with its name, the settings and the minutes that earlier calls used.
        output: What it leaves in the work folder when it is done.
        needs: Jobs that must be done before.
        may_be_cut: Whether what it has written when its time is up is of use.
        is_stage: Whether it runs a recipe.
    """

    run: Callable[[str, Settings, float], None]
    output: str
    needs: tuple[str, ...] = ()
    may_be_cut: bool = False
    is_stage: bool = False


JOBS: dict[str, Job] = {
    "check": Job(check, "machine.json"),
    "text_copy": Job(train, "text_copy/trained.safetensors", ("check",), is_stage=True),
    "synthesis": Job(synthesis, "speech/train/manifest.jsonl", ("check",)),
    "testsets": Job(testsets, "testsets/testsets.json", ("check",)),
    "acoustic_frames": Job(train, "acoustic_frames/trained.safetensors", ("synthesis",), is_stage=True),
    "text_short": Job(train, "text_short/trained.safetensors", ("text_copy",), is_stage=True),
    "acoustic_ctc": Job(
        train, "acoustic_ctc/audio_encoder", ("acoustic_frames", "synthesis", "testsets"), is_stage=True
    ),
    "text": Job(train, "text/backbone", ("text_short",), is_stage=True),
    "projector": Job(
        train, "projector/checkpoint", ("acoustic_ctc", "text", "synthesis", "testsets"), is_stage=True
    ),
    "reading": Job(train, "reading/backbone", ("projector",), is_stage=True),
    "in_place": Job(train, "in_place/checkpoint", ("reading",), is_stage=True),
    "checkpoint": Job(checkpoint, "checkpoint", ("in_place",)),
    "evaluation": Job(evaluation, "evaluation/evaluation.json", ("checkpoint", "testsets"), may_be_cut=True),
}
GOAL = "evaluation"
