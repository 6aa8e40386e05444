"""One picture of how a clip was transcribed: its sound, what CTC heard, and the canvas pass by pass.

    watched = watch(asr, "talk.mp3", steps=8)
    draw(watched, "talk.png")

Needs matplotlib (``pip install 'canvas-asr[plot]'``). Lengths are in inches, letters in points.

Letters: A audio tokens of the clip, S tokens of its text.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .audio import SAMPLE_RATE_HZ, Samples
from .canvas_table import Row, Ruler, colour, draw_table, lay_table, table_rows
from .canvas_view import CanvasView
from .errors import CanvasASRError
from .plot_fonts import choose_fonts
from .result import Transcript

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .transcriber import Transcriber

METADATA = {"svg": ("Creator", "Date"), "pdf": ("Creator", "Producer", "CreationDate"), "png": ("Software",)}
WIDTH = 12.0
LEFT, RIGHT, TOP, BOTTOM = 1.0, 0.2, 0.45, 0.08
GAP = 0.5  # below the time axis, and between panels: their captions stand there
WAVEFORM = 1.2
TOKEN_ROW = 0.15  # at most; a long text has lower ones
POSTERIORS = 4.5  # at most
PADDING = 0.03  # of a word in its box
TURNED = 0.14  # a word needs this much if it is turned
DPI = 100
POINTS_PER_INCH = 72
N_COLUMNS = 1500  # of the waveform
FONT_SIZE = 8.0


@dataclass(frozen=True)
class Watched:
    """All that a picture shows of a clip.

    Attributes:
        name: Of the file.
        samples: 16 kHz mono, (n,).
        transcript: With words where the model can align them.
        views: The canvas after every pass.
        posteriors: CTC posteriors of the blank, then of every token of the text, (A, 1 + S); None where the
            model has no CTC tap.
        token_s: Seconds from one audio token to the next.
    """

    name: str
    samples: Samples
    transcript: Transcript
    views: Sequence[CanvasView]
    posteriors: NDArray[np.float64] | None
    token_s: float


def load_matplotlib() -> Any:
    """Import matplotlib.

    Raises:
        CanvasASRError: If it is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise CanvasASRError(
            "a plot needs matplotlib; install it with: pip install 'canvas-asr[plot]'"
        ) from error
    return matplotlib


def watch(transcriber: Transcriber, path: str | os.PathLike[str], **decoding: Any) -> Watched:
    """Transcribe a clip and keep what is to be shown.

    Args:
        transcriber: The model.
        path: Audio file, no longer than the model takes at once.
        decoding: Options of :meth:`Transcriber.transcribe`.

    Raises:
        AudioError: If the file cannot be read or is too long.
        OptionError: If an option is out of range.
    """
    samples = transcriber.read(path)
    views: list[CanvasView] = []
    decoding["word_timestamps"] = transcriber.has_draft
    transcript = transcriber.transcribe((samples, SAMPLE_RATE_HZ), on_canvas=views.append, **decoding)
    posteriors = None
    aligner = transcriber.decoder.aligner
    if transcriber.has_draft and len(samples):
        mel, n_mel = (part.to(transcriber.device) for part in transcriber.processor.features([samples]))
        with torch.no_grad():
            (sound,) = aligner.clips(transcriber.model.audio_tokens(mel, n_mel)[0], n_mel)
        posteriors = np.exp(aligner.log_posteriors([token.id for token in transcript.tokens], sound))
    name = Path(os.fsdecode(path)).name
    return Watched(name, samples, transcript, views, posteriors, aligner.token_s)


