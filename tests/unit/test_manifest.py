from __future__ import annotations

import json
from pathlib import Path

import pytest

from canvas_asr.errors import DataError
from canvas_asr.manifest import Clip, read_manifest, write_manifest

LINE = {"audio": "a.wav", "text": "hi", "language": "en"}


def write(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "manifest.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_a_manifest_is_read_in_order_with_paths_against_its_folder(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {**LINE, "audio": "sub/a.wav", "speaker": "kerstin", "duration": 1.5, "split": "test", "more": 1},
        "",
        {"audio_filepath": "/data/b.flac", "text": "", "language": "zh"},
        {**LINE, "phonemes": [["", 0], ["h", 0.25]], "source": "fleurs", "seen_speaker": False},
    )
    folder = tmp_path.resolve()
    assert read_manifest(path) == [
        Clip(folder / "sub/a.wav", "hi", "en", "kerstin", 1.5, "test"),
        Clip(Path("/data/b.flac"), "", "zh"),
        Clip(
            folder / "a.wav",
            "hi",
            "en",
            source="fleurs",
            seen_speaker=False,
            phonemes=(("", 0.0), ("h", 0.25)),
        ),
    ]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    clips = [
        Clip(folder / "audio" / "ü.wav", "Grüß Gott.", "de", "s", 2.125, "train", "x", True, (("ɡ", 0.1),)),
        Clip(folder.parent / "b.wav", "यह एक \u2028 दिन", "hi"),
    ]
    path = folder / "manifest.jsonl"
    write_manifest(path, clips)
    assert read_manifest(path) == [
        clips[0],
        Clip(folder / ".." / "b.wav", clips[1].text, "hi"),
    ]
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:2])
    assert first["audio"] == "audio/ü.wav"
    assert second == {"audio": "../b.wav", "text": clips[1].text, "language": "hi"}
    assert "Grüß" in path.read_text(encoding="utf-8")
    assert [p.name for p in folder.iterdir()] == ["manifest.jsonl"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(LINE), encoding="utf-8-sig")
    assert len(read_manifest(path)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ({"text": "a", "language": "en"}, r"key 'audio' \(or 'audio_filepath'\) is missing"),
        ({**LINE, "audio": ""}, "key 'audio' is empty"),
        ({**LINE, "audio": 3}, "key 'audio' must be a string, got 3"),
        ({"audio": "a.wav", "language": "en"}, "key 'text' is missing"),
        ({**LINE, "text": None}, "key 'text' must be a string, got None"),
        ({"audio": "a.wav", "text": "a"}, "key 'language' is missing"),
        ({**LINE, "language": "it"}, "key 'language' is 'it': use one of en, de, fr, es, hi, zh"),
        ({**LINE, "duration": -1}, "key 'duration' must be seconds >= 0, got -1"),
        ({**LINE, "duration": "1 s"}, "key 'duration'"),
        ({**LINE, "duration": True}, "key 'duration'"),
        ('{"audio": "a", "text": "", "language": "en", "duration": NaN}', "key 'duration'"),
        ({**LINE, "speaker": 3}, "key 'speaker' must be of type str, got 3"),
        ({**LINE, "seen_speaker": "no"}, "key 'seen_speaker' must be of type bool"),
        ({**LINE, "phonemes": [["a"]]}, "key 'phonemes' must be a list"),
        ({**LINE, "phonemes": [["a", "soon"]]}, "key 'phonemes' must be a list"),
        ({**LINE, "phonemes": 3}, "key 'phonemes' must be a list"),
    ],
)
def test_a_bad_line_is_named_by_file_number_and_key(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path, LINE, line)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        read_manifest(tmp_path)
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"audio": "a", "text": "für"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl: not UTF-8"):
        read_manifest(path)
