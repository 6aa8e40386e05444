"""The grid composed of measured parts, the targets, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import shorten
from typing import Any

from full_size_floor import CLIPS, PROMPT_TEXT, Clip, Floor, Machine, n_audio_tokens
from full_size_timing import Record, Sizes

PUBLISHED = (
    "published by its authors, on hardware they do not name: 14.9, 10.3, 6.5, 4.7 at 8, 16, 32, 48 passes"
)
# Batch, passes, canvas, least RTFx: with CUDA graphs, for clips of 10 s.
TARGETS = (
    (1, 8, 192, 60),
    (1, 1, 192, 200),
    (32, 8, 192, 300),
    (32, 1, 192, 1200),
    (32, 8, 64, 600),
    (32, 1, 64, 1500),
)


def compose(
    measured: Sequence[Record], passes: Sequence[int], floor: Floor, machine: Machine
) -> list[Record]:
    """Compose the grid of measured parts.

    Args:
        measured: Records of ``Bench.shape``.
        passes: Numbers of passes.
        floor: Of the geometry.
        machine: What the floor is computed for.

    Returns:
        One record a cell: seconds, RTFx, and the share of the time that the floor is.
    """
    cells = []
    for clip in CLIPS:
        for record in measured:
            if record["padded"] != clip.padded:
                continue
            for canvas, timed in record["canvases"].items():
                for n in passes:
                    seconds = record["front_s"] + record["draft_s"]
                    if n:
                        seconds += record["prefix_s"] + timed["first_s"] + (n - 1) * timed["next_s"]
                    least = floor.seconds(machine, clip, record["batch"], int(canvas), n)
                    cells.append(
                        {
                            "clip": clip.name,
                            "batch": record["batch"],
                            "canvas": int(canvas),
                            "passes": n,
                            "mode": record["mode"],
                            "seconds": seconds,
                            "rtfx": record["batch"] * clip.audio_s / seconds,
                            "floor_share": least / seconds,
                        }
                    )
    return cells


def targets(grid: Sequence[Record]) -> list[Record]:
    """Compare the grid with the targets, for both kinds of clips of 10 s; missing cells are left out."""
    found = []
    for clip in CLIPS[:2]:
        for n_batch, passes, canvas, least in TARGETS:
            key = {"clip": clip.name, "batch": n_batch, "canvas": canvas, "passes": passes, "mode": "graphs"}
            for cell in grid:
                if all(cell[name] == value for name, value in key.items()):
                    found.append({**key, "target": least, "rtfx": cell["rtfx"], "met": cell["rtfx"] >= least})
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(v) for v in row) + " |" for row in rows)]) + "\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ms(value: float) -> str:
    return _number(value * 1e3)


def _grid_tables(content: Record) -> list[str]:
    parts = []
    cells = {tuple(c[k] for k in ("clip", "mode", "batch", "canvas", "passes")): c for c in content["grid"]}
    passes = sorted({c["passes"] for c in content["grid"]})
    for clip in CLIPS:
        for mode in ("graphs", "eager"):
            shapes = sorted({key[2:4] for key in cells if key[:2] == (clip.name, mode)})
            if not shapes:
                continue
            rows = []
            for n_batch, canvas in shapes:
                row = [cells[clip.name, mode, n_batch, canvas, n] for n in passes]
                rows.append([n_batch, canvas, *(_number(c["rtfx"]) for c in row)])
            title = "CUDA graphs" if mode == "graphs" else "eager"
            parts.append(f"### {clip.name}, {title}: RTFx by passes\n")
            parts.append(table(["batch", "canvas", *map(str, passes)], rows))
    return parts


def _shape_table(records: Sequence[Record]) -> str:
    head = ["what", "mode", "clip", "batch", "encoder and projector", "draft", "prefix", "canvas"]
    head += ["first pass", "further pass", "peak GB", "finite"]
    rows = []
    for r in records:
        clip = "padded" if r["padded"] else "own length"
        start = [
            r["label"],
            r["mode"],
            clip,
            r["batch"],
            *(_ms(r[k]) for k in ("front_s", "draft_s", "prefix_s")),
        ]
        for canvas, c in r["canvases"].items():
            peak = "–" if c["peak_gb"] is None else f"{c['peak_gb']:.1f}"
            end = [canvas, _ms(c["first_s"]), _ms(c["next_s"]), peak, "yes" if c["finite"] else "NO"]
            rows.append([*start, *end])
    return table(head, rows)


def _extras(content: Record) -> list[str]:
    parts = []
    if content.get("verification"):
        head = ["clip", "batch", "canvas", "passes", "mode", "composed s", "run s", "composed / run"]
        keys = ("clip", "batch", "canvas", "passes", "mode")
        rows = [
            [*(v[k] for k in keys), f"{v['composed_s']:.4f}", f"{v['run_s']:.4f}", f"{v['ratio']:.3f}"]
            for v in content["verification"]
        ]
        parts += ["## Composed and really run\n", table(head, rows)]
    if content.get("stock_generate"):
        head = [
            "batch",
            "canvas",
            "steps",
            "passes",
            "generate s",
            "with encoder and prefix",
            "RTFx",
            "peak GB",
        ]
        rows = []
        for s in content["stock_generate"]:
            total = s["front_s"] + s["prefix_s"] + s["generate_s"]
            peak = "–" if s["peak_gb"] is None else f"{s['peak_gb']:.1f}"
            rtfx = _number(s["batch"] * CLIPS[0].audio_s / total)
            row = [s["batch"], s["canvas"], s["steps"], s["passes"], f"{s['generate_s']:.3f}", f"{total:.3f}"]
            rows.append([*row, rtfx, peak])
        parts.append("## Stock `generate` of transformers, same weights and prefix, clips of 10 s\n")
        parts.append("With random weights its rule for stopping early is never met: it uses every step.\n")
        parts.append(table(head, rows))
    for p in content.get("profile", []):
        head = f"## Where two passes go: batch {p['batch']}, canvas {p['canvas']}, eager: "
        parts.append(f"{head}{p['total_ms']:.1f} ms in {p['n_kernels']} kernels\n")
        parts.append(
            table(["ms", "calls", "kernel"], ([r["ms"], r["calls"], f"`{r['kernel']}`"] for r in p["top"]))
        )
    return parts


def markdown(content: Record) -> str:
    """Everything that was measured, for people."""
    env, machine = content["environment"], content["floor_machine"]
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    parts = [
        "# The published system at full size: speed and memory\n",
        f"Random weights. {env['device']}, {versions}. Made by `{content['command']}`; all figures are in "
        "`full_size.json` beside this page.\n",
        "RTFx is seconds of audio over seconds from log-mel features to token ids: audio encoder, projector, "
        "draft, prefix and passes. Cells are composed of measured parts; 0 passes are the draft alone.\n",
        f"Floor: {machine['bytes_per_s'] / 1e12:.2f} TB/s, {machine['flops_per_s'] / 1e12:.0f} TFLOP/s "
        f"({machine['source']}).\n",
    ]
    if "weights" in content:
        w = content["weights"]
        parts.append(f"Weights: {w['distinct_parameters'] / 1e9:.2f} B, {w['gb']:.1f} GB.\n")
    if "features" in content:
        times = ", ".join(f"{_ms(s)} ms for {name}" for name, s in content["features"].items())
        parts.append(f"Log-mel features, on the CPU and not counted in: {times} a clip.\n")
    if content.get("targets"):
        head = ["clip", "batch", "canvas", "passes", "target RTFx", "RTFx", "met"]
        keys = ("clip", "batch", "canvas", "passes", "target")
        rows = (
            [*(t[k] for k in keys), _number(t["rtfx"]), "yes" if t["met"] else "no"]
            for t in content["targets"]
        )
        parts += ["## Targets, with CUDA graphs\n", f"Beside them: {PUBLISHED}.\n", table(head, rows)]
    if content.get("grid"):
        parts += ["## Grid\n", *_grid_tables(content), *_floor_table(content["grid"])]
    records = [
        *content.get("stock_norms", []),
        *content.get("shapes", []),
        *content.get("compiled_parts", []),
    ]
    parts += ["## Parts, in milliseconds\n", _shape_table(records), *_extras(content)]
    for title, key in (("Skipped for want of time", "skipped"), ("Failed", "failed")):
        if content[key]:
            lines = ("- " + ", ".join(f"{k}: {v}" for k, v in entry.items()) for entry in content[key])
            parts += [f"## {title}\n", "\n".join(lines) + "\n"]
    return "\n".join(parts)


def _floor_table(grid: Sequence[Record]) -> list[str]:
    """How near the floor the grid comes, for one pass and for the most, with graphs."""
    shown = [
        c for c in grid if c["mode"] == "graphs" and c["clip"] == CLIPS[0].name and c["passes"] in (1, 8)
    ]
    rows = [
        [c["batch"], c["canvas"], c["passes"], _ms(c["seconds"]), f"{100 * c['floor_share']:.0f} %"]
        for c in shown
    ]
    head = ["batch", "canvas", "passes", "ms", "floor / measured"]
    return [f"### Against the floor, {CLIPS[0].name}\n", table(head, sorted(rows, key=str))]


def summary(content: Record) -> str:
    """The lines worth printing last."""
    lines = [f"{t['clip']}, batch {t['batch']}, canvas {t['canvas']}, {t['passes']} passes: "
             f"{_number(t['rtfx'])}x, target {t['target']}" for t in content.get("targets", [])]  # fmt: skip
    lines += [f"composed / run {v['ratio']:.3f}" for v in content.get("verification", [])]
    return "\n".join([*lines, f"skipped {len(content['skipped'])}, failed {len(content['failed'])}"])


MEMORY_HEAD = r"""## Memory of the backbone, quantised

