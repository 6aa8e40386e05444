"""The pipeline of the big machine: parcels, state, order of jobs, and what differs from the recipes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from canvas_asr.errors import DataError, OptionError
from canvas_asr.training import jobs, pipeline
from canvas_asr.training.jobs import Job, Settings, recipe_overrides
from canvas_asr.training.parcels import join, pack, worth_keeping
from canvas_asr.training.pipeline import Pipeline, State, main
from canvas_asr.training.recipe import TIMED_COSINE, TrainingOptions, load_recipe
from canvas_asr.training.trainer import StageTrainer

RECIPES = Path(__file__).parents[2] / "recipes" / "tiny"
STAGES = [name for name, job in jobs.JOBS.items() if job.is_stage]


def settings_in(folder: Path, **changes: Any) -> Settings:
    settings = Settings(
        sentences=folder / "text",
        real=None,
        work=folder / "work",
        out=folder / "out",
        recipes=RECIPES,
        tokenizer=folder / "tokenizer",
        small=True,
        device="cpu",
        n_workers=6,
        n_clips=10,
        limit=1,
        minutes=dict(jobs.MINUTES),
    )
    return replace(settings, **changes)


def test_parcels_come_back_as_they_were(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    torch.manual_seed(0)
    content = torch.randint(256, (5000,), dtype=torch.uint8).numpy().tobytes()  # does not compress
    (source / "deep" / "a.bin").write_bytes(content)
    index = pack({"model": source, "b": source / "deep" / "a.bin"}, tmp_path, "x", part_bytes=3000)
    assert [entry["bytes"] for entry in index[:-1]] == [3000] * (len(index) - 1)
    assert len(index) >= 2
    join(index, tmp_path, tmp_path / "back")
    assert (tmp_path / "back" / "model" / "deep" / "a.bin").read_bytes() == content
    assert (tmp_path / "back" / "b").read_bytes() == content


def test_a_shorter_parcel_leaves_no_part_of_the_longer_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(torch.randint(256, (4000,), dtype=torch.uint8).numpy().tobytes())
    pack({"a": tmp_path / "a"}, tmp_path / "out", "x", part_bytes=1000)
    (tmp_path / "a").write_bytes(b"short")
    index = pack({"a": tmp_path / "a"}, tmp_path / "out", "x", part_bytes=1000)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [index[0]["file"]] == ["x.tar.000"]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_part_that_is_missing_or_damaged_is_named(tmp_path: Path, harm: str) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 20)
    index = pack({"a": tmp_path / "a"}, tmp_path, "x", part_bytes=100)
    part = tmp_path / "x.tar.001"
    if harm == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=rf"x\.tar\.001.*{harm}"):
        join(index, tmp_path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert State.read(path).records == {}
    path.write_text('{"text": {"minutes": 1, "finished": true}}')
    with pytest.raises(DataError, match=r"state\.json.*--work"):
        State.read(path)


def quick_jobs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Job]:
    """Three jobs in a row that write when they ran; the pipeline then knows no others."""

    def make(name: str, settings: Settings, minutes_before: float) -> None:
        with (folder / "ran.txt").open("a") as file:
            file.write(f"{name}\n")
        (settings.work / name).write_text("made")
        if (folder / f"{name}-fails").exists():
            raise DataError("no such luck")
        if (folder / f"{name}-hangs").exists():
            time.sleep(60)

    made = {
        "last": Job(make, "last", ("middle",), may_be_cut=True),
        "middle": Job(make, "middle", ("first",)),
        "first": Job(make, "first"),
        "unwanted": Job(make, "unwanted"),
    }
    for module in (jobs, pipeline):
        monkeypatch.setattr(module, "JOBS", made)
    monkeypatch.setattr(pipeline, "GOAL", "last")
    monkeypatch.setattr(pipeline, "POLL_S", 0.01)
    monkeypatch.setattr(pipeline, "worth_keeping", lambda settings: {})
    return made


def test_jobs_run_in_the_order_of_their_needs_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_jobs(tmp_path, monkeypatch)
    settings = settings_in(tmp_path, minutes=dict.fromkeys(("first", "middle", "last"), 1.0))
    Pipeline(settings).run()
    Pipeline(settings).run()
    assert (tmp_path / "ran.txt").read_text().split() == ["first", "middle", "last"]
    assert json.loads((settings.out / "summary.json").read_text())["complete"]
    (settings.work / "middle").unlink()  # what it made is gone, but nothing that is not done needs it
    Pipeline(settings).run()
    (settings.work / "last").unlink()
    Pipeline(settings).run()
    assert (tmp_path / "ran.txt").read_text().split()[3:] == ["middle", "last"]


def test_a_job_that_fails_says_why_and_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_jobs(tmp_path, monkeypatch)
    (tmp_path / "middle-fails").touch()
    settings = settings_in(tmp_path, minutes=dict.fromkeys(("first", "middle", "last"), 1.0))
    with pytest.raises(DataError, match=r"(?s)middle failed.*no such luck"):
        Pipeline(settings).run()
    summary = json.loads((settings.out / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["jobs"]["first"]["done"]
    (tmp_path / "middle-fails").unlink()
    Pipeline(settings).run()
    assert (tmp_path / "ran.txt").read_text().split() == ["first", "middle", "middle", "last"]


@pytest.mark.parametrize(("name", "outcome"), [("last", "cut"), ("middle", "error")])
def test_a_job_past_its_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, outcome: str
) -> None:
    quick_jobs(tmp_path, monkeypatch)
    monkeypatch.setattr(pipeline, "GRACE_MINUTES", 0.0)
    (tmp_path / f"{name}-hangs").touch()
    minutes = {**dict.fromkeys(("first", "middle", "last"), 1.0), name: 0.01}
    settings = settings_in(tmp_path, minutes=minutes)
    if outcome == "error":
        with pytest.raises(DataError, match="middle: still running"):
            Pipeline(settings).run()
        return
    Pipeline(settings).run()
    assert json.loads((settings.out / "summary.json").read_text())["jobs"]["last"]["cut"]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Pipeline(settings_in(tmp_path))
    with pytest.raises(DataError, match="another run"):
        Pipeline(settings_in(tmp_path))
    first.lock.close()
    Pipeline(settings_in(tmp_path))


def ancestors(name: str) -> set[str]:
    return {name}.union(*(ancestors(need) for need in jobs.JOBS[name].needs))


def test_stages_start_from_what_earlier_ones_made(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, small=False)
    values = {name: recipe_overrides(name, settings, 2.5) for name in STAGES}
    starts = {
        (name, key.removeprefix("options.")): str(Path(value).relative_to(settings.work))
        for name, found in values.items()
        for key, value in found.items()
        if key in ("options.init", "options.backbone", "options.audio_encoder")
    }
    assert starts == {
        ("acoustic_ctc", "init"): "acoustic_frames/trained.safetensors",
        ("text_short", "init"): "text_copy/trained.safetensors",
        ("text", "init"): "text_short/trained.safetensors",
        ("projector", "backbone"): "text/backbone",
        ("projector", "audio_encoder"): "acoustic_ctc/audio_encoder",
        ("reading", "init"): "projector/checkpoint/backbone",
        ("in_place", "init"): "projector/checkpoint",
        ("in_place", "backbone"): "reading/backbone",
        ("in_place", "audio_encoder"): "projector/checkpoint/audio_encoder",
    }
    for name, place in starts.items():  # each is what a job leaves that is done by then
        before = place.split("/")[0]
        assert before in ancestors(name[0])
    last = values["in_place"]
    assert last["training.minutes_before"] == 2.5
    assert last["training.max_minutes"] == jobs.MINUTES["in_place"] - jobs.OVERHEAD_MINUTES
    workers = {name: found["training.n_workers"] for name, found in values.items()}
    assert (workers["text"], workers["acoustic_ctc"], workers["reading"], workers["in_place"]) == (2, 4, 6, 6)


def test_what_later_stages_need_is_kept(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    made = ("acoustic_frames", "acoustic_ctc", "text_copy", "projector", "reading")
    for place in [jobs.JOBS[stage].output for stage in made]:
        (settings.work / place).mkdir(parents=True)
    (settings.work / "acoustic_ctc" / "preprocessor_config.json").touch()
    assert set(worth_keeping(settings)) == {
        "acoustic_ctc/audio_encoder",
        "acoustic_ctc/preprocessor_config.json",
        "text_copy/trained.safetensors",
        "projector/checkpoint",
        "reading/backbone",
    }


def test_real_speech_joins_where_no_phonemes_are_needed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    (settings.work / "testsets").mkdir(parents=True)
    (settings.work / "testsets" / "train_real.jsonl").touch()
    n_sources = {
        stage: len(recipe_overrides(stage, settings, 0.0)["options.train"])
        for stage in ("acoustic_frames", "acoustic_ctc", "projector", "in_place")
    }
    assert n_sources == {"acoustic_frames": 1, "acoustic_ctc": 2, "projector": 2, "in_place": 2}


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_recipe_that_takes_the_values(tmp_path: Path, stage: str, small: bool) -> None:
    own = {stage: {"training.batch_size": 7}}
    settings = settings_in(tmp_path, small=small, overrides=own)
    recipe = load_recipe(RECIPES / f"{stage}.yaml", recipe_overrides(stage, settings, 0.0))
    assert recipe.output_dir == settings.work / stage
    assert recipe.training.batch_size == 7


def test_the_longest_way_takes_25_minutes_at_most() -> None:
    def longest(name: str) -> float:
        return jobs.MINUTES[name] + max((longest(need) for need in jobs.JOBS[name].needs), default=0.0)

    assert 20 <= longest(jobs.GOAL) <= 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work", "w", "--out", "o"], "--sentences is missing"),
        (
            ["--sentences", "s", "--work", "w", "--out", "o", "--minutes", "test=3"],
            "'test=3': expected one of",
        ),
        (["--sentences", "s", "--work", "w", "--out", "o", "--minutes", "text=-1"], "above 0"),
        (["--sentences", "s", "--work", "w", "--out", "o", "--set", "check.x=1"], "'check.x=1'"),
        (["--join", "nowhere"], "summary.json"),
    ],
)
def test_a_wrong_call_is_refused_with_a_reason(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_values_of_recipes_are_read_as_yaml() -> None:
    pairs = pipeline._pairs(["text.training.batch_size=8", "text.options.x=[1, a]"], "--set", {"text": None})
    assert pairs == [("text", "training.batch_size", 8), ("text", "options.x", [1, "a"])]
    with pytest.raises(OptionError, match="'text'"):
        pipeline._pairs(["text"], "--set", {"text": None})


def test_the_timed_cosine_ends_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainingOptions(
        max_steps=1000,
        batch_size=1,
        learning_rate=1.0,
        warmup_steps=0,
        schedule=TIMED_COSINE,
        max_minutes=10.0,
        minutes_before=5.0,
        n_workers=0,
    )
    module = nn.Linear(1, 1)
    trainer = StageTrainer(module, [], [1.0], lambda rows: {}, options, tmp_path, dict)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(1000)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    factor = scheduler.lr_lambdas[0]
    assert factor(0) == pytest.approx(0.5, abs=0.03)  # half of the minutes are gone, and a few seconds
    monkeypatch.setattr(trainer.stop, "share_used", lambda: 0.0)
    assert factor(250) == pytest.approx(0.5 + 0.5 * 2**-0.5)  # a quarter of the steps
    monkeypatch.setattr(trainer.stop, "share_used", lambda: 1.2)
    assert factor(250) == 0.0
