"""What the benchmark of the server found, as a page of tables, and which of its aims were reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from report_page import aims_section, section

from canvas_asr.card_sections import NONE

Record = dict[str, Any]
PATIENCE_S = (5, 15, 60)
AIMS = {
    "refusal_ms": 100.0,
    "health_ms": 50.0,
    "overhead_ms": 10.0,
    "batching": 1.5,
    "beside": 3.0,
    "live_ms": 1000.0,
}


def targets(content: Record) -> list[Record]:
    """Compare what was found with what was aimed at: name, aim, what was measured, whether it was reached."""
    return [
        {"target": name, "aim": aim, "measured": measured, "reached": reached}
        for name, aim, measured, reached in _targets(content)
    ]


def _targets(content: Record) -> Iterable[tuple[str, str, str, bool]]:
    cells = content["cells"]
    most = max(cell["clients"] for cell in cells)
    unexpected = sum(cell["unexpected"] for cell in cells)
    yield (
        f"replies other than 200, or 429 and 503 with `Retry-After`, 1 to {most} clients",
        "0",
        f"{unexpected} of {sum(sum(cell['statuses'].values()) for cell in cells)}",
        unexpected == 0,
    )
    refusals = {
        f"{cell['clients']} clients, {cell['audio_s']:g} s": cell["refusal"]["p95_ms"]
        for cell in cells
        if cell["refusal"]["n"]
    }
    yield (
        "refusal, 95th percentile",
        f"≤ {AIMS['refusal_ms']:g} ms",
        "; ".join(f"{_ms(p95)} ms ({name})" for name, p95 in refusals.items()) or "nobody was refused",
        bool(refusals) and max(refusals.values()) <= AIMS["refusal_ms"],
    )
    health = content["health"]["all"]
    yield (
        "`/health`, the slowest of all",
        f"≤ {AIMS['health_ms']:g} ms",
        f"{_ms(health['max_ms'])} ms (95th percentile {_ms(health['p95_ms'])} ms, {health['n']} asked, "
        f"{health['failed']} failed)",
        not health["failed"] and health["max_ms"] <= AIMS["health_ms"],
    )
    yield from _comparisons(content)


def _comparisons(content: Record) -> Iterable[tuple[str, str, str, bool]]:
    """Aims that set the server against something else."""
    for pairs in content["overhead"]:
        median = pairs["difference"]["p50_ms"]
        yield (
            f"server over library, one client, {pairs['audio_s']:g} s clips, median",
            f"≤ {AIMS['overhead_ms']:g} ms",
            f"{median:.1f} ms ({_ms(pairs['library']['p50_ms'])} ms in the library)",
            median <= AIMS["overhead_ms"],
        )
    batching, beside = content["batching"], content["beside"]
    short = f"{batching['audio_s']:g} s clips"
    yield (
        f"throughput by that of one clip at a time, {batching['clients']} clients, {short}",
        f"≥ {AIMS['batching']:g}",
        f"{batching['ratio']:.2f}",
        batching["ratio"] >= AIMS["batching"],
    )
    yield (
        f"{short} while {_length(beside['upload_s'])} are transcribed, by alone",
        f"≤ {AIMS['beside']:g}",
        f"{beside['ratio']:.2f} at the median, {beside['p95_ratio']:.2f} at the 95th percentile",
        beside["upload_was_under_way"] and beside["p95_ratio"] <= AIMS["beside"],
    )
    for row in content["live"]:
        final = row["final"]
        yield (
            f"live, end of {row['audio_s']:g} s of speech to the final text, 95th percentile",
            f"≤ {AIMS['live_ms']:g} ms",
            f"{_ms(final['p95_ms'])} ms (median {_ms(final['p50_ms'])} ms, {final['n']} recordings)",
            final["p95_ms"] <= AIMS["live_ms"],
        )


def _ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return NONE
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _length(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} s"


def markdown(content: Record) -> str:
    """The whole page."""
    machine = content["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = content["peak_memory_mib"]
    lines = [
        "# The server, measured",
        "",
        f"Model `{content['model']}`, float32; {machine['cpu']}, {machine['n_cpus']} CPUs, which server and "
        f"clients share; {content['library_threads']} threads, load {machine['load_average_before']} before "
        "the run. Made by",
        "",
        f"    {content['command']}",
        "",
        f"with {versions}. Clips are FLAC files cut from speech of six languages; the language is detected. "
        f"The server held {memory['server']:.0f} MiB at most, and its processes that decode uploads "
        f"{memory['children']:.0f} MiB in all.",
        "",
        *aims_section(content["targets"]),
        "Live transcription: `python benchmarks/live.py` measures more of it than this run does.",
        "",
        *_cells(content),
        *_queue(content),
        *_overhead(content),
        *_batching(content),
        *_beside(content),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _cells(content: Record) -> list[str]:
    rows = [
        [
            f"{cell['audio_s']:g} s",
            str(cell["clients"]),
            str(cell["latency"]["n"]),
            _ms(cell["latency"]["p50_ms"]),
            _ms(cell["latency"]["p95_ms"]),
            f"{cell['requests_per_s']:.1f}",
            f"{cell['audio_s_per_s']:.1f}",
            *_fullness(cell),
            str(cell["refusal"]["n"]),
            _ms(cell["refusal"]["p95_ms"]),
            _ms(cell["health"]["p95_ms"]),
            _ms(cell["health"]["max_ms"]),
        ]
        for cell in content["cells"]
    ]
    header = ["Clip", "Clients", "Answered", "p50", "p95", "Requests/s", "Audio s/s", "Full passes"]
    header += ["Rows a pass", "Refused", "Refusal p95", "Health p95", "Health max"]
    return section(
        "Latency and throughput",
        "Every client sends its next clip when the last is answered; one that is refused comes back a second "
        "later. Times in milliseconds, from sending to the last byte; throughput from the first request to "
        "the last reply.",
        header,
        rows,
        1,
    )


def _queue(content: Record) -> list[str]:
    plan = content["plan"]
    batch, holds = plan["max_batch"], plan["max_batch"] + plan["max_queue"]
    most = max(plan["clients"])
    rows = []
    for cell in (cell for cell in content["cells"] if cell["clients"] == most):
        rate = cell["requests_per_s"]
        queues = (max(0, int(patience_s * rate) - batch) for patience_s in PATIENCE_S)
        waits = f"{min(holds, most) / rate:.1f} s"
        rows.append([f"{cell['audio_s']:g} s", f"{rate:.2f}", waits, *map(str, queues)])
    header = ["Clip", "Requests/s", "Longest wait now", *(f"`--max-queue` for {s} s" for s in PATIENCE_S)]
    return section(
        "How long a queue may be",
        "The longest wait is what the server holds by the requests it does in a second, here with "
        f"`--max-batch {batch} --max-queue {holds - batch}` and {most} clients; `--max-queue` is patience "
        "times requests a second, less `--max-batch`.",
        header,
        rows,
        1,
    )


def _fullness(cell: Record) -> tuple[str, str]:
    if cell["full_passes_share"] is None:
        return NONE, NONE
    return f"{100 * cell['full_passes_share']:.0f} %", f"{cell['rows_a_pass']:.1f}"


def _overhead(content: Record) -> list[str]:
    rows = [
        [
            f"{pairs['audio_s']:g} s",
            str(pairs["server"]["n"]),
            *(_ms(pairs[side][key]) for side in ("library", "server") for key in ("p50_ms", "p95_ms")),
            *(f"{pairs['difference'][key]:.1f}" for key in ("p50_ms", "p95_ms")),
            f"{pairs['same_texts']} of {pairs['server']['n']}",
        ]
        for pairs in content["overhead"]
    ]
    header = [
        "Clip",
        "Requests",
        "Library p50",
        "p95",
        "Server p50",
        "p95",
        "Difference p50",
        "p95",
        "Same text",
    ]
    return section(
        "Over the library",
        "One clip through `Transcriber.transcribe(path)` in a process of its own, then through the server, "
        "and so on; milliseconds. Reading and decoding the file is part of both.",
        header,
        rows,
        1,
    )


def _batching(content: Record) -> list[str]:
    batching = content["batching"]
    rows = [
        [
            name,
            str(place),
            f"{cell['audio_s_per_s']:.1f}",
            _ms(cell["latency"]["p50_ms"]),
            _ms(cell["latency"]["p95_ms"]),
            *_fullness(cell),
        ]
        for key, name in (("shared", "shared passes"), ("one_at_a_time", "`--max-batch 1`"))
        for place, cell in enumerate(batching[key], 1)
    ]
    return section(
        f"Against one clip at a time, {batching['clients']} clients, {batching['audio_s']:g} s clips",
        "",
        ["Server", "Round", "Audio s/s", "p50", "p95", "Full passes", "Rows a pass"],
        rows,
        1,
    )


def _beside(content: Record) -> list[str]:
    beside = content["beside"]
    names = {"alone": "alone", "beside": f"beside {_length(beside['upload_s'])}"}
    rows = [
        [name, str(beside[key]["n"]), *(_ms(beside[key][q]) for q in ("p50_ms", "p95_ms", "max_ms"))]
        for key, name in names.items()
    ]
    return section(
        "A short clip beside a long file",
        f"{content['plan']['lengths'][0][0]:g} s clips from one client, milliseconds; the long file "
        f"({beside['upload_bytes'] / 2**20:.1f} MiB) was "
        f"{'under way all the time' if beside['upload_was_under_way'] else '**done before the end**'}.",
        ["Clip", "Requests", "p50", "p95", "Largest"],
        rows,
        1,
    )
