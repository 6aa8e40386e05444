"""Draw the learning curve of a recipe from the logs of its stages.

python scripts/plot_learning_curve.py runs/tiny/acoustic_ctc runs/tiny/adapter --out curve.png
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

# What is worth a line: error rates and accuracies of an evaluation, else the losses of training.
EVALUATED = ("frame_accuracy", "cer_", "wer_", "draft", "noise1", "noise8", "draft1", "shuffled")
MAX_COLUMNS = 5
TRAINED = ("frame_loss", "ctc", "diffusion", "autoregressive")


def read_log(folder: Path) -> list[dict[str, float]]:
    """Read the lines of a run's ``log.jsonl``."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def series(
    records: list[dict[str, float]], prefixes: tuple[str, ...]
) -> dict[str, list[tuple[float, float]]]:
    """Collect (step, value) of every figure whose name starts with one of the prefixes."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(prefixes) and isinstance(value, (int, float)):
                found.setdefault(name, []).append((record["step"], value))
    return found


def main() -> None:
    """Draw two panels a stage: its losses, and what its evaluations decoded."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of the stages")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    n_columns = min(MAX_COLUMNS, len(arguments.runs))
    n_rows = 2 * math.ceil(len(arguments.runs) / n_columns)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(4.2 * n_columns, 3.4 * n_rows), squeeze=False)
    for panel in axes.flat[:]:
        panel.set_axis_off()  # until it has something to show
    for place, folder in enumerate(arguments.runs):
        records = read_log(folder)
        row, column = divmod(place, n_columns)
        losses, rates = axes[2 * row][column], axes[2 * row + 1][column]
        for name, points in series(records, TRAINED).items():
            losses.plot(*zip(*points, strict=True), label=name, linewidth=1)
        decoded = {
            n.removeprefix("eval_"): p
            for n, p in series(records, tuple(f"eval_{e}" for e in EVALUATED)).items()
        }
        for name, points in decoded.items():
            rates.plot(*zip(*points, strict=True), label=name, linewidth=1, marker=".")
        losses.set_title(folder.name)
        losses.set_ylabel("training loss")
        rates.set_ylabel("development: share of 1")
        (rates if decoded else losses).set_xlabel("step")
        for panel in (losses, rates):
            if panel.lines:
                panel.set_axis_on()
                panel.grid(alpha=0.3)
                panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
