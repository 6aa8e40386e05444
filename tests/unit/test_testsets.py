"""Manifests read strictly, and test sets that are the same for the same seed and hold what they must."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from canvas_asr.errors import DataError
from canvas_asr.evaluation import testsets
from canvas_asr.evaluation.index import read_testsets
from canvas_asr.evaluation.testsets import build_real, build_synthetic, choose_sentences, split_real
from canvas_asr.manifest import Clip, read_manifest, write_manifest

LINE = {"audio": "a.wav", "text": "hi", "language": "en"}


def write_lines(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n", encoding="utf-8"
    )
    return path


def tone(path: Path, seconds: float = 0.1, rate_hz: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    sf.write(path, (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), rate_hz)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Three sources: one with seen and unseen speakers, a public benchmark, and one for training only."""
    root = tmp_path / "real"
    sources = {
        "digits": [("anna", "train"), ("anna", "test"), ("theo", "test"), ("bert", None)],
        "librispeech_part": [("l1", "train"), ("l2", "test")],
        "words": [("w", "train")],
    }
    for source, clips in sources.items():
        lines = []
        for i, (speaker, split) in enumerate(clips):
            tone(root / source / "audio" / f"{i}.wav", seconds=0.1 * (i + 1))
            line = {"audio": f"audio/{i}.wav", "text": f"{source} {i}", "language": "en", "speaker": speaker}
            lines.append(line if split is None else line | {"split": split})
        write_lines(root / source / "manifest.jsonl", *lines)
    return root


def test_manifest_of_both_kinds(tmp_path):
    path = write_lines(
        tmp_path / "m.jsonl",
        LINE
        | {"speaker": "s", "duration": 1.5, "split": "test", "other": 1, "phonemes": [["h", 0], ["", 0.1]]},
        "",
        {"audio_filepath": "/abs/b.wav", "text": "", "language": "zh", "duration": 2},
        {"audio": "c.wav", "text": "line\u2028separator", "language": "de"},
    )
    first, second, third = read_manifest(path)
    assert first == Clip(tmp_path / "a.wav", "hi", "en", "s", 1.5, "test", phonemes=(("h", 0.0), ("", 0.1)))
    assert second == Clip(Path("/abs/b.wav"), "", "zh", duration_s=2.0)
    assert third.text == "line\u2028separator"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"m\.jsonl:2: not JSON"),
        ("[1]", r"m\.jsonl:2: expected a JSON object, found list"),
        ({"text": "a", "language": "en"}, r"m\.jsonl:2: key 'audio' \(or 'audio_filepath'\) is missing"),
        ({"audio": "", "text": "a", "language": "en"}, r"m\.jsonl:2: key 'audio' is empty"),
        (
            {"audio_filepath": 3, "text": "a", "language": "en"},
            r"m\.jsonl:2: key 'audio_filepath' must be a string",
        ),
        ({"audio": "a", "language": "en"}, r"m\.jsonl:2: key 'text' is missing"),
        (
            {"audio": "a", "text": None, "language": "en"},
            r"m\.jsonl:2: key 'text' must be a string, got None",
        ),
        ({"audio": "a", "text": "a"}, r"m\.jsonl:2: key 'language' is missing"),
        (LINE | {"language": "xx"}, r"m\.jsonl:2: key 'language' is 'xx': use one of en, de"),
        (LINE | {"duration": "1"}, r"m\.jsonl:2: key 'duration' must be seconds >= 0, got '1'"),
        (LINE | {"duration": -1}, r"m\.jsonl:2: key 'duration'"),
        (LINE | {"duration": True}, r"m\.jsonl:2: key 'duration'"),
        (LINE | {"speaker": 5}, r"m\.jsonl:2: key 'speaker' must be of type str, got 5"),
        (LINE | {"seen_speaker": "yes"}, r"m\.jsonl:2: key 'seen_speaker' must be of type bool"),
        (LINE | {"phonemes": ["h"]}, r"m\.jsonl:2: key 'phonemes'"),
    ],
)
def test_bad_line_names_file_line_and_key(tmp_path, line, message):
    path = write_lines(tmp_path / "m.jsonl", LINE, line)
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_unreadable_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read the manifest"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(DataError, match=r"latin\.jsonl: not UTF-8"):
        read_manifest(tmp_path / "latin.jsonl")


