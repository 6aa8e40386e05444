"""Raw lines of an evaluation: kept as they come, read again, and not mixed with those of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from canvas_asr.errors import DataError
from canvas_asr.evaluation.store import Line, Store, write_manifests


def line(place: int = 0, **changes: Any) -> Line:
    fields: dict[str, Any] = {
        "model": "owner/model",
        "testset": "set",
        "mode": "draft",
        "condition": "clean",
        "place": place,
        "audio": f"{place}.wav",
        "reference_audio": f"{place}.wav",
        "language": "hi",
        "speakers": "seen",
        "detected": "",
        "reference": "एक\u2028दो",  # a character that some take for the end of a line
        "hypothesis": "एक",
        "passes": 0,
        "truncated": False,
        "too_long": False,
        "audio_s": 1.5,
        "seconds": 0.5,
        "options": {"init": "draft", "steps": 0},
        "shuffled": False,
        "language_given": False,
        "seed": 0,
    }
    return Line(**(fields | changes))


def test_lines_are_read_again(tmp_path: Path) -> None:
    Store(tmp_path / "new").add([line(0), line(1)])
    store = Store(tmp_path / "new")
    store.add([line(2)])
    assert list(Store(tmp_path / "new")) == [line(0), line(1), line(2)]
    assert len(store) == 3


def test_nothing_is_made_before_there_is_a_line(tmp_path: Path) -> None:
    assert list(Store(tmp_path / "new")) == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("n_kept", [0, 1])
def test_an_unfinished_last_line_is_dropped(tmp_path: Path, n_kept: int) -> None:
    Store(tmp_path).add([line(i) for i in range(n_kept + 1)])
    path = tmp_path / "hypotheses.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    store = Store(tmp_path)
    assert len(store) == n_kept
    store.add([line(5)])
    assert [one.place for one in Store(tmp_path)] == [*range(n_kept), 5]


def test_half_a_character_at_the_end_is_dropped_too(tmp_path: Path) -> None:
    Store(tmp_path).add([line(0), line(1)])
    path = tmp_path / "hypotheses.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("क".encode()) + 1])
    assert list(Store(tmp_path)) == [line(0)]
    assert path.read_bytes() == content[: content.index(b"\n") + 1]


def test_lines_of_an_earlier_version_say_nothing_of_the_machine(tmp_path: Path) -> None:
    Store(tmp_path).add([line(0, setup="a machine; batch 8")])
    path = tmp_path / "hypotheses.jsonl"
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert entry.pop("setup") == next(iter(Store(tmp_path))).setup == "a machine; batch 8"
    path.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    assert next(iter(Store(tmp_path))).setup == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "m"}'])
def test_a_damaged_line_is_named(tmp_path: Path, text: str) -> None:
    Store(tmp_path).add([line(0)])
    with (tmp_path / "hypotheses.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(DataError, match=r"hypotheses\.jsonl:2: is not a line of this evaluation"):
        Store(tmp_path)


def test_what_is_there_is_known_unless_it_differs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add([line(0)])
    wanted = vars(line(0))
    assert store.has(wanted)
    assert not store.has(wanted | {"place": 1})
    assert not store.has(wanted | {"condition": "noise-5"})
    for name, value in (("reference", "other"), ("audio", "9.wav"), ("options", {}), ("seed", 1)):
        with pytest.raises(DataError, match=f"made with another {name} .*clip 0 of set; give another --out"):
            store.has(wanted | {name: value})
    with pytest.raises(DataError, match="made with another reference"):  # of another model, on the same clip
        store.has(wanted | {"model": "other", "reference": "other"})


def test_the_leaderboard_gets_its_own_names_and_keys(tmp_path: Path) -> None:
    write_manifests([line(0), line(1), line(0, mode="steps=1")], tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "MODEL_owner-model_DATASET_set_hi_draft_clean.jsonl",
        "MODEL_owner-model_DATASET_set_hi_steps=1_clean.jsonl",
    }
    lines = (tmp_path / "MODEL_owner-model_DATASET_set_hi_draft_clean.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(text) for text in lines.strip().split("\n")]
    assert [entry["audio_filepath"] for entry in entries] == ["0.wav", "1.wav"]
    keys = ("duration", "time", "text", "pred_text")
    assert tuple(entries[0][key] for key in keys) == (1.5, 0.5, line().reference, "एक")
