"""The story of the released system, reproduced in small: train the runs of an experiment and store its JSON.

    python benchmarks/reproduction.py ctc lora noise --steps 300
    python benchmarks/reproduction_plots.py docs/reproduction

Experiments and runs are those of ``reproduction_runs.py``; several experiments share a run, which is trained
once. Runs go one at a time, each in a process of its own on one thread, from its newest checkpoint; the same
call goes on where it was stopped, and one with more ``--steps`` goes on from there. The JSON file of an
experiment is written after each of its runs. With ``--collect`` nothing is trained.

The measure is what decoding gives on held-out clips, and above all the *gap*: the error rate with another
clip's audio less the true one (8 passes from noise, mean over languages): what a model gains by listening.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduction_runs import (
    EXPERIMENTS,
    LANGUAGE,
    PASS_COUNTS,
    PASSES,
    PASSES_TITLE,
    Experiment,
    Places,
    Run,
    table,
)

from canvas_asr.evaluation.report import describe_machine, installed_versions
from canvas_asr.manifest import read_manifest, write_manifest
from canvas_asr.training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
LOSSES = ("ctc", "diffusion", "autoregressive")


def read_log(log: Path) -> Iterator[dict[str, Any]]:
    """Read a run's ``log.jsonl``; where a resumed run came by a step again, the later line counts."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    records = [json.loads(line) for line in lines]
    kinds = [("eval_gap" in record, "loss" in record) for record in records]
    last = {(record["step"], *kinds[place]): place for place, record in enumerate(records)}
    return (records[place] for place in sorted(last.values(), key=lambda place: records[place]["step"]))


def read_points(log: Path) -> list[dict[str, float]]:
    """Evaluations of a run in order of steps: ``step``, and every figure without its ``eval_``."""
    return [
        {"step": record["step"]}
        | {key[5:]: round(value, 4) for key, value in record.items() if key.startswith("eval_")}
        for record in read_log(log)
        if "eval_gap" in record
    ]


def read_losses(log: Path) -> list[dict[str, float]]:
    """Losses of a run by step, as logged: means since the line before."""
    return [
        {"step": record["step"], **{key: round(record[key], 4) for key in LOSSES if key in record}}
        for record in read_log(log)
        if "diffusion" in record
    ]


def is_done(folder: Path, steps: int) -> bool:
    """Whether a run has trained and been judged to its last step."""
    points = read_points(folder / "log.jsonl")
    return (folder / "trained.safetensors").is_file() and bool(points) and points[-1]["step"] >= steps


def needed(names: Sequence[str], runs: Mapping[str, Run]) -> list[str]:
    """Runs by name, each behind the one that it starts from."""
    found: dict[str, None] = {}
    for name in names:
        if runs[name].after:
            found |= dict.fromkeys(needed([runs[name].after], runs))
        found[name] = None
    return list(found)


def steps_of(run: Run, options: argparse.Namespace) -> int:
    """Steps that a run is asked for."""
    steps: int = options.text_steps if run.stage == "text" else options.steps
    return steps


