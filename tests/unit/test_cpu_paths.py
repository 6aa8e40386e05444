"""The benchmark of other ways of computing on a CPU, in small: every path reads, and is compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile as sf
import torch
from made_up_clips import tones
from small_models import small_model
from torch import nn

from canvas_asr.manifest import Clip, write_manifest
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.transcriber import Transcriber

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_paths_are_timed_and_judged_beside_float32(
    processor: CanvasASRProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cpu_paths

    monkeypatch.setattr(cpu_paths, "AUDIO_S", 0.5)
    monkeypatch.setattr(cpu_paths, "BATCHES", (1, 2))
    loaded: dict[str, Transcriber] = {}

    def load(dtype: str) -> Transcriber:
        model = small_model(canvas_length=16, max_canvas_length=16, lora_rank=0).to(getattr(torch, dtype))
        return loaded.setdefault(f"{dtype} {len(loaded)}", Transcriber(model, processor))

    clips = []
    for i, language in enumerate(("en", "zh")):
        sf.write(tmp_path / f"{i}.wav", tones(0.6 + 0.2 * i, i), 16_000)
        clips.append(Clip(tmp_path / f"{i}.wav", "one two", language))
    write_manifest(tmp_path / "said.jsonl", clips)
    page = tmp_path / "page.md"
    arguments = [
        "mine",
        "--set",
        str(tmp_path / "said.jsonl"),
        "--paths",
        "bfloat16",
        "int8",
        "--rounds",
        "1",
    ]
    arguments += ["--work", str(tmp_path / "work"), "--markdown", str(page)]
    assert cpu_paths.main(arguments, load) == 0
    assert list(loaded) == ["float32 0", "bfloat16 1", "float32 2"]
    kinds = [type(module) for module in loaded["float32 2"].model.modules()]
    assert torch.ao.nn.quantized.dynamic.Linear in kinds
    assert all(not isinstance(m, nn.Linear) for m in loaded["float32 2"].model.projector.modules())
    rows = [line.split(" | ") for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| float32", "| bfloat16", "| int8"]
    assert all(row[1].endswith("(1.00)") for row in rows[2:3])
    assert rows[2][-1] == "– |"
    assert "to" in rows[3][-1]
    assert "Errors are those of 2 clips" in page.read_text("utf-8")
    assert cpu_paths.main(["mine", "--set", str(tmp_path / "missing.jsonl")], load) == 1
