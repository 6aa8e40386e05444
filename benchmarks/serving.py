"""The server under load: latency, throughput, refusals, what it costs over the library, and fairness.

    python benchmarks/serving.py tiny

A real ``canvas-asr serve`` is started on a free port, and clients on the same machine send clips that are
cut from speech made of ``examples/``. Measured, in turn:

* overhead: a request against the library, which does the same clip in a process of its own right before;
* cells: 1 to 64 clients, of which each sends its next clip when the last is answered, for two lengths;
* batching: 8 clients, in turn against a server that transcribes one clip at a time;
* beside: a short clip while an hour is being transcribed, against the same clips alone;
* live: from the end of speech to the final text, as ``benchmarks/live.py`` measures it in more cases.

``/health`` is asked ten times a second all the while, by a process of its own. Writes ``docs/serving.json``
and ``docs/serving_figures.md``. ``--small`` does all of it in seconds, to see that it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile as sf
from long_form import write_speech
from serving_load import (
    Helper,
    Reply,
    Server,
    ask,
    connect,
    cut_clips,
    load,
    quantiles,
    run_library,
    send,
    watch_health,
)

DOCS = Path(__file__).parents[1] / "docs"
PASSES, FULL_PASSES, ROW_PASSES = (
    f"canvas_asr_{name}_total" for name in ("passes", "full_passes", "row_passes")
)
REFUSED = (429, 503)
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        lengths: Seconds of the clips, and seconds that each number of clients sends them.
        clients: How many send at once.
        n_clips: Clips of each length, taken in turn.
        pairs: Requests of each length that are compared with the library.
        rounds: Of the comparison with one clip at a time.
        round_s: Seconds of each server in a round.
        batching_clients: How many send then.
        hour_s: Length of the long upload.
        beside_s: Seconds that short clips are sent beside it, and alone.
        live: Seconds of speech that are sent as they are spoken.
        live_rounds: How often each of them.
        max_batch: Of the server.
        max_queue: Likewise.
        decode_workers: Likewise.
    """

    lengths: tuple[tuple[float, float], ...] = ((5.0, 20.0), (30.0, 40.0))
    clients: tuple[int, ...] = (1, 4, 8, 16, 64)
    n_clips: int = 8
    pairs: tuple[int, ...] = (60, 15)
    rounds: int = 2
    round_s: float = 10.0
    batching_clients: int = 8
    hour_s: float = 3600.0
    beside_s: float = 15.0
    live: tuple[float, ...] = (5.0, 10.0)
    live_rounds: int = 4
    max_batch: int = 8
    max_queue: int = 32
    decode_workers: int = 2


SMALL = Plan(
    lengths=((1.0, 0.5), (2.0, 0.5)),
    clients=(1, 3),
    n_clips=2,
    pairs=(2, 1),
    rounds=1,
    round_s=0.5,
    batching_clients=2,
    hour_s=30.0,
    beside_s=0.5,
    live=(1.0,),
    live_rounds=1,
    max_batch=2,
    max_queue=0,
    decode_workers=1,
)


class Bench:
    """The servers that are measured, and what watches them."""

    def __init__(self, stack: ExitStack, model: str, plan: Plan, options: Sequence[str]) -> None:
        """Start the processes.

        Args:
            stack: What ends them.
            model: As ``--model`` takes it.
            plan: Says how many requests the server holds; the other one holds as many, one at a time.
            options: Further ones of ``canvas-asr serve``.
        """
        holds = plan.max_batch + plan.max_queue
        workers = ("--decode-workers", str(plan.decode_workers))
        self.server, self.single = (
            stack.enter_context(
                Server(model, *options, *workers, "--max-batch", str(n), "--max-queue", str(holds - n))
            )
            for n in (plan.max_batch, 1)
        )
        for server in (self.server, self.single):
            server.wait()
        self.health = stack.enter_context(Helper(watch_health, self.server.port))
        self.probes: list[float | None] = []

    def health_since(self) -> Record:
        """How long ``/health`` took since this was last asked."""
        found = [seconds for _, seconds in self.health.ask("probes")]
        self.probes += found
        return summary_of_probes(found)


def summary_of_probes(found: Sequence[float | None]) -> Record:
    """Times of ``/health``, and how often it did not answer."""
    return {**quantiles([s for s in found if s is not None]), "failed": found.count(None)}


