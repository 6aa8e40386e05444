"""The benchmark of word times: which word has which exact time, what is compared, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from small_models import small_model

from canvas_asr.manifest import Clip, write_manifest
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Word
from canvas_asr.synthesis import espeak
from canvas_asr.synthesis.synthesizer import Utterance
from canvas_asr.transcriber import Transcriber


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import word_times

    return word_times


def utterance(text: str, language: str, words: list[tuple[int, float, float]]) -> Utterance:
    return Utterance(np.zeros(16_000, np.float32), text, language, "made up", [], words)


def test_a_word_has_the_time_of_its_place_in_the_text(benchmark: ModuleType) -> None:
    # "of the" is run together, "25" is two words, and "- not" is told of at the dash.
    places = [(0, 0.0, 0.2), (3, 0.3, 0.5), (10, 0.5, 0.6), (11, 0.6, 0.8), (13, 0.8, 0.9), (17, 1.0, 1.1)]
    found = benchmark.said_words(utterance("So of the 25 one - not.", "en", places))
    assert [(word.text, word.start, word.end) for word in found] == [
        ("So", 0.0, 0.2),
        ("of", 0.3, None),
        ("the", None, None),
        ("25", 0.5, 0.8),
        ("one -", 0.8, 0.9),
        ("not.", 1.0, 1.1),
    ]


def test_a_chinese_character_has_the_time_of_its_syllable(benchmark: ModuleType) -> None:
    pytest.importorskip("pypinyin", reason="Chinese needs pypinyin: pip install pypinyin")
    found = benchmark.said_words(utterance("好，人。", "zh", [(0, 0.1, 0.3), (7, 0.4, 0.6)]))  # hao3 , ren2 .
    assert [(word.text, word.start, word.end) for word in found] == [("好，", 0.1, 0.3), ("人。", 0.4, 0.6)]
    assert benchmark.said_words(utterance("20人。", "zh", [])) is None  # three syllables, two words


def test_only_words_that_are_right_are_compared(benchmark: ModuleType) -> None:
    said = [
        benchmark.Said("Good", 0.1, 0.3),
        benchmark.Said("day,", None, None),
        benchmark.Said("sir.", 0.7, 0.9),
    ]
    found = [Word("good", 10.15, 10.3, 0.9), Word("day", 10.4, 10.6, 0.8), Word("her", 10.9, 11.0, 0.3)]
    aligned = [Word(one.text, 10.0 + i, 10.5 + i, 1.0) for i, one in enumerate(said)]
    figures = benchmark.Figures()
    figures.add("en", said, found, aligned, 10.0)
    content = figures.content()
    recognised, reference = content["recognised"]["en"], content["reference"]["all"]
    assert (recognised["n_words"], recognised["n_compared"]) == (2, 1)
    assert recognised["onset_median_s"] == pytest.approx(0.05)
    assert reference["n_compared"] == 2
    assert reference["onset_bias_s"] == pytest.approx((-0.1 + 1.3) / 2)
    assert content["confidence"] == {
        "n_right": 2,
        "n_wrong": 1,
        "mean_right": pytest.approx(0.85),
        "mean_wrong": pytest.approx(0.3),
        "ranked_right": 1.0,
    }


@pytest.mark.usefixtures("_own_torch_settings")
@pytest.mark.skipif(not espeak.available(), reason="needs espeak-ng: apt-get install espeak-ng")
def test_the_whole_runs_and_writes_its_page(
    benchmark: ModuleType, processor: CanvasASRProcessor, tmp_path: Path
) -> None:
    texts = {"en": "Good morning.", "de": "Guten Tag, mein Freund.", "zh": ""}
    clips = [Clip(tmp_path / "a.wav", text, language) for language, text in texts.items()]
    write_manifest(tmp_path / "m.jsonl", clips)
    out = tmp_path / "found.json"
    command = ["small", "--manifest", str(tmp_path / "m.jsonl"), "--n-silence", "1", "--silence-s", "0.5"]
    command += ["--out", str(out)]
    assert benchmark.main(command, lambda _: Transcriber(small_model(), processor)) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert [run["silence_s"] for run in content["runs"]] == [0.0, 0.5]
    first = content["runs"][0]
    assert first["n_clips"] == 2
    assert first["reference"]["all"]["n_compared"] == first["reference"]["all"]["n_words"] == 6
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| de | 4 |" in page
    assert False in {target["reached"] for target in content["targets"]}  # random weights
    missed = next(target for target in content["targets"] if target["reached"] is False)
    assert f"**Missed**: {missed['language']} (reference, " in page
