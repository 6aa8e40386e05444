"""The recipe of docs/ray.md on a local Ray, and what it promises of pickling."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from ray_script import run_with_ray

import canvas_asr

ROOT = Path(__file__).parents[2]
RECIPE = re.search(r"^```python\n(.*?)^```$", (ROOT / "docs/ray.md").read_text(), re.DOTALL | re.MULTILINE)
START = """
import json, os, sys
import ray
PATHS, MODEL, OUT = json.loads(sys.argv[1])
ACTORS, GPUS = 1, 0
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
"""


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    made = [tmp_path / name for name in ("a.wav", "b.wav", "empty.wav")]
    for i, path in enumerate(made[:2]):
        sf.write(path, 0.3 * np.sin(np.arange(8000 * (i + 1)) / 10), 16_000)
    made[2].write_bytes(b"")
    return [str(path) for path in made]


def test_a_transcriber_is_pickled_with_all_that_it_needs(model: Path, paths: list[str]) -> None:
    asr = canvas_asr.load(model, device="cpu")
    copy = pickle.loads(pickle.dumps(asr))
    options = {"steps": 2, "word_timestamps": True}
    assert [one.tokens for one in copy.transcribe(paths[:2], **options)] == [
        one.tokens for one in asr.transcribe(paths[:2], **options)
    ]


def test_the_recipe_is_twenty_lines() -> None:
    assert RECIPE is not None
    assert len([line for line in RECIPE[1].splitlines() if line.strip()]) <= 22


@pytest.mark.timeout(600)  # Ray starts a dozen processes, of which one imports torch
def test_the_recipe_runs_on_a_local_ray(model: Path, paths: list[str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    assert RECIPE is not None
    out = tmp_path / "out"
    run_with_ray(tmp_path, START + RECIPE[1], [paths, str(model), str(out)])
    lines = [line for path in out.glob("*.json") for line in path.read_text().splitlines()]
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["path"])
    assert [row["path"] for row in rows] == paths
    expected = canvas_asr.load(model, device="cpu").transcribe(paths[:2])
    assert [json.loads(row["json"])["text"] for row in rows[:2]] == [one.text for one in expected]
    assert [row["error"] for row in rows[:2]] == ["", ""]
    assert "the file is empty (0 bytes)" in rows[2]["error"]
