"""How fast a checkpoint is: imports, loading, a 10 s clip, memory; and whether cost grows with what is said.

    python benchmarks/speed.py tiny --clip examples/en.flac --threads 2 --out docs/speed.json

Imports, loading and peak memory are measured in fresh processes, with 10 s of speech: the clip over and over.
For the cost of what is said, three clips of 10 s are timed in turn at a fixed canvas and number of passes:
silence, the clip once with silence after it, and the clip over and over.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AUDIO_S = 10.0
RATE_HZ = 16_000

# Each figure by its own clock; nothing is imported before the first.
_FRESH = """
import json, sys, time
start = time.perf_counter()
import canvas_asr
package_s = time.perf_counter() - start
torch_imported = "torch" in sys.modules
start = time.perf_counter()
import canvas_asr.transcriber
libraries_s = time.perf_counter() - start
model, device, clip = sys.argv[1:4]
start = time.perf_counter()
asr = canvas_asr.load(model, device=device)
load_s = time.perf_counter() - start
import numpy as np
samples = np.load(clip)
start = time.perf_counter()
asr.transcribe((samples, 16_000), steps=int(sys.argv[4]))
first_s = time.perf_counter() - start
for _ in range(3):
    asr.transcribe((samples, 16_000), steps=int(sys.argv[4]))
# Not getrusage: its peak counts the process that started this one.
lines = open("/proc/self/status").read().splitlines()
peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({
    "import_package_s": package_s, "imports_torch": torch_imported, "import_libraries_s": libraries_s,
    "load_s": load_s, "first_clip_s": first_s, "peak_mib": peak_kib / 1024,
}))
"""


def dense(samples: NDArray[np.float32], audio_s: float = AUDIO_S) -> NDArray[np.float32]:
    """Repeat a clip (N,) until it fills ``audio_s``."""
    length = round(audio_s * RATE_HZ)
    return np.tile(samples, -(-length // len(samples)))[:length]


def once(samples: NDArray[np.float32], audio_s: float = AUDIO_S) -> NDArray[np.float32]:
    """Put silence after a clip (N,), or cut it, to ``audio_s``."""
    length = round(audio_s * RATE_HZ)
    return np.pad(samples[:length], (0, length - min(length, len(samples))))


def fresh(model: str, device: str, clip: Path, steps: int, repeats: int) -> dict[str, Any]:
    """Measure in fresh processes, one after the other.

    Returns:
        The median of every figure, the greatest of the peak memory.
    """
    found = []
    for _ in range(repeats):
        command = [sys.executable, "-c", _FRESH, model, device, str(clip), str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"error: the measured process failed:\n{done.stderr}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    figures = {key: statistics.median(f[key] for f in found) for key in found[0] if key.endswith("_s")}
    return {
        **{key: round(value, 3) for key, value in figures.items()},
        "imports_torch": any(f["imports_torch"] for f in found),
        "peak_mib": round(max(f["peak_mib"] for f in found), 1),
        "processes": repeats,
    }


def interleaved(
    asr: Any, clips: dict[str, NDArray[np.float32]], steps: int, canvas: int | None, rounds: int
) -> dict[str, dict[str, Any]]:
    """Time clips in turn, so that whatever else the machine does falls on all of them.

    Args:
        asr: A ``Transcriber``.
        clips: Samples by name.
        steps: Passes.
        canvas: Tokens of the canvas; None takes the checkpoint's.
        rounds: Times each clip is transcribed, after one round that is not counted.

    Returns:
        For every clip the text, its tokens, and the median, least and greatest seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in clips}
    texts: dict[str, Any] = {}
    names = list(clips)
    for number in range(rounds + 1):
        # Each round begins with another clip: none is always first.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            texts[name] = asr.transcribe((clips[name], RATE_HZ), steps=steps, canvas=canvas)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "text": texts[name].text,
            "n_tokens": len(texts[name].tokens),
            "median_s": round(statistics.median(measured), 4),
            "min_s": round(min(measured), 4),
            "max_s": round(max(measured), 4),
            "rtfx": round(len(clips[name]) / RATE_HZ / statistics.median(measured), 2),
        }
        for name, measured in seconds.items()
    }


def spread(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the longest transcript with the shortest: their tokens, and how much longer it took."""
    by_length = sorted(measured, key=lambda name: measured[name]["n_tokens"])
    short, long = measured[by_length[0]], measured[by_length[-1]]
    return {
        "shortest": by_length[0],
        "longest": by_length[-1],
        "n_tokens": [short["n_tokens"], long["n_tokens"]],
        "longest_takes_more_percent": round(100 * (long["median_s"] / short["median_s"] - 1), 2),
    }


def measure(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measure everything that the command asks for."""
    import tempfile

    import canvas_asr
    from canvas_asr.audio import load_audio
    from canvas_asr.evaluation.report import describe_machine, installed_versions

    samples = load_audio(options.clip)
    if not len(samples):
        raise SystemExit(f"error: {options.clip} is empty; give a clip with speech in it.")
    clips = {
        "silence": np.zeros(round(AUDIO_S * RATE_HZ), np.float32),
        "once": once(samples),
        "dense": dense(samples),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.npy"
        np.save(path, clips["dense"])
        alone = fresh(options.model, options.device, path, options.steps, options.processes)
    asr = canvas_asr.load(options.model, device=options.device)
    measured = interleaved(asr, clips, options.steps, options.canvas, options.rounds)
    return {
        "command": command,
        "model": options.model,
        "clip": str(options.clip),
        "audio_s": AUDIO_S,
        "steps": options.steps,
        "canvas": options.canvas or asr.model.config.canvas_length,
        "machine": {
            **describe_machine(),
            "device": options.device,
            "load_average_before": round(options.load_before, 2),
        },
        "versions": installed_versions(),
        "fresh_process": alone,
        "clip_of_10_s": {key: measured["dense"][key] for key in ("median_s", "min_s", "max_s", "rtfx")},
        "what_is_said": {**spread(measured), "rounds": options.rounds, "clips": measured},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help='name or folder, as canvas_asr.load takes it: "tiny"')
    parser.add_argument("--clip", type=Path, required=True, help="a few seconds of speech")
    parser.add_argument("--steps", type=int, default=8, help="passes (default 8)")
    parser.add_argument("--canvas", type=int, help="tokens of the canvas (default: the checkpoint's)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=11, help="times each clip is timed (default 11)")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes (default 3)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file to write; what is measured is printed too")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    for name in ("steps", "threads", "rounds", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    # torch reads it when it is first imported, here and in the fresh processes.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.load_before = os.getloadavg()[0]
    content = measure(options, f"python benchmarks/speed.py {shlex.join(arguments)}")
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
