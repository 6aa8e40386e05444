"""Fonts that have the letters of a plot: those of six languages are in no single one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

# With Devanagari or Chinese letters, by where they are usual: Linux, macOS, Windows.
PREFERRED = (
    "Noto Sans Devanagari",
    "Lohit Devanagari",
    "Kohinoor Devanagari",
    "Devanagari Sangam MN",
    "Nirmala UI",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Heiti TC",
    "Microsoft YaHei",
    "Arial Unicode MS",
)
FIRST = "DejaVu Sans"  # comes with matplotlib
PLACEHOLDERS = "LastResort"  # the name of fonts that have a box for every letter


def choose_fonts(text: str, *, search: bool = True) -> tuple[list[str], set[str]]:
    """Find installed fonts that together have the letters of a text.

    Args:
        text: The text.
        search: Whether to look into every font of the system if the likely ones do not do; takes seconds.

    Returns:
        Their families, the one for most text first, and the letters that none of them has.
    """
    missing = {c for c in text if c.isprintable() and not c.isspace()}
    families = []
    for family, path in _installed():
        if not search and family not in (FIRST, *PREFERRED):
            break
        letters = _letters(path)
        if family == FIRST or (missing & letters and not family.startswith(PLACEHOLDERS)):
            families.append(family)
            missing -= letters
        if not missing:
            break
    return families, missing


def _installed() -> Iterator[tuple[str, str]]:
    """Families and files: the likely ones first, those that matplotlib has not noticed yet last."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = {font.name: font.fname for font in reversed(manager.ttflist)}
    known[FIRST] = font_manager.findfont(FIRST)
    for family in (FIRST, *PREFERRED):
        if family in known:
            yield family, known.pop(family)
    seen = {os.path.realpath(font.fname) for font in manager.ttflist}
    # Its list is made once and kept: fonts that were installed since are not in it.
    for path in _unseen(font_manager.findSystemFonts(), seen):
        n_known = len(manager.ttflist)
        try:
            manager.addfont(path)
        except (OSError, RuntimeError):
            continue  # not every font of a system can be read
        for font in manager.ttflist[n_known:]:
            yield font.name, font.fname
    yield from known.items()


def _unseen(paths: Iterable[str], seen: set[str]) -> list[str]:
    return sorted(path for path in paths if os.path.realpath(path) not in seen)


def _letters(path: str) -> set[str]:
    """Letters that a font has."""
    from matplotlib.ft2font import FT2Font

    try:
        return {chr(code) for code in FT2Font(path).get_charmap()}
    except (OSError, RuntimeError):
        return set()