def draw(watched: Watched, path: str | os.PathLike[str]) -> set[str]:
    """Draw the picture.

    Args:
        watched: What :func:`watch` gives.
        path: Of the picture; its suffix says which kind: png, svg or pdf.

    Returns:
        Letters of the transcript that no installed font has: boxes stand in their place.

    Raises:
        CanvasASRError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    matplotlib = load_matplotlib()
    rows = table_rows(watched.views, watched.transcript)
    text = "".join(token.text for view in watched.views for token in view.tokens)
    families, missing = choose_fonts(watched.name + watched.transcript.text + text)
    if rows and rows[0].is_noise:
        more, unknown = choose_fonts("".join(cell.text for cell in rows[0].cells), search=False)
        families += [family for family in more if family not in families]
        rows[0] = rows[0].without(unknown)  # noise means nothing: no warning, and blocks for boxes
    style: Mapping[Any, Any] = {
        "font.family": families,
        "font.size": FONT_SIZE,
        "svg.hashsalt": "canvas-asr",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        _save(_figure(watched, rows), Path(path))
    return missing


def _save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    kind = path.suffix[1:].lower()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # Without the time and the program's version, the same clip gives the same file.
    settings: dict[str, Any] = {"metadata": dict.fromkeys(METADATA.get(kind, ()))}
    if kind == "png":
        settings["pil_kwargs"] = {"optimize": True}
    try:
        figure.savefig(partial, dpi=DPI, format=kind, **settings)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _figure(watched: Watched, rows: Sequence[Row]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.0), dpi=DPI)
    agg: Any = FigureCanvasAgg(figure)
    ruler = Ruler(figure, agg.get_renderer())
    words = _WordStrip(watched, ruler)
    table = lay_table(rows, ruler, WIDTH - LEFT - RIGHT)
    n_tokens = 0 if watched.posteriors is None else watched.posteriors.shape[1]
    heights = [WAVEFORM, words.height, min(POSTERIORS, TOKEN_ROW * n_tokens), table.height]
    total = TOP + sum(heights) + GAP * (1.6 if n_tokens else 1.0) + BOTTOM
    figure.set_size_inches(WIDTH, total)
    top = total - TOP

    def panel(height: float, gap: float = 0.0, **options: Any) -> Axes:
        nonlocal top
        top -= height
        box = (LEFT / WIDTH, top / total, (WIDTH - LEFT - RIGHT) / WIDTH, height / total)
        top -= gap
        return figure.add_axes(box, **options)

    figure.text(LEFT / WIDTH, 1 - 0.22 / total, _title(watched), va="center", size=11)
    sound = panel(heights[0])
    _draw_waveform(sound, watched)
    words.draw(panel(heights[1], GAP, sharex=sound))
    if watched.posteriors is not None:
        heard = panel(heights[2], 0.6 * GAP, sharex=sound)
        _draw_posteriors(heard, watched, heights[2] / n_tokens)
    canvas = panel(table.height)
    _caption(canvas, "canvas, place by place, with the confidence of each pass")
    draw_table(canvas, table, rows, WIDTH - LEFT - RIGHT)
    return figure


def _title(watched: Watched) -> str:
    transcript = watched.transcript
    language = f"   [{transcript.language}]" if transcript.language else ""
    passes = f"{transcript.passes} pass{'' if transcript.passes == 1 else 'es'}"
    sure = f"confidence {100 * transcript.confidence:.0f} %" if transcript.tokens else "no text"
    return f"{watched.name}{language}   {passes}   {sure}"


def _caption(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", size=7.5, color="#555555", pad=3)


def _draw_waveform(axes: Axes, watched: Watched) -> None:
    """Lowest and highest sample of every column."""
    samples = watched.samples
    duration_s = max(len(samples), 1) / SAMPLE_RATE_HZ
    if len(samples):
        firsts = np.unique(np.linspace(0, len(samples), N_COLUMNS, endpoint=False).astype(int))
        low, high = np.minimum.reduceat(samples, firsts), np.maximum.reduceat(samples, firsts)
        axes.fill_between(firsts / SAMPLE_RATE_HZ, low, high, color="#4a6785", linewidth=0.4)
    loudest = float(np.abs(samples).max(initial=0.0)) or 1.0
    axes.set(xlim=(0, duration_s), ylim=(-1.05 * loudest, 1.05 * loudest), yticks=[], ylabel="waveform")
    axes.yaxis.label.set(rotation=0, ha="right", va="center")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(labelbottom=False, bottom=False)
    _mark_words(axes, watched)


def _mark_words(axes: Axes, watched: Watched) -> None:
    for word in watched.transcript.words or ():
        axes.axvline(word.start, color="#999999", linewidth=0.5, zorder=0)


class _WordStrip:
    """Words below the waveform, each over its time; turned where they are too long for it."""

    def __init__(self, watched: Watched, ruler: Ruler) -> None:
        self.words = watched.transcript.words or ()
        self.scale = (WIDTH - LEFT - RIGHT) * SAMPLE_RATE_HZ / max(len(watched.samples), 1)
        widths = [ruler.width(word.text) + 2 * PADDING for word in self.words]
        starts = [word.start * self.scale for word in self.words]
        rooms = np.diff([*starts, WIDTH - LEFT - RIGHT]).tolist()
        self.turned = any(width > room for width, room in zip(widths, rooms, strict=True))
        self.height = max(0.22, *widths, 0.0) if self.turned else 0.22
        self.size = min(FONT_SIZE, FONT_SIZE * min(rooms, default=1.0) / TURNED) if self.turned else FONT_SIZE

    def draw(self, axes: Axes) -> None:
        size = max(4.0, self.size)
        for word in self.words:
            axes.axvspan(word.start, word.end, facecolor=colour(word.confidence), edgecolor="white")
            if self.turned:
                middle = (word.start + word.end) / 2
                axes.text(middle, 0.95, word.text, ha="center", va="top", rotation=90, size=size)
            else:
                axes.text(word.start + PADDING / self.scale, 0.47, word.text, va="center", size=size)
        axes.set(ylim=(0, 1), yticks=[], ylabel="words")
        axes.yaxis.label.set(rotation=0, ha="right", va="center")
        axes.spines["left"].set_visible(False)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("seconds", size=7, labelpad=1, loc="right")


def _draw_posteriors(axes: Axes, watched: Watched, row_height: float) -> None:
    """A row for every token of the text, from the top, and one for the blank."""
    posteriors = watched.posteriors
    if posteriors is None:
        return
    image = np.roll(posteriors.T, -1, axis=0)  # the blank last
    n_tokens, n_states = image.shape
    extent = (0.0, n_states * watched.token_s, n_tokens - 0.5, -0.5)
    limits = axes.get_xlim()
    axes.imshow(image, aspect="auto", extent=extent, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlim(limits)
    labels = [token.text.strip() for token in watched.transcript.tokens] + ["blank"]
    size = min(FONT_SIZE, 0.9 * row_height * POINTS_PER_INCH)
    if size >= 4:
        axes.set_yticks(range(n_tokens), labels, size=size)
    else:
        axes.set_yticks([n_tokens - 1], ["blank"], size=7)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=False, bottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    _caption(axes, "CTC: posterior of each token of the text at every audio token (white 0, dark 1)")
    _mark_words(axes, watched)
