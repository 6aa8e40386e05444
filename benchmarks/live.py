"""Latency of live transcription: from the end of speech to the final text, drafts and stable text on the way.

    python benchmarks/live.py tiny

A real ``canvas-asr serve`` is started on a free port. Clients on the same machine send speech made of
``examples/`` at the pace of a microphone, a tenth of a second at a time, and the end message right behind the
last piece. Measured for every length and number of clients at once:

* final: from sending the end message to the whole transcript, and which share of them took a second at most;
* first draft: from the first piece to the first text of any kind;
* stable: from when the last sample of a segment was sent until its text came, for segments before the end.

Every text is compared with that of the same samples as an upload. Prints a Markdown table; ``--json`` keeps
all figures.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile as sf
from long_form import RATE_HZ, write_speech
from serving import environment
from serving_load import Server, quantiles
from websockets.asyncio.client import connect

PIECE_S = 0.1
AIM_S = 1.0  # from the end of speech to the final text
Record = dict[str, Any]


@dataclass
class Heard:
    """What one client was told.

    Attributes:
        text: The whole.
        final_s: From the end message to it.
        first_s: From the first piece to the first text; None if there was none before the end.
        stable_s: From when the end of each stable segment was sent to its text, before the end message.
        n_drafts: Drafts.
    """

    text: str = ""
    final_s: float = 0.0
    first_s: float | None = None
    stable_s: list[float] = field(default_factory=list)
    n_drafts: int = 0


async def speak(server: Server, samples: np.ndarray, query: str) -> Heard:
    """Send samples as they would be spoken, and note when text comes."""
    heard = Heard()
    async with connect(f"{server.url.replace('http', 'ws', 1)}/v1/live{query}", proxy=None) as live:
        await live.recv()  # ready
        started = time.perf_counter()

        async def receive() -> None:
            async for message in live:
                told, now = json.loads(message), time.perf_counter()
                if told["type"] == "error":
                    raise RuntimeError(told["error"]["message"])
                if told["type"] == "transcript.done":
                    heard.text, heard.final_s = told["text"], now
                    return
                if heard.first_s is None and told["text"]:
                    heard.first_s = now - started
                if told["type"] == "transcript.draft":
                    heard.n_drafts += 1
                elif not ended:
                    heard.stable_s.append(now - started - told["end"])

        ended: list[float] = []
        receiving = asyncio.create_task(receive())
        step = round(PIECE_S * RATE_HZ)
        for at in range(0, len(samples), step):
            piece = samples[at : at + step]
            # A piece can be sent when its last sample has been spoken.
            await asyncio.sleep(max(0.0, started + (at + len(piece)) / RATE_HZ - time.perf_counter()))
            await live.send(piece.tobytes())
        ended.append(time.perf_counter())
        await live.send(json.dumps({"type": "end"}))
        await receiving
        heard.final_s -= ended[0]
    return heard


def upload(server: Server, samples: np.ndarray, *, vad: bool) -> str:
    """Give the text of the same samples as a file."""
    file = io.BytesIO()
    sf.write(file, samples, RATE_HZ, format="WAV", subtype="PCM_16")
    fields = {"model": server.name} | ({"chunking_strategy": "auto"} if vad else {})
    reply = httpx.post(
        f"{server.url}/v1/audio/transcriptions", data=fields, files={"file": file.getvalue()}, timeout=600.0
    )
    return str(reply.raise_for_status().json()["text"])


def measure(server: Server, speech: np.ndarray, audio_s: float, options: argparse.Namespace) -> list[Record]:
    """Measure one length of speech with every number of clients."""
    length = round(audio_s * RATE_HZ)
    clips = [speech[at : at + length] for at in range(0, len(speech) - length + 1, length)]
    query = "?vad=true" if options.vad else ""
    texts = [upload(server, clip, vad=options.vad) for clip in clips]  # and the server is warm
    found = []
    for n_clients in options.clients:

        async def round_of(first: int, n_clients: int = n_clients) -> list[Heard]:
            chosen = [clips[(first + i) % len(clips)] for i in range(n_clients)]
            return list(await asyncio.gather(*(speak(server, clip, query) for clip in chosen)))

        heard, same = [], 0
        for first in range(options.rounds):
            new = asyncio.run(round_of(first))
            same += sum(one.text == texts[(first + i) % len(clips)] for i, one in enumerate(new))
            heard += new
        final = [one.final_s for one in heard]
        found.append(
            {
                "audio_s": audio_s,
                "clients": n_clients,
                "final": quantiles(final),
                "within_aim": sum(seconds <= AIM_S for seconds in final) / len(final),
                "first_text": quantiles([one.first_s for one in heard if one.first_s is not None]),
                "stable": quantiles([seconds for one in heard for seconds in one.stable_s]),
                "drafts_per_s": sum(one.n_drafts for one in heard) / (audio_s * len(heard)),
                "same_texts": same / len(heard),
            }
        )
    return found


def table(rows: Sequence[Record]) -> str:
    """Write the figures as Markdown."""

    def shown(one: Record) -> str:
        return f"{one['p50_ms']:.0f} / {one['p95_ms']:.0f}" if one["n"] else "–"

    lines = [
        "| Speech | Clients | Final text, ms, p50 / p95 | Within 1 s | First text, ms | Stable, ms "
        "| Drafts a second | Same as the file |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['audio_s']:g} s | {row['clients']} | {shown(row['final'])} | {row['within_aim']:.0%} "
        f"| {shown(row['first_text'])} | {shown(row['stable'])} | {row['drafts_per_s']:.1f} "
        f"| {row['same_texts']:.0%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "model", nargs="?", default="tiny", help="as canvas-asr serve takes it (default tiny)"
    )
    parser.add_argument("--lengths", type=float, nargs="+", default=[5.0, 10.0, 30.0], help="seconds")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4], help="at once, at most 8")
    parser.add_argument("--rounds", type=int, default=10, help="of every kind (default 10)")
    parser.add_argument("--vad", action="store_true", help="text is stable at every pause")
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    content: Record = {
        "command": f"python benchmarks/live.py {shlex.join(arguments)}".rstrip(),
        "environment": environment(round(os.getloadavg()[0], 2)),
        "rows": [],
    }
    with Server(options.model) as server, tempfile.TemporaryDirectory(prefix="live-") as folder:
        path = write_speech(Path(folder) / "speech.flac", 4 * max(options.lengths))
        speech = sf.read(path, dtype="int16")[0]
        server.wait()
        for audio_s in options.lengths:
            content["rows"] += measure(server, speech, audio_s, options)
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(content["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
