"""The script of the big machine, in small: every job on a few sentences, and what it leaves."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from safetensors import safe_open

import canvas_asr

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_tiny_gpu.sh"
STAGES = (
    "text_copy",
    "text_short",
    "text",
    "acoustic_frames",
    "acoustic_ctc",
    "projector",
    "reading",
    "in_place",
)
MAX_FILE_BYTES = 15_000_000
# Words for 1,000 short sentences a language: each tenth of the hundred parts of the split gets some.
WORDS = {
    "en": (
        "the dog, a cat, the man, a girl, my friend, our king, that bird, one boy, his son, her aunt",
        "sees, finds, likes, wants, buys, sells, paints, cleans, hides, opens",
        "the house, a box, the door, some bread, a tree, the book, a red car, my hat, the lamp, a stone",
    ),
    "de": (
        "der Hund, die Katze, ein Mann, das Kind, mein Freund, unser Sohn, die Frau, der Koch, ein Gast, sie",
        "sieht, findet, mag, will, kauft, malt, putzt, sucht, holt, zeigt",
        "das Haus, ein Buch, die Tür, viel Brot, den Baum, die Lampe, ein Auto, den Hut, das Bild, Obst",
    ),
    "fr": (
        "le chien, un chat, la femme, un homme, mon ami, le roi, une fille, ma tante, le chef, elle",
        "voit, trouve, aime, veut, vend, cherche, montre, cache, porte, ouvre",
        "la maison, un livre, la porte, du pain, un arbre, la lampe, une boîte, le bateau, le lit, du thé",
    ),
    "es": (
        "el perro, un gato, la mujer, el hombre, mi amigo, el rey, una niña, mi tía, el jefe, ella",
        "ve, busca, quiere, compra, vende, pinta, limpia, abre, tiene, lleva",
        "la casa, un libro, la puerta, el pan, un árbol, la lámpara, una caja, el barco, la cama, una piedra",
    ),
    "hi": (
        "राम, सीता, वह, मेरा भाई, लड़का, लड़की, राजा, माँ, दोस्त, बच्चा",
        "घर, किताब, पानी, रोटी, फल, पेड़, गाड़ी, दूध, फूल, चाय",
        "लाता है, देखता है, लेता है, चाहता है, बेचता है, ढूँढता है, देता है, रखता है, छोड़ता है, माँगता है",
    ),
    "zh": (
        "我, 他, 她, 你, 老师, 学生, 妈妈, 爸爸, 朋友, 孩子",
        "看见, 喜欢, 要买, 找到, 需要, 卖了, 画了, 拿着, 打开, 知道",
        "一本书, 房子, 那只狗, 白猫, 大门, 面包, 一棵树, 红车, 帽子, 石头",
    ),
}


def write_sentences(folder: Path) -> None:
    folder.mkdir()
    for language, parts in WORDS.items():
        space, end = ("", "。") if language == "zh" else (" ", "।" if language == "hi" else ".")
        choices = [[word.strip() for word in part.split(",")] for part in parts]
        rows = [space.join(words) + end for words in itertools.product(*choices)]
        (folder / f"{language}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_real_speech(folder: Path) -> None:
    """One source of five short clips, three to train on: tones are enough to pass through every stage."""
    folder.mkdir(parents=True)
    lines = []
    for i, split in enumerate(("train", "train", "train", "test", "test")):
        samples = 0.1 * np.sin(np.arange(16_000) * 0.05 * (i + 1)).astype(np.float32)
        sf.write(folder / f"{i}.wav", samples, 16_000)
        text = ("The house.", "A tree.", "One dog.", "My hat.", "A stone.")[i]
        record = {"audio": f"{i}.wav", "text": text, "language": "en", "duration": 1.0, "split": split}
        lines.append(json.dumps(record | {"speaker": "tone"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=280)


def test_the_whole_recipe_in_small(tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libespeak-ng.so.1")
    except OSError:
        pytest.skip("libespeak-ng.so.1 is not installed: apt-get install espeak-ng")
    work, out = tmp_path / "work", tmp_path / "out"
    write_sentences(tmp_path / "text")
    write_real_speech(tmp_path / "real" / "tones")
    call = ["--small", "--sentences", tmp_path / "text", "--work", work, "--out", out]
    call += ["--real", tmp_path / "real"]

    done = run_script(*call)

    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"]
    assert {name: summary["jobs"][name]["step"] for name in STAGES} == dict.fromkeys(STAGES, 8)
    assert "eval_gap" in summary["jobs"]["in_place"]["evaluation"]
    assert all(path.stat().st_size <= MAX_FILE_BYTES for path in out.iterdir())
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    read = {(result["testset"], result["language"]) for result in evaluation["results"]}
    assert read == {("tones", "en"), *(("synthetic", language) for language in WORDS)}
    real_lines = (work / "testsets" / "train_real.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(real_lines) == 3

    joined = run_script("--join", out, "--into", tmp_path / "joined")
    assert joined.returncode == 0, joined.stderr
    folder = tmp_path / "joined" / "checkpoint"
    for part in (folder, folder / "backbone", folder / "audio_encoder"):
        with safe_open(part / "model.safetensors", framework="np") as tensors:
            names = list(tensors.keys())
            assert {tensors.get_slice(name).get_dtype() for name in names} == {"BF16"}
    transcript = canvas_asr.load(folder, device="cpu").transcribe(
        tmp_path / "real" / "tones" / "0.wav", steps=2
    )
    assert transcript.passes == 2

    trained = {name: (work / name / "log.jsonl").read_bytes() for name in STAGES}
    again = run_script(*call)
    assert again.returncode == 0, again.stderr
    assert {name: (work / name / "log.jsonl").read_bytes() for name in STAGES} == trained
