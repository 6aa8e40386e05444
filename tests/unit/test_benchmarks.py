"""What the benchmarks compute from logs and timings; the figures themselves are measured by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.transcriber import Transcriber

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_clips_of_equal_length_are_timed_in_turn(
    model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    speed = load_script("speed")
    samples = np.sin(np.arange(8_000) * 0.1).astype(np.float32)
    clips = {"once": speed.once(samples, 1.5), "dense": speed.dense(samples, 1.5)}
    assert [len(clip) for clip in clips.values()] == [24_000, 24_000]
    assert not clips["once"][8_000:].any()
    np.testing.assert_array_equal(clips["dense"][8_000:16_000], samples)
    measured = speed.interleaved(Transcriber(model, processor), clips, 2, 16, 3)
    assert all(0 < m["min_s"] <= m["median_s"] <= m["max_s"] for m in measured.values())


def test_throughput_is_of_whole_epochs_after_the_first() -> None:
    throughput = load_script("training_throughput")
    log = [
        {"step": 6, "wall_s": 20.0, "loss": 3.0, "data_wait": 0.9},
        {"step": 12, "wall_s": 30.0, "loss": 2.0, "data_wait": 0.01},
        {"step": 18, "wall_s": 60.0, "loss": 1.0, "data_wait": 0.03},
        {"step": 18, "wall_s": 70.0, "eval_gap": 1.0},
    ]
    assert throughput.figures(log, 400.0, 2) == {
        "audio_s_per_s": 20.0,  # 800 s in 40
        "waiting_share": 0.025,  # 0.1 and 0.9 s of them
        "epoch_s": 20.0,
    }
    runs = {
        "encoder every time": [
            {"audio_s_per_s": v, "waiting_share": 0.0, "epoch_s": 400 / v} for v in (10, 20, 90)
        ],
        "feature cache": [{"audio_s_per_s": 40.0, "waiting_share": 0.02, "epoch_s": 10.0}],
    }
    found = throughput.summarise(runs, 25.0)
    assert found["encoder every time"]["audio_s_per_s"] == 20
    assert (found["faster_with_cache"], found["pays_after_epochs"]) == (2, 2.5)
    runs["feature cache"][0]["epoch_s"] = 30.0
    assert throughput.summarise(runs, 25.0)["pays_after_epochs"] is None


def test_plain_losses_of_the_memory_benchmark_are_those_of_training() -> None:
    memory = load_script("losses_memory")
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 12, 4, generator=generator)
    weight = torch.randn(60, 4, generator=generator)
    targets = torch.randint(memory.BLANK + 1, 60, (2, 12), generator=generator)
    n_text = torch.tensor([4, 5])
    for name, labels in (("ctc", targets[:, :5]), ("diffusion", targets)):
        plain = memory.plain_loss(name, states, labels, n_text, lambda some: some @ weight.T)
        ours = memory.our_loss(name, states, labels, n_text, lambda some: some @ weight.T, chunk=7)
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)


def test_the_longest_transcript_is_compared_with_the_shortest() -> None:
    speed = load_script("speed")
    measured = {
        "dense": {"n_tokens": 30, "median_s": 0.55},
        "silence": {"n_tokens": 0, "median_s": 0.5},
        "once": {"n_tokens": 8, "median_s": 0.9},
    }
    assert speed.spread(measured) == {
        "shortest": "silence",
        "longest": "dense",
        "n_tokens": [0, 30],
        "longest_takes_more_percent": 10.0,
    }
