"""The wheel holds the whole package with the embedded model, is small, and declares what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import canvas_asr

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "canvas_asr"
MAX_WHEEL_BYTES = 35_000_000
MAX_WEIGHT_BYTES = 32_000_000

COMMAND = """
import sys
import canvas_asr.cli
print(canvas_asr.__file__, file=sys.stderr)
sys.exit(canvas_asr.cli.main())
"""
# Without isolation the installed hatchling builds, and nothing is fetched.
BUILD = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    build = subprocess.run(
        [*BUILD, "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        check=False,
    )
    assert build.returncode == 0, build.stderr
    (path,) = folder.iterdir()
    with ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def files_of_the_package() -> set[str]:
    files = (path for path in SOURCES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(SOURCES.parent).as_posix() for path in files}


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package()
    assert "canvas_asr/py.typed" in names


def test_wheel_holds_the_embedded_model(wheel: ZipFile) -> None:
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    model = {name: size for name, size in sizes.items() if name.startswith("canvas_asr/models/tiny/")}
    weights = sum(size for name, size in model.items() if name.endswith(".safetensors"))
    assert {"canvas_asr/models/tiny/README.md", "canvas_asr/models/tiny/config.json"} <= model.keys()
    assert 0 < weights <= MAX_WEIGHT_BYTES


def test_wheel_is_small(wheel: ZipFile) -> None:
    assert wheel.filename is not None
    assert Path(wheel.filename).stat().st_size <= MAX_WHEEL_BYTES


def test_wheel_carries_licence_and_command(wheel: ZipFile) -> None:
    (licence,) = (name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    (scripts,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "canvas-asr = canvas_asr.cli:main" in wheel.read(scripts).decode().splitlines()


def test_unpacked_wheel_transcribes_from_another_folder(wheel: ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, "transcribe", str(ROOT / "examples" / "en.flac")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert str(tmp_path) in run.stderr
    assert run.stdout.strip()


def test_metadata_says_version_licence_and_python(metadata: Message) -> None:
    assert metadata["Name"] == "canvas-asr"
    assert metadata["Version"] == canvas_asr.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_core_installation_needs_no_extra(metadata: Message) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    core = {requirement.name for requirement in requirements if requirement.marker is None}
    assert {"av", "numpy", "peft", "safetensors", "torch", "transformers"} <= core
    assert not core & {"accelerate", "fastapi", "jiwer", "pypinyin", "pytest", "whisper-normalizer"}
    extras = {"train", "eval", "listen", "plot", "ray", "serve", "dev"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
