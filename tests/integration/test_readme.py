"""What the README tells a newcomer to type works: its Python snippets, its commands, and `make demo`.

A block that starts with ```python runs, in order and in one session, from the root of the repository; one
that is not meant to starts with ```python no-run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from small_models import TINY, small_model, small_processor

import canvas_asr
from canvas_asr import cli
from canvas_asr.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LANGUAGES = ("de", "en", "es", "fr", "hi", "zh")
EMBEDDED = pytest.mark.skipif(
    not (TINY / "model.safetensors").is_file(), reason="the embedded model has no weights yet"
)


def blocks(kind: str) -> list[str]:
    """Fenced blocks whose fence says exactly this."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Arguments of every `canvas-asr` line, but for `evaluate`, whose options are parsed elsewhere."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("canvas-asr ")]
    return [arguments for arguments in found if arguments[0] != "evaluate"]


def run_snippets() -> dict[str, object]:
    session: dict[str, object] = {}
    for place, source in enumerate(blocks("python")):
        exec(compile(source, f"README.md, snippet {place + 1}", "exec"), session)
    return session


def test_the_readme_has_snippets_and_commands() -> None:
    assert blocks("python")
    assert {"transcribe", "info"} <= {command[0] for command in commands()}
    assert README.count("```") % 2 == 0


def test_its_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small random model in place of the embedded one: the words differ, the calls are the same."""
    save_checkpoint(small_model(), small_processor(), tmp_path, whole=True)
    monkeypatch.setattr("canvas_asr.loading.model_folder", lambda *_: tmp_path)
    monkeypatch.chdir(ROOT)
    session = run_snippets()
    assert isinstance(session["asr"], canvas_asr.Transcriber)
    assert capsys.readouterr().out.strip()


@EMBEDDED
def test_its_python_runs_with_the_embedded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    run_snippets()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_its_commands_are_understood(arguments: list[str]) -> None:
    if "--help" not in arguments:
        assert callable(cli.build_parser().parse_args(arguments).run)
        return
    with pytest.raises(SystemExit) as exit_:
        cli.build_parser().parse_args(arguments)
    assert exit_.value.code == 0


def test_make_demo_transcribes_one_clip_a_language() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    steps = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    (line,) = (line for line in steps.splitlines() if "canvas-asr transcribe" in line)
    options = cli.build_parser().parse_args(shlex.split(line)[1:])
    assert options.files == [f"examples/{language}.flac" for language in LANGUAGES]
