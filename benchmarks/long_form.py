"""Long audio: what reading, voice activity and seams cost, how soon text comes, and memory over ten hours.

    python benchmarks/long_form.py tiny --threads 2 --out docs/long_form.json

Files are made of the clips of ``examples/``, over and over, with pauses of 0.2 to 1.5 s. Measured, in turn:

* memory: what a process grows by over ten hours, once it has transcribed two minutes;
* first: seconds from the call to the first segment of an hour, the model being loaded;
* hour: an hour against the same chunks as clips that are cut and in memory, and reading and cutting alone;
* batch: ten minutes with 1 to 8 chunks together.

Processor time stands beside wall-clock time: on a busy machine it is the one to compare. ``--small`` does all
of it in a minute or so, to see that it runs; ``--only`` does a part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parents[1] / "examples"
RATE_HZ = 16_000
PARTS = ("memory", "first", "hour", "batch")


@dataclass(frozen=True)
class Plan:
    """How long the files are, in seconds, and how often is measured."""

    memory_s: float = 36_000.0
    warm_up_s: float = 120.0
    hour_s: float = 3600.0
    batch_s: float = 600.0
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 3


SMALL = Plan(60.0, 10.0, 40.0, 20.0, (1, 2), 1)


def write_speech(path: Path, seconds: float, seed: int = 0) -> Path:
    """Write a file of clips and pauses, block by block."""
    rng = np.random.default_rng(seed)
    clips = [sf.read(clip, dtype="float32")[0] for clip in sorted(EXAMPLES.glob("*.flac"))]
    n_left = round(seconds * RATE_HZ)
    with sf.SoundFile(path, "w", RATE_HZ, 1) as file:
        while n_left > 0:
            for clip in clips:
                pause = rng.normal(0, 1e-4, round(rng.uniform(0.2, 1.5) * RATE_HZ)).astype(np.float32)
                block = np.concatenate([clip, pause])[:n_left]
                file.write(block)
                n_left -= len(block)
    return path


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def rss_mib() -> float:
    """Memory that the process holds now (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def measure_memory(asr: Any, plan: Plan, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Growth over a very long file, sampled at every report of progress."""
    list(asr.stream_file(write_speech(folder / "warm.flac", plan.warm_up_s), **options))
    path = write_speech(folder / "long.flac", plan.memory_s)
    before, most, told = rss_mib(), 0.0, [0.0]

    def sample(done_s: float, _: float) -> None:
        nonlocal most
        most = max(most, rss_mib())
        told.append(done_s)

    spent = timed(lambda: [None for _ in asr.stream_file(path, on_progress=sample, **options)])
    path.unlink()
    return {
        "audio_s": plan.memory_s,
        "before_mib": before,
        "growth_mib": most - before,
        "progress_is_monotone": told == sorted(told) and abs(told[-1] - plan.memory_s) < 1e-3,
        "n_reports": len(told) - 1,
        **spent,
    }


def measure_first(asr: Any, plan: Plan, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the first segment of an hour, median of the rounds."""
    path = write_speech(folder / "hour.flac", plan.hour_s)
    seconds = []
    for _ in range(plan.rounds):
        start = time.perf_counter()
        next(asr.stream_file(path, **options))
        seconds.append(time.perf_counter() - start)
    return {"audio_s": plan.hour_s, "seconds": statistics.median(seconds), "all": seconds}


def cut(asr: Any, path: Path, options: dict[str, Any]) -> list[NDArray[np.float32]]:
    """The chunks that a file is transcribed in."""
    from canvas_asr.audio_stream import AudioStream
    from canvas_asr.long_form import max_chunk_samples
    from canvas_asr.options import DecodingOptions
    from canvas_asr.recordings import LongRecording

    decoding = {name: value for name, value in options.items() if name != "batch_size"}
    longest = max_chunk_samples(asr.decoder, DecodingOptions(**decoding), asr.max_audio_s)
    pieces = LongRecording(0, None, AudioStream(path), longest).read(lambda: None)
    return [piece.chunk.samples for piece in pieces if piece is not None]


def measure_hour(asr: Any, plan: Plan, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A long file against its own chunks as clips, one after the other in every round."""
    path = write_speech(folder / "hour.flac", plan.hour_s)
    chunks: list[NDArray[np.float32]] = []
    found: dict[str, list[dict[str, float]]] = {"cutting": [], "long": [], "cut": []}
    for _ in range(plan.rounds):
        found["cutting"].append(timed(lambda: chunks.extend(cut(asr, path, options))))
        clips = [(samples, RATE_HZ) for samples in chunks]
        found["long"].append(timed(lambda: asr.transcribe(path, **options)))
        found["cut"].append(timed(lambda clips=clips: asr.transcribe(clips, **options)))
        chunks.clear()
    figures = {
        name: {clock: statistics.median(one[clock] for one in rounds) for clock in rounds[0]}
        for name, rounds in found.items()
    }
    ratios = {
        clock: statistics.median(
            long[clock] / short[clock] for long, short in zip(found["long"], found["cut"], strict=True)
        )
        for clock in ("wall_s", "cpu_s")
    }
    return {
        "audio_s": plan.hour_s,
        "n_chunks": len(clips),
        "speech_s": sum(len(samples) for samples, _ in clips) / RATE_HZ,
        **figures,
        "ratio": ratios,
    }


def measure_batch(asr: Any, plan: Plan, folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """One file with growing batches, in every round all of them."""
    path = write_speech(folder / "batch.flac", plan.batch_s)
    found: dict[int, list[dict[str, float]]] = {size: [] for size in plan.batch_sizes}
    for _ in range(plan.rounds):
        for size in plan.batch_sizes:
            given = options | {"batch_size": size}
            found[size].append(timed(lambda given=given: asr.transcribe(path, **given)))
    return [
        {
            "batch_size": size,
            **{clock: statistics.median(one[clock] for one in rounds) for clock in rounds[0]},
            "rtfx": plan.batch_s / statistics.median(one["wall_s"] for one in rounds),
        }
        for size, rounds in found.items()
    ]


MEASURES: dict[str, Callable[[Any, Plan, Path, dict[str, Any]], Any]] = {
    "memory": measure_memory,
    "first": measure_first,
    "hour": measure_hour,
    "batch": measure_batch,
}


def measure(asr: Any, plan: Plan, parts: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Measure the parts that are asked for, memory first: what others leave behind would hide growth."""
    with tempfile.TemporaryDirectory(prefix="long-form-") as folder:
        return {part: MEASURES[part](asr, plan, Path(folder), options) for part in PARTS if part in parts}


def lines(figures: dict[str, Any]) -> list[str]:
    """Figures as a Markdown list."""
    rows = []
    if memory := figures.get("memory"):
        rows.append(
            f"- {memory['audio_s'] / 3600:.2f} h: memory grows by {memory['growth_mib']:.0f} MiB from "
            f"{memory['before_mib']:.0f}; progress monotone: {memory['progress_is_monotone']}"
        )
    if first := figures.get("first"):
        rows.append(f"- first segment of {first['audio_s']:.0f} s after {first['seconds']:.2f} s")
    if hour := figures.get("hour"):
        long_s, cut_s, cutting_s = (hour[name]["wall_s"] for name in ("long", "cut", "cutting"))
        rows.append(
            f"- {hour['audio_s']:.0f} s in {hour['n_chunks']} chunks: {long_s:.1f} s, clips {cut_s:.1f} s, "
            f"reading and cutting alone {cutting_s:.1f} s; ratio {hour['ratio']['wall_s']:.2f} by the clock, "
            f"{hour['ratio']['cpu_s']:.2f} of processor time"
        )
    for one in figures.get("batch", []):
        rows.append(f"- batch size {one['batch_size']}: {one['rtfx']:.1f} times real time")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description="Long audio: speed, first text, memory.")
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--small", action="store_true", help="a minute in all, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--hour", type=float, metavar="SECONDS", help="in place of an hour")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--init", default="draft")
    parser.add_argument("--canvas", default="auto")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args(arguments)

    import torch

    import canvas_asr

    if given.threads:
        torch.set_num_threads(given.threads)
    plan = SMALL if given.small else Plan()
    if given.hour:
        plan = Plan(**(asdict(plan) | {"hour_s": given.hour}))
    canvas = int(given.canvas) if given.canvas.isdecimal() else given.canvas
    options = {
        "init": given.init,
        "canvas": canvas,
        "steps": given.steps,
        "batch_size": given.batch_size,
    }
    figures = {
        "command": shlex.join(["python", "benchmarks/long_form.py", *(arguments or sys.argv[1:])]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads",
        "options": options,
        "plan": asdict(plan),
        **measure(canvas_asr.load(given.model), plan, given.only, options),
    }
    print("\n".join(lines(figures)))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
