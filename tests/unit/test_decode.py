"""Decoding and scoring with a scripted model: every figure is known beforehand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_model import TEXTS, ScriptedModel, clips, load

from canvas_asr.errors import DataError, OptionError
from canvas_asr.evaluation import decode
from canvas_asr.evaluation.conditions import choose_conditions
from canvas_asr.evaluation.decode import Evaluator, Plan, derangement, grouped
from canvas_asr.evaluation.modes import DEFAULT_SETTINGS, PRESETS, Setting, parse_setting
from canvas_asr.evaluation.store import Store
from canvas_asr.evaluation.summary import Result, compare_all, summarise
from canvas_asr.evaluation.systems import kind_of, open_system

NOISE_8, SHUFFLED, DRAFT = PRESETS["noise-8"], PRESETS["shuffled-noise-8"], PRESETS["draft"]


@pytest.fixture
def run(tmp_path: Path):
    """Evaluate with a scripted model; gives the results by language, speakers and setting, and the model."""

    def evaluate(settings, *, limit=None, model=None, max_audio_s=None, **options):
        model = model or ScriptedModel(TEXTS)
        system = open_system("tiny", None, lambda name, device: model)
        system.max_audio_s = max_audio_s
        plan = Plan(
            model="tiny",
            kind=kind_of("tiny"),
            open_system=lambda: system,
            settings=settings,
            conditions=choose_conditions(options.pop("robustness", None)),
            **{"load": load, "batch_size": 16, "seed": 0, **options},
        )
        store = Store(tmp_path / "store")
        evaluator = Evaluator(plan, store)
        for group in grouped("made", clips(), limit):
            assert sum(evaluator.run(group)) == len(group.clips) * len(list(evaluator.jobs(group)))
        results = summarise(store, "primary")
        return {(r.language, r.speakers, r.asked.mode): r for r in results if r.condition == "clean"}, model

    return evaluate


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


# Settings


def test_default_settings_are_the_ones_that_are_published():
    asked = Counter(
        tuple(dict(s.options).values()) for s in DEFAULT_SETTINGS if not (s.shuffled or s.language_given)
    )
    assert asked == Counter(
        [("draft", 0), *(("noise", n) for n in (1, 2, 4, 8, 16)), *(("draft", n) for n in (1, 2, 4))]
    )
    assert [s.name for s in DEFAULT_SETTINGS if s.shuffled] == ["shuffled-noise-8"]
    assert len({s.name for s in DEFAULT_SETTINGS}) == len(DEFAULT_SETTINGS)


def test_settings_are_parsed():
    assert parse_setting("noise-8") is NOISE_8
    text = "steps=8,init=noise,language=given,audio=shuffled"
    assert parse_setting(text) == Setting(text, (("steps", 8), ("init", "noise")), True, True)
    assert dict(parse_setting("a=1.5, b=true,c=x-y").options) == {"a": 1.5, "b": True, "c": "x-y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise-9", "unknown setting 'noise-9': give options as in steps=8,init=noise, or one of draft, "),
        ("steps=", "unknown setting 'steps='"),
        ("steps=1,steps=2", "setting 'steps=1,steps=2': steps stands twice"),
        ("audio=loud", "setting 'audio=loud': audio is 'loud'; use own or shuffled"),
    ],
)
def test_impossible_settings_are_refused(text, message):
    with pytest.raises(OptionError, match=message):
        parse_setting(text)


# Decoding and scoring


def test_scores_by_language_and_kind_of_speaker(run):
    results, _ = run([DRAFT, NOISE_8])
    assert {key[:2] for key in results} == {("en", "seen"), ("en", "unseen"), ("de", "seen"), ("fr", "seen")}
    assert all(results[key].value == 0.0 for key in results if key[2] == "noise-8")
    draft = results["en", "seen", "draft"]
    assert draft.counts.deletions == 2  # the last word of each of two clips
    assert draft.value == pytest.approx(2 / 8)
    assert draft.intervals["whisper_wer"] == (0.25, 0.25)
    assert draft.scores.n_clips == 2
    assert draft.mean_passes == 0


def test_shuffled_audio_is_scored_against_the_wrong_text(run):
    results, _ = run([NOISE_8, SHUFFLED])
    assert results["en", "seen", "noise-8"].value == 0.0
    assert results["en", "seen", "shuffled-noise-8"].value == 1.0
    assert results["fr", "seen", "shuffled-noise-8"].language_accuracy is None
    assert ("de", "seen", "shuffled-noise-8") not in results  # one clip: no other audio
    wrong = results["en", "seen", "shuffled-noise-8"].lines
    assert all(line.audio != line.reference_audio for line in wrong)
    assert all(TEXTS[int(Path(line.audio).stem)][1] == line.hypothesis for line in wrong)


def test_language_accuracy_only_where_it_is_detected(run):
    results, model = run([NOISE_8, DRAFT, parse_setting("language=given")])
    assert results["en", "seen", "noise-8"].language_accuracy == 1.0
    assert results["fr", "seen", "noise-8"].language_accuracy == 0.5
    assert results["fr", "seen", "language=given"].language_accuracy is None
    assert results["fr", "seen", "draft"].language_accuracy is None
    assert {call["language"] for call in model.calls} == {None, "en", "de", "fr"}


def test_model_is_asked_as_the_setting_says(run):
    _, model = run([s for s in DEFAULT_SETTINGS if not s.shuffled], batch_size=3)
    assert {(call["init"], call["steps"]) for call in model.calls} == {
        ("draft", 0),
        *(("noise", n) for n in (1, 2, 4, 8, 16)),
        *(("draft", n) for n in (1, 2, 4)),
    }
    assert {call["batch_size"] for call in model.calls} == {3}


def test_rtfx_is_summed_audio_by_summed_time_without_warm_up(run, monkeypatch):
    clock = iter(float(i) for i in range(1000))
    monkeypatch.setattr(decode.time, "perf_counter", lambda: next(clock))
    results, model = run([NOISE_8])
    result = results["en", "seen", "noise-8"]
    assert result.audio_s == pytest.approx((1600 + 3200) / 16_000)
    assert result.seconds == pytest.approx(1.0)
    assert result.rtfx == pytest.approx(0.3)
    assert [line.seconds for line in result.lines] == pytest.approx(
        [1 / 3, 2 / 3]
    )  # as the model shared them
    assert [call["n"] for call in model.calls] == [1, 2, 1, 1, 2]  # one clip to warm up, then the groups


def test_truncated_outputs_and_passes_are_counted(run):
    results, _ = run([PRESETS["noise-16"]])
    assert results["en", "seen", "noise-16"].to_dict()["n_truncated"] == 2
    assert results["en", "seen", "noise-16"].mean_passes == 16


def test_limit_is_per_group(run):
    results, _ = run([NOISE_8], limit=1)
    assert [result.scores.n_clips for result in results.values()] == [1, 1, 1, 1]


def test_model_that_loses_a_clip_is_caught(run):
    model = ScriptedModel(TEXTS)
    whole = model.transcribe_arrays
    model.transcribe_arrays = lambda arrays, **options: whole(arrays, **options)[:1]
    with pytest.raises(DataError, match="tiny, setting 'noise-8': 1 transcripts came back for 2 clips"):
        run([NOISE_8], model=model)


def test_clips_that_are_too_long_count_as_read_empty(run):
    results, _ = run([NOISE_8], max_audio_s=0.15)
    found = results["en", "seen", "noise-8"]
    assert [line.too_long for line in found.lines] == [False, True]
    assert found.counts.deletions == 4
    assert found.audio_s == pytest.approx(0.1)


def test_models_of_this_package_read_any_length(run):
    model = ScriptedModel(TEXTS)
    model.max_audio_s = 0.15  # at once
    results, _ = run([NOISE_8], model=model)
    assert results["en", "seen", "noise-8"].value == 0.0


def test_passes_are_a_mean_over_clips_that_were_read_by_what_counts_them():
    lines = result_of(["a"] * 3, ["a"] * 3, [1.0] * 3).lines
    passes = [replace(line, passes=n, too_long=n == 0) for n, line in zip((2, 0, 4), lines, strict=True)]
    assert Result(passes, "primary").mean_passes == 3
    assert Result([replace(passes[1])], "primary").mean_passes is None
    assert Result([replace(line, model="pocketsphinx") for line in lines], "primary").mean_passes is None


def test_a_model_that_says_it_has_no_draft_head_is_not_asked_for_one(run):
    model = ScriptedModel(TEXTS)
    model.has_draft = False
    with pytest.raises(OptionError, match="setting 'draft' starts from a draft, and tiny has no draft head"):
        run([DRAFT], model=model)


# What is there is not decoded again


def test_a_second_run_decodes_only_what_is_missing(run):
    first, _ = run([NOISE_8], limit=1)
    results, model = run([NOISE_8, DRAFT])
    assert {(call["init"], call["n"]) for call in model.calls} == {("noise", 1), ("draft", 1), ("draft", 2)}
    assert results["en", "seen", "noise-8"].scores.n_clips == 2
    again, idle = run([NOISE_8, DRAFT])
    assert idle.calls == []
    assert {key: r.to_dict() for key, r in again.items()} == {key: r.to_dict() for key, r in results.items()}
    assert first["en", "seen", "noise-8"].lines[0] == again["en", "seen", "noise-8"].lines[0]


def test_a_stopped_run_goes_on(run):
    model = ScriptedModel(TEXTS)
    model.texts = {n: text for n, text in TEXTS.items() if n != 6400}  # breaks at the German clip
    with pytest.raises(KeyError):
        run([NOISE_8], model=model)
    results, second = run([NOISE_8])
    assert len(results) == 4
    assert sum(call["n"] for call in second.calls[1:]) == 3  # not the three English clips


def test_results_of_another_run_are_not_mixed_in(run):
    run([NOISE_8])
    with pytest.raises(DataError, match=r"was made with another seed \(0, now 1\) .*give another --out"):
        run([NOISE_8], seed=1)


# Comparisons


def test_settings_are_compared_with_the_first_or_the_one_named(run):
    results, _ = run([DRAFT, NOISE_8])
    pairs = list(compare_all(list(results.values())))
    assert {(pair.first.mode, pair.second.mode) for pair in pairs} == {("draft", "noise-8")}
    english = next(pair for pair in pairs if (pair.language, pair.speakers) == ("en", "seen"))
    assert english.comparison.difference == pytest.approx(-0.25)
    assert english.comparison.n_clips == 2
    other = next(iter(compare_all(list(results.values()), "noise-8")))
    assert (other.first.mode, other.comparison.difference) == ("noise-8", pytest.approx(0.25))


def test_a_clip_that_one_could_not_take_is_not_compared():
    first, second = (result_of(["a b", "c d"], texts, [1.0, 9.0]) for texts in (["a b", "c d"], ["a", ""]))
    lines = [replace(line, model="other", too_long=line.place == 1) for line in second.lines]
    (pair,) = compare_all([first, Result(lines, "primary")])
    assert (pair.comparison.n_clips, pair.comparison.difference) == (1, 0.5)
    assert list(compare_all([first, Result(lines[1:], "primary")])) == []


def test_of_several_models_one_is_compared_with_by_its_name():
    first, second = (result_of(["a b"], [text], [1.0]) for text in ("a b", "a"))
    second = Result([replace(line, model="other") for line in second.lines], "primary")
    pairs = list(compare_all([first, second], "other s"))
    assert [(pair.first.model, pair.second.model) for pair in pairs] == [("other", "m")]
    assert pairs[0].comparison.difference == -0.5


def test_durations_share_out_the_clips():
    lengths = [0.5, 2.0, 4.9, 31.0]
    assert [(b.name, b.n_clips) for b in result_of(["a"] * 4, ["a"] * 4, lengths).buckets] == [
        ("0–2 s", 1),
        ("2–5 s", 2),
        ("over 30 s", 1),
    ]


def result_of(references, hypotheses, lengths, rate="primary", language="en") -> Result:
    from canvas_asr.evaluation.store import Line

    return Result(
        [
            Line(
                **dict(model="m", testset="t", mode="s", condition="clean", place=i, audio="a", detected=""),
                **dict(reference_audio="a", language=language, speakers="unknown", reference=r, hypothesis=h),
                **dict(passes=0, truncated=False, too_long=False, audio_s=s, seconds=None, options={}),
                **dict(shuffled=False, language_given=False, seed=0),
            )
            for i, (r, h, s) in enumerate(zip(references, hypotheses, lengths, strict=True))
        ],
        rate,
    )


def test_a_result_is_judged_by_the_rate_that_was_asked_for():
    assert result_of(["A b."], ["a b"], [1.0]).value == 0.0
    assert result_of(["A b."], ["a b"], [1.0], "raw_wer").value == 1.0
    hindi = result_of(["क"], ["क"], [1.0], "leaderboard_wer", "hi")  # which has no such rate
    assert hindi.rate == "whisper_cer"


def test_an_undefined_rate_is_null():
    found = result_of(["", ""], ["oh", ""], [1.0, 1.0])
    assert found.value is None
    assert found.intervals["raw_wer"] is None
    entry = json.loads(json.dumps(found.to_dict()))
    assert (entry["scores"]["primary"], entry["n_empty_references"], entry["n_invented"]) == (None, 2, 1)