Measured without a GPU, by `{command}`
({versions}).
Layers of both kinds at full width with {measured} of their {experts} experts, times {sliding} and {full}
layers, and the whole vocabulary, self-conditioning and the vision tower. GB of all distinct tensors, scales
included; the audio encoder, the adapter, caches and activations come on top. Whether each is fast, or runs at
all, on a GPU was not tried.

Unless it is told what to leave, `transformers` leaves every linear map whose weight is shared, and here
encoder and decoder share all layers: only the vision tower and self-conditioning get smaller. *Layers too*:
with `llm_int8_skip_modules=["lm_head"]` (bitsandbytes) or `modules_to_not_convert=["lm_head"]` (the others).
The experts, nine tenths of the weights, are no linear maps, and stay in bfloat16 all the same, but for the
methods that name them. FP8 in blocks of 64 needs `pip install kernels` and a GPU to run; bitsandbytes' 4 bits
fail in its kernel for CPUs. The last line of the table is loaded with

    from torchao.quantization import Float8WeightOnlyConfig, FqnToConfig
    fp8 = Float8WeightOnlyConfig()
    kinds = {{r"re:.*\.experts\.(gate_up_proj|down_proj)": fp8, "_default": fp8}}
    TorchAoConfig(FqnToConfig(kinds), modules_to_not_convert=["lm_head"])
