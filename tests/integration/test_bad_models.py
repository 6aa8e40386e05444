"""Damaged, incomplete and wrong model folders: each is refused in one line that names the file or tensor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import canvas_asr
from canvas_asr import CheckpointError
from canvas_asr.cli import main

ERROR = "canvas-asr: error: "
PARTS = ("model.safetensors", "backbone/model.safetensors", "audio_encoder/model.safetensors")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("This is a letter, not a model.\n" * 50)


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def drop_tensor(path: Path) -> str:
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "layers.0" in name and tensors[name].dim() == 2)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def shrink_tensor(path: Path) -> str:
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "layers.0" in name and tensors[name].dim() == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of a folder, in one line."""
    assert main(["transcribe", "clip.wav", "--model", str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(ERROR)
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix(ERROR)


def test_the_library_says_what_the_command_says(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "bad")
    cut(folder / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        canvas_asr.load(folder)
    assert refused(folder, capsys) == f"{raised.value}\n"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("damage", "word"), [(drop_tensor, "is missing"), (shrink_tensor, "has shape")])
def test_a_missing_or_misshaped_tensor_is_named(
    part: str,
    damage: Callable[[Path], str],
    word: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(model, tmp_path / "bad")
    name = damage(folder / part)
    message = refused(folder, capsys)
    assert str((folder / part).parent) in message
    assert word in message
    # An encoder tensor of the backbone may be reported by the name of the decoder's that it is tied to.
    assert repr(name) in message or (part.startswith("backbone") and "layers.0" in message)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [cut, empty, text, Path.unlink], ids=lambda damage: damage.__name__)
def test_damaged_or_missing_weights_are_named(
    part: str,
    damage: Callable[[Path], object],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(model, tmp_path / "bad")
    damage(folder / part)
    assert str((folder / part).parent) in refused(folder, capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "whisper"}'),
        ("config.json", '{"model_type": "canvas_asr", "projector_kind": "tube"}'),
        ("config.json", '{"model_type": "canvas_asr", "lora_rank": "many"}'),
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("preprocessor_config.json", None),
        ("preprocessor_config.json", "{"),
        ("backbone/config.json", "{"),
        ("audio_encoder/config.json", None),
    ],
)
def test_an_unusable_file_of_a_model_is_named(
    name: str, content: str | None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "bad")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert str((folder / name).parent) in refused(folder, capsys)


def test_a_folder_without_its_backbone_is_not_looked_for_elsewhere(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "bad")
    shutil.rmtree(folder / "backbone")
    assert refused(folder, capsys).startswith(f"{folder / 'backbone'}: no such folder")


def test_pickled_weights_are_not_opened(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "bad")
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
            return os.system, (f"touch {canary}",)

    for part in PARTS:
        (folder / part).unlink()
        torch.save(Bomb(), (folder / part).with_name("pytorch_model.bin"))
    refused(folder, capsys)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["large-v9", "no/such/folder"])
def test_an_unknown_model_says_what_is_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "clip.wav", "--model", name]) == 1
    assert capsys.readouterr().err == (
        f"{ERROR}{name}: no such model; give 'tiny' (embedded), the folder of a canvas-asr checkpoint, "
        "or owner/name of one on the hub.\n"
    )


def test_a_name_of_the_hub_that_cannot_be_had_says_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "clip.wav", "--model", "nobody/nothing"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{ERROR}nobody/nothing: ")
    assert "`hf download nobody/nothing`" in err
    assert "https://huggingface.co/nobody/nothing" in err
    assert err.count("\n") == 1
