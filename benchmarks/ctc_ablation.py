"""What the CTC loss is for: the adapter stage with it and without, three seeds, everything else equal.

    python benchmarks/ctc_ablation.py --steps 600 --eval-steps 100 --set options.n_dev=60

Every run starts from the recipe's frozen backbone and audio encoder. The measure is the gap between the error
rate with another clip's audio and the true one (8 passes from noise, mean over languages): what a model gains
by listening. Writes ``ctc_ablation.json`` and ``ctc_ablation.png`` to ``--out``, after every run. Runs go one
at a time, each in a process of its own on one thread; the same call goes on where it was stopped.

Both runs of a seed see the same batches, noise levels and kinds of corruption. Without the loss the CTC draft
stays noise, and with it the share of canvases that the recipe corrupts by drafts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
WEIGHTS = (1.0, 0.0)
FIGURES = {
    "gap": "eval_gap",
    "true": "eval_noise8",
    "shuffled": "eval_shuffled",
    "draft": "eval_draft",
    "noise1": "eval_noise1",
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        ctc_weight: Weight of the CTC loss; 0 is off.
        seed: Of weights, order and noise.
    """

    ctc_weight: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"ctc{self.ctc_weight:g}-seed{self.seed}"


def read_points(log: Path) -> list[dict[str, float]]:
    """Read the evaluations of a run's ``log.jsonl``, in order of steps.

    Args:
        log: The file; where a resumed run evaluated a step again, the later line counts.

    Returns:
        ``step`` and the figures of ``FIGURES``.
    """
    points: dict[int, dict[str, float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        record = json.loads(line)
        if "eval_gap" in record:
            figures = {name: record[key] for name, key in FIGURES.items() if key in record}
            points[record["step"]] = {"step": record["step"], **figures}
    return [points[step] for step in sorted(points)]


def is_done(folder: Path, steps: int) -> bool:
    """Whether a run has trained and been judged to its last step."""
    points = read_points(folder / "log.jsonl")
    return (folder / "trained.safetensors").is_file() and bool(points) and points[-1]["step"] >= steps


def train(run: Run, options: argparse.Namespace, folder: Path) -> None:
    """Train one run, from its newest checkpoint where there is one.

    Raises:
        SystemExit: If the training fails.
    """
    values = {
        "output_dir": folder,
        "options.ctc_weight": run.ctc_weight,
        "training.seed": run.seed,
        "training.max_steps": options.steps,
        "training.eval_steps": options.eval_steps,
        "training.save_steps": options.eval_steps,
        "training.max_minutes": options.minutes,
        "training.n_threads": 1,
    }
    settings = [f"{key}={value}" for key, value in values.items()] + options.set
    command = [sys.executable, "-m", "canvas_asr.cli", "train", str(options.recipe)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    if code != 0:
        raise SystemExit(f"error: {run.name} failed (code {code}); see {folder / 'output.log'}")


def collect(runs: Sequence[Run], work: Path) -> list[dict[str, Any]]:
    """Gather what the runs have logged so far."""
    return [
        {"ctc_weight": run.ctc_weight, "seed": run.seed, "points": read_points(work / run.name / "log.jsonl")}
        for run in runs
    ]


def last_gaps(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the gaps at the last step that every run of both arms has reached.

    Returns:
        ``step``, and for each weight its gaps by seed and their mean; empty until every run was evaluated.
    """
    if not runs or not all(run["points"] for run in runs):
        return {}
    step = min(run["points"][-1]["step"] for run in runs)
    found: dict[str, Any] = {"step": step}
    for weight in sorted({run["ctc_weight"] for run in runs}):
        own = [run for run in runs if run["ctc_weight"] == weight]
        gaps = [next(p["gap"] for p in run["points"] if p["step"] == step) for run in own]
        found[f"ctc_weight_{weight:g}"] = {"gaps": gaps, "mean": statistics.mean(gaps)}
    return found


def plot(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the gap by step: a thin line a run, a thick one for the mean of each arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for weight, label, colour in ((1.0, "CTC loss on", "tab:blue"), (0.0, "CTC loss off", "tab:red")):
        own = [run["points"] for run in runs if run["ctc_weight"] == weight and run["points"]]
        for points in own:
            axes.plot(
                [p["step"] for p in points], [100 * p["gap"] for p in points], color=colour, lw=0.8, alpha=0.6
            )
        shared = sorted(set.intersection(*({p["step"] for p in points} for points in own))) if own else []
        means = [100 * statistics.mean(p["gap"] for ps in own for p in ps if p["step"] == s) for s in shared]
        axes.plot(
            shared, means, color=colour, lw=2.2, marker="o", ms=3.5, label=f"{label} (mean of {len(own)})"
        )
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set_xlabel("adapter training step")
    axes.set_ylabel("shuffled − true error rate, points")
    axes.set_title("What is gained by listening, with and without the CTC loss")
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def report(runs: Sequence[Run], options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Write the JSON file and the plot; returns what the file holds."""
    measured = collect(runs, options.work)
    content = {
        "what": "gap: error rate with another clip's audio less the true one, as shares; 8 passes from noise",
        "command": command,
        "recipe": str(options.recipe),
        "steps": options.steps,
        "set": options.set,
        "machine": {"cpu": _cpu(), "threads": 1, "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "complete": all(is_done(options.work / run.name, options.steps) for run in runs),
        "last": last_gaps(measured),
        "runs": measured,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    (options.out / "ctc_ablation.json").write_text(text, encoding="utf-8")
    plot(measured, options.out / "ctc_ablation.png")
    return content


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "tiny" / "adapter.yaml")
    parser.add_argument("--steps", type=int, required=True, help="of every run")
    parser.add_argument("--eval-steps", type=int, required=True, help="steps between evaluations")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="most minutes of a run and call; 0: no limit"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "ctc_ablation", help="folder of the runs"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the result")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the recipe, in all runs",
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.eval_steps < 1 or options.steps % options.eval_steps:
        parser.error(f"--steps {options.steps} must be a multiple of --eval-steps {options.eval_steps}")
    command = f"python benchmarks/ctc_ablation.py {shlex.join(arguments)}"
    # Both arms of a seed, then the next seed: a run that is stopped early still compares like with like.
    runs = [Run(weight, seed) for seed in options.seeds for weight in WEIGHTS]
    for run in runs:
        if not is_done(options.work / run.name, options.steps):
            print(f"{run.name} ...", flush=True)
            train(run, options, options.work / run.name)
        report(runs, options, command)
    content = report(runs, options, command)
    print(json.dumps(content["last"], indent=1))
    if not content["complete"]:
        print("some runs were cut by --minutes; the same call goes on.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
