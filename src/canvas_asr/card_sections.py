"""Sections of a model card that are made from the files of a training run and of evaluations.

Each takes JSON as it was read and gives lines of Markdown; what a file does not hold is not told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .options import DecodingOptions

NONE = "–"
CLEAN = "clean"
# How the conventions are called that texts are compared by, and what they are.
CONVENTIONS = {
    "raw": ("raw", "as written, case and punctuation included"),
    "whisper": ("Whisper", "Whisper's normaliser, as most published figures; it drops Hindi vowel signs"),
    "marks": ("marks kept", "only case and punctuation removed"),
    "leaderboard": ("leaderboard", "the convention of the Open ASR Leaderboard"),
}
FIGURES = {
    "noise8": "8 passes from noise",
    "noise1": "1 pass from noise",
    "draft": "the CTC draft alone",
    "draft1": "1 pass from the draft",
    "shuffled": "8 passes, with another clip's audio",
}


class Headline(NamedTuple):
    """The one figure of a test set and language.

    Attributes:
        testset: Name of the set.
        language: Of its texts.
        unit: ``wer`` or ``cer``.
        name: Of the figure: unit, normaliser, mode.
        percent: Its value.
    """

    testset: str
    language: str
    unit: str
    name: str
    percent: float


def table(header: Sequence[str], rows: Sequence[Sequence[str]], n_text_columns: int) -> list[str]:
    """Write a table.

    Args:
        header: Names of the columns.
        rows: Cells.
        n_text_columns: Columns from the left that are words; figures are set to the right.
    """
    rule = ["---"] * n_text_columns + ["---:"] * (len(header) - n_text_columns)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *escaped)]


def percent(share: float | None) -> str:
    """Write a share in percent."""
    return NONE if share is None else f"{100 * share:.1f}"


def data_section(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell what a model was trained on.

    Args:
        sources: Records of a run's ``data.json``: source, licence, clips, hours, languages and left_out.
    """
    lines = ["## Training data", ""]
    if not sources:
        return [*lines, "Not stated by whoever saved this checkpoint.", ""]
    hours: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rows = []
    for source in sources:
        languages = source.get("languages", {})
        hours.update({code: figures["hours"] for code, figures in languages.items()})
        left_out.update(source.get("left_out", {}))
        shares = ", ".join(f"{code} {figures['hours']:.2f}" for code, figures in languages.items())
        licence = source.get("licence") or "not stated"
        rows.append(
            [str(source["source"]), licence, shares or NONE, f"{source['clips']:,}", f"{source['hours']:.2f}"]
        )
    by_language = ", ".join(f"{code} {spoken:.2f}" for code, spoken in hours.items())
    lines += [f"{sum(hours.values()):.2f} hours in all: {by_language}.", ""]
    lines += table(["source", "licence", "hours by language", "clips", "hours"], rows, 3)
    if left_out:
        counted = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items())
        lines += ["", f"Clips left out: {counted}."]
    return [*lines, ""]


