"""Draw every stored JSON file of the page on reproduction, beside it and nothing else.

python benchmarks/reproduction_plots.py docs/reproduction
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

matplotlib.use("Agg")

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by people who do not see all colours
WIDTH_IN, HEIGHT_IN, DPI = 4.2, 3.4, 110

Series = list[dict[str, float]]


def mean_series(runs: Sequence[Series], figure: str) -> tuple[list[float], list[float]]:
    """Steps that all runs have, and the mean of a figure there."""
    values = [{point["step"]: point[figure] for point in run if figure in point} for run in runs]
    steps = sorted(set.intersection(*map(set, values))) if values else []
    return steps, [statistics.mean(run[step] for run in values) for step in steps]


def draw_panel(axes: Axes, panel: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Draw a figure of all arms by step: a thin line a seed, a thick one for the mean."""
    scale = 100 if panel["percent"] else 1
    per_unit = content["steps_per_epoch"] or 1
    for (label, arm), colour in zip(content["arms"].items(), COLOURS, strict=False):
        runs = [run[panel["source"]] for run in arm["runs"]]
        runs = [run for run in runs if any(panel["figure"] in point for point in run)]
        for run in runs if len(runs) > 1 else ():
            steps, values = mean_series([run], panel["figure"])
            axes.plot(
                [s / per_unit for s in steps], [scale * v for v in values], color=colour, lw=0.7, alpha=0.5
            )
        steps, values = mean_series(runs, panel["figure"])
        marker = None if panel["source"] == "losses" else "o"
        axes.plot(
            [step / per_unit for step in steps],
            [scale * value for value in values],
            color=colour,
            lw=1.8,
            marker=marker,
            ms=3.5,
            label=label if steps else None,
        )
    stage = "text" if panel["source"] == "before" else "adapter"
    axes.set_xlabel("epoch" if content["steps_per_epoch"] else f"{stage} training step")
    axes.set_ylabel(panel["label"] + (", %" if panel["percent"] and "points" not in panel["label"] else ""))
    axes.grid(alpha=0.3)


def draw_arms(content: Mapping[str, Any], path: Path) -> None:
    """Draw the arms of an experiment."""
    panels = content["panels"]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(WIDTH_IN * len(panels), HEIGHT_IN), layout="constrained"
    )
    for one, panel in zip(axes, panels, strict=True):
        draw_panel(one, panel, content)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize="small")
    figure.suptitle(content["title"], fontsize="medium")
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def draw_passes(content: Mapping[str, Any], path: Path) -> None:
    """Draw error rate and speed by passes."""
    passes = [row["passes"] for row in content["passes"]]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(2 * WIDTH_IN, HEIGHT_IN), layout="constrained")
    left.plot(passes, [100 * row["rate"] for row in content["passes"]], color=COLOURS[0], marker="o")
    left.set_ylabel("error rate, %, mean over languages")
    right.plot(passes, [row["rtfx"] for row in content["passes"]], color=COLOURS[0], marker="o")
    right.set_ylabel("seconds of audio a second")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(passes, [str(n) for n in passes])
        axes.set_xlabel("passes")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{content['title']}, {content['model']}", fontsize="medium")
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with the JSON files of benchmarks/reproduction.py")
    options = parser.parse_args(argv)
    paths = sorted(options.folder.glob("*.json"))
    if not paths:
        parser.error(f"{options.folder} has no JSON files; benchmarks/reproduction.py writes them")
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        draw = draw_passes if "passes" in content else draw_arms
        draw(content, path.with_suffix(".png"))
        print(path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