def common_values(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Give what all runs of a stage have in common beside their recipe."""
    if stage == "text":
        n = options.text_steps
        return {
            "options.init": options.text_init,
            "training.max_steps": n,
            "training.eval_steps": n if n % 3 else n // 3,
        }
    return {
        "options.backbone": options.backbone,
        "options.audio_encoder": options.audio_encoder,
        "training.max_steps": options.steps,
        "training.eval_steps": options.eval_steps,
        "training.save_steps": options.eval_steps,
    }


def train(name: str, run: Run, seed: int, options: argparse.Namespace) -> None:
    """Train one run, from its newest checkpoint where there is one.

    Raises:
        SystemExit: If the training fails, or ends before its last step.
    """
    folder = options.work / f"{name}-seed{seed}"
    before = options.work / f"{run.after}-seed{seed}"
    values = {
        **common_values(run.stage, options),
        **run.values,
        **{key: str(before / path) for key, path in run.takes.items()},
        "output_dir": str(folder),
        "training.seed": seed,
    }
    command = [sys.executable, "-m", "canvas_asr.cli", "train", str(options.recipes / f"{run.stage}.yaml")]
    for key, value in values.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("a", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    if code != 0:
        raise SystemExit(f"error: {folder.name} failed (code {code}); see {folder / 'output.log'}")
    if not is_done(folder, steps_of(run, options)):
        raise SystemExit(f"{folder.name} was stopped before its last step; the same call goes on there.")


def last_figures(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare arms at the last step that all of them have reached, over the seeds that all have.

    Returns:
        ``step``, ``seeds``, and by arm the mean of every figure; empty where an arm has no evaluation.
    """
    by_seed = [{run["seed"]: run["points"] for run in arm["runs"] if run["points"]} for arm in arms.values()]
    seeds = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if not seeds:
        return {}
    steps = [{point["step"] for point in runs[seed]} for runs in by_seed for seed in seeds]
    if not (shared := set.intersection(*steps)):
        return {}
    step = max(shared)
    found: dict[str, Any] = {"step": step, "seeds": seeds}
    for label, runs in zip(arms, by_seed, strict=True):
        points = [point for seed in seeds for point in runs[seed] if point["step"] == step]
        found[label] = {
            key: round(statistics.mean(point[key] for point in points), 4)
            for key in points[0]
            if key != "step"
        }
    return found


def logged(run: str, before: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a run has logged, and the one that it starts from, by seed; seeds not begun are left out."""
    found = []
    for seed in options.seeds:
        own, earlier = (options.work / f"{name}-seed{seed}" / "log.jsonl" for name in (run, before or run))
        record = {
            "seed": seed,
            "before": read_points(earlier) if before else [],
            "points": read_points(own),
            "losses": read_losses(own),
        }
        if record["before"] or record["losses"]:
            found.append(record)
    return found


def collect(name: str, runs: Mapping[str, Run], options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Gather what the runs of an experiment have logged so far, and write its JSON file."""
    experiment: Experiment = EXPERIMENTS[name]
    arms = {
        label: {
            "run": run,
            "differs_by": dict(runs[run].values),
            "starts_from": runs[run].after or None,
            "runs": logged(run, runs[run].after, options),
        }
        for label, run in experiment.arms.items()
    }
    content = {
        "experiment": name,
        "title": experiment.title,
        "panels": [vars(panel) for panel in experiment.panels],
        "steps_per_epoch": _steps_per_epoch(options) if experiment.in_epochs else None,
        **_circumstances(options, command),
        "steps": options.steps,
        "complete": all(
            is_done(options.work / f"{run}-seed{seed}", options.steps)
            for run in experiment.arms.values()
            for seed in options.seeds
        ),
        "last": last_figures(arms),
        "arms": arms,
    }
    _write(content, options.out / f"{name}.json")
    return content


def _steps_per_epoch(options: argparse.Namespace) -> float:
    batch_size = load_recipe(options.recipes / "adapter.yaml").training.batch_size
    return options.clips / batch_size


def _circumstances(options: argparse.Namespace, command: str) -> dict[str, Any]:
    return {
        "command": command,
        "recipe": "recipes/reproduction/adapter.yaml",
        "machine": {**describe_machine(), "n_threads": 1},
        "versions": installed_versions(),
    }


def _write(content: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def measure_passes(options: argparse.Namespace, places: Places, command: str) -> dict[str, Any]:
    """Decode held-out clips from noise in 1 to 48 passes, and write the JSON file.

    Raises:
        SystemExit: If the evaluation fails.
    """
    from canvas_asr.evaluation.evaluate import main as evaluate

    work = options.work / PASSES
    if not options.collect:
        settings = [f"steps={n},init=noise" for n in PASS_COUNTS]
        limit = ["--limit", str(options.limit), "--batch-size", "16"]
        arguments = [options.model, "--set", str(places.dev), "--setting", *settings, *limit]
        if evaluate([*arguments, "--out", str(work)]) != 0:
            raise SystemExit("error: the evaluation failed; its message stands above.")
    evaluation = json.loads((work / "evaluation.json").read_text(encoding="utf-8"))
    content = {
        "experiment": PASSES,
        "title": PASSES_TITLE,
        "command": command,
        "model": options.model,
        "clips_per_language": options.limit,
        "machine": evaluation["machine"],
        "versions": evaluation["versions"],
        "passes": passes_of(evaluation["results"]),
    }
    _write(content, options.out / f"{PASSES}.json")
    return content


def passes_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean error rate over languages, and seconds of audio a second, by passes."""
    found = []
    for steps in sorted({result["mode"]["options"]["steps"] for result in results}):
        own = [result for result in results if result["mode"]["options"]["steps"] == steps]
        rates = {result["language"]: round(result["scores"]["primary"], 4) for result in own}
        audio_s, seconds = (sum(result[key] for result in own) for key in ("audio_s", "seconds"))
        found.append(
            {
                "passes": steps,
                "rate": round(statistics.mean(rates.values()), 4),
                "rtfx": round(audio_s / seconds, 2),
                "by_language": rates,
            }
        )
    return found


def find_places(options: argparse.Namespace) -> Places:
    """Find the data of the recipe, and write down the clips of one language that are trained on.

    Raises:
        CanvasASRError: If recipe or manifest cannot be read.
    """
    recipe = load_recipe(options.recipes / "adapter.yaml")
    first, dev = (Path(recipe.options[key][0]["path"]) for key in ("train", "dev"))
    clips = options.work / f"{LANGUAGE}-{options.clips}.jsonl"
    if not (clips.is_file() or options.collect):
        own = [clip for clip in read_manifest(first) if clip.language == LANGUAGE and clip.text]
        options.work.mkdir(parents=True, exist_ok=True)
        write_manifest(clips, own[: options.clips])
    return Places(options.frames_encoder, clips, dev)


def _parser() -> argparse.ArgumentParser:
    tiny = Path("runs") / "tiny"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("experiments", nargs="+", choices=[*EXPERIMENTS, PASSES], metavar="EXPERIMENT",
        help=", ".join([*EXPERIMENTS, PASSES]))  # fmt: skip
    add("--steps", type=int, default=600, help="of every run of the adapter stage (default 600)")
    add("--eval-steps", type=int, default=100, help="steps between evaluations (default 100)")
    add("--text-steps", type=int, default=150, help="of every run of the text stage (default 150)")
    add("--clips", type=int, default=2400, help="clips of the runs in one language (default 2400)")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--backbone", default=str(tiny / "text_short" / "backbone"), help="frozen, of all runs")
    add("--audio-encoder", default=str(tiny / "acoustic_ctc" / "audio_encoder"), help="frozen, likewise")
    add("--frames-encoder", type=Path, default=tiny / "acoustic_frames" / "audio_encoder",
        help="never trained with CTC")  # fmt: skip
    add("--text-init", default=str(tiny / "text_short" / "trained.safetensors"),
        help="of the run that made the backbone")  # fmt: skip
    add("--model", default="tiny", help="whose passes are counted")
    add("--limit", type=int, default=20, help="clips of each language for that (default 20)")
    add("--recipes", type=Path, default=ROOT / "recipes" / "reproduction", metavar="FOLDER")
    add("--work", type=Path, default=Path("runs") / "reproduction", help="folder of the runs")
    add("--out", type=Path, default=ROOT / "docs" / "reproduction", help="folder of the JSON files")
    add("--collect", action="store_true", help="train nothing: write down what the runs have logged so far")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.eval_steps < 1 or options.steps % options.eval_steps:
        parser.error(f"--steps {options.steps} must be a multiple of --eval-steps {options.eval_steps}")
    places = find_places(options)
    runs = table(places)
    others = [part for part in arguments if part not in (*options.experiments, "--collect")]
    for name in options.experiments:
        command = f"python benchmarks/reproduction.py {shlex.join([name, *others])}"
        if name == PASSES:
            measure_passes(options, places, command)
            continue
        for seed in options.seeds if not options.collect else ():
            for run in needed(list(EXPERIMENTS[name].arms.values()), runs):
                if not is_done(options.work / f"{run}-seed{seed}", steps_of(runs[run], options)):
                    print(f"{run}, seed {seed} ...", flush=True)
                    train(run, runs[run], seed, options)
                collect(name, runs, options, command)
        content = collect(name, runs, options, command)
        print(json.dumps({name: content["last"]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