def summary(replies: Sequence[Reply], audio_s: float) -> Record:
    """Latencies and throughput of requests that were sent together.

    Args:
        replies: To all of them.
        audio_s: Length of every clip.
    """
    done = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status in REFUSED and reply.retry_after]
    span = max(r.started + r.seconds for r in replies) - min(r.started for r in replies)
    return {
        "statuses": dict(sorted(Counter(str(reply.status) for reply in replies).items())),
        "unexpected": len(replies) - len(done) - len(refused),
        "latency": quantiles([reply.seconds for reply in done]),
        "refusal": quantiles([reply.seconds for reply in refused]),
        "requests_per_s": len(done) / span,
        "audio_s_per_s": audio_s * len(done) / span,
    }


def cell(server: Server, contents: Sequence[bytes], audio_s: float, n_clients: int, seconds: float) -> Record:
    """One number of clients and one length of clip, and how full the passes were meanwhile."""
    before = server.counters()
    replies = asyncio.run(load(server, contents, n_clients, seconds))
    after = server.counters()
    n_passes, n_full, n_rows = (after[name] - before[name] for name in (PASSES, FULL_PASSES, ROW_PASSES))
    return {
        "audio_s": audio_s,
        "clients": n_clients,
        **summary(replies, audio_s),
        "passes": n_passes,
        "full_passes_share": n_full / n_passes if n_passes else None,
        "rows_a_pass": n_rows / n_passes if n_passes else None,
    }


async def overhead(server: Server, library: Helper, contents: Sequence[bytes], first: int, n: int) -> Record:
    """One clip through the library and then through the server, over and over.

    Args:
        server: With nothing else to do.
        library: Runs :func:`run_library`; its list of files holds the clips.
        contents: Of the clips.
        first: Place of the first of them in the library's list.
        n: Requests.
    """
    theirs, ours, same = [], [], 0
    async with connect(server) as client:
        for turn in range(-len(contents), n):  # every clip once, to warm up
            place = turn % len(contents)
            seconds, text = library.ask(first + place)
            reply = await ask(client, server.name, place, contents[place])
            if turn >= 0:
                theirs.append(seconds)
                ours.append(reply.seconds)
                same += reply.text == text
    apart = [b - a for a, b in zip(theirs, ours, strict=True)]
    return {
        "library": quantiles(theirs),
        "server": quantiles(ours),
        "difference": quantiles(apart),
        "same_texts": same,
    }


def batching(bench: Bench, contents: Sequence[bytes], audio_s: float, plan: Plan) -> Record:
    """Throughput with shared passes and with one clip at a time, by turns."""
    found: dict[str, list[Record]] = {"shared": [], "one_at_a_time": []}
    for _ in range(plan.rounds):
        for name, server in (("shared", bench.server), ("one_at_a_time", bench.single)):
            found[name].append(cell(server, contents, audio_s, plan.batching_clients, plan.round_s))
    rates = {name: sum(one["audio_s_per_s"] for one in cells) / len(cells) for name, cells in found.items()}
    return {
        "audio_s": audio_s,
        "clients": plan.batching_clients,
        **found,
        "audio_s_per_s": rates,
        "ratio": rates["shared"] / rates["one_at_a_time"],
    }


async def beside(server: Server, contents: Sequence[bytes], long: Path, plan: Plan) -> Record:
    """A client alone, then the same while a long file is being transcribed, which is given up at the end."""
    content = long.read_bytes()
    async with connect(server) as client:
        alone = await send(client, server.name, contents, 0, plan.beside_s)
        before = server.counters()
        upload = asyncio.create_task(ask(client, server.name, 0, content))
        while not upload.done() and (await asyncio.to_thread(server.counters))[PASSES] == before[PASSES]:
            await asyncio.sleep(0.05)
        replies = await send(client, server.name, contents, 0, plan.beside_s)
        is_under_way = not upload.done()
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)
    found = {name: summary(some, 1.0)["latency"] for name, some in (("alone", alone), ("beside", replies))}
    return {
        "upload_s": plan.hour_s,
        "upload_bytes": len(content),
        "upload_was_under_way": is_under_way,
        **found,
        "ratio": found["beside"]["p50_ms"] / found["alone"]["p50_ms"],
        "p95_ratio": found["beside"]["p95_ms"] / found["alone"]["p95_ms"],
    }


