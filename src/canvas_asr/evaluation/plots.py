"""The plots of a report, as SVG: nothing in them is fetched from anywhere."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .conditions import CLEAN, CONDITIONS, SILENCE
from .summary import Asked, Bucket, Result
from .tables import asked_name, clean, models_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEGEND_IN = 0.17  # height of a line of the legend
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
_MARKERS = "osD^vP*X"
_DASHES = ("-", "--", ":", "-.")


def _draw(paint: Callable[[Axes], None], n_lines: int = 0, height_in: float = 3.6) -> str:
    """Draw one plot, high enough for a legend of so many lines; gives an ``<svg>`` element."""
    import matplotlib

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "canvas-asr",  # the same figures give the same file
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(style):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, max(height_in, 0.6 + _LEGEND_IN * n_lines)), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    return text[text.index("<svg") :]


def _style(i: int) -> dict[str, Any]:
    cycle, place = divmod(i, len(_COLOURS))
    return {
        "color": _COLOURS[place],
        "marker": _MARKERS[(place + cycle) % len(_MARKERS)],
        "linestyle": _DASHES[cycle % len(_DASHES)],
        "markersize": 5,
    }


def _rows(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by set, language and kind of speaker, as a line of a plot is called."""
    several = len({result.testset for result in results}) > 1
    kinds: dict[tuple[str, str], set[str]] = {}
    for result in results:
        kinds.setdefault((result.testset, result.language), set()).add(result.speakers)
    rows: dict[str, list[Result]] = {}
    for result in results:
        name = f"{result.testset} {result.language}" if several else result.language
        if len(kinds[result.testset, result.language]) > 1:
            name += f" {result.speakers}"
        rows.setdefault(name, []).append(result)
    return rows


def _with_value(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.value is not None]


def error_rates(results: Sequence[Result]) -> str | None:
    """The rate of every setting with its interval, a colour for each set and language; None without rates."""
    shown = _with_value(clean(results))
    if not shown:
        return None
    models = models_of(shown)
    columns = list(dict.fromkeys(result.asked for result in shown))
    rows = _rows(shown)

    def paint(axes: Axes) -> None:
        for i, (name, members) in enumerate(rows.items()):
            shift = (i - (len(rows) - 1) / 2) * 0.7 / len(rows)
            x = [columns.index(result.asked) + shift for result in members]
            y = [100 * (result.value or 0.0) for result in members]
            ends = [result.intervals[result.rate] or (0.0, 0.0) for result in members]
            low = [max(0.0, at - 100 * end[0]) for at, end in zip(y, ends, strict=True)]
            high = [max(0.0, 100 * end[1] - at) for at, end in zip(y, ends, strict=True)]
            style = {**_style(i), "linestyle": "none"}
            axes.errorbar(x, y, yerr=[low, high], label=name, linewidth=1, **style)
        names = [asked_name(asked, models) for asked in columns]
        axes.set_xticks(
            range(len(columns)),
            names,
            rotation=30 if len(columns) > 4 else 0,
            ha="right" if len(columns) > 4 else "center",
        )
        axes.set_ylabel("error rate, %")
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _draw(paint, len(rows), 4.2)


def speed(results: Sequence[Result]) -> str | None:
    """Error rate against speed, both means over rows, a point for each setting; None where unknown."""
    by_asked: dict[Asked, list[Result]] = {}
    for result in clean(results):
        if not result.lines[0].shuffled:
            by_asked.setdefault(result.asked, []).append(result)
    points = []
    for asked, members in by_asked.items():
        values = [result.value for result in members if result.value is not None]
        seconds = sum(result.seconds or 0.0 for result in members)
        if values and seconds:
            points.append((asked, sum(r.audio_s for r in members) / seconds, 100 * sum(values) / len(values)))
    if len(points) < 2:
        return None
    models = models_of(results)

    def paint(axes: Axes) -> None:
        for i, (asked, rtfx, rate) in enumerate(points):
            axes.plot(rtfx, rate, label=asked_name(asked, models), **(_style(i) | {"linestyle": "none"}))
        axes.set_xscale("log")
        for kind in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            kind(lambda value, _: f"{value:g}")  # 200, not 2 × 10²
        axes.margins(x=0.1, y=0.15)
        axes.set_xlabel("seconds of audio per second (RTFx)")
        axes.set_ylabel("error rate, %, mean over rows")
        _legend(axes)

    return _draw(paint, len(points))


