"""Speaker turns through the command line: for a file, for a folder, in several processes.

The transcriber is made up (tests/fake_transcriber.py): it reads text files, half a second a word.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fake_transcriber
import pytest
from fake_transcriber import FakeTranscriber

import canvas_asr
from canvas_asr.cli import main

ANN_THEN_BEN = "SPEAKER {0} 1 0.0 1.0 <NA> <NA> ann\nSPEAKER {0} 1 1.0 9.0 <NA> <NA> ben\n"
SAID = "[ann]: one two.\n[ben]: three\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, and the turns of two of them."""
    (tmp_path / "in").mkdir()
    (tmp_path / "turns").mkdir()
    for name in ("a.wav", "a.mp3", "b.wav"):
        (tmp_path / "in" / name).write_text("one two. three")
    (tmp_path / "turns" / "a.rttm").write_text(ANN_THEN_BEN.format("a"))
    (tmp_path / "any.rttm").write_text(ANN_THEN_BEN.format("any"))
    return tmp_path / "in"


def transcribe(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    fake = fake_transcriber.module(FakeTranscriber(0.0))
    monkeypatch.setitem(sys.modules, "canvas_asr.transcriber", fake)
    return main(["transcribe", *map(str, arguments)])


def test_a_file_is_printed_with_its_speakers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rttm = folder / "a.wav", folder.parent / "any.rttm"
    assert transcribe(monkeypatch, path, "--diarize", rttm) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["      0.00    1.00  ann: one two.", "      1.00    1.50  ben: three"]
    assert transcribe(monkeypatch, path, "--diarize", rttm, "--word-timestamps") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 3
    assert transcribe(monkeypatch, path, "--diarize", rttm, "-o", "-") == 0
    assert capsys.readouterr().out == SAID


def test_turns_that_cannot_be_read_are_said_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rttm = folder / "none.rttm"
    assert transcribe(monkeypatch, folder, "--diarize", rttm, "-o", folder.parent / "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [f"canvas-asr: error: {rttm}: cannot be read as an RTTM file (No such file or directory)."]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_files_of_a_folder_have_the_speakers_of_their_names(folder: Path, n_jobs: int) -> None:
    turns, out = folder.parent / "turns", folder.parent / "out"
    options = ["-o", out, "--output-format", "txt", "--diarize", turns, "--jobs", str(n_jobs)]
    run = subprocess.run(
        [sys.executable, fake_transcriber.__file__, "transcribe", folder, *options],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(Path(canvas_asr.__file__).parents[1])},
        check=False,
    )
    assert run.returncode == 1
    assert sorted(path.name for path in out.glob("*.txt")) == ["a.mp3.txt", "a.wav.txt"]
    assert {path.read_text() for path in out.glob("*.txt")} == {SAID}
    assert f"b.wav: who speaks cannot be told: {turns}: no b.rttm is in this folder." in run.stderr
