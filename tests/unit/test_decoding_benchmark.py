"""The decoding benchmark in small: every phase runs, goes on where it was stopped, and counts right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile as sf
import torch
from made_up_clips import tones
from small_models import small_model
from torch import nn

from canvas_asr.errors import DataError
from canvas_asr.evaluation.metrics import ErrorCounts
from canvas_asr.manifest import Clip, write_manifest
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.transcriber import Transcriber

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import decoding
    import decoding_accuracy
    import decoding_report
    import decoding_speed

    return {m.__name__: m for m in (decoding, decoding_accuracy, decoding_report, decoding_speed)}


@pytest.fixture(scope="module")
def asr(processor: CanvasASRProcessor) -> Transcriber:
    model = small_model(audio_positions="spikes", canvas_length=16, max_canvas_length=16)
    model.backbone.generation_config.max_denoising_steps = 2
    return Transcriber(model, processor)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    clips = []
    for i, (text, language) in enumerate([("one two three", "en"), ("四五六", "zh"), ("more", "en")]):
        sf.write(tmp_path / f"{i}.wav", tones(0.5 + 0.2 * i, i), 16_000)
        clips.append(Clip(tmp_path / f"{i}.wav", text, language))
    write_manifest(tmp_path / "said.jsonl", clips)
    return tmp_path / "said.jsonl"


def test_the_small_run_measures_everything_and_goes_on(
    modules: dict[str, ModuleType], asr: Transcriber, manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    decoding = modules["decoding"]
    out = tmp_path / "out"
    arguments = ["mine", "--small", "--set", str(manifest), "--work", str(tmp_path / "work")]
    arguments += ["--json", str(out / "a.json"), "--markdown", str(out / "a.md")]
    assert decoding.main(arguments, lambda _: asr) == 0
    content = json.loads((out / "a.json").read_text(encoding="utf-8"))
    asked = {(f["model"], f["setting"]): f for f in content["accuracy"]["figures"]}
    assert len(asked) == 6 + 1 + 3 + 1
    assert asked["mine", "draft"]["n_clips"] == asked["autoregressive:mine", "default"]["n_clips"] == 3
    assert asked["stock-generate:mine", "steps=2,canvas=16"]["n_clips"] == 3
    assert asked["mine", "init=noise,steps=1,candidates=2"]["n_clips"] == 2  # one of each language
    assert asked["mine", "init=noise,steps=2"]["mean_passes"] == 2
    assert asked["mine", "draft"]["against_draft"]["difference"] == 0
    assert content["stock"] in ("steps=1,canvas=16", "steps=2,canvas=16")
    assert set(content["speed"]["whole"]["2"]) >= {"mine draft", "autoregressive:mine default"}
    assert content["speed"]["parts"]["batch 2"]["canvases"]["16"]["clip_s"]["0"] > 0
    assert len(content["targets"]) == 17  # five of them at both batch sizes
    page = (out / "a.md").read_text(encoding="utf-8")
    for title in ("Aims", "Passes", "Accuracy of every setting", "Parts, by batch and canvas"):
        assert f"## {title}\n" in page
    assert "kept from an earlier run" not in capsys.readouterr().out
    assert decoding.main(arguments, lambda _: asr) == 0
    assert capsys.readouterr().out.count("kept from an earlier run") == 6
    assert json.loads((out / "a.json").read_text())["accuracy"] == content["accuracy"]
    other = Transcriber(small_model(seed=1), asr.processor)
    assert decoding.main(arguments, lambda _: other) == 1
    assert "was made with another model; give another folder" in capsys.readouterr().err


def test_the_aims_of_accuracy_are_judged_by_words(modules: dict[str, ModuleType]) -> None:
    def apart(difference: float) -> dict[str, Any]:
        low, high = difference - 0.001, difference + 0.001
        return {"difference": difference, "low": low, "high": high, "p": 0.01, "n_clips": 9, "first": 0.5}

    def figure(setting: str, words: float, everything: float) -> dict[str, Any]:
        rates = {"words": words, "all": everything, "characters": everything}
        by_words = {"words_against_draft": apart(words - 0.5), "words_against_noise": apart(words - 0.55)}
        by_all = {"against_draft": apart(everything - 0.2), "against_noise": apart(everything - 0.2)}
        return {"model": "m", "setting": setting, "rates": rates, **by_words, **by_all}

    rates = {"draft": (0.5, 0.2), "init=noise,steps=16": (0.55, 0.3), "o": (0.48, 0.25), "u": (0.56, 0.2)}
    figures = [figure(setting, *rate) for setting, rate in rates.items()]
    passes = {"noise": {"converged_passes": 16}}
    content = {
        "model": "m",
        "ours": "o",
        "where_unsure": "u",
        "accuracy": {"figures": figures, "passes": passes},
    }
    found = list(modules["decoding_report"]._accuracy_targets(content))
    assert [reached for *_, reached in found] == [
        True,
        False,
        True,
        True,
    ]  # of all languages together none is
    assert found[2][2] == "1.10 (all languages 1.50)"
    assert found[3][2].startswith("4.0 % (difference -2.00")


def test_stock_generate_is_compared_from_the_same_prefix_on(modules: dict[str, ModuleType]) -> None:
    apart = {"difference": 0.0, "low": -0.01, "high": 0.01, "n_clips": 9}
    names = {
        "m o": 0.3,
        "stock-generate:m s": 0.7,
        "stock-generate:m default": 1.0,
        "autoregressive:m default": 0.9,
    }
    figures = [
        {"model": name.partition(" ")[0], "setting": name.partition(" ")[2], "against_ours": apart}
        for name in names
    ]
    content = {
        "model": "m",
        "ours": "o",
        "stock": "s",
        "accuracy": {"figures": figures},
        "speed": {
            "whole": {"4": {name: {"clip_s": clip_s} for name, clip_s in names.items()}},
            "parts": {"batch 4": {"batch": 4, "front_s": 0.5, "prefix_s": 0.3}},
        },
    }
    found = list(modules["decoding_report"]._alternative_targets(content))
    assert [(measured.split(";")[0], reached) for _, _, measured, reached in found] == [
        ("2.33", True),
        ("5.00", True),  # 0.2 s a clip come before the first pass
        ("3.33", False),
        ("8.00", True),
        ("3.00", True),
    ]
    apart["difference"] = -0.0001  # theirs less ours
    found = list(modules["decoding_report"]._alternative_targets(content))
    assert [reached for *_, reached in found] == [False, False, False, False, True]


def test_without_references_nothing_is_chosen(modules: dict[str, ModuleType]) -> None:
    figures = [{"model": "stock-generate:m", "setting": "steps=2,canvas=8", "rates": {"all": None}}]
    with pytest.raises(DataError, match="no clip has a reference text"):
        modules["decoding"].best_stock(figures, "m")


def test_a_small_run_is_not_written_into_the_documentation(modules: dict[str, ModuleType]) -> None:
    with pytest.raises(SystemExit):
        modules["decoding"].main(["tiny", "--small", "--set", "x.jsonl"])


def test_products_of_a_pass_are_counted_by_hand(modules: dict[str, ModuleType], asr: Transcriber) -> None:
    speed = modules["decoding_speed"]
    with torch.no_grad():
        prefix = speed.Parts(asr, 1).prefix([tones(0.5, 1), tones(0.5, 1)])
    products = speed.products_of_a_pass(asr, prefix, 16, wants_soft=True)
    n, width, vocabulary = 2 * 16, 32, 4096
    assert products[1, n, width, vocabulary] == 1  # output layer
    assert products[1, n, vocabulary, width] == 1  # expected embedding
    assert products[1, n * 2 // 4, width, 2 * 16] == 2 * 4  # experts: gate and up, of two layers of four
    seen = prefix.ids.shape[1] + 16
    assert products[2 * 2, 16, 16, seen] == 2  # attention of two heads in two layers
    without = speed.products_of_a_pass(asr, prefix, 16, wants_soft=False)
    inner = asr.model.backbone.model.decoder.self_conditioning.gate_proj.out_features
    further = (
        products - without
    )  # the expected embedding, and the self-conditioning that a first pass has not
    conditioning = [(1, n, width, inner), (1, n, width, inner), (1, n, inner, width)]
    assert further == Counter([(1, n, vocabulary, width), *conditioning])
    assert all(not module._forward_hooks for module in asr.model.modules() if isinstance(module, nn.Linear))
    found = speed.floor(products, torch.device("cpu"), torch.float32, 1, 32)
    flops = sum(2.0 * b * rows * inner * columns * k for (b, rows, inner, columns), k in products.items())
    assert found["flops"] == flops
    assert found["products_flops_per_s"] == pytest.approx(flops / found["products_s"])


def test_rates_are_over_all_clips_and_differences_over_common_ones(modules: dict[str, ModuleType]) -> None:
    accuracy = modules["decoding_accuracy"]

    def read(errors: dict[tuple[str, int], int]) -> Any:
        counts = {
            ("set", code, i): ErrorCounts(substitutions=n, hits=10 - n) for (code, i), n in errors.items()
        }
        return accuracy.Read(counts, {})

    first = read({("en", 0): 2, ("en", 1): 4, ("zh", 0): 0})
    second = read({("en", 0): 1, ("zh", 0): 3})
    assert first.rate() == pytest.approx(0.2)
    assert (first.rate("words"), first.rate("characters")) == (pytest.approx(0.3), 0)
    found = accuracy.difference(first, second)
    assert (found["n_clips"], found["difference"]) == (2, pytest.approx(0.1))
    assert accuracy.difference(first, second, "words")["difference"] == pytest.approx(-0.1)
    needed = accuracy.passes_needed({16: second, 1: first, 4: second}, 0.002)
    assert (needed["converged_passes"], needed["passes_needed"]) == (16, 1)
    assert accuracy.passes_needed({1: second, 16: first}, 0.002)["passes_needed"] == 1


def test_long_clips_are_utterances_behind_each_other(modules: dict[str, ModuleType]) -> None:
    clips = [tones(0.3, i) for i in range(5)]
    joined = modules["decoding_speed"].long_clips(clips, 3, 1.0)
    assert [len(clip) for clip in joined] == [16_000] * 3
    assert (joined[1][: len(clips[1])] == clips[1]).all()
    assert (joined[1][len(clips[1]) : len(clips[1]) + 100] == clips[4][:100]).all()


def test_systems_are_timed_in_turn_and_slow_ones_less_often(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = modules["decoding_speed"]
    now = 0.0
    calls: list[str] = []

    def takes(name: str, seconds: float) -> Any:
        def run() -> None:
            nonlocal now
            now += seconds
            calls.append(name)

        return run

    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)
    found = speed.in_turn({"a": takes("a", 1.0), "b": takes("b", 9.0)}, 3, lambda _: None)
    assert calls == ["a", "b", "b", "a", "a", "a"]
    assert (found["a"]["median_s"], found["b"]["median_s"]) == (1.0, 9.0)
