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
from damaged_audio import mutate, write_originals

from canvas_asr.audio import load_audio
from canvas_asr.errors import AudioError

N_FILES = 500
MAX_FILE_S = 5.0
MAX_RSS_MIB = 600


def read_damaged_files(folder: Path, n_files: int) -> None:
    """Write and read files, and print a line for each: number, seconds, what came of it."""
    contents = [(path.suffix, path.read_bytes()) for path in write_originals(folder)]
    for i in range(n_files):
        suffix, content = contents[i % len(contents)]
        path = folder / f"damaged{i}{suffix}"
        path.write_bytes(mutate(content, contents[i % 7][1], random.Random(i)))
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
