"""The canvas of a clip pass by pass, as a table of coloured cells: a row a pass, a column a place.

Drawn with matplotlib, by :mod:`canvas_asr.plotting`. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas_view import CanvasView
from .result import Transcript

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.19
BAND_GAP = 0.14
LEGEND = 0.3
LARGEST = 1.5  # times the usual size, for a short text
FONT_SIZE = 8.0
PADDING = 0.07  # of a cell
NARROWEST = 0.12
NOISE_WIDTH = 0.4  # noise that is wider is cut
MAX_ROWS = 16
NOISE = "#e8e8e8"
NOISE_TEXT = "#8a8a8a"
# From red over yellow to blue, which colour-blind people tell apart too, pale enough for black letters.
COLOURS = ("#f4977a", "#fdc99a", "#fdf0b5", "#d5ebf3", "#a6cbe3")


@dataclass(frozen=True)
class Cell:
    """A place of the canvas after a pass.

    Attributes:
        text: Its token, leading space included.
        confidence: Of the token; None: it is noise.
        kept: Whether it stays for the next pass.
    """

    text: str
    confidence: float | None
    kept: bool = False


@dataclass(frozen=True)
class Row:
    """A canvas after a pass, or before the first."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def is_noise(self) -> bool:
        """Whether it is what the canvas started from."""
        return bool(self.cells) and self.cells[0].confidence is None

    def without(self, letters: set[str]) -> Row:
        """Put blocks in the place of letters."""
        blocks = str.maketrans(dict.fromkeys(letters, "░"))
        return replace(self, cells=tuple(replace(c, text=c.text.translate(blocks)) for c in self.cells))


@dataclass(frozen=True)
class Table:
    """Where everything stands.

    Attributes:
        bands: Columns that stand below each other, and the width of each.
        n_rows: Of every band.
        height: Of everything.
        scale: How much larger than usual it is drawn.
    """

    bands: list[tuple[range, list[float]]]
    n_rows: int
    height: float
    scale: float = 1.0


@dataclass
class Ruler:
    """Measures text as a figure sets it."""

    figure: Figure
    renderer: Any
    _widths: dict[str, float] = field(default_factory=dict)

    def width(self, text: str) -> float:
        """Width of a text in letters of the usual size."""
        if text not in self._widths:
            artist = self.figure.text(0, 0, text)
            self._widths[text] = artist.get_window_extent(self.renderer).width / self.figure.dpi
            artist.remove()
        return self._widths[text]


def colour(confidence: float) -> Any:
    """Colour of a confidence."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("confidence", COLOURS)(confidence)


def table_rows(views: Sequence[CanvasView], transcript: Transcript) -> list[Row]:
    """What the canvas held at the start and after every pass; of many passes some, the last among them.

    Args:
        views: After every pass; where there was none, the transcript is the draft.
        transcript: Of the clip.
    """
    if not views:
        return [Row("draft", tuple(Cell(t.text, t.confidence) for t in transcript.tokens))]
    n_places = max(len(view.tokens) for view in views)
    rows = [Row("start", tuple(Cell(text or "░", None) for text in views[0].before[:n_places]))]
    chosen = np.unique(np.linspace(0, len(views) - 1, min(len(views), MAX_ROWS - 1)).round().astype(int))
    for view in (views[i] for i in chosen):
        kept = view.kept or (True,) * len(view.tokens)
        cells = (Cell(t.text, t.confidence, stays) for t, stays in zip(view.tokens, kept, strict=True))
        rows.append(Row(f"pass {view.step}", tuple(cells)))
    return rows


def lay_table(rows: Sequence[Row], ruler: Ruler, width: float) -> Table:
    """Measure the columns and break them into bands.

    Args:
        rows: Of the table.
        ruler: Measures text.
        width: Of a band.
    """
    n_columns = max((len(row.cells) for row in rows), default=0)
    widths = []
    for place in range(n_columns):
        cells = [row.cells[place] for row in rows if place < len(row.cells)]
        needs = [
            ruler.width(c.text.strip()) if c.confidence is not None
            else min(ruler.width(c.text.strip()), NOISE_WIDTH)
            for c in cells
        ]  # fmt: skip
        widths.append(min(width, max(NARROWEST, *needs) + PADDING))
    bands: list[tuple[range, list[float]]] = []
    first = 0
    for place in range(n_columns + 1):
        if place == n_columns or sum(widths[first : place + 1]) > width:
            bands.append((range(first, place), widths[first:place]))
            first = place
    scale = min(LARGEST, width / max(1e-9, sum(widths)))
    if n_columns and len(bands) == 1 and scale > 1:
        bands = [(places, [scale * wide for wide in wides]) for places, wides in bands]
    else:
        scale = 1.0
    height = len(bands) * (scale * ROW * len(rows) + BAND_GAP) + LEGEND
    return Table(bands, len(rows), height, scale)


def draw_table(axes: Axes, table: Table, rows: Sequence[Row], width: float) -> None:
    """Draw the table and its legend into axes of its height and that width."""
    axes.set(xlim=(0, width), ylim=(table.height, 0))
    axes.axis("off")
    top, high = 0.0, table.scale * ROW
    for places, widths in table.bands:
        lefts = np.cumsum([0.0, *widths])
        for n, row in enumerate(rows):
            y = top + n * high
            axes.text(-0.08, y + high / 2, row.name, ha="right", va="center", size=7)
            for place, left, wide in zip(places, lefts, widths, strict=False):
                if place < len(row.cells):
                    _draw_cell(axes, row.cells[place], float(left), y, wide, table.scale)
            if not row.cells:
                axes.text(0.05, y + high / 2, "(no text)", va="center", size=7, color=NOISE_TEXT)
        top += high * len(rows) + BAND_GAP
    _draw_legend(axes, table.height - LEGEND + 0.05)


def _draw_cell(axes: Axes, cell: Cell, x: float, y: float, width: float, scale: float = 1.0) -> None:
    from matplotlib.patches import Rectangle

    is_noise = cell.confidence is None
    gap = 0.02 if cell.text.startswith(" ") else 0.0  # a word begins
    box = Rectangle(
        (x + gap, y + 0.01),
        width - gap - 0.01,
        scale * ROW - 0.02,
        facecolor=NOISE if cell.confidence is None else colour(cell.confidence),
        edgecolor="#333333" if cell.kept else "none",
        linewidth=0.6,
    )
    axes.add_patch(box)
    text = axes.text(
        x + (width + gap) / 2,
        y + scale * ROW / 2,
        cell.text.strip(),
        size=scale * FONT_SIZE,
        ha="center",
        va="center",
        color=NOISE_TEXT if is_noise else "black",
        clip_on=True,
    )
    text.set_clip_path(box)


def _draw_legend(axes: Axes, y: float) -> None:
    """Colours of some confidences, and what else the cells say."""
    x = 0.0
    samples = [Cell(f"{100 * sure:.0f} %", sure) for sure in (0.0, 0.25, 0.5, 0.75, 1.0)]
    axes.text(-0.08, y + ROW / 2, "confidence", ha="right", va="center", size=7)
    for cell in [*samples, Cell("noise", None)]:
        _draw_cell(axes, cell, x, y, 0.5)
        x += 0.5
    _draw_cell(axes, Cell("kept", 1.0, kept=True), x + 0.3, y, 0.5)
    note = "for the next pass; the other places of the text are filled with noise again"
    axes.text(x + 0.9, y + ROW / 2, note, va="center", size=7)