def live(server: Server, folder: Path, plan: Plan) -> list[Record]:
    """Speech at the pace of a microphone, one client."""
    import live as benchmark  # imports this file

    speech, _ = sf.read(write_speech(folder / "live.flac", 2 * max(plan.live)), dtype="int16")
    options = argparse.Namespace(clients=[1], rounds=plan.live_rounds, vad=False)
    return [row for audio_s in plan.live for row in benchmark.measure(server, speech, audio_s, options)]


def measure(options: argparse.Namespace, plan: Plan, folder: Path) -> Record:
    """Start all that is needed, and measure."""
    clips = {audio_s: cut_clips(folder, audio_s, plan.n_clips) for audio_s, _ in plan.lengths}
    contents = {audio_s: [path.read_bytes() for path in paths] for audio_s, paths in clips.items()}
    long = write_speech(folder / "long.ogg", plan.hour_s)
    paths = [str(path) for some in clips.values() for path in some]
    found: Record = {"overhead": [], "cells": []}
    with ExitStack() as stack:
        library = stack.enter_context(Helper(run_library, options.model, paths))
        bench = Bench(stack, options.model, plan, options.serve)
        n_threads = library.ask("threads")
        options.tell("servers and library are ready")
        for place, ((audio_s, some), n) in enumerate(zip(contents.items(), plan.pairs, strict=True)):
            first = place * plan.n_clips
            pairs = asyncio.run(overhead(bench.server, library, some, first, n))
            found["overhead"].append({"audio_s": audio_s, **pairs, "health": bench.health_since()})
            options.tell(f"overhead at {audio_s:g} s: {pairs['difference']['p50_ms']:.1f} ms")
        for audio_s, seconds in plan.lengths:
            for n_clients in plan.clients:
                one = cell(bench.server, contents[audio_s], audio_s, n_clients, seconds)
                found["cells"].append({**one, "health": bench.health_since()})
                options.tell(f"{audio_s:g} s, {n_clients} clients: {one['audio_s_per_s']:.1f}x real time")
        short_s = plan.lengths[0][0]
        found["batching"] = batching(bench, contents[short_s], short_s, plan)
        options.tell(f"against one at a time: {found['batching']['ratio']:.2f}")
        found["beside"] = asyncio.run(beside(bench.server, contents[short_s], long, plan))
        options.tell(f"beside a long file: {found['beside']['ratio']:.2f}")
        found["live"] = live(bench.server, folder, plan)
        options.tell("live")
        found["health"] = {"last": bench.health_since(), "all": summary_of_probes(bench.probes)}
        found["peak_memory_mib"] = bench.server.memory_mib()
        bench.server.stop()
        bench.single.stop()
    return {**found, "library_threads": n_threads}


def environment(load_before: float) -> Record:
    """What the figures were measured with."""
    from importlib.metadata import version

    from canvas_asr.evaluation.machine import describe_machine, installed_versions

    versions = installed_versions() | {name: version(name) for name in ("fastapi", "uvicorn", "httpx")}
    return {**describe_machine(), "load_average_before": load_before, "versions": versions}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "model", nargs="?", default="tiny", help="as canvas-asr serve takes it (default tiny)"
    )
    parser.add_argument(
        "--serve", type=shlex.split, default=[], help="more options of canvas-asr serve, in one"
    )
    parser.add_argument("--json", type=Path, default=DOCS / "serving.json")
    parser.add_argument("--markdown", type=Path, default=DOCS / "serving_figures.md")
    parser.add_argument("--small", action="store_true", help="seconds of each, to try it")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    if options.small and DOCS in (options.json.parent, options.markdown.parent):
        parser.error("--small measures nothing worth keeping in docs/: give --json and --markdown")
    started = time.perf_counter()
    options.tell = lambda text: print(f"{time.perf_counter() - started:7.1f} s  {text}", flush=True)
    content: Record = {
        "command": f"python benchmarks/serving.py {shlex.join(arguments)}".rstrip(),
        "model": options.model,
        "environment": environment(round(os.getloadavg()[0], 2)),
    }
    plan = SMALL if options.small else Plan()
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        content |= {"plan": asdict(plan), **measure(options, plan, Path(folder))}
    from serving_report import markdown, targets

    content["targets"] = targets(content)
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.markdown.write_text(markdown(content), encoding="utf-8")
    options.tell(f"wrote {options.json} and {options.markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
