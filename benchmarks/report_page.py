"""Sections of a benchmark's page: a heading, what the figures are, and their table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from canvas_asr.card_sections import table


def section(
    title: str, text: str, header: Sequence[str], rows: Iterable[Sequence[Any]], n_text_columns: int = 1
) -> list[str]:
    """Lines of a section.

    Args:
        title: Its heading.
        text: What stands above the table; empty: nothing.
        header: See :func:`canvas_asr.card_sections.table`.
        rows: Likewise, of texts and figures.
        n_text_columns: Likewise.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    return [f"## {title}", "", *([text, ""] if text else []), *table(header, cells, n_text_columns), ""]


def aims_section(targets: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of a section that sets aims beside what was measured.

    Args:
        targets: Each with ``target``, ``aim``, ``measured``, and ``reached``.
    """
    rows = [[t["target"], t["aim"], t["measured"], "yes" if t["reached"] else "**no**"] for t in targets]
    return section("Aims", "", ["What", "Aim", "Measured", "Reached"], rows, 4)
