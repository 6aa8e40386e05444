"""`import canvas_asr` is quick and loads nothing heavy; its names arrive when they are first used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import canvas_asr

SOURCE = Path(canvas_asr.__file__).parents[1]
HEAVY = ("torch", "transformers", "peft", "numpy", "av", "soundfile", "soxr", "safetensors", "tqdm")


def run_python(code: str) -> str:
    """Run code in a fresh interpreter without the test's own modules, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    loaded = run_python("import sys, canvas_asr; print(' '.join(sys.modules))").split()
    assert "canvas_asr" in loaded
    assert not set(HEAVY) & set(loaded)


def test_errors_and_results_load_nothing_heavy_either() -> None:
    code = (
        "import sys, canvas_asr; canvas_asr.AudioError, canvas_asr.Transcript; print(' '.join(sys.modules))"
    )
    assert not set(HEAVY) & set(run_python(code).split())


def test_reading_audio_does_not_import_torch() -> None:
    code = "import sys, canvas_asr; canvas_asr.load_audio; print(' '.join(sys.modules))"
    loaded = run_python(code).split()
    assert "canvas_asr.audio" in loaded
    assert not {"torch", "transformers"} & set(loaded)


def test_import_takes_at_most_300_ms() -> None:
    code = "import time; start = time.perf_counter(); import canvas_asr; print(time.perf_counter() - start)"
    assert min(float(run_python(code)) for _ in range(5)) <= 0.3


def test_every_name_has_a_module_that_states_it() -> None:
    homes = canvas_asr._HOME_OF
    assert sorted(homes) == sorted(set(canvas_asr.__all__) - {"__version__"})
    assert set(canvas_asr.__all__) <= set(dir(canvas_asr))
    for name, module in homes.items():
        text = (SOURCE / "canvas_asr" / f"{module}.py").read_text()
        assert f"\nclass {name}" in text or f"\ndef {name}(" in text


def test_a_name_that_does_not_exist_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'canvas_asr' has no attribute 'transcribe_all'"):
        canvas_asr.transcribe_all  # noqa: B018


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("canvas-asr") == canvas_asr.__version__
    except PackageNotFoundError:
        pytest.skip("the package is not installed here")
