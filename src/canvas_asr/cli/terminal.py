"""Text in the columns of a terminal: what may be shown, how wide it is, where it is broken."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

SIZE = (80, 24)  # of a terminal that does not say


@dataclass(frozen=True)
class Piece:
    """Text in one style.

    Attributes:
        text: What a terminal shows as it is: see :func:`printable`.
        style: Parameters of the escape sequence for it, such as ``31``; empty: the terminal's own.
    """

    text: str
    style: str = ""

    def __str__(self) -> str:
        """Write it for a terminal."""
        return f"\x1b[{self.style}m{self.text}\x1b[0m" if self.style and self.text else self.text


def is_terminal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether it is a terminal whose cursor can be moved."""
    return stream.isatty() and environ.get("TERM", "dumb") != "dumb"


def wants_colour(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether colours are welcome: see https://no-color.org."""
    return not environ.get("NO_COLOR")


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of a terminal."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        return SIZE
    return size.columns or SIZE[0], size.lines or SIZE[1]


def printable(text: str, encoding: str | None = "utf-8") -> str:
    """Give the text without what a terminal would obey rather than show, in letters that it can write."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown.encode(encoding or "ascii", "replace").decode(encoding or "ascii")


def n_columns(text: str) -> int:
    """Columns that a printable text takes: two for wide letters, none for marks that join the one before.

    Marks with a width of their own (Devanagari has them) take one: some terminals give them none, and a line
    that is too short does less harm than one that is too long.
    """
    return sum(_width(c) for c in text)


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, columns: int) -> str:
    """Leave out the start of a text that is too wide, as of a path."""
    if n_columns(text) <= columns:
        return text
    while text and n_columns(text) > columns - 1:
        text = text[1:]
    return f"…{text}"


def wrap(pieces: Sequence[Piece], columns: int) -> list[list[Piece]]:
    """Break text into lines, before spaces and wide letters where that is possible.

    Args:
        pieces: The text; their leading spaces are part of it.
        columns: Of a line, at least 2.

    Returns:
        At least one line.
    """
    lines: list[list[Piece]] = [[]]
    free = columns
    for unit in _units(pieces):
        if sum(n_columns(piece.text) for piece in unit) > free and free < columns:
            lines.append([])
            free = columns
            unit = [Piece(unit[0].text.lstrip(), unit[0].style), *unit[1:]]
        for piece in unit:
            for part in _parts(piece.text, free, columns):
                if n_columns(part) > free:
                    lines.append([])
                    free = columns
                lines[-1].append(Piece(part, piece.style))
                free -= n_columns(part)
    return lines


def _units(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Group what is not broken: up to the next piece that begins with a space or a wide letter."""
    unit: list[Piece] = []
    for piece in pieces:
        if unit and piece.text and (piece.text[0] == " " or _width(piece.text[0]) == 2):
            yield unit
            unit = []
        unit.append(piece)
    if unit:
        yield unit


def _parts(text: str, free: int, columns: int) -> Iterator[str]:
    """Cut a text so that the first part fits ``free`` columns if any can, and the others ``columns``."""
    part, room = "", free
    for character in text:
        if n_columns(part + character) > room and (part or room < columns):
            if part:
                yield part
            part, room = "", columns
        part += character
    yield part
