"""``canvas-asr convert`` from an adapter file to a folder that transcribes, on small stand-ins."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from adapter_files import LAYOUTS
from small_models import small_model, small_processor

import canvas_asr
from canvas_asr import checkpoint, cli
from canvas_asr.checkpoint import adapter_state, save_checkpoint
from canvas_asr.configuration import load_configuration
from canvas_asr.modeling import CanvasASRModel

FIELDS = {
    "projector_kind": "conv",
    "projector_width": 24,
    "projector_stride": 4,
    "lora_rank": 4,
    "lora_alpha": 12,
    "canvas_length": 24,
    "blank_token_id": 6,
}
SETTINGS = [
    *("--lora-alpha", "12", "--prompt-prefix", "<bos>", "--prompt-suffix", "<|transcribe|>"),
    *("--language-tag-place", "canvas", "--no-pad-to-30s", "--blank-token-id", "6", "--canvas-length", "24"),
]


def tone(frequency_hz: float) -> np.ndarray:
    t = np.arange(12_800) / 16_000
    return (0.3 * np.sin(2 * np.pi * frequency_hz * t * (1 + 0.5 * t))).astype(np.float32)


@pytest.fixture(scope="module")
def source() -> CanvasASRModel:
    return small_model(**FIELDS)


@pytest.fixture(scope="module")
def parts(source: CanvasASRModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone with its tokenizer, audio encoder with its features, and the whole model beside them."""
    folder, processor = tmp_path_factory.mktemp("parts"), small_processor()
    save_checkpoint(source, processor, folder, whole=True)
    processor.tokenizer.save_pretrained(folder / "backbone")
    processor.feature_extractor.save_pretrained(folder / "audio_encoder")
    torch.save(LAYOUTS["nested"](adapter_state(source)), folder / "adapter.pt")
    return folder


def convert(parts: Path, out: Path, *options: str, file: str = "adapter.pt") -> int:
    frozen = ["--backbone", str(parts / "backbone"), "--audio-encoder", str(parts / "audio_encoder")]
    return cli.main(["convert", str(parts / file), str(out), *frozen, *options])


def test_the_folder_transcribes_as_the_model_did(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "adapter"
    assert convert(parts, out, *SETTINGS) == 0
    printed = capsys.readouterr()
    assert "projector.0.weight (24, 32, 3) -> projector.convs.0.weight" in printed.out
    assert "ctc_softcap = False (guess)" in printed.out
    assert "settings are guesses; check them with --probe" in printed.err
    assert sorted(path.name for path in out.iterdir()) == [
        *("config.json", "model.safetensors", "preprocessor_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert [path.name for path in out.parent.iterdir()] == ["adapter"]
    assert json.loads((out / "config.json").read_text())["backbone"] == str(parts / "backbone")
    expected, found = (canvas_asr.load(folder, device="cpu") for folder in (parts, out))
    for options in ({"steps": 3}, {"steps": 0, "init": "draft"}):
        one, other = (asr.transcribe((tone(440), 16_000), "de", **options) for asr in (expected, found))
        assert one.tokens
        assert other.tokens == one.tokens


def test_info_counts_an_adapter_file_on_its_parts(
    parts: Path, source: CanvasASRModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = ["--backbone", str(parts / "backbone"), "--audio-encoder", str(parts / "audio_encoder")]
    shutil.copy(parts / "adapter.pt", tmp_path / "alone.pt")
    assert cli.main(["info", str(tmp_path / "alone.pt"), *frozen, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    adapter = adapter_state(source)
    assert facts["parameters"]["trained"] == sum(tensor.numel() for tensor in adapter.values())
    assert facts["LoRA"].startswith("rank 4, ")
    assert facts["weights here"] == (parts / "adapter.pt").stat().st_size
    assert cli.main(["info", str(tmp_path / "alone.pt"), *frozen[2:]]) == 1
    assert "`hf download google/diffusiongemma-26B-A4B-it`" in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    assert convert(parts, out, *SETTINGS) == 0
    assert convert(parts, out, *SETTINGS, "--lora-alpha", "99") == 1
    assert f"{out}: exists; give another folder, or --overwrite" in capsys.readouterr().err
    assert load_configuration(out).lora_alpha == 12
    assert convert(parts, out, *SETTINGS, "--lora-alpha", "99", "--overwrite") == 0
    assert load_configuration(out).lora_alpha == 99
    (out / "backbone").mkdir()
    assert convert(parts, out, *SETTINGS, "--overwrite") == 1
    assert "holds the folder 'backbone' and is more than an adapter" in capsys.readouterr().err
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("mine")
    assert convert(parts, notes, *SETTINGS, "--overwrite") == 1
    assert (notes / "a.txt").read_text() == "mine"


def test_a_failure_leaves_what_was_there(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "adapter"
    assert convert(parts, out, *SETTINGS) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    assert convert(parts, out, *SETTINGS, "--lora-alpha", "99", "--overwrite") == 1
    assert convert(parts, tmp_path / "new", *SETTINGS) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert os.listdir(tmp_path) == ["adapter"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "prompt_prefix '<bos><|turn>user\\n<|audio>' names <|turn>, which is no token of"),
        ([*SETTINGS, "--audio-token", "<sound>"], "has no token '<sound>'"),
        ([*SETTINGS, "--projector-activation", "sine"], "projector_activation is 'sine'; choose one of gelu"),
        ([*SETTINGS, "--backbone", "no/such"], "no/such: "),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[str], message: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(parts, tmp_path / "adapter", *options) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_fit_writes_nothing(
    parts: Path, source: CanvasASRModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**adapter_state(source), "extra": torch.zeros(3)}, parts / "extra.pt")
    assert convert(parts, tmp_path / "adapter", *SETTINGS, file="extra.pt") == 1
    assert "extra (no place in this model)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_probe_prints_its_scores_and_warns_where_nothing_listens(
    parts: Path, source: CanvasASRModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = adapter_state(source)
    state["projector.out.weight"] = torch.zeros_like(state["projector.out.weight"])
    torch.save(state, parts / "deaf.pt")
    for seed in (1, 2):
        sf.write(tmp_path / f"{seed}.wav", tone(300 * seed), 16_000)
    clips = [part for seed in (1, 2) for part in ("--probe", str(tmp_path / f"{seed}.wav"), "Guten Tag.")]
    given = [*SETTINGS, "--projector-activation", "gelu", "--device", "cpu", "--language", "de"]
    given[1] = "4"
    assert convert(parts, tmp_path / "deaf", *given, *clips, file="deaf.pt") == 0
    printed = capsys.readouterr()
    (row,) = [line for line in printed.out.splitlines() if line.endswith("as given")]
    assert row.split()[6:10] == ["4", "gelu", "canvas", "as"]
    assert "warning: with no candidate is a text likelier" in printed.err
    assert "another clip's audio" in printed.err
