"""Entries of a recipe's data, read from manifests, copies of the hub's sets and Common Voice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hub_data import (
    TEXTS,
    flac,
    write_common_voice,
    write_fleurs,
    write_librispeech,
    write_set,
    write_voxpopuli,
)
from made_up_clips import tones, write_clips

from canvas_asr.errors import AudioError, DataError, RecipeError
from canvas_asr.hub_sets import clip_samples
from canvas_asr.manifest import Clip
from canvas_asr.training.sources import DataSource, parse_sources, read_source


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def librispeech(folder: Path) -> str:
    return str(write_librispeech(folder / "librispeech"))


@pytest.fixture(scope="module")
def fleurs(folder: Path) -> str:
    return str(write_fleurs(folder / "fleurs"))


@pytest.fixture(scope="module")
def voxpopuli(folder: Path) -> str:
    return str(write_voxpopuli(folder / "voxpopuli"))


def read(**entry: Any) -> list[Clip]:
    (source,) = parse_sources([entry], "options.train")
    return read_source(source)


# Sets of the hub


def test_librispeech_is_lower_cased_measured_and_decoded(librispeech: str) -> None:
    clips = read(set="librispeech", path=librispeech, config="clean", split="train.100")
    assert [clip.audio.name for clip in clips] == [f"84-121123-000{i}.flac" for i in range(4)]
    assert {clip.text for clip in clips} == {"good morning my friend"}
    assert {(clip.language, clip.speaker, clip.split) for clip in clips} == {("en", "84", "train.100")}
    assert [clip.duration_s for clip in clips] == [0.6, 0.73, 0.86, 0.99]
    np.testing.assert_allclose(clip_samples(clips[2]), tones(0.86, 2), atol=1e-4)
    assert len(read(set="librispeech", path=librispeech, config="other", split="train.500")) == 2


def test_fleurs_in_the_languages_asked_for_cased_and_without_spaces_in_chinese(fleurs: str) -> None:
    clips = read(set="fleurs", path=fleurs, split="train", languages=["de", "zh"])
    assert [(clip.language, clip.text) for clip in clips] == [
        (code, TEXTS[code]) for code in ("de", "de", "zh", "zh")
    ]
    everything = read(set="fleurs", path=fleurs, split="validation")
    assert [clip.language for clip in everything[::2]] == ["en", "de", "fr", "es", "hi", "zh"]


def test_voxpopuli_is_taken_from_the_column_that_is_never_empty(voxpopuli: str) -> None:
    clips = read(set="voxpopuli", path=voxpopuli, languages=["en"], split="train")
    assert [clip.text for clip in clips] == ["good morning, my friend"] * 2
    assert [clip.speaker for clip in clips] == ["speaker0", "speaker1"]
    half = read(set="voxpopuli", path=voxpopuli, languages=["en"], split="train[:50%]")
    assert [clip.audio.name for clip in half] == ["200-en.flac"]


def test_any_set_by_its_columns(folder: Path) -> None:
    rows = [
        {"audio": {"bytes": flac(0.6, i), "path": None}, "words": text, "lang": code}
        for i, (code, text) in enumerate({**TEXTS, "it": "Buongiorno."}.items())
    ]
    path = str(write_set(folder / "other", {("default", "train"): rows}))
    columns = {"text": "words", "language": "lang"}
    clips = read(set=path, split="train", columns=columns, languages=["fr", "zh"])
    assert [(clip.language, clip.text, clip.audio.name) for clip in clips] == [
        ("fr", TEXTS["fr"], "2"),
        ("zh", TEXTS["zh"], "5"),
    ]
    np.testing.assert_allclose(clip_samples(clips[1]), tones(0.6, 5), atol=1e-4)
    with pytest.raises(DataError, match=r"its language column has 'it'"):
        read(set=path, split="train", columns=columns)


def test_a_row_whose_audio_is_broken_is_told_by_its_length(folder: Path) -> None:
    rows = [
        {"audio": {"bytes": content, "path": f"{i}.flac"}, "text": "a"}
        for i, content in enumerate((flac(0.6, 0), b"no audio at all", flac(0.6, 1)[:2000]))
    ]
    path = str(write_set(folder / "broken", {("default", "train"): rows}))
    clips = read(set=path, split="train", languages=["en"])
    assert [clip.duration_s for clip in clips][:2] == [0.6, -1.0]
    with pytest.raises(AudioError, match=r"default/?train|train/1\.flac"):
        clip_samples(clips[1])
    with pytest.raises(AudioError, match=r"2\.flac: "):  # its header promises what is not there
        clip_samples(clips[2])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"config": "clear", "split": "train.100"}, r"clear train\.100: cannot be loaded .*clear"),
        ({"config": "clean", "split": "train"}, r"clean train: cannot be loaded .*train\.100"),
        (
            {"split": "train.100", "columns": {"text": "sentence"}},
            r"has no transcripts: its columns are",
        ),
        ({"split": "train.100", "columns": {"audio": "sound"}}, r"has no column 'sound'"),
    ],
)
def test_what_a_set_lacks_is_named(librispeech: str, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(set="librispeech", path=librispeech, **entry)


def test_a_set_without_any_transcript_is_refused(folder: Path) -> None:
    rows = [{"audio": {"bytes": flac(0.6, 0), "path": "0.flac"}, "text": text} for text in ("", None)]
    path = str(write_set(folder / "silent", {("default", "test"): rows}))
    with pytest.raises(DataError, match=r"test: column 'text' is empty in every row"):
        read(set=path, split="test", languages=["en"])


def test_a_set_that_cannot_be_fetched_says_how_to_get_it() -> None:
    with pytest.raises(DataError, match=r"hf download --repo-type dataset openslr/librispeech_asr"):
        read(set="librispeech", split="train.100")


def test_a_set_that_is_a_script_is_taken_from_its_converted_copy(
    fleurs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, asked = datasets.load_dataset, []

    def refuse_scripts(name: str, config: str, *, revision: str | None, **options: Any) -> Any:
        asked.append((name, config, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found fleurs.py")
        return load(fleurs, config, **options)

    monkeypatch.setattr(datasets, "load_dataset", refuse_scripts)
    assert len(read(set="fleurs", languages=["hi"], split="train")) == 2
    assert asked == [("google/fleurs", "hi_in", revision) for revision in (None, "refs/convert/parquet")]


# Common Voice


@pytest.mark.parametrize("with_durations", [False, True])
def test_common_voice_from_its_folder(tmp_path: Path, with_durations: bool) -> None:
    corpus = write_common_voice(tmp_path / "cv", with_durations=with_durations)
    clips = read(set="common_voice", path=str(corpus), split="train")
    assert [(clip.language, clip.audio.name) for clip in clips] == [
        (code, f"{code}{i}.flac") for code in ("de", "zh") for i in range(3)
    ]
    assert clips[0].text == '"Guten Tag.'  # a quotation mark is part of the text
    expected = [5.0, 5.001, 5.002] if with_durations else [0.6, 0.73, 0.86]
    assert [clip.duration_s for clip in clips[:3]] == expected
    chinese = read(set="common_voice", path=str(corpus / "zh-CN"), split="dev", languages=["zh"])
    assert [clip.text for clip in chinese] == ['"' + TEXTS["zh"]] * 3


def test_what_is_wrong_with_a_common_voice_folder_is_named(tmp_path: Path) -> None:
    corpus = write_common_voice(tmp_path / "cv")
    for path, changes, message in (
        (corpus, {"languages": ["fr"]}, r"cv: has no folder 'fr'"),
        (tmp_path, {}, r"has no folder of en, de, fr"),
        (corpus, {"split": "validated"}, r"validated\.tsv: cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            read(**{"set": "common_voice", "path": str(path), "split": "train", **changes})
    table = corpus / "de" / "train.tsv"
    table.write_text(table.read_text() + "abc\tx.flac\n")
    with pytest.raises(DataError, match=r"train\.tsv:5: has more or fewer cells"):
        read(set="common_voice", path=str(corpus), split="train", languages=["de"])
    table.write_text("client_id\tfile\n")
    with pytest.raises(DataError, match=r"train\.tsv: has no column 'path'"):
        read(set="common_voice", path=str(corpus), split="train", languages=["de"])
    (corpus / "zh-CN" / "clips" / "zh1.flac").unlink()
    with pytest.raises(DataError, match=r"1 of 3 audio files are missing, such as .*zh1\.flac"):
        read(set="common_voice", path=str(corpus), split="train", languages=["zh"])


# Manifests


def test_clips_of_a_manifest_by_split_and_language(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 6)
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for i, line in enumerate(lines):
        line["split"] = "dev" if i % 2 else "train"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert [clip.audio.stem for clip in read(path=str(manifest))] == list("012345")
    assert [clip.audio.stem for clip in read(path=str(manifest), split="dev")] == ["1", "3", "5"]
    assert [clip.audio.stem for clip in read(path=str(manifest), languages=["en", "zh"])] == ["0", "5"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "0.wav", "text": ', r"manifest\.jsonl:3: not JSON"),
        ('{"audio": "0.wav", "language": "en", "duration": 1}', r"manifest\.jsonl:3: key 'text' is missing"),
        (
            '{"audio": "gone.wav", "text": "a", "language": "en", "duration": 1}',
            r"1 of 3 .*gone\.wav",
        ),
        ('{"audio": "0.wav", "text": "a", "language": "en"}', r"'duration' is missing for .*0\.wav"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, message: str) -> None:
    manifest = write_clips(tmp_path, 2)
    manifest.write_text(manifest.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(path=str(manifest))
    with pytest.raises(DataError, match=r"is a folder; give the manifest in it"):
        read(path=str(tmp_path))


# Entries


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, r"needs path .* or set"),
        ({"file": "x"}, r"options\.train\[0\]: unknown key 'file'"),
        ({"set": "fleurs"}, r"fleurs: give split"),
        ({"set": "common_voice", "split": "train"}, r"common_voice: give path"),
        ({"path": "x", "languages": ["it"]}, r"language 'it' is none of"),
        ({"path": "x", "weight": 0}, r"weight 0\.0 must be above 0"),
        ({"path": "x", "language_weights": {"en": "much"}}, r"weight 'much' must be above 0"),
        ({"path": "x", "columns": {"words": "y"}}, r"columns has unknown key 'words'"),
        ({"set": "voxpopuli", "split": "train", "languages": ["hi"]}, r"voxpopuli has no language 'hi'"),
        ({"set": "owner/name", "split": "train"}, r"owner/name: which language is it in"),
    ],
)
def test_an_entry_that_cannot_be_is_named_before_anything_is_read(
    entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_sources([entry], "options.train")
    with pytest.raises(RecipeError, match=r"options\.train is empty"):
        parse_sources([], "options.train")


def test_weights_of_source_and_language_are_multiplied() -> None:
    source = DataSource(path="x", weight=2.0, language_weights={"hi": 1.5})
    assert [source.weight_of(Clip(Path("a"), "a", code)) for code in ("hi", "en")] == [3.0, 2.0]
