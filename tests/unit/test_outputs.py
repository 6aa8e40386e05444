"""Names that never collide, one run a file, and files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path, PurePath
from typing import Any

import pytest

from canvas_asr import outputs
from canvas_asr.errors import OptionError
from canvas_asr.outputs import MARKS, Claim, OutputFolder, output_names
from canvas_asr.result import Transcript
from canvas_asr.subtitles import Layout

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -e '.[dev]'")
st = hypothesis.strategies


def names(*paths: str, root: str = "/data") -> list[str]:
    """Names of files that were found in one folder."""
    return output_names([(Path(root, path), PurePath(path)) for path in paths])


def given(*paths: str) -> list[str]:
    """Names of files that were named one by one."""
    return output_names([(Path(path), PurePath(path).relative_to(PurePath(path).parent)) for path in paths])


def test_a_name_is_the_path_without_its_suffix() -> None:
    assert names("talk.mp3", "sub/talk.mp3", "a.b.wav", "none") == ["talk", "sub/talk", "a.b", "none"]
    assert names() == []


def test_suffixes_stay_where_two_files_differ_in_them_alone() -> None:
    assert names("a.wav", "a.mp3", "b.wav") == ["a.wav", "a.mp3", "b"]
    assert names("a.wav", "a.mp3", "a.wav.flac") == ["a.wav", "a.mp3", "a.wav.flac"]
    assert names("A.wav", "a.mp3") == ["A.wav", "a.mp3"]  # one file where case does not count


def test_folders_stay_where_two_files_of_the_same_name_come_from_two() -> None:
    assert given("/x/m/a.wav", "/x/n/a.wav", "/x/n/b.wav") == ["m/a.wav", "n/a.wav", "b"]


@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(["", "x/", "y/", "x/y/"]), st.text("aAb.", min_size=1, max_size=5)),
        unique=True,
        max_size=12,
    ),
    st.booleans(),
)
@hypothesis.settings(max_examples=150, deadline=None, database=None)
def test_no_two_files_share_a_name(parts: list[tuple[str, str]], one_by_one: bool) -> None:
    paths = [folder + name for folder, name in parts if name.strip(".")]
    found = given(*[f"/data/{path}" for path in paths]) if one_by_one else names(*paths)
    assert len(set(found)) == len(paths)
    assert not any(PurePath(name).is_absolute() or ".." in PurePath(name).parts for name in found)


# Claims


def transcript(text: str = "Hello.") -> Transcript:
    return Transcript(text, "en", 1.0, (), 0.9, 8, 2.0, 0.1)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    path.write_bytes(b"12345")
    return path


def folder(tmp_path: Path, *formats: str, **options: Any) -> OutputFolder:
    made = OutputFolder(tmp_path / "out", formats or ("txt", "srt"), Layout(), **options)
    made.prepare()
    return made


def finish(out: OutputFolder, audio: Path, text: str = "Hello.", name: str = "talk") -> Claim:
    claim = out.claim(name, audio)
    if claim.verdict == "taken":
        out.write(claim, transcript(text))
        claim.release()
    return claim


def seen(out: OutputFolder) -> list[str]:
    """Every file of the folder but for marks."""
    found = [path for path in out.folder.rglob("*") if path.is_file()]
    kept = [path for path in found if MARKS not in path.parts or path.suffix != ".json"]
    return sorted(path.relative_to(out.folder).as_posix() for path in kept)


def test_outputs_are_written_in_subfolders_too(tmp_path: Path, audio: Path) -> None:
    out = folder(tmp_path)
    finish(out, audio, name="sub/deeper/talk")
    assert seen(out) == ["sub/deeper/talk.srt", "sub/deeper/talk.txt"]
    assert (out.folder / "sub/deeper/talk.txt").read_text() == "Hello.\n"


def test_one_run_at_a_time_has_a_file(tmp_path: Path, audio: Path) -> None:
    first, second = folder(tmp_path), folder(tmp_path, overwrite=True)
    claim = first.claim("talk", audio)
    assert claim.verdict == "taken"
    assert second.claim("talk", audio).verdict == "busy"
    assert second.claim("other", audio).verdict == "taken"
    claim.release()
    assert second.claim("talk", audio).verdict == "taken"


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path, audio: Path) -> None:
    finish(folder(tmp_path), audio, "First.")
    again = folder(tmp_path)
    with pytest.raises(OptionError, match=r"talk\.txt: exists already \(2 of 4 outputs do\); --resume"):
        again.check_free(["talk", "other"])
    assert finish(again, audio, "Second.").verdict == "refused"
    assert (again.folder / "talk.txt").read_text() == "First.\n"
    replacing = folder(tmp_path, overwrite=True)
    replacing.check_free(["talk"])
    assert finish(replacing, audio, "Third.").verdict == "taken"
    assert (again.folder / "talk.txt").read_text() == "Third.\n"


def test_resuming_passes_over_what_is_done_and_adds_formats(tmp_path: Path, audio: Path) -> None:
    finish(folder(tmp_path), audio, "First.")
    assert finish(folder(tmp_path, resume=True), audio, "Second.").verdict == "done"
    claim = finish(folder(tmp_path, "txt", "vtt", resume=True), audio, "Third.")
    assert claim.outputs == ("talk.vtt",)
    out = tmp_path / "out"
    assert (out / "talk.txt").read_text() == "First.\n"
    assert "Third." in (out / "talk.vtt").read_text()


def test_resuming_takes_no_other_file_for_done(tmp_path: Path, audio: Path) -> None:
    finish(folder(tmp_path), audio)
    other = tmp_path / "talk.mp3"
    other.write_bytes(b"12345")
    claim = finish(folder(tmp_path, resume=True), other)
    assert claim.verdict == "refused"
    assert claim.reason == f"{tmp_path}/out/talk.txt is of another file, {audio}; --overwrite replaces it"
    audio.write_bytes(b"123456")  # recorded anew
    assert finish(folder(tmp_path, resume=True), audio).verdict == "refused"


def test_resuming_leaves_notes_of_the_user_alone(tmp_path: Path, audio: Path) -> None:
    out = folder(tmp_path, resume=True)
    (out.folder / "talk.txt").write_text("my notes")
    claim = finish(out, audio)
    assert claim.verdict == "refused"
    assert "is not known to be of this file" in claim.reason
    assert seen(out) == ["talk.txt"]


def test_outputs_without_marks_are_done(tmp_path: Path, audio: Path) -> None:
    out = folder(tmp_path, resume=True)
    finish(out, audio)
    (out.folder / MARKS / "talk.json").unlink()
    assert finish(out, audio).verdict == "done"


def test_what_a_run_that_died_left_is_done_anew(
    tmp_path: Path, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder(tmp_path, resume=True)
    replace = Path.replace

    def die_after_the_first(self: Path, target: Path) -> Path:
        if target.suffix == ".srt":
            raise KeyboardInterrupt
        return replace(self, target)

    claim = out.claim("talk", audio)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            out.write(claim, transcript("First."))
    claim.release()
    assert seen(out) == ["talk.txt"]
    assert finish(out, audio, "Second.").verdict == "taken"
    assert (out.folder / "talk.txt").read_text() == "Second.\n"
    assert seen(out) == ["talk.srt", "talk.txt"]


def test_a_mark_cut_off_counts_for_nothing(tmp_path: Path, audio: Path) -> None:
    out = folder(tmp_path, resume=True)
    (out.folder / MARKS / "talk.json").write_text('{"file": "ta')
    assert finish(out, audio).verdict == "taken"
    mark = json.loads((out.folder / MARKS / "talk.json").read_text())
    assert mark == {
        "file": str(audio),
        "of": ["talk.wav", 5],
        "outputs": ["talk.txt", "talk.srt"],
        "done": True,
    }


@pytest.mark.parametrize("fails_at", ["talk.txt.partial", "talk.srt.partial"])
def test_a_full_disk_leaves_nothing_half(
    fails_at: str, tmp_path: Path, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder(tmp_path)
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(fails_at):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(outputs.os, "fsync", full)
    claim = out.claim("talk", audio)
    with pytest.raises(OSError, match="No space left"):
        out.write(claim, transcript())
    claim.release()
    assert seen(out) == []


@pytest.mark.parametrize("where", ["file/out", "/proc/out"])
def test_a_folder_that_cannot_be_written_is_named(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = OutputFolder(tmp_path / where, ("txt",), Layout())
    with pytest.raises(OptionError, match=r"out: nothing can be written there \(.+\); choose another"):
        out.prepare()
