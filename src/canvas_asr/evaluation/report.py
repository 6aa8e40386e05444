"""What an evaluation leaves behind: the circumstances it was run under, and tables in Markdown."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .metrics import MAX_NGRAM, REPEATS, primary_metric
from .modes import Result

_PACKAGES = ("canvas-asr", "torch", "transformers", "peft", "numpy", "jiwer", "whisper-normalizer")


def describe_run(command: str, model: str, batch_size: int, seed: int, limit: int | None) -> dict[str, Any]:
    """Say what was run, where, with which versions, and when (UTC); JSON-ready."""
    return {
        "model": model,
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "batch_size": batch_size,
        "seed": seed,
        "limit_per_group": limit,
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    # Without torch loaded there was no GPU either: a recogniser brings its own.
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "n_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "n_threads": torch.get_num_threads() if torch is not None else None,
        "gpu": gpu,
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def render_markdown(run: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Render the model card's tables: one overview, then every figure of every mode.

    Args:
        run: What `describe_run` returned.
        results: In the order of the table's rows.
    """
    machine = run["machine"]
    where = f"{machine['gpu'] or machine['cpu']}, {machine['n_cpus']} CPUs, {machine['n_threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    limit = "" if run["limit_per_group"] is None else f" At most {run['limit_per_group']} clips a row."
    date, batch, seed = run["date"][:10], run["batch_size"], run["seed"]
    lines = [
        f"Model `{run['model']}`, {date}, on {where}; batch {batch}, seed {seed}.{limit}",
        "",
        f"Made by `{run['command']}` with {versions}.",
        "",
        "Error rates in percent, Whisper-normalised, over all clips of a row: words (WER) for en, de, fr, "
        "es; characters (CER) for hi, zh. Whisper's normaliser drops Hindi vowel signs: see *CER, marks "
        "kept* below. *Speakers*: whether they are in the training data.",
        "",
        *_overview(results),
        "",
        "Every mode. *Raw* is as written, case and punctuation included; *W* is Whisper-normalised; *marks "
        "kept* has only case and punctuation removed. CER of hi and zh leaves spaces out, except raw. "
        f"*Loops*: share of outputs in which 1 to {MAX_NGRAM} words (zh: characters) stand {REPEATS} times "
        "or more in a row. *Language*: detected right. RTFx: seconds of audio per second, waveform to text.",
        "",
        *_details(results),
    ]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], n_text_columns: int) -> list[str]:
    rule = ["---"] * n_text_columns + ["---:"] * (len(header) - n_text_columns)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _overview(results: Sequence[Result]) -> list[str]:
    """One row for each set, language and kind of speaker; one column for each mode."""
    modes = list(dict.fromkeys(result.mode.name for result in results))
    rows: dict[tuple[str, str, str], dict[str, Result]] = {}
    for result in results:
        rows.setdefault((result.testset, result.language, result.speakers), {})[result.mode.name] = result
    cells = []
    for (testset, language, speakers), by_mode in rows.items():
        n_clips = next(iter(by_mode.values())).scores.n_clips
        figures = [_percent(by_mode[mode].scores.primary if mode in by_mode else None) for mode in modes]
        metric = primary_metric(language).upper()
        cells.append([testset, language, metric, speakers, str(n_clips), *figures])
    return _table(["Test set", "Language", "Unit", "Speakers", "Clips", *modes], cells, 4)


def _details(results: Sequence[Result]) -> list[str]:
    header = ["Test set", "Language", "Speakers", "Mode", "WER raw", "WER W", "WER, marks kept"]
    header += ["CER raw", "CER W", "CER, marks kept", "Loops", "Language", "Passes", "RTFx"]
    rows = []
    for r in results:
        s = r.scores
        counts = (s.raw_wer, s.whisper_wer, s.marks_wer, s.raw_cer, s.whisper_cer, s.marks_cer)
        rows.append(
            [r.testset, r.language, r.speakers, r.mode.name]
            + [_percent(c.rate) for c in counts]
            + [_percent(s.repetition_rate), _percent(r.language_accuracy)]
            + [f"{r.mean_passes:.1f}", f"{r.rtfx:.1f}"]
        )
    return _table(header, rows, 4)
