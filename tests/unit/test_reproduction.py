"""The benchmark of the page on reproduction: every experiment at toy size, and what is made of the logs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from made_up_clips import write_clips
from small_models import BACKBONE, TINY
from training_runs import adapter_recipe
from transformers import DiffusionGemmaConfig

from canvas_asr import cli
from canvas_asr.backbone import build_backbone
from canvas_asr.configuration import load_configuration
from canvas_asr.training import adapter
from canvas_asr.training.checkpoints import save_trainable_state
from canvas_asr.training.judging import Judgement
from canvas_asr.training.objective import ObjectiveOptions
from canvas_asr.training.recipe import load_recipe
from canvas_asr.training.text import TextModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPES = Path(__file__).parents[2] / "recipes" / "reproduction"
CANNED = {"gap": 0.2, "noise8": 0.8, "noise1": 0.9, "draft": 0.7, "shuffled": 1.0}
MASK_ID = 15


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import reproduction
    import reproduction_plots
    import reproduction_runs

    return reproduction, reproduction_runs, reproduction_plots


def write_log(folder: Path, records: Sequence[dict[str, float]]) -> None:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def evaluation(step: int, gap: float) -> dict[str, float]:
    return {"step": step, "eval_noise8": 1.0 - gap, "eval_gap": gap}


# What is made of the logs


def test_a_resumed_run_counts_each_step_once(modules: tuple[ModuleType, ...], tmp_path: Path) -> None:
    reproduction = modules[0]
    losses = [{"step": step, "loss": 1.0, "diffusion": 4.0 - step, "ctc": 2.0} for step in (1, 2, 2)]
    write_log(
        tmp_path / "run", [*losses, evaluation(2, 0.1), evaluation(4, 0.3), evaluation(4, 0.4), {"step": 2}]
    )
    log = tmp_path / "run" / "log.jsonl"
    assert [(p["step"], p["gap"], p["noise8"]) for p in reproduction.read_points(log)] == [
        (2, 0.1, 0.9),
        (4, 0.4, 0.6),
    ]
    assert reproduction.read_losses(log) == [
        {"step": 1, "ctc": 2.0, "diffusion": 3.0},
        {"step": 2, "ctc": 2.0, "diffusion": 2.0},
    ]
    assert not reproduction.is_done(log.parent, 4)  # judged, but not saved
    (log.parent / "trained.safetensors").touch()
    assert reproduction.is_done(log.parent, 4)
    assert not reproduction.is_done(log.parent, 6)


def test_arms_are_compared_where_all_of_them_have_been(modules: tuple[ModuleType, ...]) -> None:
    def arm(*runs: dict[int, float]) -> dict[str, Any]:
        points = [[{"step": step, "gap": gap} for step, gap in run.items()] for run in runs]
        return {"runs": [{"seed": seed, "points": own} for seed, own in enumerate(points)]}

    last = modules[0].last_figures
    full, short = (
        arm({2: 0.1, 4: 0.3, 6: 0.5}, {2: 0.2, 4: 0.5, 6: 0.9}),
        arm({2: 0.0, 4: 0.1}, {2: 0.0, 4: 0.2}),
    )
    found = last({"on": full, "off": short})
    assert found == {"step": 4, "seeds": [0, 1], "on": {"gap": 0.4}, "off": {"gap": 0.15}}
    assert last({"on": full, "off": arm({2: 0.0, 4: 0.1})})["on"] == {"gap": 0.3}  # the seed that both have
    assert last({"on": full, "off": arm()}) == {}


def test_a_run_comes_behind_the_one_that_it_starts_from(modules: tuple[ModuleType, ...]) -> None:
    reproduction, own, _ = modules
    runs = own.table(own.Places(Path("frames"), Path("clips"), Path("dev")))
    assert reproduction.needed(["masks", "six-after-english", "english"], runs) == [
        "text-masks",
        "masks",
        "english",
        "six-after-english",
    ]
    assert {run for one in own.EXPERIMENTS.values() for run in one.arms.values()} <= set(runs)


def test_arms_differ_in_one_thing(modules: tuple[ModuleType, ...]) -> None:
    own = modules[1]
    runs = own.table(own.Places(Path("frames"), Path("clips"), Path("dev")))
    allowed = {
        "ctc": {"options.ctc_weight"},
        "ctc-frames": {"options.ctc_weight"},
        "lora": {"options.model.lora_rank"},
        "noise": {"options.objective.corruption.mask_id", "options.model.mask_token_id"},
        "front-end": {"options.model.audio_front_end", "options.spec_augment"},
        "languages": set(),
    }
    for name, keys in allowed.items():
        first, second = (
            set(map(repr, runs[arm].values.items())) for arm in own.EXPERIMENTS[name].arms.values()
        )
        assert {item.partition("'")[2].partition("'")[0] for item in first ^ second} == keys


def test_speed_and_errors_by_passes(modules: tuple[ModuleType, ...]) -> None:
    def result(language: str, steps: int, rate: float, seconds: float) -> dict[str, Any]:
        mode = {"options": {"steps": steps}}
        return {
            "language": language,
            "mode": mode,
            "scores": {"primary": rate},
            "audio_s": 10.0,
            "seconds": seconds,
        }

    results = [result("en", 8, 0.2, 1.0), result("en", 1, 0.5, 0.2), result("de", 8, 0.4, 3.0)]
    assert modules[0].passes_of(results) == [
        {"passes": 1, "rate": 0.5, "rtfx": 50.0, "by_language": {"en": 0.5}},
        {"passes": 8, "rate": 0.3, "rtfx": 5.0, "by_language": {"en": 0.2, "de": 0.4}},
    ]


# A dry run


def toy_recipes(folder: Path) -> list[str]:
    """Write recipes, data and parts of toy size; gives the options that name them."""
    recipe = adapter_recipe(folder, batch_size=2, n_workers=0)
    manifest = str(write_clips(folder / "spoken", 14))
    options = recipe["options"]
    options |= {"train": [{"path": manifest}], "dev": [{"path": manifest}], "augment": False, "n_dev": 2}
    options |= {"whole_checkpoint": False, "canvas_choices": [], "min_clip_s": 0.1}
    options["model"] = {**load_recipe(RECIPES / "adapter.yaml").options["model"], **options["model"]}
    sentences = folder / "sentences"
    sentences.mkdir()
    nouns, verbs = (
        ("the cat", "a dog", "my friend", "that man", "her sister"),
        ("sees", "likes", "finds", "hears"),
    )
    lines = [" ".join(words) + "." for words in product(nouns, verbs, nouns, ("now", "here", "again"))]
    (sentences / "en.txt").write_text("\n".join(lines) + "\n")
    text = {
        **{key: recipe[key] for key in ("output_dir", "training")},
        "stage": "text",
        "options": {
            **load_recipe(RECIPES / "text.yaml").options,
            **{"tokenizer": str(TINY), "sentences": str(sentences), "backbone": BACKBONE, "n_dev": 1},
            "canvas_choices": [],
        },
    }
    recipes = folder / "recipes"
    recipes.mkdir()
    for name, content in (("adapter", recipe), ("text", text)):
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump(content))
    backbone = build_backbone(DiffusionGemmaConfig(**BACKBONE))
    save_trainable_state(TextModel(backbone, ObjectiveOptions()), folder / "text_init")
    named = {
        "--recipes": recipes,
        "--work": folder / "work",
        "--out": folder / "out",
        "--backbone": options["backbone"],
        "--audio-encoder": options["audio_encoder"],
        "--frames-encoder": options["audio_encoder"],
        "--text-init": folder / "text_init" / "trained.safetensors",
    }
    return [str(part) for pair in named.items() for part in pair]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, modules: tuple[ModuleType, ...]) -> list[str]:
    """Train in this process, judged with canned figures except where masks are decoded; gives the runs."""
    trained: list[str] = []
    judge: Callable[..., Judgement] = adapter.judge

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "canvas_asr.cli"]
        (place,) = [json.loads(part.partition("=")[2]) for part in command if part.startswith("output_dir=")]
        trained.append(Path(place).name)
        return subprocess.CompletedProcess(command, cli.main(command[3:]))

    def judged(decoder: Any, dataset: Any) -> Judgement:
        return judge(decoder, dataset) if decoder.vocabulary.mask else Judgement(CANNED)

    monkeypatch.setattr(modules[0], "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(adapter, "judge", judged)
    return trained


@pytest.mark.usefixtures("_own_torch_settings")
def test_every_experiment_at_toy_size(
    modules: tuple[ModuleType, ...], in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduction, own, plots = modules
    sizes = ["--steps", "1", "--eval-steps", "1", "--text-steps", "1", "--clips", "2"]
    call = [*own.EXPERIMENTS, *sizes, *toy_recipes(tmp_path)]
    assert reproduction.main(call) == 0
    runs = own.table(own.Places(Path(), Path(), Path()))
    assert sorted(in_process) == sorted(f"{name}-seed0" for name in runs)
    stored = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in own.EXPERIMENTS}
    for name, content in stored.items():
        assert content["command"].startswith(f"python benchmarks/reproduction.py {name} --steps 1 ")
        assert content["complete"]
        assert content["last"]["step"] == 1
        assert all(len(arm["runs"]) == 1 for arm in content["arms"].values())
    assert "ctc" not in stored["ctc"]["arms"]["CTC loss off"]["runs"][0]["losses"][0]
    assert "wer_en" in stored["noise"]["arms"]["masks"]["runs"][0]["before"][0]
    configs = {
        name: load_configuration(tmp_path / "work" / f"{name}-seed0" / "checkpoint")
        for name in ("masks", "no-lora", "waveform", "english")
    }
    assert (configs["masks"].mask_token_id, configs["english"].mask_token_id) == (MASK_ID, None)
    assert (configs["no-lora"].lora_rank, configs["english"].lora_rank) == (0, 4)
    assert configs["waveform"].reads_waveform

    assert reproduction.main(call) == 0  # nothing is left to train
    assert len(in_process) == len(runs)
    capsys.readouterr()
    assert plots.main([str(tmp_path / "out")]) == 0
    drawn = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(path.stem for path in drawn) == sorted(own.EXPERIMENTS)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_passes_are_drawn(modules: tuple[ModuleType, ...], tmp_path: Path) -> None:
    rows = [{"passes": n, "rate": 0.5, "rtfx": 10 / n} for n in (1, 2, 48)]
    content = {"title": "x", "model": "tiny", "passes": rows}
    (tmp_path / "passes.json").write_text(json.dumps(content))
    assert modules[2].main([str(tmp_path)]) == 0
    assert (tmp_path / "passes.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_run_is_refused(
    modules: tuple[ModuleType, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reproduction, _, plots = modules
    with pytest.raises(SystemExit):
        reproduction.main(["ctc", "--steps", "5", "--eval-steps", "2"])
    assert "multiple of --eval-steps" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plots.main([str(tmp_path)])
    assert "has no JSON files" in capsys.readouterr().err
    call = ["ctc", "--steps", "1", "--eval-steps", "1", *toy_recipes(tmp_path)]
    for code, message in (
        (1, r"six-seed0 failed \(code 1\); see"),
        (0, "six-seed0 was stopped before its last"),
    ):
        done = subprocess.CompletedProcess([], code)
        fake = SimpleNamespace(run=lambda *_, done=done, **__: done)
        monkeypatch.setattr(reproduction, "subprocess", fake)
        with pytest.raises(SystemExit, match=message):
            reproduction.main(call)