def test_manifest_round_trip_with_relative_paths(tmp_path):
    folder = tmp_path.resolve()
    clip = Clip(folder / "x" / "a.flac", "हिन्दी", "hi", "v", 1.25, "test", "s", True, (("ɦ", 0.1),))
    write_manifest(folder / "out.jsonl", [clip])
    assert json.loads((folder / "out.jsonl").read_text(encoding="utf-8"))["audio"] == "x/a.flac"
    assert read_manifest(folder / "out.jsonl") == [clip]
    assert not list(folder.glob("*.partial"))


def test_real_sources_are_split_and_speakers_marked(real):
    tests, training = split_real(real)
    assert list(tests) == ["digits", "librispeech_part"]
    assert [(c.speaker, c.seen_speaker) for c in tests["digits"]] == [("anna", True), ("theo", False)]
    assert [(c.speaker, c.split, c.seen_speaker) for c in tests["librispeech_part"]] == [
        ("l1", "test", False),
        ("l2", "test", False),
    ]
    assert [(c.source, c.speaker, c.split) for c in training] == [
        ("digits", "anna", "train"),
        ("digits", "bert", "train"),
        ("words", "w", "train"),
    ]
    heard = {c.audio for clips in tests.values() for c in clips}
    assert heard.isdisjoint(c.audio for c in training)


def test_same_speaker_name_in_another_source_is_not_seen(tmp_path):
    write_lines(tmp_path / "a" / "manifest.jsonl", LINE | {"speaker": "x", "split": "train"})
    write_lines(tmp_path / "b" / "manifest.jsonl", LINE | {"speaker": "x", "split": "test"})
    assert split_real(tmp_path)[0]["b"][0].seen_speaker is False


def test_nameless_speaker_is_unknown_where_the_source_is_trained_on(tmp_path):
    write_lines(tmp_path / "a" / "manifest.jsonl", LINE | {"split": "train"}, LINE | {"split": "test"})
    write_lines(tmp_path / "b" / "manifest.jsonl", LINE | {"split": "test"})
    tests, _ = split_real(tmp_path)
    assert tests["a"][0].seen_speaker is None
    assert tests["b"][0].seen_speaker is False


def test_root_without_sources_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder with a manifest\.jsonl"):
        split_real(tmp_path)


def test_real_audio_is_written_at_16_khz(real, tmp_path):
    out, index = tmp_path / "out", {}
    build_real(split_real(real)[0], out, index)
    sets = read_testsets(out)
    clip = sets["digits"][0]
    samples, rate_hz = sf.read(clip.audio)
    assert (rate_hz, sf.info(clip.audio).format) == (16_000, "FLAC")
    assert len(samples) == pytest.approx(3200, abs=2)
    assert clip.duration_s == pytest.approx(0.2, abs=1e-3)
    assert index["digits"]["n_clips"] == 2


def say(text, language, rng):
    """One sample count a text, drawn from the generator; "unsayable" cannot be said."""
    if text == "unsayable":
        return None
    samples = rng.uniform(-0.1, 0.1, size=int(rng.integers(100, 200))).astype(np.float32)
    return samples, Clip(Path(), text, language, "voice", split="test", seen_speaker=False)


SENTENCES = {"en": ["one", "two", "unsayable", "three", "four", "two"], "de": ["eins", "zwei", "drei"]}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def build(out: Path, sentences=SENTENCES, n: int = 2, seed: int = 0, voices: str = "v", index=None) -> None:
    build_synthetic(sentences, say, out, {} if index is None else index, n=n, seed=seed, voices=voices)


