"""Have models read sets of clips in several settings, and write down what they read and how well.

    canvas-asr evaluate tiny --set data/german.jsonl --setting steps=8,init=noise draft --out runs/evaluation

writes

    hypotheses.jsonl   every transcript beside its reference, as written; the same command goes on there
    evaluation.json    every figure, and what made it
    evaluation.md      the tables
    evaluation.html    the tables with plots, on one page that fetches nothing
    manifests/         the transcripts as the Open ASR Leaderboard's own scorer reads them

See ``docs/evaluation.md`` for what the scores mean.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import CanvasASRError, OptionError
from ..manifest import Clip, write_text
from .conditions import choose_conditions
from .decode import Evaluator, Group, Plan, grouped
from .metrics import check_rate
from .modes import parse_setting
from .options import add_options
from .report import describe_run, render_html, render_markdown
from .sets import load_clip, read_sets
from .store import Store, write_manifests
from .summary import Asked, Result, compare_all, summarise
from .systems import LoadModel, kind_of, load_canvas_model, open_system, settings_of, split_name

REPORT_EVERY_S = 60.0
"""How old the report of a run that is under way may be, but for a group of clips that takes longer."""


def run(
    options: argparse.Namespace,
    command: str,
    load_model: LoadModel = load_canvas_model,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Evaluate as the command's options say and write the files.

    Args:
        options: Of `add_options`.
        command: As it was given, for the report.
        load_model: Turns model and device into the model side, for models of this package.
        check: Called again and again while clips are decoded; what it raises stops the run.

    Raises:
        CanvasASRError: If an option, a set, an audio file or a model is not usable.
    """
    for name, value in (("--limit", options.limit), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, got {value}")
    rate = check_rate(options.metric)
    models = list(dict.fromkeys(options.models))
    settings = settings_of(models, [parse_setting(text) for text in dict.fromkeys(options.settings)])
    conditions = choose_conditions(options.robustness)
    sets, facts = read_sets(options.testsets, options.sets, options.manifests)
    _check_files(models, sets)
    store = Store(options.out)
    plans = [
        Plan(
            model,
            kind_of(model),
            lambda model=model: open_system(model, options.device, load_model),  # type: ignore[misc]
            settings[model],
            conditions,
            load_clip,
            options.batch_size,
            options.seed,
            options.device,
        )
        for model in models
    ]
    groups = [group for name, clips in sets.items() for group in grouped(name, clips, options.limit)]
    asked = [Asked(model, setting.name) for model, chosen in settings.items() for setting in chosen]
    asked += [Asked(line.model, line.mode) for line in store]
    if options.against is not None and not any(options.against in one.names for one in asked):
        known = dict.fromkeys(one.names[len(models) > 1] for one in asked)
        raise OptionError(f"--against: no setting {options.against!r}: use one of {', '.join(sorted(known))}")

    def report() -> None:
        description = describe_run(
            command, models, options.batch_size, options.seed, options.limit, options.device
        )
        description |= {"testsets": facts, "metric": rate, "notes": _notes(plans, groups, store)}
        write_report(options.out, description, store, rate, options.against, options.seed)

    _decode(plans, groups, store, report, check)


def _check_files(models: Sequence[str], sets: Mapping[str, Sequence[Clip]]) -> None:
    """Refuse a file of hypotheses that has more or fewer than a set has clips."""
    from .baselines import HypothesisFile

    for model in models:
        kind, path = split_name(model)
        if kind == "file":
            for name, clips in sets.items():
                HypothesisFile(path).check(name, len(clips))


def _decode(
    plans: Sequence[Plan],
    groups: Sequence[Group],
    store: Store,
    report: Callable[[], None],
    check: Callable[[], None],
) -> None:
    """Decode what is missing; report in between, so that a stopped run leaves what it measured."""
    evaluators = [Evaluator(plan, store) for plan in plans]
    total = sum(
        len(group.clips) * len(list(evaluator.jobs(group))) for evaluator in evaluators for group in groups
    )
    reported_s = -math.inf
    with tqdm(total=total, desc="evaluation", unit="clip", disable=None) as bar:
        for evaluator in evaluators:  # one model in memory at a time
            for group in groups:
                for n_done in evaluator.run(group):
                    check()
                    bar.update(n_done)
                if time.monotonic() - reported_s > REPORT_EVERY_S and group is not groups[-1]:
                    report()
                    reported_s = time.monotonic()
            evaluator.close()
    report()


def _notes(plans: Sequence[Plan], groups: Sequence[Group], store: Store) -> list[str]:
    """What a reader has to know before the figures."""
    notes = []
    for plan in plans:
        languages = plan.kind.languages
        unread = [] if languages is None else sorted({g.language for g in groups} - set(languages))
        if languages is not None and unread:
            notes.append(f"`{plan.model}` reads {', '.join(languages)} only: not read: {', '.join(unread)}.")
    too_long: dict[str, set[tuple[str, int]]] = {}
    setups: dict[str, dict[str, None]] = {}
    for line in store:
        if line.too_long:
            too_long.setdefault(line.model, set()).add((line.testset, line.place))
        if line.seconds is not None and line.setup:
            setups.setdefault(line.setup, {})[line.model] = None
    for model, places in too_long.items():
        notes.append(
            f"{len(places)} clips are longer than `{model}` takes (in a slower condition perhaps): they "
            "count as read empty, so all their words are deletions."
        )
    if len(setups) > 1:
        notes.append(
            "Times were not all taken alike, so RTFx compares within one of these only: "
            + "; ".join(
                f"{', '.join(f'`{name}`' for name in names)} on {how}" for how, names in setups.items()
            )
            + "."
        )
    for name in dict.fromkeys(group.testset for group in groups):
        clips = [clip for group in groups if group.testset == name for clip in group.clips]
        n_empty = sum(not clip.text.strip() for clip in clips)
        if n_empty == len(clips):
            notes.append(f"No clip of `{name}` has a reference text: its error rates are undefined.")
        elif n_empty:
            notes.append(f"{n_empty} of {len(clips)} clips of `{name}` have an empty reference.")
    return notes


def write_report(
    out: Path, description: Mapping[str, Any], store: Store, rate: str, against: str | None, seed: int
) -> None:
    """Make all figures of a folder from its lines, and write the reports.

    Args:
        out: The folder.
        description: Of the run.
        store: The lines.
        rate: What settings are judged by.
        against: Setting the others are compared with; None: the first.
        seed: Of bootstrap and permutations.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = summarise(store, rate, seed)
    pairs = list(compare_all(results, against, seed))
    figures = {
        **description,
        "results": [result.to_dict() for result in results],
        "comparisons": [pair.to_dict() for pair in pairs],
    }
    write_text(out / "evaluation.json", json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    write_text(out / "evaluation.md", render_markdown(description, results, pairs))
    write_text(out / "evaluation.html", render_html(description, results, pairs))
    write_manifests(store, out / "manifests")


def main(argv: Sequence[str] | None = None, load_model: LoadModel = load_canvas_model) -> int:
    """Run the command as a module; returns the exit code.

    Args:
        argv: Arguments; None takes the process's.
        load_model: See `run`.
    """
    program = "python -m canvas_asr.evaluation.evaluate"
    parser = argparse.ArgumentParser(
        prog=program, description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    add_options(parser)
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    try:
        run(options, f"{program} {shlex.join(arguments)}", load_model)
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((options.out / "evaluation.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
