"""Folders and lists through the command line: what is written, what is left alone, what is said.

The transcriber is made up (tests/fake_transcriber.py): it reads text files. What a real one says is tested in
test_cli.py.
"""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_transcriber
import pytest
from fake_transcriber import FakeTranscriber

import canvas_asr
from canvas_asr import outputs
from canvas_asr.cli import main, progress
from canvas_asr.cli.progress import Progress, clock
from canvas_asr.cli.transcribe import _in_order
from canvas_asr.outputs import MARKS

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(canvas_asr.__file__).parents[1]),
    "PYTHONIOENCODING": "utf-8",
}
COMMAND = (sys.executable, fake_transcriber.__file__, "transcribe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files, of which two share a stem and two a name, and one that is no audio."""
    for name, text in {
        "a.wav": "one two. three",
        "a.mp3": "four",
        "sub/b.flac": "five six",
        "sub/deep/b.flac": "seven",
        "sub/cover.jpg": "no audio",
    }.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "in"


@pytest.fixture
def asr(monkeypatch: pytest.MonkeyPatch) -> FakeTranscriber:
    transcriber = FakeTranscriber(0.0)
    monkeypatch.setitem(sys.modules, "canvas_asr.transcriber", fake_transcriber.module(transcriber))
    return transcriber


@pytest.fixture
def transcribe(
    asr: FakeTranscriber, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, list[str]]]:
    """Run the command in this process: exit code, stdout, lines on stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, list[str]]:
        asr.asked.clear()
        code = main(["transcribe", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def written(out: Path) -> list[str]:
    """Files below a folder, without marks."""
    found = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] != MARKS)


def aside(out: Path) -> list[Path]:
    return list((out / MARKS).rglob("*.partial"))


def test_a_folder_is_written_in_all_formats_under_names_of_their_own(folder: Path, transcribe) -> None:
    out = folder.parent / "out"
    code, printed, said = transcribe(folder, "-o", out)
    assert (code, printed) == (0, "")
    stems = ("a.mp3", "a.wav", "sub/b", "sub/deep/b")
    assert written(out) == sorted(
        f"{stem}.{form}" for stem in stems for form in ("json", "srt", "tsv", "txt", "vtt")
    )
    assert (out / "a.wav.txt").read_text() == "one two. three\n"
    assert (out / "a.wav.srt").read_text().count(" --> ") == 2  # words have times: a cue a sentence
    assert json.loads((out / "sub/deep/b.json").read_text())["text"] == "seven"
    assert said[0] == "canvas-asr: 1 of the files in folders passed over: by their names they are no audio"
    assert said[1].startswith(f"canvas-asr: {out}: 4 files, 0:04 of audio in 0:0")
    assert aside(out) == []


def test_a_format_alone_writes_to_the_present_folder(
    folder: Path, transcribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert transcribe("sub/b.flac", "--output-format", "srt,txt")[0] == 0
    assert [name for name in written(folder) if "b." in name and "flac" not in name] == ["b.srt", "b.txt"]


def test_nothing_is_overwritten_and_that_is_said_first(
    folder: Path, transcribe, asr: FakeTranscriber
) -> None:
    out = folder.parent / "out"
    out.mkdir()
    (out / "a.wav.txt").write_text("mine")
    code, _, said = transcribe(folder, "-o", out, "--output-format", "txt")
    assert (code, asr.asked) == (1, [])
    assert said[-1].startswith(f"canvas-asr: error: {out}/a.wav.txt: exists already (1 of 4 outputs do)")
    assert written(out) == ["a.wav.txt"]
    assert transcribe(folder, "-o", out, "--output-format", "txt", "--overwrite")[0] == 0
    assert (out / "a.wav.txt").read_text() == "one two. three\n"


def test_resuming_does_what_is_left(
    folder: Path, transcribe, asr: FakeTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder.parent / "out"
    options = (folder, "-o", out, "--output-format", "txt")
    assert transcribe(*options, "--shard", "1/2")[0] == 0
    first = set(asr.asked)
    assert len(first) == 2
    code, _, said = transcribe(*options, "--resume")
    assert code == 0
    assert len(asr.asked) == 2
    assert not first & set(asr.asked)
    assert said[-1].endswith("; 2 done before")
    monkeypatch.delattr(sys.modules["canvas_asr.transcriber"], "load")  # no model is needed for nothing
    assert transcribe(*options, "--resume")[2][-1] == f"canvas-asr: {out}: 4 done before"
    assert asr.asked == []


def test_a_file_that_fails_is_reported_at_the_end_and_the_rest_is_done(folder: Path, transcribe) -> None:
    out = folder.parent / "out"
    (folder / "a.mp3").write_text("")  # zero bytes
    code, _, said = transcribe(folder, folder / "missing.wav", "-o", out, "--output-format", "txt")
    assert code == 1
    assert said[1] == f"canvas-asr: error: {folder}/a.mp3: the file is empty (0 bytes); get the file again."
    assert said[2] == f"canvas-asr: error: {folder}/missing.wav: no such file; check the path."
    assert said[-1].endswith("; 2 failed")
    assert written(out) == ["a.wav.txt", "sub/b.txt", "sub/deep/b.txt"]
    (folder / "a.mp3").write_text("found again")
    assert transcribe(folder, "-o", out, "--output-format", "txt", "--resume")[0] == 0
    assert (out / "a.mp3.txt").read_text() == "found again\n"


def test_a_folder_that_cannot_be_written_is_said_before_any_work(
    folder: Path, transcribe, asr: FakeTranscriber
) -> None:
    code, _, said = transcribe(folder, "-o", folder / "a.wav" / "out")
    assert (code, asr.asked) == (1, [])
    assert said[-1].startswith(f"canvas-asr: error: {folder}/a.wav/out: nothing can be written there")


def test_a_full_disk_ends_the_run_with_what_was_finished(
    folder: Path, transcribe, asr: FakeTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder.parent / "out"
    write, calls = outputs.OutputFolder.write, []

    def full(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(outputs.OutputFolder, "write", full)
    code, _, said = transcribe(folder, "-o", out, "--output-format", "txt")
    assert (code, len(asr.asked)) == (1, 2)
    assert said[-1] == f"canvas-asr: error: {out}: No space left on device"
    assert "3 not begun or not finished (--resume goes on)" in said[-2]
    assert len(written(out)) == 1


def test_a_file_too_large_to_be_written_leaves_no_half(folder: Path) -> None:
    out = folder.parent / "out"
    (folder / "a.wav").write_text("word " * 5000)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    run = subprocess.run(
        [*COMMAND, folder, "-o", out, "--output-format", "txt"],
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        preexec_fn=limit,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert f"{folder}/a.wav: its outputs cannot be written: File too large." in run.stderr
    assert written(out) == ["a.mp3.txt", "sub/b.txt", "sub/deep/b.txt"]
    assert aside(out) == []


def test_a_part_without_files_says_so(folder: Path, transcribe, asr: FakeTranscriber) -> None:
    code, _, said = transcribe(folder, "-o", folder.parent / "out", "--shard", "9/9")
    assert (code, asr.asked) == (0, [])
    assert said[-1].endswith("/out: no files to transcribe")


# stdout


def test_one_file_goes_to_stdout_in_any_format(folder: Path, transcribe) -> None:
    path = folder / "a.wav"
    assert transcribe(path, "-o", "-")[1] == "one two. three\n"
    assert transcribe(path, "-o", "-", "--output-format", "tsv")[1].splitlines()[1] == "0\t1000\tone two."
    lines = transcribe(path, "-o", "-", "--output-format", "vtt", "--max-line-width", "8")[1].splitlines()
    assert lines[:4] == ["WEBVTT", "", "00:00.000 --> 00:01.000", "one two."]
    filled = transcribe(
        path, "-o-", "--output-format", "srt", "--max-line-width", "9", "--max-line-count", "2"
    )
    assert filled[1] == "1\n00:00:00,000 --> 00:00:01,500\none two.\nthree\n\n"


def test_json_of_several_is_a_line_each_in_order_whoever_is_first(folder: Path, transcribe) -> None:
    _, printed, _ = transcribe(folder, "-o", "-", "--output-format", "json")
    assert [json.loads(line)["text"] for line in printed.splitlines()] == [
        "four",
        "one two. three",
        "five six",
        "seven",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "-", "--output-format", "srt"], "prints the srt of one file, not of 4; give a folder"),
        (["-o", "-", "--output-format", "all"], "prints one format; choose one"),
        (["--json", "-o", "out"], "--json prints a line a file"),
        (["-o", "out", "--resume", "--overwrite"], "contradict each other"),
        (["--resume"], "are for files; give --output-dir too"),
        (["-o", "out", "--output-format", "txt", "--max-line-width", "40"], "is for subtitles"),
        (["-o", "out", "--max-line-count", "2"], "has no effect without max_line_width"),
        (["--show-canvas", "--jobs", "2"], "leave --jobs out"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(
    arguments: list[str], message: str, folder: Path, transcribe, asr: FakeTranscriber
) -> None:
    code, _, said = transcribe(folder, *arguments)
    assert (code, asr.asked) == (1, [])
    assert message in said[-1]
    assert not (folder.parent / "out").exists()


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_counts_files_audio_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    lengths = {"x": 60.0, "y": 30.0, "z": None}
    monkeypatch.setattr("canvas_asr.audio_stream.header_seconds", lengths.__getitem__)
    stream = Terminal()
    bar = Progress(["x", "y", "z"], stream)
    bar._bar.mininterval = 0.0
    bar._measure(["x", "y", "z"])
    bar._started = time.monotonic() - 3.0
    bar.advance(20.0)
    bar.advance(10.0, 1)  # another process
    assert bar.text() == "0/3 files, 0:30/1:30 of audio, 10.0× real time, 0:06 left"
    bar.finish(60.0)
    bar.finish(0.0, failed=True)
    assert bar.text().endswith("left, 1 failed")
    assert bar.text().startswith("2/3 files, 1:00/1:30 of audio, ")
    bar.close()
    assert "0/3 files, 0:30/1:30 of audio" in stream.getvalue()


def test_without_a_terminal_there_is_no_bar(tmp_path: Path) -> None:
    stream = io.StringIO()
    bar = Progress(["missing"], stream)
    bar.advance(1.0)
    bar.finish(1.0)
    bar.close()
    assert stream.getvalue() == ""


def test_durations_are_readable() -> None:
    assert [clock(s) for s in (0.4, 59.6, 3599.0, 3600.0, 36_061.0)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "10:01:01",
    ]


# Several processes


def test_results_are_printed_in_the_order_of_the_list() -> None:
    found = _in_order([(4, "c"), (0, "a"), (7, "d"), (2, "b")], [0, 2, 4, 7])
    assert list(found) == [(0, "a"), (2, "b"), (4, "c"), (7, "d")]


def start(folder: Path, out: Path, *options: str, seconds: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, folder, "-o", out, "--output-format", "txt", *options],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT | {"FAKE_SECONDS": str(seconds)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def wait_for_a_file(out: Path) -> None:
    ends = time.monotonic() + 60
    while not (out.is_dir() and written(out)):
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_ctrl_c_leaves_finished_files_and_no_half_ones(folder: Path, transcribe) -> None:
    out = folder.parent / "out"
    with start(folder, out, seconds=0.5) as process:
        wait_for_a_file(out)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "canvas-asr: interrupted"
    assert "(--resume goes on)" in said
    assert "Traceback" not in said
    finished = written(out)
    assert 1 <= len(finished) < 4
    assert all((out / name).read_text().endswith("\n") for name in finished)
    assert aside(out) == []
    assert transcribe(folder, "-o", out, "--output-format", "txt", "--resume")[0] == 0
    assert len(written(out)) == 4


def test_a_killed_run_is_taken_up_by_the_next(folder: Path, transcribe, asr: FakeTranscriber) -> None:
    out = folder.parent / "out"
    with start(folder, out, seconds=0.5) as process:
        wait_for_a_file(out)
        process.kill()
        process.wait(timeout=60)
    assert transcribe(folder, "-o", out, "--output-format", "txt", "--resume")[0] == 0
    assert len(written(out)) == 4
    assert len(asr.asked) == 3


def test_two_runs_on_one_folder_share_it_and_write_each_file_once(folder: Path) -> None:
    out = folder.parent / "out"
    for i in range(8):
        (folder / f"more{i}.wav").write_text(f"number {i}")
    with (
        start(folder, out, "--resume", seconds=0.1) as one,
        start(folder, out, "--resume", seconds=0.1) as other,
    ):
        said = [process.communicate(timeout=60)[1] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], said
    assert len(written(out)) == 12
    counts = [
        int(line.split(": ")[2].split()[0])
        for text in said
        for line in text.splitlines()
        if " files, " in line
    ]
    assert sum(counts) == 12


def test_jobs_share_the_files_and_lose_none(folder: Path) -> None:
    out = folder.parent / "out"
    for i in range(6):
        (folder / f"more{i}.wav").write_text(f"number {i}")
    (folder / "killer.wav").write_text("die")
    with start(folder, out, "--jobs", "2", seconds=0.05) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: {folder}/killer.wav: its process was killed by signal 9; if memory ran out" in said
    assert said.splitlines()[-1].endswith("; 1 failed")
    assert len(written(out)) == 10
