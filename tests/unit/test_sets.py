"""Which sets an evaluation reads: folders of test sets, manifests, sets of the hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hub_data import write_librispeech

from canvas_asr import hub_sets
from canvas_asr.errors import DataError, OptionError
from canvas_asr.evaluation.index import file_sha256
from canvas_asr.evaluation.sets import load_clip, read_sets
from canvas_asr.manifest import Clip, write_manifest


def manifest(path: Path, n_clips: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path.parent / "a.wav", np.full(800, 0.1, np.float32), 16_000)
    write_manifest(path, [Clip(path.parent / "a.wav", f"text {i}", "de") for i in range(n_clips)])
    return path


@pytest.fixture
def testsets(tmp_path: Path) -> Path:
    sets = {}
    for name in ("one", "two"):
        path = manifest(tmp_path / "testsets" / name / "manifest.jsonl")
        sets[name] = {"sha256": file_sha256(path)}
    (tmp_path / "testsets" / "testsets.json").write_text(json.dumps({"sets": sets}))
    return tmp_path / "testsets"


def test_manifests_are_named_by_file_or_folder(tmp_path: Path) -> None:
    plain = manifest(tmp_path / "german.jsonl")
    folder = manifest(tmp_path / "spanish" / "manifest.jsonl", 3).parent
    sets, facts = read_sets(None, [], [str(plain), str(folder)])
    assert {name: len(clips) for name, clips in sets.items()} == {"german": 2, "spanish": 3}
    assert facts["german"] == {"sha256": file_sha256(plain), "n_clips": 2}
    assert len(load_clip(sets["german"][0])) == 800


def test_folders_of_test_sets(testsets: Path) -> None:
    assert list(read_sets(testsets, [], [])[0]) == ["one", "two"]
    assert list(read_sets(testsets, ["two"], [])[0]) == ["two"]
    with pytest.raises(
        OptionError, match=r"--set .*testsets: is a folder of test sets; give it as --testsets"
    ):
        read_sets(None, [], [str(testsets)])


def test_what_cannot_be_is_one_error(testsets: Path, tmp_path: Path) -> None:
    one = str(testsets / "one")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    for arguments, message in (
        ((None, [], []), "nothing to evaluate on"),
        ((None, ["one"], []), "--sets: chooses from a folder of test sets; give --testsets"),
        ((testsets, ["three"], []), "--sets: no test set 'three': use some of one, two"),
        ((testsets, [], [one]), "there is a set 'one' already"),
        ((None, [], ["librespeech"]), "neither a manifest nor one of librispeech, fleurs, voxpopuli"),
    ):
        with pytest.raises(OptionError, match=message):
            read_sets(*arguments)
    with pytest.raises(DataError, match="set 'empty': has no clips"):
        read_sets(None, [], [str(empty)])
    with pytest.raises(DataError, match=r"nowhere\.jsonl: there is no such manifest"):
        read_sets(None, [], [str(tmp_path / "nowhere.jsonl")])


def test_a_set_of_the_hub_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_librispeech(tmp_path / "librispeech")
    layout = replace(hub_sets.HUB_SETS["librispeech"], name=str(folder))
    monkeypatch.setitem(hub_sets.HUB_SETS, "librispeech", layout)
    config = next(path.name for path in folder.iterdir() if path.is_dir())
    sets, facts = read_sets(None, [], [f"librispeech/{config}@validation"])
    ((name, clips),) = sets.items()
    assert name == f"librispeech-{config}-validation"
    assert {clip.language for clip in clips} == {"en"}
    assert clips[0].text == "good morning my friend"
    assert len(load_clip(clips[0])) == round(0.6 * 16_000)
    assert facts[name]["split"] == "validation"
    with pytest.raises(DataError, match="cannot be loaded"):
        read_sets(None, [], [f"librispeech/{config}@nowhere"])
