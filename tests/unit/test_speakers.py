"""Speaker turns: RTTM files, callables, and segments joined with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from made_up_clips import tones

from canvas_asr.errors import AudioError, DataError, OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Segment, Token, Transcript, Word
from canvas_asr.speakers import Speakers, Turn, join_speakers, read_rttm
from canvas_asr.transcriber import Transcriber

RTTM = """\
;; made by hand
SPKR-INFO meeting 1 <NA> <NA> <NA> unknown bob <NA>
SPEAKER meeting 1 2.50 1.25 <NA> <NA> bob <NA> <NA>

SPEAKER meeting 1 0.00 2.00 <NA> <NA> ann <NA> <NA>
"""


def words(*spans: tuple[str, float, float]) -> tuple[Word, ...]:
    return tuple(Word(text, start, end, 0.5) for text, start, end in spans)


def segment(*spans: tuple[str, float, float], start: float = 0.0, end: float = 10.0) -> Segment:
    """A segment whose tokens are its words, or half words."""
    text = " ".join(word for word, _, _ in spans)
    pieces = [piece for word, _, _ in spans for piece in (f" {word[:1]}", word[1:]) if piece]
    pieces[0] = pieces[0].lstrip()
    tokens = tuple(Token(20 + k, piece, (k % 99 + 1) / 100) for k, piece in enumerate(pieces))
    assert "".join(token.text for token in tokens) == text
    return Segment(start, end, text, "en", 0.9, tokens, 0.5, 3, True, words(*spans))


def transcript(*segments: Segment) -> Transcript:
    return Transcript("", "en", 0.9, (), 0.5, 3, 10.0, 0.1, segments=segments)


def spoken(joined: Transcript) -> list[tuple[str | None, str]]:
    return [(one.speaker, one.text) for one in joined.segments]


def rttm(folder: Path, text: str = RTTM) -> Path:
    path = folder / "turns.rttm"
    path.write_text(text, encoding="utf-8")
    return path


# RTTM


def test_turns_of_an_rttm_file_come_by_start(tmp_path: Path) -> None:
    assert read_rttm(rttm(tmp_path)) == [Turn(0.0, 2.0, "ann"), Turn(2.5, 3.75, "bob")]
    assert read_rttm(rttm(tmp_path, "")) == []


def test_of_several_recordings_one_has_to_be_named(tmp_path: Path) -> None:
    path = rttm(tmp_path, RTTM + "SPEAKER call 1 0 1 <NA> <NA> eve\n")
    assert read_rttm(path, "call") == [Turn(0.0, 1.0, "eve")]
    with pytest.raises(DataError, match=r"turns.rttm: turns of several recordings \(meeting, call\)"):
        read_rttm(path)
    with pytest.raises(DataError, match="no turns of the recording 'talk'; it has meeting, call"):
        read_rttm(path, "talk")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SPEAKER meeting 1 0.0 1.0 <NA> <NA>", "7 fields; SPEAKER lines have at least 8"),
        ("SPEAKER meeting 1 zero 1.0 <NA> <NA> ann", "start 'zero' and length '1.0' are no seconds"),
        ("SPEAKER meeting 1 1.0 -2.0 <NA> <NA> ann", "start '1.0' and length '-2.0' are no seconds"),
        ("SPEAKER meeting 1 nan 1.0 <NA> <NA> ann", "start 'nan'"),
        ("0.0 1.0 ann", "no type such as SPEAKER"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=f"turns.rttm, line 6: {message}"):
        read_rttm(rttm(tmp_path, RTTM + line))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.rttm: cannot be read"):
        read_rttm(tmp_path / "no.rttm")
    path = tmp_path / "sound.rttm"
    path.write_bytes(b"RIFF\xff\xfe\x00\x93")
    with pytest.raises(DataError, match=r"sound\.rttm: cannot be read"):
        read_rttm(path)


# Joining


def test_a_segment_without_words_has_the_speaker_of_most_of_it() -> None:
    plain = [Segment(start, start + 2, "a", "en", 1.0, (), 0.5, 1) for start in (0.0, 2.0, 20.0)]
    joined = join_speakers(transcript(*plain), [(0.0, 2.4, "ann"), (2.4, 5.0, "bob"), (3.0, 3.3, "eve")])
    assert [one.speaker for one in joined.segments] == ["ann", "bob", None]
    assert [one.text for one in joined.segments] == ["a"] * 3


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    said = segment(("Yes,", 1.0, 1.4), ("sure.", 1.5, 2.0), ("Why?", 3.0, 3.5), ("Well", 4.0, 4.5))
    joined = join_speakers(
        transcript(said), [Turn(0.0, 2.1, "ann"), Turn(2.5, 3.6, "bob"), Turn(3.6, 5, "ann")]
    )
    assert spoken(joined) == [("ann", "Yes, sure."), ("bob", "Why?"), ("ann", "Well")]
    first, second = joined.segments[:2]
    assert [(one.start, one.end) for one in joined.segments] == [(0.0, 2.0), (3.0, 3.5), (4.0, 10.0)]
    assert "".join(token.text for token in first.tokens) == "Yes, sure."
    assert "".join(token.text for token in second.tokens) == " Why?"
    assert [token for one in joined.segments for token in one.tokens] == list(said.tokens)
    assert [word for one in joined.segments for word in one.words or ()] == list(said.words or ())
    assert second.confidence == pytest.approx((0.05 + 0.06) / 2)
    assert [one.truncated for one in joined.segments] == [False, False, True]


def test_words_in_no_turn_stay_with_the_one_before() -> None:
    said = segment(("um", 0.0, 0.2), ("so", 1.0, 1.2), ("then", 1.5, 1.7), ("no", 2.0, 2.2))
    joined = join_speakers(transcript(said), [Turn(1.0, 1.3, "ann"), Turn(1.9, 3.0, "bob")])
    assert spoken(joined) == [("ann", "um so then"), ("bob", "no")]
    assert spoken(join_speakers(transcript(said), [])) == [(None, "um so then no")]


def test_chinese_is_split_between_characters() -> None:
    spans = (("你", 0.0, 0.3), ("好。", 0.3, 0.6), ("谢", 1.0, 1.2), ("谢！", 1.2, 1.5))
    tokens = tuple(Token(30 + k, text, 0.5) for k, text in enumerate(("你", "好", "。", "谢", "谢", "！")))
    said = Segment(0.0, 2.0, "你好。谢谢！", "zh", 1.0, tokens, 0.5, 1, words=words(*spans))
    joined = join_speakers(transcript(said), [Turn(0.0, 0.8, "ann"), Turn(0.8, 2.0, "bob")])
    assert spoken(joined) == [("ann", "你好。"), ("bob", "谢谢！")]
    assert [len(one.tokens) for one in joined.segments] == [3, 3]


def test_turns_of_a_long_meeting_are_found_among_many() -> None:
    turns = [Turn(k, k + 1.0, f"s{k % 7}") for k in range(2_000)]
    said = segment(*((f"w{k}", k + 0.2, k + 0.8) for k in range(0, 2_000, 40)), end=2_000.0)
    for also in ([], [Turn(1_000.0, 1_990.0, "chair")]):  # overlaps as much as each, and began first or not
        joined = join_speakers(transcript(said), [*turns, *also])
        expected = ["chair" if also and k > 1_000 else f"s{k % 7}" for k in range(0, 2_000, 40)]
        groups = [speaker for k, speaker in enumerate(expected) if k == 0 or speaker != expected[k - 1]]
        assert [one.speaker for one in joined.segments] == groups


@pytest.mark.parametrize("turn", [(2.0, 1.0, "ann"), (0.0, "x", "ann"), (0.0, 1.0), 3, (0.0, 1.0, "")])
def test_what_is_no_turn_is_one_error(turn: object) -> None:
    with pytest.raises(DataError, match=r"turn 1: .* is no \(start, end, speaker\)"):
        join_speakers(transcript(), [(0.0, 1.0, "ann"), turn])  # type: ignore[list-item]


# The hook


def test_a_callable_is_given_all_samples_and_their_rate() -> None:
    heard: list[tuple[tuple[int, ...], int]] = []

    def diarize(samples: np.ndarray, rate: int) -> list[tuple[float, float, str]]:
        heard.append((samples.shape, rate))
        return [(0.0, 1.0, "ann")]

    said = transcript(Segment(0.0, 1.0, "a", "en", 1.0, (), 0.5, 1))
    joined = Speakers(diarize).join(said, np.zeros(8_000, np.float32), 8_000)
    assert heard == [((16_000,), 16_000)]
    assert spoken(joined) == [("ann", "a")]


def test_a_file_has_the_turns_of_its_name(tmp_path: Path) -> None:
    path = rttm(tmp_path, RTTM + "SPEAKER call 1 0 1 <NA> <NA> eve\n")
    said = transcript(Segment(0.0, 1.0, "a", "en", 1.0, (), 0.5, 1))
    assert spoken(Speakers(path).join(said, tmp_path / "call.wav")) == [("eve", "a")]
    with pytest.raises(DataError, match="several recordings"):
        Speakers(path).join(said, tmp_path / "talk.wav")
    assert spoken(Speakers(rttm(tmp_path)).join(said, tmp_path / "talk.wav")) == [("ann", "a")]
    assert Speakers(None).join(said, tmp_path / "talk.wav") is said


def test_several_files_have_the_turns_of_their_names_alone(tmp_path: Path) -> None:
    speakers = Speakers(rttm(tmp_path), by_name=True)
    assert [turn.speaker for turn in speakers.turns(tmp_path / "meeting.wav")] == ["ann", "bob"]
    with pytest.raises(DataError, match=r"turns\.rttm: no turns of the recording 'talk'; it has meeting\."):
        speakers.check(tmp_path / "talk.wav")
    with pytest.raises(DataError, match="an array does not have"):
        speakers.turns((np.zeros(9, np.float32), 16_000))
    assert Speakers.of(speakers, ["meeting.wav"]) is speakers


def test_names_of_a_thousand_recordings_are_not_all_told(tmp_path: Path) -> None:
    lines = "".join(f"SPEAKER r{k} 1 0 1 <NA> <NA> eve\n" for k in range(1_000))
    with pytest.raises(DataError, match=r"it has r0, .*, r7 and 992 others") as caught:
        Speakers(rttm(tmp_path, lines), by_name=True).check("talk.wav")
    assert len(str(caught.value)) < 200 + len(str(tmp_path))


def test_a_folder_has_a_file_for_every_recording(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no RTTM file is in this folder"):
        Speakers(tmp_path)
    (tmp_path / "talk.rttm").write_text(RTTM)
    (tmp_path / "call.rttm").write_text("nonsense")
    (tmp_path / "two.rttm").write_text(RTTM + "SPEAKER two 1 0 1 <NA> <NA> eve\n")
    speakers = Speakers(tmp_path, by_name=True)
    assert [turn.speaker for turn in speakers.turns("audio/talk.mp3")] == ["ann", "bob"]
    assert [turn.speaker for turn in speakers.turns("audio/two.mp3")] == ["eve"]
    speakers.check("talk.wav")
    for source, message in (
        ("none.wav", r": no none\.rttm is in this folder"),
        ("call.wav", r"call\.rttm, line 1: no type"),
        ((np.zeros(9, np.float32), 16_000), "an array does not have"),
    ):
        with pytest.raises(DataError, match=message):
            speakers.check(source)  # type: ignore[arg-type]


def test_segments_are_joined_as_they_come(tmp_path: Path) -> None:
    said = segment(("Yes.", 1.0, 1.4), ("Why?", 3.0, 3.5))
    coming = iter([said, said])
    found = Speakers(rttm(tmp_path)).join_segments(coming, tmp_path / "talk.wav")
    assert (next(found).speaker, next(found).speaker) == ("ann", "bob")
    assert next(coming) is said  # not before it was asked for
    assert Speakers(None).join_segments(coming, "talk.wav") is coming


def test_what_is_neither_callable_nor_file_is_refused() -> None:
    with pytest.raises(OptionError, match="diarize is 3; give a callable, an RTTM file or a folder of them"):
        Speakers(3)  # type: ignore[arg-type]


def test_transcribe_asks_for_speakers_and_refuses_a_bad_file_before_it_reads(
    model: CanvasASRModel, processor: CanvasASRProcessor, tmp_path: Path
) -> None:
    asr = Transcriber(model, processor)
    clip = (tones(1.0, 0), 16_000)
    found = asr.transcribe(clip, steps=1, init="draft", diarize=lambda samples, rate: [(0.0, 1.0, "ann")])
    assert [segment.speaker for segment in found.segments] == ["ann"]
    assert asr.transcribe(clip, steps=1, init="draft", diarize=rttm(tmp_path)).segments[0].speaker == "ann"
    with pytest.raises(DataError, match="an array does not have"):
        asr.transcribe([clip, clip], diarize=rttm(tmp_path))
    with pytest.raises(DataError, match=r"no\.rttm: cannot be read"):
        asr.transcribe(tmp_path / "no.wav", diarize=tmp_path / "no.rttm")


@pytest.fixture
def talks(tmp_path: Path) -> list[Path]:
    """Three files, two of which are in an RTTM file."""
    lines = "".join(f"SPEAKER {name} 1 0 9 <NA> <NA> {name}-ann\n" for name in ("a", "c"))
    rttm(tmp_path, lines)
    paths = [tmp_path / f"{name}.wav" for name in "abc"]
    for seed, path in enumerate(paths):
        sf.write(path, tones(0.5, seed), 16_000)
    return paths


def test_files_that_nobody_told_of_fail_before_they_are_read_and_the_others_are_done(
    model: CanvasASRModel, processor: CanvasASRProcessor, talks: list[Path], tmp_path: Path
) -> None:
    asr = Transcriber(model, processor)
    turns = tmp_path / "turns.rttm"
    first, second, third = asr.transcribe_files(talks, steps=1, init="draft", diarize=turns)
    assert [one.segments[0].speaker for one in (first, third) if isinstance(one, Transcript)] == [
        "a-ann",
        "c-ann",
    ]
    assert isinstance(second, AudioError)
    assert str(second).startswith(
        f"{talks[1]}: who speaks cannot be told: {turns}: no turns of the recording"
    )
    with pytest.raises(DataError, match="recording 'b'"):
        asr.transcribe(list(talks), diarize=turns)
    with pytest.raises(DataError, match=r"none\.rttm: cannot be read"):
        asr.transcribe_files(talks, diarize=tmp_path / "none.rttm")


def test_a_file_that_a_callable_cannot_be_given_fails_alone(talks: list[Path]) -> None:
    def diarize(samples: np.ndarray, rate: int) -> list[Turn]:
        return [Turn(0.0, 1.0, "ann")]

    read = transcript(Segment(0.0, 1.0, "a", "en", 1.0, (), 0.5, 1))
    damaged = replace(read, file=str(talks[0].with_name("gone.wav")))
    assert isinstance(Speakers(diarize).join_or_fail(damaged), AudioError)
    whole = Speakers(diarize).join_or_fail(replace(read, file=str(talks[0])))
    assert isinstance(whole, Transcript)
    assert spoken(whole) == [("ann", "a")]


def test_streamed_segments_have_speakers(
    model: CanvasASRModel, processor: CanvasASRProcessor, talks: list[Path], tmp_path: Path
) -> None:
    asr = Transcriber(model, processor)
    segments = asr.stream_file(talks[0], steps=1, init="draft", diarize=tmp_path / "turns.rttm")
    assert [segment.speaker for segment in segments] == ["a-ann"]
    with pytest.raises(DataError, match="turns of several recordings"):
        asr.stream_file(talks[1], diarize=tmp_path / "turns.rttm")
