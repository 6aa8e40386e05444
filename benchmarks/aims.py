"""Aims of a benchmark beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from canvas_asr.card_sections import table


def aims_section(targets: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of a page.

    Args:
        targets: Each with ``target``, ``aim``, ``measured``, and ``reached``.
    """
    rows = [[t["target"], t["aim"], t["measured"], "yes" if t["reached"] else "**no**"] for t in targets]
    return ["## Aims", "", *table(["What", "Aim", "Measured", "Reached"], rows, 4), ""]
