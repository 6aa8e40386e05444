"""Damaged uploads end in samples or in AudioError, quickly, whatever becomes of the decoders.

500 files, or as many as are asked for:

    CANVAS_ASR_FUZZ_FILES=10000 pytest tests/unit/test_upload_fuzz.py -s --timeout 3600
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from damaged_audio import mutate, write_originals

from canvas_asr.errors import AudioError
from canvas_asr.serving.uploads import DecoderPool

N_FILES = int(os.environ.get("CANVAS_ASR_FUZZ_FILES", "500"))
MAX_FILE_S = 5.0
MAX_AUDIO_S = 600.0
LONG_S = 31.0  # longer than what has to be whole
N_THREADS = 2


def test_damaged_uploads_are_read_or_refused(tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in write_originals(tmp_path)]
    (long_folder := tmp_path / "long").mkdir()
    long_contents = [path.read_bytes() for path in write_originals(long_folder, LONG_S, (1,))]
    pool = DecoderPool(N_THREADS, max_file_s=MAX_FILE_S)
    pool.start()

    def read(i: int) -> tuple[int, float, str]:
        group = contents if i % 50 else long_contents
        rng = random.Random(i)
        path = tmp_path / f"damaged{i}"
        path.write_bytes(mutate(rng.choice(group), rng.choice(contents), rng))
        started = time.monotonic()
        upload = None
        try:
            upload = pool.open(path, max_audio_s=MAX_AUDIO_S)
            samples = np.concatenate(list(upload))
            outcome = "read" if np.isfinite(samples).all() else "samples that are no numbers"
        except AudioError as error:
            outcome = "refused" if str(tmp_path) not in str(error) else f"path told: {error}"
        finally:
            if upload is not None:
                upload.close()
        seconds = time.monotonic() - started
        path.unlink()
        return i, seconds, outcome

    with ThreadPoolExecutor(N_THREADS) as threads:
        results = list(threads.map(read, range(N_FILES)))
    assert len(pool.pids()) == N_THREADS
    pool.close()
    outcomes = Counter(outcome for _, _, outcome in results)
    slowest_s = max(seconds for _, seconds, _ in results)
    print(f"{N_FILES} files: {dict(outcomes)}, slowest {slowest_s:.2f} s, {pool.stats}")
    assert outcomes.keys() == {"read", "refused"}
    assert 0.2 * N_FILES < outcomes["refused"] < 0.98 * N_FILES  # damage is neither harmless nor always fatal
    assert slowest_s <= MAX_FILE_S
    assert pool.stats.n_unexpected == pool.stats.n_stalled == 0
    assert pool.stats.n_files == N_FILES