def training_section(training: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell how a model was trained.

    Args:
        training: A run's ``training.json``: ``recipe``, ``machine``, ``versions``, ``n_processes``.
        log: Lines of its ``log.jsonl``.
    """
    sentences = [*_how(training), *_course(log)]
    judged = next((record for record in reversed(log) if "eval_noise8" in record), None)
    if not sentences and judged is None:
        return []
    lines = ["## Training", "", *(line for sentence in sentences for line in (sentence, ""))]
    if judged is not None:
        rows = [
            [name, percent(judged[f"eval_{key}"])] for key, name in FIGURES.items() if f"eval_{key}" in judged
        ]
        lines += [
            f"On the development clips at step {judged['step']:,}, error rates in percent of texts as they "
            "are written (WER; CER for hi and zh), mean over languages:",
            "",
            *table(["read by", "error rate"], rows, 1),
            "",
        ]
    return lines


def _how(training: Mapping[str, Any]) -> Iterator[str]:
    settings = training.get("recipe", {}).get("training", {})
    if settings:
        yield (
            f"{settings['max_steps']:,} steps of {settings['batch_size']} clips were planned; "
            f"{settings['optimizer']}, learning rate {settings['learning_rate']:g} at its peak, schedule "
            f"{settings['schedule']}, seed {settings['seed']}."
        )
    if "machine" in training:
        versions = ", ".join(f"{name} {version}" for name, version in training.get("versions", {}).items())
        n = training.get("n_processes", 1)
        processes = f", {n} processes" if n > 1 else ""
        yield f"Trained on {_hardware(training['machine'])}{processes}, with {versions}."


def _course(log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not log:
        return
    seconds, before = 0.0, 0.0
    for record in log:  # each call of a run that was resumed has a clock of its own
        seconds += record["wall_s"] - (before if record["wall_s"] >= before else 0.0)
        before = record["wall_s"]
    empty: dict[str, Any] = {}
    losses = next((record for record in reversed(log) if "loss" in record), empty)
    shown = ", ".join(
        f"{name} {losses[name]:.3f}"
        for name in ("loss", "ctc", "diffusion", "autoregressive")
        if name in losses
    )
    steps = max(record["step"] for record in log)
    last = f"; last logged: {shown}" if shown else ""
    yield f"{steps:,} steps in {seconds / 3600:.2f} hours by the clock{last}."


def _hardware(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine.get('gpu') or machine.get('cpu')}, {machine.get('n_cpus')} CPUs, "
        f"{machine.get('n_threads')} threads"
    )


def _rates(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all rates that results have, such as ``whisper_wer``; words first."""
    names = dict.fromkeys(
        name for result in results for name, value in result["scores"].items() if isinstance(value, Mapping)
    )
    return sorted(names, key=lambda name: name.endswith("_cer"))


def _rate(result: Mapping[str, Any], name: str) -> float | None:
    counts = result["scores"].get(name)
    return None if counts is None or counts["rate"] is None else float(counts["rate"])


def _place(result: Mapping[str, Any]) -> tuple[str, str, str]:
    return result["testset"], result["language"], result["speakers"]


def _read_by(result: Mapping[str, Any]) -> str:
    """Name a way of reading: model, setting, and what was done to the audio, where these differ."""
    condition = result.get("condition", CLEAN)
    parts = (
        result.get("read_by_model"),
        result["mode"]["name"],
        None if condition == CLEAN else f"({condition})",
    )
    return " ".join(filter(None, parts))


def _results(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results, each with its model where the evaluation is of several."""
    models = {result.get("model") for result in evaluation["results"]}
    several = len(models) > 1
    return [{**r, "read_by_model": r["model"] if several else None} for r in evaluation["results"]]


def headlines(evaluation: Mapping[str, Any], decoding: DecodingOptions) -> Iterator[Headline]:
    """Give one figure for each set and language, Whisper-normalised, for the hub's index.

    It is that of the model's own way of decoding where it was evaluated, else that of the first setting. An
    evaluation of several models gives none: which of them the card is of is not told.

    Args:
        evaluation: An ``evaluation.json``.
        decoding: Of the model, where a call gives no options.
    """
    places: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for result in _results(evaluation):
        if not result["mode"]["shuffled"] and not result["read_by_model"]:
            places.setdefault(_place(result), {})[_read_by(result)] = result
    for (testset, language, _), by_mode in places.items():
        mode = next((name for name, one in by_mode.items() if _is_own(one, decoding)), next(iter(by_mode)))
        scores = by_mode[mode]["scores"]
        unit = str(scores["primary_metric"])
        value = _rate(by_mode[mode], f"whisper_{unit}")
        if value is not None:
            name = f"{unit.upper()}, Whisper-normalised, {mode}"
            yield Headline(testset, language, unit, name, round(100 * value, 2))


def _is_own(result: Mapping[str, Any], decoding: DecodingOptions) -> bool:
    """Whether clean clips were read in the model's own way."""
    mode, own = result["mode"], {"init": decoding.init, "steps": decoding.steps}
    plain = mode["name"] == "default" or (mode.get("options") == own and not mode.get("language_given"))
    return plain and result.get("condition", CLEAN) == CLEAN


def scores_section(evaluation: Mapping[str, Any]) -> list[str]:
    """Tell what an evaluation found: every score by every normaliser, its passes, and the hardware.

    Args:
        evaluation: An ``evaluation.json``.

    Raises:
        KeyError: If it is none.
        TypeError: If it is none.
        AttributeError: If it is none.
    """
    results = _results(evaluation)
    rates = _rates(results)
    conventions = dict.fromkeys(name.rpartition("_")[0] for name in rates)
    explained = "; ".join(
        f"*{CONVENTIONS[name][0]}*: {CONVENTIONS[name][1]}" for name in conventions if name in CONVENTIONS
    )
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
    return [
        "## Scores",
        "",
        f"Measured {evaluation['date'][:10]} on {_hardware(evaluation['machine'])}, batch "
        f"{evaluation['batch_size']}, seed {evaluation['seed']}, by `{evaluation['command']}` with "
        f"{versions}.",
        "",
        "Error rates in percent, Whisper-normalised: of words (WER) for en, de, fr, es, of characters (CER) "
        "for hi, zh. A column is a way of reading; *shuffled* has the audio of other clips, and must be bad.",
        "",
        *_overview(results),
        "",
        f"Every rate by every normaliser ({explained}), denoising passes, and seconds of audio read in a "
        "second, from waveform to text (RTFx):",
        "",
        *_details(results, rates),
        "",
    ]


def _overview(results: Sequence[Mapping[str, Any]]) -> list[str]:
    modes = list(dict.fromkeys(_read_by(result) for result in results))
    places: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for result in results:
        places.setdefault(_place(result), {})[_read_by(result)] = result
    rows = []
    for (testset, language, speakers), by_mode in places.items():
        scores = next(iter(by_mode.values()))["scores"]
        unit = scores["primary_metric"]
        figures = [percent(_rate(by_mode[m], f"whisper_{unit}")) if m in by_mode else NONE for m in modes]
        rows.append([testset, language, speakers, unit.upper(), f"{scores['n_clips']:,}", *figures])
    return table(["test set", "language", "speakers", "unit", "clips", *modes], rows, 4)


def _details(results: Sequence[Mapping[str, Any]], rates: Sequence[str]) -> list[str]:
    header = ["test set", "language", "speakers", "read by", "passes"]
    for name in rates:
        convention, _, unit = name.rpartition("_")
        header.append(f"{unit.upper()} {CONVENTIONS.get(convention, (convention,))[0]}")
    rows = []
    for result in results:
        speed = result.get("rtfx")
        rows.append(
            [
                *_place(result),
                _read_by(result),
                f"{result['mean_passes']:.1f}",
                *(percent(_rate(result, name)) for name in rates),
                NONE if speed is None else f"{speed:.1f}",
            ]
        )
    return table([*header, "RTFx"], rows, 4)
