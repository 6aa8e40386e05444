"""How fast ``tiny``'s adapter trains: seconds of audio a second, with and without the feature cache.

    python benchmarks/training_throughput.py --clips 192 --out docs/training_throughput.json

Clips are spoken on the spot (espeak-ng, six languages) and trained on by ``recipes/tiny/adapter.yaml``, with
the frozen parts of the embedded model, in processes of their own, the two variants in turn. What is timed
begins after the first epoch (processes start, caches warm) and holds whole epochs, so that the seconds of
audio are known exactly; evaluation and saving are not in it. The time spent waiting for data is the trainer's
own figure, ``data_wait`` of ``log.jsonl``. Filling the cache is timed by itself: it says after how many
epochs it pays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VARIANTS = ("encoder every time", "feature cache")
SENTENCES = {
    "en": (
        "The train to the coast leaves at a quarter past nine from platform two.",
        "She put the letter on the table and went out into the garden.",
        "Nobody knew how long the bridge had been closed.",
    ),
    "de": (
        "Der Zug an die Küste fährt um Viertel nach neun von Gleis zwei.",
        "Sie legte den Brief auf den Tisch und ging in den Garten hinaus.",
    ),
    "fr": (
        "Le train pour la côte part à neuf heures et quart du quai numéro deux.",
        "Elle posa la lettre sur la table et sortit dans le jardin.",
    ),
    "es": (
        "El tren a la costa sale a las nueve y cuarto del andén número dos.",
        "Dejó la carta sobre la mesa y salió al jardín.",
    ),
    "hi": ("समुद्र तट जाने वाली गाड़ी सवा नौ बजे दो नंबर से छूटती है।", "उसने चिट्ठी मेज़ पर रखी और बाग़ में चली गई।"),
    "zh": ("去海边的火车九点一刻从二号站台出发。", "她把信放在桌子上，然后走到花园里去了。"),
}


def run_command(arguments: Sequence[str], log: Path) -> None:
    """Run ``canvas-asr`` in a process of its own.

    Raises:
        SystemExit: If it fails.
    """
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, "-m", "canvas_asr.cli", *arguments]
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    if code != 0:
        raise SystemExit(f"error: {shlex.join(arguments)} failed (code {code}); see {log}")


def speak(folder: Path, n_clips: int) -> Path:
    """Speak clips, unless they are there; gives their manifest."""
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        texts = []
        for language, sentences in SENTENCES.items():
            path = folder / f"{language}.txt"
            path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
            texts += ["--text", f"{language}={path}"]
        run_command(["synth", str(folder), *texts, "--n", str(n_clips)], folder / "output.log")
    return manifest


def settings(options: argparse.Namespace, manifest: Path, folder: Path, cache: Path | None) -> list[str]:
    """Changes to the recipe: parts, data, a log line an epoch, one evaluation of one clip at the end."""
    from canvas_asr.manifest import read_manifest

    tiny = ROOT / "src" / "canvas_asr" / "models" / "tiny"
    steps = -(-len(read_manifest(manifest)) // options.batch_size)
    n_steps = steps * (1 + options.epochs)
    source = json.dumps([{"path": str(manifest)}])
    values = {
        "output_dir": folder,
        "options.tokenizer": tiny,
        "options.backbone": tiny / "backbone",
        "options.audio_encoder": tiny / "audio_encoder",
        "options.init": tiny,
        "options.train": source,
        "options.dev": source,
        "options.n_dev": 1,
        "options.whole_checkpoint": "false",
        "options.feature_cache": cache or '""',
        "training.batch_size": options.batch_size,
        "training.max_steps": n_steps,
        "training.eval_steps": n_steps,
        "training.save_steps": n_steps,
        "training.log_steps": steps,
        "training.n_threads": options.threads,
        "training.n_workers": options.workers,
        "training.report_to": "[]",
    }
    return [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]


def figures(log: Sequence[Mapping[str, Any]], audio_s: float, epochs: int) -> dict[str, float]:
    """Speed and waiting of a run, from its log lines of losses: one an epoch.

    Args:
        log: Lines of ``log.jsonl``.
        audio_s: Seconds of audio in an epoch.
        epochs: Timed ones; one before them is not.
    """
    lines = [line for line in log if "loss" in line][: 1 + epochs]
    seconds = lines[-1]["wall_s"] - lines[0]["wall_s"]
    waited = [
        line["data_wait"] * (line["wall_s"] - before["wall_s"]) for before, line in itertools.pairwise(lines)
    ]
    return {
        "audio_s_per_s": round(epochs * audio_s / seconds, 2),
        "waiting_share": round(sum(waited) / seconds, 4),
        "epoch_s": round(seconds / epochs, 2),
    }


def train(options: argparse.Namespace, manifest: Path, name: str, cache: Path | None) -> dict[str, float]:
    """Train once and read the log."""
    from canvas_asr.manifest import read_manifest

    folder = options.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run_command(
        ["train", str(options.recipe), *settings(options, manifest, folder, cache)], folder / "output.log"
    )
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    audio_s = sum(clip.duration_s or 0.0 for clip in read_manifest(manifest))
    return figures([json.loads(line) for line in text.splitlines()], audio_s, options.epochs)


def fill_cache(manifest: Path, cache: Path, n_threads: int) -> float:
    """Compute the encoder's output for all clips; gives the seconds it took."""
    import torch

    from canvas_asr.checkpoint import load_checkpoint
    from canvas_asr.hub import model_folder
    from canvas_asr.manifest import read_manifest
    from canvas_asr.training.feature_cache import FeatureCache

    torch.set_num_threads(n_threads)
    model, processor = load_checkpoint(model_folder("tiny"))
    clips = read_manifest(manifest)
    start = time.perf_counter()
    FeatureCache(cache, model, processor).fill(clips, "cpu")
    return time.perf_counter() - start


def summarise(runs: Mapping[str, Sequence[Mapping[str, float]]], fill_s: float) -> dict[str, Any]:
    """Medians of each variant, and what the cache gains."""
    found: dict[str, Any] = {
        name: {key: round(statistics.median(run[key] for run in own), 4) for key in own[0]}
        for name, own in runs.items()
    }
    without, cached = (found[name] for name in VARIANTS)
    saved_s = without["epoch_s"] - cached["epoch_s"]
    return {
        **found,
        "faster_with_cache": round(cached["audio_s_per_s"] / without["audio_s_per_s"], 3),
        "filling_the_cache_s": round(fill_s, 1),
        "pays_after_epochs": round(fill_s / saved_s, 1) if saved_s > 0 else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "tiny" / "adapter.yaml")
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="timed ones")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="data-loader processes")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "training_throughput")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    from canvas_asr.evaluation.report import describe_machine, installed_versions

    load_before = os.getloadavg()[0]
    manifest = speak(options.work / f"clips-{options.clips}", options.clips)
    cache = options.work / "features"
    shutil.rmtree(cache, ignore_errors=True)
    fill_s = fill_cache(manifest, cache, options.threads)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, place in zip(VARIANTS, (None, cache), strict=True):
            runs[name].append(train(options, manifest, name.replace(" ", "-"), place))
    content = {
        "command": f"python benchmarks/training_throughput.py {shlex.join(arguments)}",
        "machine": {**describe_machine(), "load_average_before": load_before},
        "versions": installed_versions(),
        "clips": options.clips,
        "batch_size": options.batch_size,
        "n_threads": options.threads,
        "n_workers": options.workers,
        "medians": summarise(runs, fill_s),
        "runs": runs,
    }
    text = json.dumps(content, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
