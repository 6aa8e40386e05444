"""The evaluation against a model that returns scripted texts, so that every figure is known beforehand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from canvas_asr.errors import CheckpointError, DataError, OptionError
from canvas_asr.evaluation import evaluate as module
from canvas_asr.evaluation.evaluate import derangement, evaluate, main
from canvas_asr.evaluation.index import file_sha256
from canvas_asr.evaluation.metrics import score
from canvas_asr.evaluation.modes import DEFAULT_MODES, EvaluationMode, Result
from canvas_asr.evaluation.report import describe_run, render_markdown
from canvas_asr.manifest import Clip, write_manifest
from canvas_asr.result import Transcript

NOISE_8 = EvaluationMode("noise-8", "noise", 8)
SHUFFLED = EvaluationMode("shuffled-noise-8", "noise", 8, shuffled=True)


class ScriptedModel:
    """Knows a clip by its number of samples, hears it right from noise, drops the last word of a draft."""

    def __init__(self, texts: dict[int, tuple[str, str]]) -> None:
        self.texts = texts
        self.calls: list[dict] = []

    def transcribe_arrays(self, arrays, *, init, steps, language, batch_size, seed):
        self.calls.append(
            {"n": len(arrays), "init": init, "steps": steps, "language": language, "batch_size": batch_size}
        )
        read = []
        for array in arrays:
            spoken, text = self.texts[len(array)]
            text = text.rpartition(" ")[0] if init == "draft" and steps == 0 else text
            read.append(
                Transcript(
                    text,
                    language or spoken,
                    1.0,
                    (),
                    1.0,
                    steps,
                    len(array) / 16_000,
                    0.1,
                    truncated=steps == 16,
                )
            )
        return read


TEXTS = {
    1600: ("en", "the cat sat down"),
    3200: ("en", "hello there my friend"),
    4800: ("en", "good night to all"),
    6400: ("de", "guten Tag"),
    8000: ("en", "bonjour tout le monde"),  # a French clip, taken for English
    9600: ("fr", "merci beaucoup"),
}


def clips(folder: Path = Path()) -> list[Clip]:
    languages = {1600: "en", 3200: "en", 4800: "en", 6400: "de", 8000: "fr", 9600: "fr"}
    return [
        Clip(folder / f"{n}.wav", TEXTS[n][1], language, f"s{n}", n / 16_000, "test", "made", n != 4800)
        for n, language in languages.items()
    ]


def load(path: Path) -> np.ndarray:
    return np.zeros(int(path.stem), np.float32)


def run(modes, **options) -> tuple[dict[tuple[str, str, str], Result], ScriptedModel]:
    model = ScriptedModel(TEXTS)
    results = evaluate(model, {"made": clips()}, modes, load=load, **options)
    return {(r.language, r.speakers, r.mode.name): r for r in results}, model


@pytest.mark.parametrize("n", [2, 3, 4, 5, 17, 100])
def test_derangement_moves_every_clip(n):
    for seed in range(20):
        order = derangement([f"text {i}" for i in range(n)], seed)
        assert sorted(order) == list(range(n))
        assert all(i != j for i, j in enumerate(order))


def test_derangement_by_seed():
    texts = [str(i) for i in range(50)]
    assert derangement(texts, 1) == derangement(texts, 1) != derangement(texts, 2)


def test_derangement_gives_another_text_where_it_can():
    texts = ["zero", "one", "two", "three"] * 10 + ["zero"] * 20  # "zero" is half of them
    for seed in range(20):
        order = derangement(texts, seed)
        assert all(texts[i] != texts[j] for i, j in enumerate(order))


@pytest.mark.parametrize("texts", [["a"] * 5, ["a", "a", "a", "b"]])
def test_derangement_of_mostly_equal_texts_still_moves_every_clip(texts):
    order = derangement(texts, 0)
    assert sorted(order) == list(range(len(texts)))
    assert all(i != j for i, j in enumerate(order))


def test_derangement_needs_two_clips():
    with pytest.raises(DataError, match="at least two clips"):
        derangement(["a"], 0)


def test_modes_are_the_ones_that_are_published():
    asked = Counter(
        (mode.kind, mode.passes) for mode in DEFAULT_MODES if not (mode.shuffled or mode.language_given)
    )
    assert asked == Counter(
        [("draft", 0), *(("noise", n) for n in (1, 2, 4, 8, 16)), *(("from_draft", n) for n in (1, 2, 4))]
    )
    assert [(m.kind, m.passes) for m in DEFAULT_MODES if m.shuffled] == [("noise", 8)]
    assert len({mode.name for mode in DEFAULT_MODES}) == len(DEFAULT_MODES)


@pytest.mark.parametrize(("kind", "passes"), [("draft", 1), ("noise", 0), ("from_draft", 0), ("noise", -1)])
def test_impossible_modes_are_refused(kind, passes):
    with pytest.raises(OptionError, match="'bad'"):
        EvaluationMode("bad", kind, passes)


def test_scores_by_language_and_kind_of_speaker():
    results, _ = run([DEFAULT_MODES[0], NOISE_8])
    assert {key[:2] for key in results} == {("en", "seen"), ("en", "unseen"), ("de", "seen"), ("fr", "seen")}
    assert all(results[key].scores.primary == 0.0 for key in results if key[2] == "noise-8")
    draft = results["en", "seen", "draft"]
    assert draft.scores.whisper_wer.deletions == 2  # the last word of each of two clips
    assert draft.scores.primary == pytest.approx(2 / 8)
    assert draft.scores.n_clips == 2
    assert draft.mean_passes == 0


def test_shuffled_audio_is_scored_against_the_wrong_text():
    results, _ = run([NOISE_8, SHUFFLED])
    assert results["en", "seen", "noise-8"].scores.primary == 0.0
    assert results["en", "seen", "shuffled-noise-8"].scores.primary == 1.0
    assert results["fr", "seen", "shuffled-noise-8"].language_accuracy is None
    assert ("de", "seen", "shuffled-noise-8") not in results  # one clip: no other audio


def test_language_accuracy_only_where_it_is_detected():
    results, model = run(
        [NOISE_8, DEFAULT_MODES[0], EvaluationMode("given", "noise", 8, language_given=True)]
    )
    assert results["en", "seen", "noise-8"].language_accuracy == 1.0
    assert results["fr", "seen", "noise-8"].language_accuracy == 0.5
    assert results["fr", "seen", "given"].language_accuracy is None
    assert results["fr", "seen", "draft"].language_accuracy is None
    assert {call["language"] for call in model.calls} == {None, "en", "de", "fr"}


def test_model_is_asked_as_the_mode_says():
    _, model = run([mode for mode in DEFAULT_MODES if not mode.shuffled], batch_size=3)
    assert {(call["init"], call["steps"]) for call in model.calls} == {
        ("draft", 0),
        *(("noise", n) for n in (1, 2, 4, 8, 16)),
        *(("draft", n) for n in (1, 2, 4)),
    }
    assert {call["batch_size"] for call in model.calls} == {3}


def test_rtfx_is_summed_audio_by_summed_time_without_warm_up(monkeypatch):
    clock = iter(float(i) for i in range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    results, model = run([NOISE_8])
    result = results["en", "seen", "noise-8"]
    assert result.audio_s == pytest.approx((1600 + 3200) / 16_000)
    assert result.seconds == 1.0
    assert result.rtfx == pytest.approx(0.3)
    assert [call["n"] for call in model.calls] == [1, 2, 1, 1, 2]  # one clip to warm up, then the groups


def test_truncated_outputs_and_passes_are_counted():
    results, _ = run([EvaluationMode("noise-16", "noise", 16)])
    assert results["en", "seen", "noise-16"].n_truncated == 2
    assert results["en", "seen", "noise-16"].mean_passes == 16


def test_limit_is_per_group():
    results, _ = run([NOISE_8], limit=1)
    assert [result.scores.n_clips for result in results.values()] == [1, 1, 1, 1]


def test_every_transcript_is_recorded():
    lines: list[dict] = []
    run([NOISE_8, SHUFFLED], record=lines.append)
    assert Counter(line["mode"] for line in lines) == {"noise-8": 6, "shuffled-noise-8": 4}
    wrong = [line for line in lines if line["mode"] == "shuffled-noise-8"]
    assert all(line["audio"] != line["reference_audio"] for line in wrong)
    assert all(TEXTS[int(Path(line["audio"]).stem)][1] == line["hypothesis"] for line in lines)


def test_model_that_loses_a_clip_is_caught():
    model = ScriptedModel(TEXTS)
    whole = model.transcribe_arrays
    model.transcribe_arrays = lambda arrays, **options: whole(arrays, **options)[:1]
    with pytest.raises(DataError, match="mode 'noise-8': 1 transcripts came back for 2 clips"):
        list(evaluate(model, {"made": clips()}, [NOISE_8], load=load))


def result(testset: str, language: str, mode: EvaluationMode, reference: str, hypothesis: str) -> Result:
    scores = score([reference], [hypothesis], language)
    accuracy = None if mode.shuffled else 1.0
    return Result(testset, language, "unseen", mode, scores, accuracy, float(mode.passes), 0, 6.0, 2.0)


def test_markdown_tables():
    results = [
        result("synthetic", "en", NOISE_8, "one cat two dogs", "one cat two cows"),
        result("synthetic", "en", SHUFFLED, "one cat two dogs", "nothing like it all"),
        result("synthetic", "zh", NOISE_8, "天气很好", "天汽很好"),
    ]
    text = render_markdown(describe_run("evaluate tiny", "tiny", 16, 0, None), results)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[:4] == [
        "| Test set | Language | Unit | Speakers | Clips | noise-8 | shuffled-noise-8 |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        "| synthetic | en | WER | unseen | 1 | 25.0 | 100.0 |",
        "| synthetic | zh | CER | unseen | 1 | 25.0 | – |",
    ]
    # "dogs" to "cows": two of 16 characters, of 14 where Whisper writes "2"
    rates = "25.0 | 25.0 | 25.0 | 12.5 | 14.3 | 12.5"
    assert rows[6] == f"| synthetic | en | unseen | noise-8 | {rates} | 0.0 | 100.0 | 8.0 | 3.0 |"
    assert len(rows) == 4 + 2 + 3
    assert len({row.count("|") for row in rows[4:]}) == 1
    assert "Made by `evaluate tiny`" in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "testsets"
    (out / "made").mkdir(parents=True)
    for clip in clips(out / "made"):
        sf.write(clip.audio, np.zeros(int(clip.audio.stem), np.float32), 16_000)
    manifest = out / "made" / "manifest.jsonl"
    write_manifest(manifest, clips(out / "made"))
    (out / "testsets.json").write_text(json.dumps({"sets": {"made": {"sha256": file_sha256(manifest)}}}))
    return out


def command(folder: Path, out: Path, *more: str) -> int:
    arguments = ["tiny", "--testsets", str(folder), "--out", str(out), *more]
    return main(arguments, load_model=lambda model, device: ScriptedModel(TEXTS))


def test_command_writes_figures_hypotheses_and_tables(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(folder, out, "--modes", "draft", "noise-8", "--batch-size", "2") == 0
    figures = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert len(figures["results"]) == 8
    assert figures["results"][0]["scores"]["primary_metric"] == "wer"
    assert (figures["model"], figures["batch_size"], figures["limit_per_group"]) == ("tiny", 2, None)
    assert figures["command"].startswith("python -m canvas_asr.evaluation.evaluate tiny --testsets")
    assert figures["machine"]["n_cpus"] >= 1
    assert {"python", "jiwer", "torch", "transformers"} <= set(figures["versions"])
    assert figures["testsets"]["made"]["sha256"] == file_sha256(folder / "made" / "manifest.jsonl")
    lines = (out / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    assert json.loads(lines[0])["hypothesis"] == "the cat sat"
    assert (out / "evaluation.md").read_text(encoding="utf-8") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modes", "noise-9"], "--modes: unknown mode 'noise-9'"),
        (["--sets", "other"], "--sets: no test set 'other': use some of made"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_command_refuses_bad_options_in_one_line(folder, tmp_path, capsys, options, message):
    assert command(folder, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_reports_a_model_that_does_not_load(folder, tmp_path, capsys):
    def load_model(model, device):
        raise CheckpointError(f"{model}: no such model")

    arguments = ["nope", "--testsets", str(folder), "--out", str(tmp_path / "out")]
    assert main(arguments, load_model=load_model) == 1
    assert capsys.readouterr().err == "error: nope: no such model\n"
