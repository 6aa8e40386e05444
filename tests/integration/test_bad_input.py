"""Every kind of bad input gives its result or one clear message, through the command line and the library.

The model is small and random: what it reads is nonsense, but how it fails is the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray

import canvas_asr
from canvas_asr import AudioError, OptionError, Transcriber, sampler
from canvas_asr.cli import main

RATE_HZ = 16_000
# One message is one line: what went wrong with which file, from this program.
ERROR = "canvas-asr: error: "


def tone(seconds: float, rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


@pytest.fixture(scope="module")
def asr(model: Path) -> Transcriber:
    return canvas_asr.load(model, device="cpu")


@pytest.fixture
def transcribe(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Run the command in this process: exit code, lines on stdout, lines on stderr."""

    def run(*arguments: str | Path) -> tuple[int, list[str], list[str]]:
        options = ["--model", str(model), "--device", "cpu", "--steps", "2"]
        code = main(["transcribe", *options, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


# Files that are no audio


def missing(path: Path) -> Path:
    return path.with_name("missing.wav")


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def text(path: Path) -> Path:
    path.write_text("This is a letter, not a sound.\n" * 50)
    return path


def cut_mp3(path: Path) -> Path:
    path = path.with_suffix(".mp3")
    sf.write(path, tone(3.0), RATE_HZ)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def no_samples(path: Path) -> Path:
    sf.write(path, np.zeros(0, np.float32), RATE_HZ)
    return path


def not_a_number(path: Path) -> Path:
    samples = tone(0.5)
    samples[700] = np.nan
    sf.write(path, samples, RATE_HZ, subtype="FLOAT")
    return path


def infinite(path: Path) -> Path:
    samples = tone(0.5)
    samples[701] = -np.inf
    sf.write(path, samples, RATE_HZ, subtype="FLOAT")
    return path


BAD_FILES = {
    missing: "no such file",
    empty: "the file is empty (0 bytes)",
    text: "cannot be read as audio",
    cut_mp3: "cut off",
    no_samples: "holds no audio samples",
    not_a_number: "sample 700 is NaN",
    infinite: "sample 701 is infinite",
}


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda make: make.__name__)
def test_a_bad_file_is_one_line_that_names_it(
    make: Callable[[Path], Path],
    transcribe: Callable[..., tuple[int, list[str], list[str]]],
    asr: Transcriber,
    tmp_path: Path,
) -> None:
    path = make(tmp_path / "bad.wav")
    code, out, err = transcribe(path)
    assert (code, out, len(err)) == (1, [], 1)
    assert err[0].startswith(f"{ERROR}{path}: ")
    assert BAD_FILES[make] in err[0]
    with pytest.raises(AudioError) as raised:
        asr.transcribe(path)
    assert f"{ERROR}{raised.value}" == err[0]


@pytest.mark.parametrize("n_together", [1, 2, 8])
def test_one_bad_file_of_several_leaves_the_others(
    transcribe: Callable[..., tuple[int, list[str], list[str]]], tmp_path: Path, n_together: int
) -> None:
    for name in ("a.wav", "c.wav", "d.wav"):
        sf.write(tmp_path / name, tone(0.5), RATE_HZ)
    empty(tmp_path / "b.wav")
    files = [tmp_path / f"{name}.wav" for name in "abcd"]
    code, out, err = transcribe(*files, "--batch-size", str(n_together), "--json")
    assert code == 1
    assert [json.loads(line)["file"] for line in out] == [str(files[i]) for i in (0, 2, 3)]
    errors = [line for line in err if "warning" not in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"{ERROR}{files[1]}: ")


# Unusual files that are audio


@pytest.mark.parametrize("rate_hz", [8_000, 96_000])
def test_unusual_rates_are_transcribed(
    transcribe: Callable[..., tuple[int, list[str], list[str]]], tmp_path: Path, rate_hz: int
) -> None:
    path = tmp_path / "tone.wav"
    sf.write(path, tone(1.0, rate_hz), rate_hz)
    code, out, _ = transcribe(path, "--json")
    assert code == 0
    assert json.loads(out[0])["audio_s"] == pytest.approx(1.0, abs=0.002)


def test_six_channels_are_transcribed_like_their_mean(asr: Transcriber, tmp_path: Path) -> None:
    path = tmp_path / "six.wav"
    channels = np.stack([gain * tone(1.0) for gain in (0.2, 0.4, 0.6, 0.8, 1.0, 0.0)], axis=1)
    sf.write(path, channels, RATE_HZ, subtype="FLOAT")
    mean = asr.transcribe((channels.mean(axis=1), RATE_HZ), steps=2)
    transcript = asr.transcribe(path, steps=2)
    assert transcript.audio_s == 1.0
    assert [token.id for token in transcript.tokens] == [token.id for token in mean.tokens]


@pytest.mark.parametrize("seconds", [0.02, 1 / RATE_HZ])
def test_a_very_short_clip_is_transcribed(
    transcribe: Callable[..., tuple[int, list[str], list[str]]], tmp_path: Path, seconds: float
) -> None:
    path = tmp_path / "short.wav"
    sf.write(path, tone(seconds), RATE_HZ)
    code, out, _ = transcribe(path, "--json")
    assert code == 0
    assert json.loads(out[0])["audio_s"] == pytest.approx(seconds)


# Arrays


def test_an_array_of_zero_samples_is_an_empty_transcript(asr: Transcriber) -> None:
    transcript = asr.transcribe((np.zeros(0, np.float32), RATE_HZ))
    assert (transcript.text, transcript.tokens, transcript.audio_s) == ("", (), 0.0)


def test_an_array_needs_its_rate(asr: Transcriber) -> None:
    with pytest.raises(AudioError, match="an array does not say its sample rate"):
        asr.transcribe(tone(0.5))


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_an_array_with_a_sample_that_is_no_number_says_which(
    asr: Transcriber, value: float, word: str
) -> None:
    samples = tone(0.5)
    samples[123] = value
    with pytest.raises(AudioError, match=f"sample 123 is {word}"):
        asr.transcribe((samples, RATE_HZ))


def test_five_minutes_of_a_tone_are_no_speech(asr: Transcriber, tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    sf.write(path, tone(300.0), RATE_HZ)
    for source in ((tone(300.0), RATE_HZ), path):
        transcript = asr.transcribe(source)
        assert (transcript.text, transcript.segments, transcript.audio_s) == ("", (), 300.0)


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--language", "tlh"], "language is 'tlh'; this model knows "),
        (["--steps", "0"], "steps is 0; give at least 1"),
        (["--steps", "-3"], "steps is -3; give at least 1"),
        (["--canvas", "65"], "canvas is 65 tokens; this model allows at most 64."),
        (["--canvas", "0"], "canvas is 0 tokens; give at least 2."),
        (["--init", "guess"], "init is 'guess'; choose one of noise, draft, draft-slots."),
        (["--acceptance", "all"], "acceptance is 'all'; choose one of confidence, entropy-bound, threshold."),
        (["--gate", "2"], "gate is 2.0; give a probability above 0, at most 1."),
        (["--draft-threshold", "0.5"], "draft_threshold is given, but init='noise' starts from no draft."),
        (["--batch-size", "0"], "batch_size is 0; give at least 1."),
        (["--dtype", "int8"], "dtype is 'int8'; choose one of float32, bfloat16, float16, auto."),
        (["--device", "abacus"], "device is 'abacus', which is not usable here; use 'cpu'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_that_names_it(
    transcribe: Callable[..., tuple[int, list[str], list[str]]],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    sf.write(tmp_path / "good.wav", tone(0.5), RATE_HZ)
    code, out, err = transcribe(tmp_path / "good.wav", tmp_path / "missing.wav", *arguments)
    assert (code, out, len(err)) == (1, [], 1)
    assert err[0].startswith(ERROR + message)


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--canvas", "1.5"], ["--nonsense"], []])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    files = ["clip.wav"] if arguments else []
    with pytest.raises(SystemExit) as exit_:
        main(["transcribe", *files, *arguments])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: canvas-asr" in captured.err
    assert "error: " in captured.err


def test_a_text_that_fills_the_canvas_says_so(
    transcribe: Callable[..., tuple[int, list[str], list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end token is made unreachable, so that the canvas is full whatever the weights."""
    path = tmp_path / "clip.wav"
    sf.write(path, tone(0.5), RATE_HZ)
    output_logits = sampler.output_logits

    def without_end(backbone: object, hidden: torch.Tensor) -> torch.Tensor:
        logits = output_logits(backbone, hidden)  # type: ignore[arg-type]
        logits[..., 1] = -1e9  # the end token of the embedded model
        return logits

    monkeypatch.setattr(sampler, "output_logits", without_end)
    code, out, err = transcribe(path, "--canvas", "8", "--json")
    transcript = json.loads(out[0])
    assert code == 0
    assert transcript["truncated"] is True
    assert len(transcript["tokens"]) == 7
    assert err == [
        f"canvas-asr: warning: {path}: the text fills the canvas and its end may be missing; "
        "give a longer --canvas, or shorter clips"
    ]


# The command itself, in a process of its own


def test_the_process_fails_in_one_line_and_goes_on(model: Path, tmp_path: Path) -> None:
    sf.write(tmp_path / "good.wav", tone(0.5), RATE_HZ)
    text(tmp_path / "letter.wav")
    command = [sys.executable, "-m", "canvas_asr.cli", "transcribe", "--model", str(model), "--steps", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(canvas_asr.__file__).parents[1])}
    run = subprocess.run(
        [*command, "letter.wav", "good.wav"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=environment,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout.startswith("good.wav  [")
    assert len(run.stdout.splitlines()) == 1
    errors = [
        line for line in run.stderr.splitlines() if not line.startswith("canvas-asr: warning: good.wav")
    ]
    assert len(errors) == 1
    assert errors[0].startswith(f"{ERROR}letter.wav: cannot be read as audio")


def test_a_wrong_option_is_a_value_error(asr: Transcriber) -> None:
    assert issubclass(OptionError, ValueError)
    with pytest.raises(ValueError, match="steps is 0"):
        asr.transcribe((tone(0.5), RATE_HZ), steps=0)
