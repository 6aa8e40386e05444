"""The tables of a report, whatever it is written as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .conditions import CLEAN, SILENCE
from .metrics import MAX_NGRAM, REPEATS, ErrorCounts
from .summary import Asked, Pair, Result, rate_names

NONE = "–"
UNDEFINED = "undefined"


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: Above it.
        note: What its columns mean.
        header: Names of the columns.
        rows: Cells of text.
        n_text_columns: How many columns, from the left, are words and not figures.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_text_columns: int


def percent(share: float | None) -> str:
    """A share in percent, one decimal."""
    return NONE if share is None else f"{100 * share:.1f}"


def _rate(counts: ErrorCounts | None) -> str:
    if counts is None:
        return NONE
    return percent(counts.rate) if counts.defined else UNDEFINED


def _range(ends: tuple[float, float] | None) -> str:
    return NONE if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _speed(rtfx: float | None) -> str:
    return NONE if rtfx is None else f"{rtfx:.1f}"


def unit(rate: str) -> str:
    """How a rate is called in a table: ``whisper_cer`` is ``CER``."""
    return rate.rpartition("_")[2].upper()


def asked_name(asked: Asked, models: Sequence[str]) -> str:
    """Name of a column or line: the setting, behind its model where there are several."""
    return asked.names[len(models) > 1]


def models_of(results: Sequence[Result]) -> list[str]:
    """Models, each once."""
    return list(dict.fromkeys(result.asked.model for result in results))


def clean(results: Sequence[Result]) -> list[Result]:
    """Results of clean speech."""
    return [result for result in results if result.condition == CLEAN]


def _place(result: Result) -> tuple[str, str, str]:
    return result.testset, result.language, result.speakers


def overview(results: Sequence[Result]) -> Table:
    """One row for each set, language and kind of speaker; one column for each setting; means at the end."""
    shown = clean(results)
    models = models_of(shown)
    columns = list(dict.fromkeys(result.asked for result in shown))
    rows: dict[tuple[str, str, str], dict[Asked, Result]] = {}
    for result in shown:
        rows.setdefault(_place(result), {})[result.asked] = result
    cells = []
    means: dict[str, list[Mapping[Asked, Result]]] = {}
    for (testset, language, speakers), found in rows.items():
        first = next(iter(found.values()))
        figures = [_rate(found[asked].counts if asked in found else None) for asked in columns]
        cells.append([testset, language, unit(first.rate), speakers, str(first.scores.n_clips), *figures])
        means.setdefault(unit(first.rate), []).append(found)
    for name, members in means.items():
        if len(members) > 1:
            cells.append(["mean of rows", "", name, "", "", *(_mean(members, asked) for asked in columns)])
    header = ["Test set", "Language", "Unit", "Speakers", "Clips"]
    header += [asked_name(asked, models) for asked in columns]
    return Table(
        "Overview",
        "In percent, over all clips of a row, of the rate it is judged by: Whisper-normalised if nothing "
        "else was asked for, words (WER) for en, de, fr, es and characters (CER) for hi, zh. Whisper's "
        "normaliser drops Hindi vowel signs: see the columns *marks kept* below. *Speakers*: whether they "
        "are in the training data. A mean stands where every row has a rate.",
        header,
        cells,
        4,
    )


def _mean(members: Sequence[Mapping[Asked, Result]], asked: Asked) -> str:
    values = [found[asked].value if asked in found else None for found in members]
    known = [value for value in values if value is not None]
    return percent(sum(known) / len(known)) if len(known) == len(values) else NONE


_SHORT = {
    "raw": "raw",
    "whisper": "W",
    "marks": "marks kept",
    "leaderboard": "leaderboard",
}


def _head(result: Result, models: Sequence[str]) -> list[str]:
    return [result.testset, result.language, result.speakers, asked_name(result.asked, models)]


_HEAD = ("Test set", "Language", "Speakers", "Setting")


def conventions(results: Sequence[Result]) -> Table:
    """Every rate of every setting, side by side."""
    shown = clean(results)
    names, models = rate_names(shown), models_of(shown)
    rows = [
        [*_head(r, models), *(_rate(r.scores[name] if name in r.scores.clips else None) for name in names)]
        for r in shown
    ]
    parts = [name.rpartition("_") for name in names]
    header = [*_HEAD, *(f"{unit.upper()} {_SHORT[convention]}" for convention, _, unit in parts)]
    return Table(
        "The same texts by every convention",
        "*Raw* is as written, case and punctuation included; *W* is Whisper-normalised, as most published "
        "figures are; *marks kept* has only case and punctuation removed; *leaderboard* is the convention "
        "of the Open ASR Leaderboard, with adjacent words merged and clips without a reference left out. "
        "CER of hi and zh leaves spaces out, except raw.",
        header,
        rows,
        4,
    )


def errors(results: Sequence[Result]) -> Table:
    """Interval, kinds of errors, passes and speed of every setting."""
    shown = clean(results)
    models = models_of(shown)
    rows = []
    for r in shown:
        counts = r.counts
        rows.append(
            [
                *_head(r, models),
                _rate(counts),
                _range(r.intervals[r.rate]),
                *(str(n) for n in (counts.substitutions, counts.deletions, counts.insertions)),
                percent(r.scores.repetition_rate),
                percent(r.language_accuracy),
                NONE if r.mean_passes is None else f"{r.mean_passes:.1f}",
                _speed(r.rtfx),
            ]
        )
    return Table(
        "Errors, passes and speed",
        "95 % interval by bootstrap over clips; substitutions, deletions and insertions in units of the "
        f"rate. *Loops*: share of outputs in percent in which 1 to {MAX_NGRAM} words (zh: characters) stand "
        f"{REPEATS} times or more in a row. *Language*: detected right, in percent. *Passes*: of denoising, "
        "mean over clips; of autoregressive decoding, tokens. *RTFx*: seconds of audio per second, waveform "
        "to text, without loading and one warm-up call.",
        [*_HEAD, "Rate", "95 % interval", "Sub", "Del", "Ins", "Loops", "Language", "Passes", "RTFx"],
        rows,
        4,
    )


def durations(results: Sequence[Result]) -> Table | None:
    """Rates by length of clips; None where all are of one bucket."""
    shown = clean(results)
    names = list(dict.fromkeys(bucket.name for result in shown for bucket in result.buckets))
    names.sort(key=lambda name: float(name.removeprefix("over ").partition("–")[0].removesuffix(" s")))
    if len(names) < 2:
        return None
    models = models_of(shown)
    rows = []
    for r in shown:
        found = {bucket.name: bucket for bucket in r.buckets}
        cells = [f"{_rate(found[n].counts)} ({found[n].n_clips})" if n in found else NONE for n in names]
        rows.append([*_head(r, models), *cells])
    note = "The rate that a row is judged by, in percent, and in brackets the number of clips."
    return Table("By duration", note, [*_HEAD, *names], rows, 4)


def comparisons(pairs: Sequence[Pair]) -> Table | None:
    """Differences between settings; None where there is nothing to compare."""
    if not pairs:
        return None
    models = list(dict.fromkeys(asked.model for pair in pairs for asked in (pair.first, pair.second)))
    rows = []
    for pair in pairs:
        found = pair.comparison
        rows.append(
            [
                pair.testset,
                pair.language,
                pair.speakers,
                asked_name(pair.second, models),
                asked_name(pair.first, models),
                f"{100 * found.difference:+.1f}",
                f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
                "< 0.001" if found.p < 0.001 else f"{found.p:.3f}",
                str(found.n_clips),
            ]
        )
    return Table(
        "Differences",
        "Points by which the error rate differs, on the same clips; less than 0 is better. 95 % interval "
        "of the difference by paired bootstrap over clips; p by a permutation test (signs of the clips' "
        f"differences), two-sided, not corrected for the number of comparisons, {len(rows)}.",
        [
            "Test set",
            "Language",
            "Speakers",
            "Setting",
            "Compared with",
            "Points",
            "95 % interval",
            "p",
            "Clips",
        ],
        rows,
        5,
    )


def robustness(results: Sequence[Result]) -> Table | None:
    """Rates by condition; None where there is clean speech alone."""
    shown = [result for result in results if result.condition != SILENCE]
    names = list(dict.fromkeys(result.condition for result in shown))
    if len(names) < 2:
        return None
    models = models_of(shown)
    rows: dict[tuple[str, ...], dict[str, Result]] = {}
    for result in shown:
        rows.setdefault(tuple(_head(result, models)), {})[result.condition] = result
    cells = [
        [*head, *(_rate(found[name].counts if name in found else None) for name in names)]
        for head, found in rows.items()
    ]
    return Table(
        "Robustness",
        "The rate a row is judged by, in percent. *noise-N*: white, pink, hum or babble noise, drawn by "
        "clip, N dB below the speech; *reverberation*: a room of 0.6 s; *band-8khz*: sampled at 8 kHz, so "
        "nothing above 4 kHz is left; *speed-N*: N times as fast, pitch included. Each clip is changed "
        "alike in every setting.",
        [*_HEAD, *names],
        cells,
        4,
    )


def silence(results: Sequence[Result]) -> Table | None:
    """Texts that were written where nothing was said; None where every clip says something."""
    rows = []
    models = models_of(results)
    for r in results:
        if r.n_empty_references:
            invented = [
                line.hypothesis for line in r.lines if not line.reference.strip() and line.hypothesis.strip()
            ]
            rows.append(
                [
                    *_head(r, models),
                    r.condition,
                    str(r.n_empty_references),
                    str(r.n_invented),
                    str(sum(len(text.split()) for text in invented)),
                ]
            )
    if not rows:
        return None
    return Table(
        "Where nothing is said",
        "Clips whose reference is empty must have an empty text. In a set of nothing but such clips an "
        "error rate is undefined.",
        [*_HEAD, "Condition", "Clips", "With a text", "Words in them"],
        rows,
        5,
    )


def all_tables(results: Sequence[Result], pairs: Sequence[Pair]) -> list[Table]:
    """Every table that has rows, in the order of a report."""
    tables = [overview(results), errors(results), conventions(results), comparisons(pairs)]
    tables += [durations(results), robustness(results), silence(results)]
    return [table for table in tables if table is not None and table.rows]
