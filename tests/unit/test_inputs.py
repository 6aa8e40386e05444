"""Files, folders and lists as arguments."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from canvas_asr.cli.inputs import find_inputs, take_shard
from canvas_asr.cli.output_options import formats, shard
from canvas_asr.errors import DataError, OptionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.MP3", "sub/c.mkv", "sub/.d.wav", ".hidden/e.wav", "notes.txt", "f.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "in"


def test_a_folder_is_searched_in_order_and_what_is_no_audio_is_counted(folder: Path) -> None:
    found = find_inputs([str(folder)])
    assert [one.path for one in found.files] == [
        f"{folder}/{name}" for name in ("a.MP3", "b.wav", "sub/c.mkv")
    ]
    assert [str(one.below) for one in found.files] == ["a.MP3", "b.wav", "sub/c.mkv"]
    assert found.n_others == 2


def test_a_file_that_is_named_is_taken_as_it_is(folder: Path) -> None:
    named = [str(folder / "notes.txt"), "missing.wav", str(folder / "sub/.d.wav")]
    found = find_inputs(named)
    assert [one.path for one in found.files] == named
    assert [str(one.below) for one in found.files] == ["notes.txt", "missing.wav", ".d.wav"]


def test_a_list_needs_nothing_but_audio(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"audio": "in/b.wav"},
        {"audio_filepath": "/elsewhere/x.flac", "text": "", "language": "xx", "offset": 0},
        {"audio": "../y.wav", "duration": 3.0},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    found = find_inputs([str(path)])
    assert [str(one.below) for one in found.files] == ["in/b.wav", "x.flac", "y.wav"]
    assert [str(one.absolute) for one in found.files] == [
        f"{folder}/b.wav",
        "/elsewhere/x.flac",
        f"{tmp_path.parent}/y.wav",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', r"list\.jsonl:1: key 'audio' \(or 'audio_filepath'\) is missing"),
        ('{"audio": "a.wav", "offset": 3.5}', r"list\.jsonl:1: key 'offset' means a part of a file"),
        ("a.wav", r"list\.jsonl:1: not JSON"),
    ],
)
def test_a_bad_list_is_named_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        find_inputs([str(tmp_path / "list.jsonl")])


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(OptionError, match="is a directory in which no file has the name of audio"):
        find_inputs([str(tmp_path)])


def test_a_file_that_stands_there_twice_is_written_once(folder: Path) -> None:
    found = find_inputs([str(folder / "b.wav"), str(folder), str(folder / "sub/../b.wav")]).distinct()
    assert [Path(one.path).name for one in found.files] == ["b.wav", "a.MP3", "c.mkv"]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shards_are_the_whole_list_once(n: int, folder: Path) -> None:
    files = find_inputs([str(folder)] * 2).files
    parts = [take_shard(files, (i, n)) for i in range(1, n + 1)]
    assert sorted(place for part in parts for place in part) == list(range(6)) == take_shard(files, None)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/", "-1/2", "1/2/3", "²/3"])
def test_a_bad_shard_is_wrong_usage(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not i/n"):
        shard(text)


def test_formats_are_named_with_commas() -> None:
    assert formats("srt,json,srt") == ("srt", "json")
    assert formats("all") == ("txt", "srt", "vtt", "tsv", "json")
    with pytest.raises(argparse.ArgumentTypeError, match="'lrc' is no format; choose of txt, srt"):
        formats("srt,lrc")
