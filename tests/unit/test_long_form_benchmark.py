"""The benchmark of long audio, in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.transcriber import Transcriber


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import long_form

    return long_form


def test_all_is_measured_in_small(
    benchmark: ModuleType, model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    plan = replace(benchmark.SMALL, memory_s=9.0, warm_up_s=6.0, hour_s=10.0, batch_s=6.0)
    asr = Transcriber(model, processor)
    asr.max_audio_s = 5.0
    options = {"init": "draft", "canvas": 64, "steps": 1, "batch_size": 4}
    figures = benchmark.measure(asr, plan, benchmark.PARTS, options)
    assert figures["memory"]["progress_is_monotone"]
    assert figures["memory"]["growth_mib"] < 200
    assert 0 < figures["first"]["seconds"]
    hour = figures["hour"]
    assert 5 < hour["speech_s"] < 10
    assert hour["ratio"]["cpu_s"] == pytest.approx(hour["long"]["cpu_s"] / hour["cut"]["cpu_s"])
    assert [row["batch_size"] for row in figures["batch"]] == [1, 2]
    text = "\n".join(benchmark.lines(figures))
    assert text.count("\n") == 4
    assert "ratio" in text
