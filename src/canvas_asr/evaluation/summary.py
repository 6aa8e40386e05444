"""From the raw lines of an evaluation to its figures: rates with intervals, speed, durations, comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .conditions import CLEAN, CONDITIONS
from .metrics import PRIMARY_METRICS, RATES, ErrorCounts, Scores, primary_rate, score
from .modes import Speakers
from .significance import Comparison, compare, intervals
from .store import Line
from .systems import kind_of

BUCKETS_S = (0.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
"""Where buckets of duration begin, in seconds; the last has no end."""


@dataclass(frozen=True)
class Asked:
    """Who read, and how it was asked: what two results that are compared differ in.

    Attributes:
        model: As it was named.
        mode: Name of the setting.
    """

    model: str
    mode: str

    @property
    def names(self) -> tuple[str, str]:
        """What it may be asked for by: its setting, and its setting behind its model."""
        return self.mode, f"{self.model} {self.mode}"


@dataclass(frozen=True)
class Bucket:
    """Clips of similar length.

    Attributes:
        low_s: Least duration.
        high_s: Where the next bucket begins; infinite for the last.
        n_clips: How many.
        counts: Of the rate that the result is judged by.
        rtfx: Seconds of audio by seconds of time; None if it was not measured.
    """

    low_s: float
    high_s: float
    n_clips: int
    counts: ErrorCounts
    rtfx: float | None

    @property
    def name(self) -> str:
        """Such as ``2–5 s``."""
        return f"over {self.low_s:g} s" if math.isinf(self.high_s) else f"{self.low_s:g}–{self.high_s:g} s"


class Result:
    """Figures of one model, setting and condition, on clips of one set, language and kind of speaker."""

    def __init__(self, lines: Sequence[Line], rate: str, seed: int = 0) -> None:
        """Score lines.

        Args:
            lines: Of one result, at least one.
            rate: What it is judged by: a name of `metrics.RATES`, or ``primary``.
            seed: Of the bootstrap.
        """
        first = lines[0]
        self.lines = lines
        self.asked = Asked(first.model, first.mode)
        self.testset, self.language, self.condition = first.testset, first.language, first.condition
        self.speakers: Speakers = first.speakers
        self.seed = seed
        self.scores: Scores = score(
            [line.reference for line in lines], [line.hypothesis for line in lines], self.language
        )
        # A language without the rate that was asked for is judged by its own.
        self.rate = rate if rate in self.scores.clips else primary_rate(self.language)

    @property
    def clips(self) -> tuple[ErrorCounts, ...]:
        """Counts of each clip, of the rate it is judged by."""
        return self.scores.clips[self.rate]

    @property
    def counts(self) -> ErrorCounts:
        """Counts of all clips."""
        return self.scores[self.rate]

    @property
    def value(self) -> float | None:
        """The rate it is judged by; None where no reference has a word."""
        return self.counts.rate if self.counts.defined else None

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """95 % bootstrap interval of every rate."""
        return intervals(self.scores.clips, self.seed)

    @property
    def audio_s(self) -> float:
        """Seconds of audio that were heard, without what was too long."""
        return sum(line.audio_s for line in self.lines if not line.too_long)

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds from waveform to text; None if they were not measured."""
        return _seconds(self.lines)

    @property
    def rtfx(self) -> float | None:
        """Seconds of audio per wall-clock second."""
        return self.audio_s / self.seconds if self.seconds else None

    @property
    def mean_passes(self) -> float | None:
        """Denoising passes (autoregressive decoding: tokens), mean over clips that were not too long.

        None where there is no such clip, or the system counts none.
        """
        passes = [line.passes for line in self.lines if not line.too_long]
        return sum(passes) / len(passes) if passes and kind_of(self.asked.model).counts_passes else None

    @property
    def language_accuracy(self) -> float | None:
        """Share of clips whose language was found; None if it was given, or another clip was heard."""
        first = self.lines[0]
        if first.language_given or first.shuffled or not any(line.detected for line in self.lines):
            return None
        return sum(line.detected == line.language for line in self.lines) / len(self.lines)

    @property
    def n_empty_references(self) -> int:
        """Clips in which nothing is said."""
        return sum(not line.reference.strip() for line in self.lines)

    @property
    def n_invented(self) -> int:
        """Of those, clips that were given a text all the same."""
        return sum(bool(line.hypothesis.strip()) for line in self.lines if not line.reference.strip())

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Clips by duration; empty buckets are left out."""
        found = []
        for low, high in itertools.pairwise((*BUCKETS_S, math.inf)):
            inside = [i for i, line in enumerate(self.lines) if low <= line.audio_s < high]
            if inside:
                lines = [self.lines[i] for i in inside]
                counts = sum((self.clips[i] for i in inside), start=ErrorCounts())
                seconds = _seconds(lines)
                heard = sum(line.audio_s for line in lines if not line.too_long)
                found.append(Bucket(low, high, len(inside), counts, heard / seconds if seconds else None))
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        first = self.lines[0]
        mode = {
            "name": first.mode,
            "options": dict(first.options),
            "shuffled": first.shuffled,
            "language_given": first.language_given,
        }
        return {
            "model": first.model,
            "testset": self.testset,
            "language": self.language,
            "speakers": self.speakers,
            "mode": mode,
            "condition": self.condition,
            "rate": self.rate,
            "scores": self.scores.to_dict(),
            "intervals": self.intervals,
            "language_accuracy": self.language_accuracy,
            "mean_passes": self.mean_passes,
            "n_truncated": sum(line.truncated for line in self.lines),
            "n_too_long": sum(line.too_long for line in self.lines),
            "n_empty_references": self.n_empty_references,
            "n_invented": self.n_invented,
            "audio_s": self.audio_s,
            "seconds": self.seconds,
            "rtfx": self.rtfx,
            "durations": [
                {
                    "low_s": bucket.low_s,
                    "high_s": None if math.isinf(bucket.high_s) else bucket.high_s,
                    "n_clips": bucket.n_clips,
                    **bucket.counts.to_dict(),
                    "rtfx": bucket.rtfx,
                }
                for bucket in self.buckets
            ],
        }


def _seconds(lines: Sequence[Line]) -> float | None:
    measured = [line.seconds for line in lines if line.seconds is not None]
    return sum(measured) if measured else None


@dataclass(frozen=True)
class Pair:
    """Two ways of reading the same clips, compared.

    Attributes:
        testset: Name of the set.
        language: Of the clips.
        speakers: Kind of speaker.
        first: What is compared with.
        second: What is compared.
        rate: The rate compared.
        comparison: Of the second with the first.
    """

    testset: str
    language: str
    speakers: Speakers
    first: Asked
    second: Asked
    rate: str
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "testset": self.testset,
            "language": self.language,
            "speakers": self.speakers,
            "first": {"model": self.first.model, "mode": self.first.mode},
            "second": {"model": self.second.model, "mode": self.second.mode},
            "rate": self.rate,
            **self.comparison.to_dict(),
        }


def summarise(lines: Iterable[Line], rate: str, seed: int = 0) -> list[Result]:
    """Score all lines, by set, language, kind of speaker, condition, model and setting, in this order.

    Args:
        lines: Of a store.
        rate: What results are judged by, one of `metrics.RATES` or ``primary``.
        seed: Of the bootstrap.
    """
    groups: dict[tuple[str, str, Speakers, str, str, str], list[Line]] = {}
    for line in lines:
        key = (line.testset, line.language, line.speakers, line.condition, line.model, line.mode)
        groups.setdefault(key, []).append(line)
    order: list[dict[str, int]] = [{} for _ in range(6)]
    for code in PRIMARY_METRICS:
        order[1][code] = len(order[1])
    for name in CONDITIONS:
        order[3][name] = len(order[3])
    for key in groups:  # sets, models and settings as they came
        for seen, part in zip(order, key, strict=True):
            seen.setdefault(part, len(seen))
    ordered = sorted(groups, key=lambda key: [seen[part] for seen, part in zip(order, key, strict=True)])
    return [Result(sorted(groups[key], key=lambda line: line.place), rate, seed) for key in ordered]


def compare_all(results: Sequence[Result], against: str | None = None, seed: int = 0) -> Iterator[Pair]:
    """Compare, on clean speech, everything that read a group of clips with one of them.

    Args:
        results: Of `summarise`.
        against: Setting to compare with, behind its model where several have it (``tiny draft``); None takes
            the first of each group.
        seed: Of the draws.
    """
    groups: dict[tuple[str, str, Speakers], list[Result]] = {}
    for result in results:
        if result.condition == CLEAN:
            groups.setdefault((result.testset, result.language, result.speakers), []).append(result)
    for (testset, language, speakers), members in groups.items():
        base = next((r for r in members if against in (None, *r.asked.names)), None)
        for other in members:
            if base is None or other is base:
                continue
            pair = _paired(base, other, seed)
            if pair is not None:
                yield Pair(testset, language, speakers, base.asked, other.asked, base.rate, pair)


def _paired(first: Result, second: Result, seed: int) -> Comparison | None:
    """Compare on the clips that both have read: not on one that was too long for either."""
    places = {line.place: i for i, line in enumerate(first.lines) if not line.too_long}
    read = [(i, line.place) for i, line in enumerate(second.lines) if not line.too_long]
    both = [(places[place], i) for i, place in read if place in places]
    return compare([first.clips[i] for i, _ in both], [second.clips[i] for _, i in both], seed)


def rate_names(results: Sequence[Result]) -> list[str]:
    """Rates that any of the results has, in the usual order."""
    return [name for name in RATES if any(name in result.scores.clips for result in results)]