def test_synthetic_set_depends_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(tmp_path / name, seed=seed)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b") != snapshot(tmp_path / "c")
    clips = read_testsets(tmp_path / "a")["synthetic"]
    assert [clip.language for clip in clips] == ["en", "en", "de", "de"]
    assert len({clip.text for clip in clips}) == 4


def test_synthetic_clips_stay_when_other_sentences_come_and_go():
    full = choose_sentences([str(i) for i in range(100)], seed=3)
    assert sorted(full) == sorted(str(i) for i in range(100))
    assert full != sorted(full)
    assert choose_sentences([str(i) for i in range(99, 49, -1)], seed=3) == [t for t in full if int(t) >= 50]


def test_too_few_sayable_sentences(tmp_path):
    with pytest.raises(DataError, match="only 4 unseen en sentences can be said, 5 are wanted"):
        build(tmp_path, n=5)


def test_building_again_touches_nothing(tmp_path, monkeypatch):
    index = {}
    build(tmp_path, index=index)
    before = snapshot(tmp_path)
    monkeypatch.setattr(testsets, "_store", lambda *args: pytest.fail("built again"))
    build(tmp_path, index=index)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("damage", ["audio missing", "manifest changed", "other n", "other voices"])
def test_what_is_missing_or_changed_is_built_again(tmp_path, damage):
    index: dict = {}
    build(tmp_path, index=index)
    good = snapshot(tmp_path)
    audio = sorted((tmp_path / "synthetic" / "audio").glob("*.flac"))
    if damage == "audio missing":
        audio[0].unlink()
    elif damage == "manifest changed":
        (tmp_path / "synthetic" / "manifest.jsonl").write_text("")
    elif damage == "other n":
        build(tmp_path, index=index, n=1)
        assert len(list((tmp_path / "synthetic" / "audio").glob("*.flac"))) == 2
    else:
        build(tmp_path, index=index, voices="w")
        good_inputs = json.loads(good["testsets.json"])["sets"]["synthetic"]["inputs"]
        assert index["synthetic"]["inputs"] != good_inputs
    build(tmp_path, index=index)
    assert snapshot(tmp_path) == good


def test_changed_manifest_is_not_read_as_the_fixed_set(tmp_path):
    build(tmp_path)
    manifest = tmp_path / "synthetic" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("eins", "nein").replace("zwei", "nein"))
    with pytest.raises(DataError, match=r"changed since .*testsets\.json was written"):
        read_testsets(tmp_path)


def test_missing_and_malformed_index(tmp_path):
    with pytest.raises(DataError, match=r"testsets\.json: cannot be read .*build the test sets"):
        read_testsets(tmp_path)
    (tmp_path / "testsets.json").write_text('{"sets": [1]}')
    with pytest.raises(DataError, match="is not an index of test sets"):
        read_testsets(tmp_path)


def test_command_builds_everything(real, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(testsets, "_held_out_voices", lambda: (say, "v"))
    lists = tmp_path / "text"
    lists.mkdir()
    for language in ("en", "de", "fr", "es"):
        (lists / f"{language}.txt").write_text(
            "".join(f"word{'abcdefghij'[i % 10] * (i + 1)}.\n" for i in range(600))
        )
    (lists / "hi.txt").write_text("".join("क" * (i + 1) + "\n" for i in range(600)), encoding="utf-8")
    (lists / "zh.txt").write_text("".join("中" * (i + 1) + "\n" for i in range(600)), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["--sentences", str(lists), "--real", str(real), "--out", str(out), "--n", "1"]
    assert testsets.main(arguments) == 0
    assert list(read_testsets(out)) == ["synthetic", "digits", "librispeech_part"]
    assert len(read_manifest(out / "train_real.jsonl")) == 3
    assert "librispeech_part" in capsys.readouterr().out
    before = snapshot(out)
    assert testsets.main(arguments) == 0
    assert snapshot(out) == before


def test_command_reports_a_wrong_folder_in_one_line(tmp_path, capsys):
    arguments = ["--sentences", str(tmp_path), "--real", str(tmp_path), "--out", str(tmp_path / "out")]
    assert testsets.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
