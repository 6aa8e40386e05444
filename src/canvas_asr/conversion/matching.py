"""What the matching of projector, CTC tap and LoRA share: found places, problems, and names told briefly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Placed:
    """A tensor of the file and its place in the model.

    Attributes:
        target: Name in the model, as in ``checkpoint.adapter_state``.
        source: Path in the file.
        shape: In the model; the file's may have further axes of one.
    """

    target: str
    source: str
    shape: tuple[int, ...]


@dataclass
class Match:
    """What was recognised, and what not.

    Attributes:
        placed: Tensors with a place.
        filled: Names and shapes of tensors that the file lacks, and the value that they get.
        problems: Names of tensors, by what is wrong with them.
        notes: Sentences for the report.
    """

    placed: list[Placed] = field(default_factory=list)
    filled: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Note tensors that cannot be placed, and why."""
        self.problems.setdefault(reason, []).extend(names)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``conv2`` comes before ``conv10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _NUMBER.split(name)]


def brief(names: Sequence[str]) -> list[str]:
    """Tell names that differ in their first number only as one, its numbers as ranges: ``layers.{0-3,5}.a``.

    No name is left out: each stands for exactly those given.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        first = _NUMBER.search(name)
        key = (name[: first.start()], name[first.end() :]) if first else (name, "")
        groups.setdefault(key, []).append(first[1] if first else "")
    return [
        head + (numbers[0] if len(numbers) == 1 else "{" + _ranges(numbers) + "}") + tail
        for (head, tail), numbers in groups.items()
    ]


def _ranges(numbers: Sequence[str]) -> str:
    spans: list[list[int]] = []
    for number in sorted(int(text) for text in numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