"""


def memory_section(content: Record) -> str:
    """What ``quantised_memory.py`` measured: GB of the whole backbone in each way of loading it."""
    text = MEMORY_HEAD.format(
        command=content["command"],
        versions=", ".join(f"{name} {number}" for name, number in content["versions"].items()),
        measured=content["experts_measured"],
        experts=content["experts"],
        sliding=content["layers"]["sliding_attention"],
        full=content["layers"]["full_attention"],
    )
    head = ["backbone", "all", "experts", "other layers", "the rest", "experts held in", "a pass on the CPU"]
    rows: list[Sequence[object]] = []
    for record in content["methods"]:
        if "refused" in record:
            rows.append([record["method"], *"–" * 5, f"refused: {shorten(record['refused'], 90)}"])
            continue
        sizes = (f"{record[f'{part}_gb']:.1f}" for part in ("total", "experts", "other_layers", "rest"))
        held: Record = {}
        for part, counts in record["measured_bytes"].items():
            for dtype, n_bytes in counts.items() if part.endswith("experts") else ():
                held[dtype] = held.get(dtype, 0) + n_bytes
        share = {dtype: round(100 * n_bytes / sum(held.values())) for dtype, n_bytes in held.items()}
        types = ", ".join(f"{dtype} {percent} %" for dtype, percent in share.items() if percent)
        rows.append([record["method"], *sizes, types, shorten(record["runs_here"], 90)])
    return "\n".join([text, table(head, rows)])


def estimate(floor: Floor, machine: Machine, sizes: Sizes) -> str:
    """The floor of every cell as a page, marked as what it is."""
    parts = [
        ESTIMATE_HEAD.format(
            machine=machine, gb=machine.bytes_per_s / 1e12, tflops=machine.flops_per_s / 1e12
        )
    ]
    parts.append("## One pass and one prefix at the floor, in milliseconds\n")
    parts.append(_part_floors(floor, machine, sizes))
    parts.append("## What the targets ask of the code\n")
    rows = []
    for clip in CLIPS[:2]:
        for n_batch, passes, canvas, least in TARGETS:
            best = _rtfx(floor, machine, clip, n_batch, canvas, passes)
            row = [clip.name, n_batch, canvas, passes, least, _number(best), f"{100 * least / best:.0f} %"]
            rows.append(row)
    head = ["clip", "batch", "canvas", "passes", "target RTFx", "RTFx at the floor", "target / floor"]
    parts.append(table(head, rows))
    for clip in CLIPS:
        parts.append(f"## {clip.name}: RTFx at the floor, by passes\n")
        shapes = [(b, c) for b in sorted(sizes.batches) for c in sorted(sizes.canvases)]
        cells = (
            [b, c, *(_number(_rtfx(floor, machine, clip, b, c, n)) for n in sizes.passes)] for b, c in shapes
        )
        parts.append(table(["batch", "canvas", *map(str, sizes.passes)], cells))
    return "\n".join(parts)


ESTIMATE_HEAD = """# The published system at full size: an estimate, not a measurement

