"""Error rates of the decoding benchmark: an evaluation of every setting, and its figures over all clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas_asr.evaluation.conditions import choose_conditions
from canvas_asr.evaluation.decode import Evaluator, Plan, grouped
from canvas_asr.evaluation.metrics import PRIMARY_METRICS, ErrorCounts, add_up
from canvas_asr.evaluation.modes import parse_setting
from canvas_asr.evaluation.sets import load_clip
from canvas_asr.evaluation.significance import compare
from canvas_asr.evaluation.store import Line, Store
from canvas_asr.evaluation.summary import summarise
from canvas_asr.evaluation.systems import kind_of, open_system, settings_of
from canvas_asr.manifest import Clip

Record = dict[str, Any]
Key = tuple[str, str, int]
AGGREGATES = {
    "all": tuple(PRIMARY_METRICS),
    "words": tuple(code for code, unit in PRIMARY_METRICS.items() if unit == "wer"),
    "characters": tuple(code for code, unit in PRIMARY_METRICS.items() if unit == "cer"),
}
"""Languages whose errors are summed: WER of en, de, fr, es; CER of hi and zh; or each in its own unit."""


@dataclass(frozen=True)
class Job:
    """One call of the evaluation.

    Attributes:
        model: As ``canvas-asr evaluate`` names it.
        settings: Of decoding.
        limit: Clips of each language; None: all.
    """

    model: str
    settings: tuple[str, ...]
    limit: int | None


def evaluate(
    job: Job,
    out: Path,
    sets: Mapping[str, Sequence[Clip]],
    batch_size: int,
    load_model: Callable[..., Any],
    tell: Callable[[str], None],
) -> None:
    """Decode what is missing in a folder of the evaluation; the same call goes on where it was stopped.

    Args:
        job: What is decoded.
        out: The folder.
        sets: Clips by name of the set.
        batch_size: Clips a batch.
        load_model: Turns model and device into a recogniser.
        tell: Told how far it is.
    """
    asked = [parse_setting(text) for text in job.settings]
    plan = Plan(
        job.model,
        kind_of(job.model),
        lambda: open_system(job.model, None, load_model),
        settings_of([job.model], asked)[job.model],
        choose_conditions(None),
        load_clip,
        batch_size,
        0,
    )
    evaluator = Evaluator(plan, Store(out))
    groups = [group for name, clips in sets.items() for group in grouped(name, clips, job.limit)]
    for group in groups:
        for number, _ in enumerate(evaluator.run(group)):
            tell(f"{job.model}, {group.testset} {group.language}: {asked[number % len(asked)].name}")


@dataclass(frozen=True)
class Read:
    """What one model read in one setting.

    Attributes:
        counts: Whisper-normalised errors of each clip, in words or characters as its language has it.
        lines: Of the evaluation, by clip.
    """

    counts: dict[Key, ErrorCounts]
    lines: dict[Key, Line]

    def rate(self, aggregate: str = "all") -> float | None:
        """Errors by reference units over all clips of some languages; None where there is no clip."""
        counts = add_up(c for key, c in self.counts.items() if key[1] in AGGREGATES[aggregate])
        return counts.rate if counts.defined else None

    def figures(self) -> Record:
        """Rates, speed and passes."""
        lines = self.lines.values()
        seconds = sum(line.seconds or 0.0 for line in lines)
        return {
            "n_clips": len(self.lines),
            "rates": {name: self.rate(name) for name in AGGREGATES},
            "rtfx": sum(line.audio_s for line in lines) / seconds if seconds else None,
            "mean_passes": sum(line.passes for line in lines) / max(1, len(self.lines)),
            "n_truncated": sum(line.truncated for line in lines),
        }


def read_all(out: Path) -> dict[tuple[str, str], Read]:
    """Score every line of a folder, by model and setting, without clips too long for their model."""
    found: dict[tuple[str, str], Read] = {}
    for result in summarise(Store(out), "primary"):
        read = found.setdefault((result.asked.model, result.asked.mode), Read({}, {}))
        for line, counts in zip(result.lines, result.clips, strict=True):
            if not line.too_long:  # for a baseline; nobody read it
                key = line.testset, line.language, line.place
                read.counts[key], read.lines[key] = counts, line
    return found


def difference(first: Read, second: Read, aggregate: str = "all") -> Record | None:
    """Rate of the second minus that of the first on the clips that both read, by paired bootstrap.

    Returns:
        ``difference``, its 95 % interval ``low`` and ``high``, ``p``, ``n_clips``, and both rates; None where
        there is no clip in common.
    """
    keys = [key for key in first.counts if key in second.counts and key[1] in AGGREGATES[aggregate]]
    of_first, of_second = ([side.counts[key] for key in keys] for side in (first, second))
    found = compare(of_first, of_second) if keys else None
    if found is None:
        return None
    return {**found.to_dict(), "first": add_up(of_first).rate, "second": add_up(of_second).rate}


def passes_needed(reads: dict[int, Read], within: float) -> Record:
    """The fewest passes whose rate is within some share of that of the most.

    Args:
        reads: By number of passes.
        within: Such as 0.002 for 0.2 points.
    """
    rates = {n: read.rate() for n, read in sorted(reads.items())}
    converged = rates[max(rates)]
    near = [n for n, rate in rates.items() if rate is not None and rate <= (converged or 0.0) + within]
    return {"rates": rates, "converged_passes": max(rates), "passes_needed": near[0] if near else None}