def durations(results: Sequence[Result]) -> str | None:
    """Error rate by duration, mean over rows; None where all clips are of a length."""
    lines: dict[Asked, dict[str, list[Bucket]]] = {}
    for result in clean(results):
        for bucket in result.buckets:
            lines.setdefault(result.asked, {}).setdefault(bucket.name, []).append(bucket)
    members = {
        bucket.name: bucket.low_s for found in lines.values() for all_ in found.values() for bucket in all_
    }
    names = sorted(members, key=members.__getitem__)
    if len(names) < 2:
        return None
    models = models_of(results)

    def paint(axes: Axes) -> None:
        for i, (asked, found) in enumerate(lines.items()):
            x, y = [], []
            for place, name in enumerate(names):
                rates = [bucket.counts.rate for bucket in found.get(name, ()) if bucket.counts.defined]
                if rates:
                    x.append(place)
                    y.append(100 * sum(rates) / len(rates))
            axes.plot(x, y, label=asked_name(asked, models), **_style(i))
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("duration of the clip")
        axes.set_ylabel("error rate, %, mean over rows")
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _draw(paint, len(lines))


_AXES = {
    "noise": "signal-to-noise ratio, dB",
    "speed": "speed",
    "reverberation": "",
    "band": "",
}


def robustness(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """One plot for each family of conditions: its name and the plot. Rates are means over rows."""
    for family, axis in _AXES.items():
        names = [c.name for c in CONDITIONS.values() if c.family == family]
        shown = _with_value([r for r in results if r.condition in (CLEAN, *names)])
        changed = {result.asked for result in shown if result.condition in names}
        if changed:  # what has heard clean speech alone has no line here
            yield family, _family([r for r in shown if r.asked in changed], family, axis)
    silent = [result for result in results if result.condition == SILENCE]
    if silent:
        yield SILENCE, _silence(silent)


def _family(results: Sequence[Result], family: str, axis: str) -> str:
    lines: dict[Asked, dict[str, list[float]]] = {}
    for result in results:
        lines.setdefault(result.asked, {}).setdefault(result.condition, []).append(
            100 * (result.value or 0.0)
        )
    models = models_of(results)
    present = {result.condition for result in results}
    conditions = [c for c in CONDITIONS.values() if c.name in present]
    # Clean speech stands where it belongs: no noise at the far end, the speed it was spoken at among speeds.
    conditions.sort(key=lambda c: _level(c.level, family), reverse=family == "noise")

    def paint(axes: Axes) -> None:
        for i, (asked, found) in enumerate(lines.items()):
            x = [place for place, c in enumerate(conditions) if c.name in found]
            y = [sum(found[c.name]) / len(found[c.name]) for c in conditions if c.name in found]
            axes.plot(x, y, label=asked_name(asked, models), **_style(i))
        labels = [
            CLEAN if c.level is None and c.family == CLEAN else c.name if c.level is None else f"{c.level:g}"
            for c in conditions
        ]
        axes.set_xticks(range(len(conditions)), labels)
        axes.margins(x=0.1)
        axes.set_xlabel(axis)
        axes.set_ylabel("error rate, %, mean over rows")
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _draw(paint, len(lines))


def _level(level: float | None, family: str) -> float:
    if level is not None:
        return level
    return {"noise": math.inf, "speed": 1.0}.get(family, 0.0)


def _silence(results: Sequence[Result]) -> str:
    lines: dict[Asked, list[Result]] = {}
    for result in results:
        lines.setdefault(result.asked, []).append(result)
    models = models_of(results)
    shown = list(lines.items())

    def paint(axes: Axes) -> None:
        for i, (_, members) in enumerate(shown):
            n = sum(result.n_empty_references for result in members)
            share = 100 * sum(result.n_invented for result in members) / n
            axes.bar(i, share, width=0.6, color=_COLOURS[0])
            axes.annotate(
                f"{share:.1f} %", (i, share), textcoords="offset points", xytext=(0, 3), ha="center"
            )
        axes.set_xticks(
            range(len(shown)), [asked_name(asked, models) for asked, _ in shown], rotation=20, ha="right"
        )
        axes.set_ylabel("silent clips with a text, %")
        axes.set_ylim(0, 105)

    return _draw(paint)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
