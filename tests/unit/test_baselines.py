"""Other recognisers in the harness, and which settings each kind of system is asked in."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from made_up_clips import tones
from scripted_model import TEXTS, ScriptedModel
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from canvas_asr.errors import CheckpointError, DataError, OptionError
from canvas_asr.evaluation.baselines import HypothesisFile
from canvas_asr.evaluation.evaluate import main
from canvas_asr.evaluation.modes import DEFAULT_SETTINGS, PLAIN, parse_setting
from canvas_asr.evaluation.systems import Request, Utterance, open_system, settings_of, split_name
from canvas_asr.manifest import Clip, read_manifest, write_manifest
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.transcriber import Transcriber

ENGLISH = Path(__file__).parents[2] / "examples" / "en.flac"


def read(system: Any, *arrays: Any, setting: str = "language=given", language: str = "en") -> list[Any]:
    utterances = [Utterance(place, array) for place, array in enumerate(arrays)]
    return system.read(Request(utterances, "set", parse_setting(setting), language, batch_size=2, seed=0))


# Names and settings


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny", ("", "tiny")),
        ("C:\\models\\mine", ("", "C:\\models\\mine")),
        ("pipeline:openai/whisper-small", ("pipeline", "openai/whisper-small")),
        ("pocketsphinx", ("pocketsphinx", "")),
        ("autoregressive:out/mine", ("autoregressive", "out/mine")),
        ("stock-generate:tiny", ("stock-generate", "tiny")),
        ("file:texts/a:b.txt", ("file", "texts/a:b.txt")),
    ],
)
def test_names_say_the_kind(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


def test_each_model_is_asked_in_the_settings_it_has_options_for() -> None:
    asked = [parse_setting(text) for text in ("steps=2,init=draft", "num_beams=5", "audio=shuffled")]
    chosen = settings_of(["tiny", "pipeline:whisper", "pocketsphinx", "file:x.txt"], asked)
    names = {model: [setting.name for setting in settings] for model, settings in chosen.items()}
    assert names == {
        "tiny": ["steps=2,init=draft", "audio=shuffled"],
        "pipeline:whisper": ["num_beams=5", "audio=shuffled"],
        "pocketsphinx": ["audio=shuffled"],
        "file:x.txt": ["default"],  # no other audio can be given to it
    }


def test_without_settings_each_model_has_its_own() -> None:
    chosen = settings_of(["tiny", "pocketsphinx"], [])
    assert chosen == {"tiny": list(DEFAULT_SETTINGS), "pocketsphinx": [PLAIN]}


def test_a_draft_is_not_asked_of_models_without_a_draft_head() -> None:
    message = "setting 'draft' starts from a draft, and pipeline:w, pocketsphinx has no draft head"
    with pytest.raises(OptionError, match=message):
        settings_of(["pipeline:w", "pocketsphinx"], [parse_setting("draft")])
    assert settings_of(["tiny", "pocketsphinx"], [parse_setting("draft")])["pocketsphinx"] == [PLAIN]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(
        OptionError, match=r"unknown option 'beams'; pipeline:w has num_beams, max_new_tokens"
    ):
        settings_of(["pipeline:w"], [parse_setting("beams=5")])


def test_a_setting_that_no_model_can_be_asked_in_is_refused_and_not_left_out() -> None:
    mixed = parse_setting("steps=2,beam_size=5")  # of two models, an option each
    with pytest.raises(OptionError, match="setting 'steps=2,beam_size=5': none of tiny, faster-whisper:s"):
        settings_of(["tiny", "faster-whisper:s"], [mixed, PLAIN])
    with pytest.raises(OptionError, match="setting 'audio=shuffled': none of file:x"):
        settings_of(["file:x"], [parse_setting("audio=shuffled")])
    given = parse_setting("language=given")
    with pytest.raises(OptionError, match="setting 'language=given': none of stock-generate:tiny"):
        settings_of(["stock-generate:tiny"], [given])
    assert settings_of(["tiny", "stock-generate:tiny"], [given])["stock-generate:tiny"] == [PLAIN]


def test_a_wrong_option_beside_a_draft_is_named_and_not_the_draft() -> None:
    with pytest.raises(OptionError, match="setting 'init=draft,stepz=1': unknown option 'stepz'; tiny has"):
        settings_of(["tiny"], [parse_setting("init=draft,stepz=1")])
    with pytest.raises(OptionError, match="starts from a draft, and pocketsphinx has no draft head"):
        settings_of(["pocketsphinx"], [parse_setting("init=draft-slots,steps=1")])


@pytest.mark.parametrize(
    ("model", "setting", "message"),
    [
        ("stock-generate:tiny", "steps=8,canvas=auto", "canvas is 'auto'; give a whole number of at least 1"),
        ("autoregressive:tiny", "max_tokens=0", "max_tokens is 0; give a whole number"),
        ("pipeline:w", "num_beams=many", "num_beams is 'many'; give a whole number"),
        ("faster-whisper:s", "temperature=hot", "temperature is 'hot'; give 0 to 1"),
        ("faster-whisper:s", "vad_filter=1", "vad_filter is 1; give true or false"),
    ],
)
def test_options_of_baselines_are_checked_before_anything_is_decoded(
    model: str, setting: str, message: str
) -> None:
    with pytest.raises(OptionError, match=f"setting '{setting}': {message}"):
        settings_of([model], [parse_setting(setting)])


def test_an_option_that_only_a_loaded_model_refuses_names_the_setting(
    model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    system = open_system("mine", None, lambda *_: Transcriber(model, processor))
    with pytest.raises(OptionError, match="mine, setting 'canvas=9999': canvas is 9999 tokens; this model"):
        read(system, tones(0.5, 1), setting="canvas=9999")


def test_a_kind_without_a_name() -> None:
    with pytest.raises(CheckpointError, match="pipeline:: says no name; give pipeline:NAME"):
        open_system("pipeline:", "cpu")


def test_options_of_decoding_are_checked_before_anything_is_decoded() -> None:
    settings_of(["tiny"], [parse_setting("canvas=auto,init=draft,steps=1,fusion=0.3,gate=0.95")])
    with pytest.raises(OptionError, match=r"setting 'acceptance=magic': acceptance is 'magic'; choose"):
        settings_of(["tiny"], [parse_setting("acceptance=magic")])
    with pytest.raises(OptionError, match="setting 'steps=0': steps is 0"):
        settings_of(["tiny"], [parse_setting("steps=0")])


# The same weights


def test_other_ways_of_decoding_stand_beside_the_canvas(
    model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    clips = [tones(0.9, 1), tones(0.5, 2), tones(1.3, 3)]

    def opened(kind: str) -> Any:
        return open_system(f"{kind}:mine", None, lambda *_: Transcriber(model, processor))

    written = read(opened("autoregressive"), *clips, setting="max_tokens=4")
    assert {reading.passes for reading in written} == {4}
    assert all(reading.truncated and reading.language and reading.seconds > 0 for reading in written)
    alone = read(opened("autoregressive"), clips[1], setting="max_tokens=4")[0]
    assert alone.text == written[1].text
    stock = read(opened("stock-generate"), *clips, setting="steps=2,canvas=8")
    assert [reading.passes for reading in stock] == [2, 2, 2]
    assert stock == [
        replace(one, seconds=before.seconds)
        for one, before in zip(
            read(opened("stock-generate"), *clips, setting="steps=2,canvas=8"), stock, strict=True
        )
    ]
    with pytest.raises(OptionError, match="setting 'steps=0': steps is 0; give a whole number of at least 1"):
        read(opened("stock-generate"), *clips, setting="steps=0")
    with pytest.raises(OptionError, match="stock generate is not told the language"):
        read(opened("stock-generate"), *clips)


@pytest.mark.parametrize("kind", ["autoregressive", "stock-generate"])
def test_no_graph_is_recorded_while_a_baseline_decodes(
    kind: str, model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    """A graph would make the baseline slower than it is, and its memory grow."""
    assert any(parameter.requires_grad for parameter in model.parameters())
    system = open_system(f"{kind}:mine", None, lambda *_: Transcriber(model, processor))
    seen: list[bool] = []
    hooks = [
        module.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
        for module in (model.projector, model.backbone.model.encoder.language_model)
    ]
    try:
        setting = "max_tokens=2" if kind == "autoregressive" else "steps=1,canvas=8"
        read(system, tones(0.5, 1), setting=setting)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) > 1
    assert not any(seen)


# transformers


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wav2vec2")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(16, 20),
        conv_kernel=(16, 20),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_a_pipeline_of_transformers_from_a_folder(wav2vec2: Path) -> None:
    system = open_system(f"pipeline:{wav2vec2}", "cpu")
    clips = [tones(1.0, seed) for seed in range(3)]
    texts = [reading.text for reading in read(system, *clips)]
    assert texts == [read(system, clip)[0].text for clip in clips]
    assert any(texts)
    with pytest.raises(DataError, match="decodes by CTC"):
        read(system, clips[0], setting="num_beams=2")


def test_a_model_of_many_languages_is_told_the_language(wav2vec2: Path) -> None:
    system: Any = open_system(f"pipeline:{wav2vec2}", "cpu")
    asked = []
    system.names_languages, system.generates = True, True
    system.run = lambda clips, **options: asked.append(options) or [{"text": " a  b "} for _ in clips]
    assert [reading.text for reading in read(system, np.zeros(9, np.float32), language="de")] == ["a b"]
    read(system, np.zeros(9, np.float32), setting="num_beams=2")
    assert asked == [
        {"batch_size": 2, "generate_kwargs": {"language": "de"}},
        {"batch_size": 2, "generate_kwargs": {"num_beams": 2}},
    ]


def test_clips_that_whisper_does_not_take_at_once_are_read_alone_with_time_stamps(wav2vec2: Path) -> None:
    """Without them `transformers` refuses what is over 30 s, and with it the whole batch."""
    system: Any = open_system(f"pipeline:{wav2vec2}", "cpu")
    assert system.n_at_once is None  # no Whisper: no limit
    asked = []

    def run(clips: list[Any], **options: Any) -> list[Any]:
        lengths = [len(clip["raw"]) for clip in clips]
        asked.append((lengths, options.get("return_timestamps")))
        return [{"text": f"{n} samples"} for n in lengths]

    system.run, system.n_at_once = run, 4
    clips = [np.zeros(n, np.float32) for n in (4, 9, 2, 5)]
    found = read(system, *clips, setting="default")
    assert [reading.text for reading in found] == ["4 samples", "9 samples", "2 samples", "5 samples"]
    assert asked == [([2, 4], None), ([9], True), ([5], True)]
    assert all(reading.seconds > 0 for reading in found)


def test_what_a_pipeline_cannot_decode_is_one_error(wav2vec2: Path) -> None:
    system: Any = open_system(f"pipeline:{wav2vec2}", "cpu")

    def run(clips: list[Any], **options: Any) -> list[Any]:
        raise ValueError("Unsupported language:\n yue")

    system.run = run
    with pytest.raises(DataError, match=r"setting 'default': .* a clip of set \(Unsupported language: yue\)"):
        read(system, np.zeros(9, np.float32), setting="default")


def test_a_pipeline_that_is_none_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pipeline:.* cannot be loaded .*; give a speech recognition"):
        open_system(f"pipeline:{tmp_path}", "cpu")


# faster-whisper


def test_faster_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class WhisperModel:
        def __init__(self, name: str, device: str) -> None:
            asked.append((name, device))

        def transcribe(self, samples: Any, **options: Any) -> Any:
            asked.append((len(samples), options))
            segments = (SimpleNamespace(text=text) for text in (" Guten", " Tag."))
            return segments, SimpleNamespace(language="de")

    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=WhisperModel))
    found = read(open_system("faster-whisper:small", None), np.zeros(5, np.float32), setting="beam_size=3")
    assert [(reading.text, reading.language) for reading in found] == [("Guten Tag.", "de")]
    assert asked == [("small", "auto"), (5, {"language": None, "beam_size": 3})]


@pytest.mark.parametrize(("name", "module"), [("faster-whisper:x", "faster_whisper"), ("pocketsphinx",) * 2])
def test_what_is_not_installed_says_how(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CheckpointError, match=f"install it with: pip install {name.partition(':')[0]}"):
        open_system(name, "cpu")


# pocketsphinx


@pytest.mark.skipif(importlib.util.find_spec("pocketsphinx") is None, reason="pocketsphinx is not installed")
def test_pocketsphinx_reads_english_alike_whatever_came_before() -> None:
    system = open_system("pocketsphinx", "cpu")
    speech = sf.read(ENGLISH, dtype="float32")[0][:16_000]
    first, _, again = read(system, speech, tones(0.2, 0), speech)
    assert first.text
    assert first.text == again.text
    assert 0 < first.seconds  # its own: clips are read one by one
    assert read(system, np.zeros(0, np.float32))[0].text == ""


# Hypotheses from a file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\nthree\n"),
        ("a.jsonl", '{"hypothesis": "one"}\n{"pred_text": ""}\n{"text": "three"}'),
    ],
)
def test_hypotheses_are_read_in_order(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    system = open_system(f"file:{path}", None)
    assert [reading.text for reading in read(system, *[np.zeros(1)] * 3)] == ["one", "", "three"]


def test_damaged_hypotheses_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"hypothesis": "one"}\n{"other": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: has no hypothesis or pred_text or text"):
        HypothesisFile(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"a\.jsonl:1: is not JSON"):
        HypothesisFile(path)
    with pytest.raises(DataError, match=r"b\.txt: cannot be read"):
        HypothesisFile(tmp_path / "b.txt")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    clips = []
    for n in (1600, 3200, 4800):
        sf.write(tmp_path / f"{n}.wav", np.zeros(n, np.float32), 16_000)
        clips.append(Clip(tmp_path / f"{n}.wav", TEXTS[n][1], "en"))
    write_manifest(tmp_path / "said.jsonl", clips)
    return tmp_path / "said.jsonl"


def test_a_file_stands_beside_a_model(manifest: Path, tmp_path: Path) -> None:
    texts = [clip.text for clip in read_manifest(manifest)]
    (tmp_path / "hyp.txt").write_text("\n".join([*texts[:2], "good day to all"]) + "\n")
    out = tmp_path / "out"
    arguments = ["tiny", f"file:{tmp_path / 'hyp.txt'}", "--set", str(manifest), "--setting", "noise-8"]
    assert (
        main([*arguments, "--robustness", "noise-5", "--out", str(out)], lambda *_: ScriptedModel(TEXTS)) == 0
    )
    results = json.loads((out / "evaluation.json").read_text())["results"]
    found = [(r["model"][:4], r["mode"]["name"], r["condition"], r["rtfx"] is None) for r in results]
    assert found == [
        ("tiny", "noise-8", "clean", False),
        ("file", "default", "clean", True),
        ("tiny", "noise-8", "noise-5", False),
    ]
    assert results[1]["scores"]["primary"] == pytest.approx(1 / 12)


def test_a_file_of_another_length_is_refused(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hyp.txt").write_text("one\ntwo\n")
    arguments = [f"file:{tmp_path / 'hyp.txt'}", "--set", str(manifest), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "hyp.txt: has 2 hypotheses for the 3 clips of said; give one for each clip" in error
    assert not (tmp_path / "out").exists()
