"""Damaged uploads end in samples or in AudioError, quickly, whatever becomes of the decoders.

500 files, or as many as are asked for:

    CANVAS_ASR_FUZZ_FILES=10000 pytest tests/unit/test_upload_fuzz.py -s
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damaged_audio import mutate, write_originals

from canvas_asr.errors import AudioError
from canvas_asr.serving import uploads
from canvas_asr.serving.uploads import DecoderPool

N_FILES = int(os.environ.get("CANVAS_ASR_FUZZ_FILES", "500"))
MAX_FILE_S = 5.0
MAX_AUDIO_S = 600.0
LONG_S = 31.0  # longer than what has to be whole
ENDLESS_S = 100.0  # without progress, on however busy a machine


def spent_s(pool: DecoderPool) -> float:
    """Time that decoders took: the processor's where that is told, for others cannot make it longer."""
    if sys.platform != "linux":
        return time.monotonic()
    ticks = 0
    for pid in pool.pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def read(pool: DecoderPool, path: Path) -> str:
    try:
        upload = pool.open(path, max_audio_s=MAX_AUDIO_S)
    except AudioError as error:
        return "refused" if str(path.parent) not in str(error) else f"the path is told: {error}"
    samples = np.concatenate(list(upload))
    upload.close()
    return "read" if np.isfinite(samples).all() else "samples that are no numbers"


@pytest.mark.timeout(max(300, N_FILES))
def test_damaged_uploads_are_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "READ_AHEAD_S", MAX_AUDIO_S)  # one process reads all
    contents = [path.read_bytes() for path in write_originals(tmp_path)]
    (long_folder := tmp_path / "long").mkdir()
    long_contents = [path.read_bytes() for path in write_originals(long_folder, LONG_S, (1,))]
    pool = DecoderPool(1, max_file_s=ENDLESS_S)
    pool.start()
    outcomes: Counter[str] = Counter()
    slowest_s, slowest = 0.0, 0
    for i in range(N_FILES):
        rng = random.Random(i)
        path = tmp_path / f"damaged{i}"
        path.write_bytes(mutate(rng.choice(contents if i % 50 else long_contents), rng.choice(contents), rng))
        before_s = spent_s(pool)
        outcomes[read(pool, path)] += 1
        slowest_s, slowest = max((slowest_s, slowest), (spent_s(pool) - before_s, i))
        path.unlink()
    pool.close()
    print(f"{N_FILES} files: {dict(outcomes)}; file {slowest} took {slowest_s:.2f} s; {pool.stats}")
    assert outcomes.keys() == {"read", "refused"}
    assert 0.2 * N_FILES < outcomes["refused"] < 0.98 * N_FILES  # damage is neither harmless nor always fatal
    assert slowest_s <= MAX_FILE_S
    assert pool.stats.n_unexpected == pool.stats.n_stalled == 0
    assert pool.stats.n_files == N_FILES
