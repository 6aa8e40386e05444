"""The command line: what it prints, what it returns, and that it is quick to say so."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from small_models import TINY

import canvas_asr
from canvas_asr import CheckpointError, cli, inference, recording_reader, transcriber
from canvas_asr.cli.sinks import text_line

ROOT = Path(__file__).parents[2]
RATE_HZ = 16_000
COMMAND = (sys.executable, "-m", "canvas_asr.cli")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(canvas_asr.__file__).parents[1]),
    "PYTHONIOENCODING": "utf-8",
}
EMBEDDED = pytest.mark.skipif(
    not (TINY / "model.safetensors").is_file(), reason="the embedded model has no weights yet"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for i, seconds in enumerate((0.9, 0.4, 1.3)):
        t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        paths.append(folder / f"{i}.wav")
        sf.write(paths[-1], 0.3 * np.sin(2 * np.pi * 300 * (i + 1) * t), RATE_HZ)
    return [str(path) for path in paths]


def transcribe(model: Path, *arguments: str) -> int:
    return cli.main(["transcribe", "--model", str(model), "--device", "cpu", *arguments])


# transcribe


def test_each_file_is_one_line_of_name_language_text_and_speed(
    model: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe(model, *files, "--steps", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    expected = canvas_asr.load(model, device="cpu").transcribe(files, steps=2)
    assert len(lines) == len(expected) == 3
    for line, transcript in zip(lines, expected, strict=True):
        head, _, speed = line.rpartition("  (")
        text = " ".join("".join(c if c.isprintable() else " " for c in transcript.text).split())
        text = text or "(no speech)"
        assert head == f"{transcript.file}  [{transcript.language}]  {text}"
        assert float(speed.removesuffix("× real time)")) > 0


def test_json_is_one_object_a_line_with_every_field(
    model: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "1", "--init", "draft", "--language", "hi", "--canvas", "40", "--seed", "3"]
    assert transcribe(model, *files, *options, "--batch-size", "2", "--json") == 0
    read = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asr = canvas_asr.load(model, device="cpu")
    expected = asr.transcribe(files, "hi", 1, init="draft", canvas=40, seed=3)
    for found, transcript in zip(read, expected, strict=True):
        wanted = transcript.to_dict()
        assert found.keys() == wanted.keys()
        for key in ("file", "text", "language", "passes", "audio_s", "truncated", "draft"):
            assert found[key] == wanted[key]
        assert [token["id"] for token in found["tokens"]] == [token["id"] for token in wanted["tokens"]]


def test_words_are_listed_with_times_and_stand_in_the_json(
    model: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "1", "--word-timestamps"]
    expected = canvas_asr.load(model, device="cpu").transcribe(files, steps=1, word_timestamps=True)
    assert transcribe(model, *files, *options, "--json") == 0
    read = [json.loads(line)["words"] for line in capsys.readouterr().out.splitlines()]
    assert [[word["text"] for word in words] for words in read] == [
        [w.text for w in t.words] for t in expected
    ]
    assert transcribe(model, *files, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected) + sum(len(transcript.words) for transcript in expected)
    times = [[float(value) for value in line.split()[:2]] for line in lines if line.startswith("   ")]
    found = [[word.start, word.end] for transcript in expected for word in transcript.words]
    assert np.abs(np.array(times) - np.array(found)).max() <= 0.006


def test_strategies_are_options_too(
    model: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--init", "draft-slots", "--canvas", "auto", "--acceptance", "threshold", "--fusion", "0.5"]
    assert transcribe(model, *files, "--steps", "2", *options, "--accept-threshold", "0.2", "--json") == 0
    read = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = canvas_asr.load(model, device="cpu").transcribe(
        files,
        steps=2,
        init="draft-slots",
        canvas="auto",
        acceptance="threshold",
        fusion=0.5,
        accept_threshold=0.2,
    )
    assert [(one["text"], one["passes"]) for one in read] == [(one.text, one.passes) for one in expected]


def test_results_come_before_later_files_are_read(
    model: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[int] = []
    read = recording_reader.RecordingReader.open_or_fail

    def spy(*arguments: Any) -> Any:
        printed.append(len(capsys.readouterr().out.splitlines()))
        return read(*arguments)

    monkeypatch.setattr(recording_reader.RecordingReader, "open_or_fail", spy)
    transcribe(model, *files, "--steps", "1", "--batch-size", "1")
    assert printed == [0, 1, 1]


def test_a_text_cannot_command_the_terminal() -> None:
    text = "a\x1b[31mb\nc\x07\u202ed"
    transcript = canvas_asr.Transcript(text, "en", 1.0, (), 0.0, 1, 2.0, 0.5, file="x.wav")
    assert text_line(transcript) == "x.wav  [en]  a [31mb c d  (4.0× real time)"


def test_nothing_said_is_said() -> None:
    transcript = canvas_asr.Transcript("", "", 0.0, (), 0.0, 0, 1.0, 0.5, file="x.wav")
    assert text_line(transcript) == "x.wav  (no speech)  (2.0× real time)"


@pytest.mark.parametrize("option", ["--seed=0", "--json"])
def test_a_terminal_without_the_letters_gets_their_numbers(
    option: str, model: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert transcribe(model, files[0], "--steps", "1", option) == 0
    line = buffer.getvalue().decode("ascii")
    text = canvas_asr.load(model, device="cpu").transcribe(files[0], steps=1).text
    if option == "--json":
        assert json.loads(line)["text"] == text
    else:
        assert line.endswith("\\xd7 real time)\n")


def listen_to_ctrl_c() -> None:
    """Undo what a child inherits of a test run that ignores or blocks Ctrl-C, say in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def test_ctrl_c_ends_without_a_traceback(model: Path, files: list[str]) -> None:
    command = [*COMMAND, "transcribe", "--model", str(model), "--batch-size", "1", *(files * 2000)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT,
        preexec_fn=listen_to_ctrl_c,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(files[0])
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "canvas-asr: interrupted"


def test_a_reader_that_leaves_early_gets_no_traceback(model: Path, files: list[str]) -> None:
    command = [*COMMAND, "transcribe", "--model", str(model), "--batch-size", "1", *(files * 2000)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert "Traceback" not in errors
    assert "Broken pipe" not in errors


def test_ctrl_c_while_loading_is_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transcriber, "load", interrupted)
    assert cli.main(["transcribe", "x.wav"]) == 130
    assert capsys.readouterr().err == "canvas-asr: interrupted\n"


@EMBEDDED
def test_the_embedded_model_transcribes_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    clips = sorted(str(path) for path in (ROOT / "examples").glob("*.flac"))
    assert len(clips) == 6
    assert cli.main(["transcribe", *clips]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [[clip, f"[{Path(clip).stem}]"] for clip in clips]


@pytest.mark.parametrize("program", ["transcribe", "inference"])
def test_where_a_model_is_found_and_runs_is_handed_on(
    program: str, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def load(model: str, **arguments: Any) -> None:
        asked.update(arguments, model=model)
        raise CheckpointError("seen")

    monkeypatch.setattr(transcriber, "load", load)
    expected = {
        "device_map": "auto",
        "dtype": "auto",
        "revision": "v1",
        "backbone": "a/b",
        "audio_encoder": "c/d",
        "backbone_revision": "b1",
        "audio_encoder_revision": "e1",
    }
    given = [part for name, value in expected.items() for part in (f"--{name.replace('_', '-')}", value)]
    arguments = [files[0], "--model", "me/speech", "--local-files-only", *given]
    main = inference.main if program == "inference" else cli.main
    assert main(arguments if program == "inference" else [program, *arguments]) == 1
    assert capsys.readouterr().err == "canvas-asr: error: seen\n"
    expected |= {"model": "me/speech", "local_files_only": True, "device": None}
    assert asked == expected | ({} if program == "inference" else {"cuda_graphs": False})


def test_recorded_passes_without_a_gpu_are_one_line(
    model: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe(model, files[0], "--cuda-graphs") == 1
    message = "cuda_graphs: needs the whole model on one CUDA GPU, and it is on cpu; leave it out."
    assert capsys.readouterr().err == f"canvas-asr: error: {message}\n"


# Help and usage


def test_help_and_version_import_nothing_heavy() -> None:
    for argument in ("--help", "--version"):
        code = "import atexit, sys, canvas_asr.cli\natexit.register(lambda: print(*sys.modules))\n"
        run = subprocess.run(
            [sys.executable, "-c", f"{code}canvas_asr.cli.main(['{argument}'])"],
            capture_output=True,
            encoding="utf-8",
            env=ENVIRONMENT,
            timeout=60,
            check=True,
        )
        assert "canvas_asr.cli" in run.stdout
        assert not {"torch", "transformers", "numpy", "yaml"} & set(run.stdout.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"canvas-asr {canvas_asr.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["translate"], ["transcribe"], ["train"], ["info"], ["synth", "out"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: canvas-asr" in capsys.readouterr().err


def test_evaluate_writes_a_report_and_says_where(
    model: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "tones.jsonl"
    lines = [json.dumps({"audio": name, "text": "a tone", "language": "en"}) + "\n" for name in files]
    manifest.write_text("".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["evaluate", str(model), "--set", str(manifest), "--setting", "steps=1", "draft"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "| tones | en | WER | unknown | 3 |" in printed.out
    assert "evaluation.html: the same with plots" in printed.err
    figures = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["command"] == f"canvas-asr {shlex.join(arguments)} --out {out}"
    assert [result["mode"]["name"] for result in figures["results"]] == ["steps=1", "draft"]


def test_bad_evaluation_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "tiny", "--set", "nowhere", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("canvas-asr: error: --set nowhere: neither a manifest nor one of librispeech")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
