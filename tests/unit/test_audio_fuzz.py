"""Damaged files end in samples or in AudioError: no other exception, no crash of a decoder, no long wait.

The files are read in a child process, because a decoder that crashes takes its process with it. To read more:

    python tests/unit/test_audio_fuzz.py FOLDER 10000
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from audio_files import ENCODERS, write_audio

from canvas_asr.audio import load_audio
from canvas_asr.errors import AudioError

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a")
N_FILES = 500
MAX_FILE_S = 5.0
MAX_RSS_MIB = 600
HEADER_BYTES = 200


def write_originals(folder: Path) -> list[Path]:
    """Write two files of each format: half a second of noise, mono and stereo."""
    paths = []
    for suffix in SUFFIXES:
        rate_hz = ENCODERS.get(suffix, ("", 44_100))[1]
        for n_channels in (1, 2):
            noise = np.random.default_rng(n_channels).normal(0, 0.1, (rate_hz // 2, n_channels))
            path = folder / f"original{n_channels}{suffix}"
            paths.append(write_audio(path, noise.astype(np.float32), rate_hz))
    return paths


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to three ways; half of them in the header, where a byte does most."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        end = min(HEADER_BYTES, len(data)) if rng.random() < 0.5 else len(data)
        at = rng.randrange(max(1, end))
        n = rng.choice((1, 2, 4, 16, 256))
        match rng.randrange(6):
            case 0:
                data[at : at + n] = rng.randbytes(n)
            case 1:
                data[at : at + n] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * n
            case 2:
                del data[at : at + n]
            case 3:
                data[at:at] = rng.randbytes(n)
            case 4:
                data[at:at] = data[at : at + n * 16]
            case 5:
                for _ in range(n):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if len(data) < 16 or rng.random() < 0.1:
            del data[rng.randrange(len(data) + 1) :]
            break
    return bytes(data)


def read_damaged_files(folder: Path, n_files: int) -> None:
    """Write and read files, and print a line for each: number, seconds, what came of it."""
    contents = [(path.suffix, path.read_bytes()) for path in write_originals(folder)]
    for i in range(n_files):
        suffix, content = contents[i % len(contents)]
        path = folder / f"damaged{i}{suffix}"
        path.write_bytes(mutate(content, random.Random(i)))
        print(path, end=" ", flush=True)  # if the process dies, the last line names the file
        start_s = time.perf_counter()
        try:
            outcome = "read" if load_audio(path).dtype == np.float32 else "not float32"
        except AudioError as error:
            outcome = "refused" if str(path) in str(error) else f"unnamed: {error}"
        except Exception as error:
            outcome = f"raised {error!r}"
        seconds = time.perf_counter() - start_s
        print(f"{seconds:.2f} {outcome}", flush=True)
        if seconds <= MAX_FILE_S and outcome in ("read", "refused"):
            path.unlink()
    print(f"peak_mib {peak_mib():.0f} done", flush=True)


def peak_mib() -> float:
    """Most memory held by this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in ru_maxrss what the parent held when it started this process
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss / (2**20 if sys.platform == "darwin" else 2**10)


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    with report.open("w") as file:
        command = [sys.executable, __file__, str(tmp_path), str(N_FILES)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, timeout=120, env=environment)
    *lines, last = report.read_text().splitlines()
    assert child.returncode == 0, f"died with {child.returncode} on {last}\n{child.stderr.decode()}"
    outcomes = [line.split(" ", 2) for line in lines]
    assert len(outcomes) == N_FILES
    bad = [line for line, (_, seconds, outcome) in zip(lines, outcomes, strict=True)
           if outcome not in ("read", "refused") or float(seconds) > MAX_FILE_S]  # fmt: skip
    assert not bad
    n_refused = sum(outcome == "refused" for _, _, outcome in outcomes)
    assert 0.2 * N_FILES < n_refused < 0.98 * N_FILES  # the damage is neither harmless nor always fatal
    assert float(last.split()[1]) <= MAX_RSS_MIB
    assert child.stderr == b""  # decoders keep their remarks to themselves


if __name__ == "__main__":
    read_damaged_files(Path(sys.argv[1]), int(sys.argv[2]))