No time on this page was measured: no GPU was at hand. Times are the floor, the least that any program can
take on one {machine.name}, by `python benchmarks/full_size.py --estimate`; without that option the same
command measures on a GPU and replaces this page.

Assumed: {gb:.1f} TB/s and {tflops:.0f} TFLOP/s in bf16
({machine.source}).
Every weight is read once a pass, the vocabulary twice where a further pass follows (logits, soft signal); of
the 128 experts of a layer as many are read as an even router is expected to touch; activations cost nothing;
each part takes the larger of the two times. RTFx is seconds of audio over seconds from log-mel features to
token ids.

A real pass takes longer: thousands of kernels, matrix products below their best rate, and the tensors between
them (norms, rotations, expert gathers, the logits of 262,144 tokens). No share of the floor is promised here;
the table of targets says which one each of them needs. One clip at a time is bound by reading weights, which
CUDA graphs help; 32 clips are bound by arithmetic, at the datasheet's rate, which real matrix products stay
below.
"""


def _rtfx(floor: Floor, machine: Machine, clip: Clip, n_batch: int, canvas: int, passes: int) -> float:
    return n_batch * clip.audio_s / floor.seconds(machine, clip, n_batch, canvas, passes)


def _part_floors(floor: Floor, machine: Machine, sizes: Sizes) -> str:
    rows: list[Sequence[Any]] = []
    for n_batch in sorted(sizes.batches):
        for canvas in sorted(sizes.canvases):
            n_prompt = n_audio_tokens(floor.config, CLIPS[0]) + PROMPT_TEXT
            work = floor.one_pass(n_batch, n_prompt, canvas, wants_soft=True)
            touched = floor.n_touched(n_batch * canvas)
            bound = (
                "bytes"
                if work.n_bytes / machine.bytes_per_s > work.n_flops / machine.flops_per_s
                else "operations"
            )
            prefix_s = floor.prefix(n_batch, n_prompt).seconds(machine)
            row = [
                n_batch,
                canvas,
                f"{touched:.1f}",
                f"{work.n_bytes / 1e9:.1f}",
                f"{work.n_flops / 1e12:.1f}",
            ]
            rows.append([*row, _ms(work.seconds(machine)), bound, _ms(prefix_s)])
    head = [
        "batch",
        "canvas",
        "experts touched a layer",
        "GB a pass",
        "TFLOP a pass",
        "pass",
        "bound by",
        "prefix",
    ]
    return table(head, rows)
