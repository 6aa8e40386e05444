"""Eight clips learnt by heart: a fresh adapter on the frozen parts of ``tiny``, in a run like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile as sf
from small_models import TINY

from canvas_asr.synthesis import espeak
from canvas_asr.training.adapter import run
from canvas_asr.training.recipe import Recipe, TrainingOptions

N_STEPS = 100  # of the 300 that may be taken
CLIPS = (
    ("good morning", "en", "en"),
    ("red apples", "en", "en-us"),
    ("guten Abend", "de", "de"),
    ("drei Katzen", "de", "de"),
    ("bonne nuit", "fr", "fr"),
    ("hasta luego", "es", "es"),
    ("buenos días", "es", "es"),
    ("नमस्ते", "hi", "hi"),
)


def write_clips(folder: Path) -> Path:
    lines = []
    for i, (text, language, voice) in enumerate(CLIPS):
        speech = espeak.say(text, voice)
        sf.write(folder / f"{i}.wav", speech.samples, speech.sample_rate_hz)
        duration_s = round(len(speech.samples) / speech.sample_rate_hz, 3)
        clip = {"audio": f"{i}.wav", "text": text, "language": language, "duration": duration_s}
        lines.append(json.dumps(clip, ensure_ascii=False) + "\n")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


@pytest.mark.timeout(900)  # half a minute on a core of its own
@pytest.mark.skipif(not espeak.available(), reason="needs espeak-ng: apt-get install espeak-ng")
def test_eight_clips_are_learnt_without_an_error(tmp_path: Path) -> None:
    sources = [{"path": str(write_clips(tmp_path))}]
    options = {
        "tokenizer": str(TINY),
        "backbone": str(TINY / "backbone"),
        "audio_encoder": str(TINY / "audio_encoder"),
        "train": sources,
        "dev": sources,
        "model": {
            "projector_kind": "stack_mlp",
            "projector_width": 512,
            "projector_stride": 2,
            "lora_rank": 16,
            "lora_alpha": 32,
            "canvas_length": 16,
            "max_canvas_length": 16,
        },
        "canvas_choices": [],
        "spec_augment": {"n_time": 0, "n_frequency": 0},
        "whole_checkpoint": False,
    }
    training = TrainingOptions(
        N_STEPS,
        len(CLIPS),
        3e-3,
        warmup_steps=20,
        eval_steps=N_STEPS,
        save_steps=N_STEPS,
        n_workers=0,
        bf16=False,
        report_to=(),
    )
    run(Recipe("adapter", tmp_path / "run", training, options))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (judged,) = [line for line in log if "eval_noise8" in line]
    assert judged["step"] == N_STEPS <= 300
    # From noise in 8 passes, the CTC draft, and a pass from it: not a letter wrong, while with the audio of
    # another clip all is wrong.
    assert (judged["eval_noise8"], judged["eval_draft"], judged["eval_draft1"]) == (0, 0, 0)
    assert judged["eval_gap"] > 0.9
    assert judged["eval_language_accuracy"] == 1
