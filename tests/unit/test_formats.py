"""Subtitles and tables of transcripts, read back by the libraries that others read them with."""

from __future__ import annotations

import csv
import html
import io
import json
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from canvas_asr.errors import OptionError
from canvas_asr.formats import FORMATS, to_json, to_srt, to_tsv, to_txt, to_vtt
from canvas_asr.result import Segment, Transcript, Word
from canvas_asr.subtitles import MAX_CUE_S, Layout, make_cues, one_line

srt = pytest.importorskip("srt", reason="srt is not installed: pip install -e '.[dev]'")
webvtt = pytest.importorskip("webvtt", reason="webvtt-py is not installed: pip install -e '.[dev]'")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -e '.[dev]'")
st = hypothesis.strategies


def said(text: str, start: float = 0.0, each: float = 0.5) -> tuple[Word, ...]:
    """The words of a text one after the other."""
    return tuple(
        Word(word, start + i * each, start + (i + 1) * each, 0.9) for i, word in enumerate(text.split())
    )


def segment(
    start: float, end: float, text: str, words: tuple[Word, ...] | None = None, **more: Any
) -> Segment:
    return Segment(start, end, text, "en", 1.0, (), 0.9, 8, words=words, **more)


def transcript(*segments: Segment, **more: Any) -> Transcript:
    text = " ".join(one.text for one in segments)
    found = [word for one in segments for word in one.words or ()]
    words = tuple(found) if any(one.words is not None for one in segments) else None
    values = {"words": words, "segments": segments, "audio_s": segments[-1].end if segments else 1.0, **more}
    return Transcript(text, "en", 1.0, (), 0.9, 8, seconds=1.0, **values)


TALK = transcript(
    segment(0.5, 4.0, "Good morning. It is late.", said("Good morning. It is late.", 0.5)),
    segment(3700.25, 3702.0, "<b> & more\tof it", said("<b> & more of it", 3700.25)),
)


def test_srt_as_openai_whisper_writes_it() -> None:
    assert TALK.to_srt() == (
        "1\n00:00:00,500 --> 00:00:01,500\nGood morning.\n\n"
        "2\n00:00:01,500 --> 00:00:03,000\nIt is late.\n\n"
        "3\n01:01:40,250 --> 01:01:42,750\n<b> & more of it\n\n"
    )


def test_vtt_leaves_hours_out_below_one_and_escapes() -> None:
    assert TALK.to_vtt() == (
        "WEBVTT\n\n"
        "00:00.500 --> 00:01.500\nGood morning.\n\n"
        "00:01.500 --> 00:03.000\nIt is late.\n\n"
        "01:01:40.250 --> 01:01:42.750\n&lt;b&gt; &amp; more of it\n\n"
    )


def test_txt_has_a_line_a_segment_and_tsv_a_line_a_cue() -> None:
    assert TALK.to_txt() == "Good morning. It is late.\n<b> & more of it\n"
    assert TALK.to_tsv().splitlines() == [
        "start\tend\ttext",
        "500\t1500\tGood morning.",
        "1500\t3000\tIt is late.",
        "3700250\t3702750\t<b> & more of it",
    ]


def test_json_holds_all_fields_on_one_line() -> None:
    line = TALK.to_json()
    assert "\n" not in line
    assert json.loads(line) == json.loads(json.dumps(TALK.to_dict()))


def test_json_of_a_file_name_that_is_no_text_can_be_written() -> None:
    named = transcript(segment(0.0, 1.0, "नमस्ते"), file="caf\udce9.wav")
    assert "नमस्ते" in to_json(named)
    read = json.loads(to_json(named).encode("utf-8"))
    assert read["file"] == "caf\udce9.wav"
    assert to_json(named, ascii_only=True).isascii()


def test_nothing_said_is_an_empty_file_of_its_format() -> None:
    silent = transcript()
    written = {name: write(silent, Layout()) for name, write in FORMATS.items()}
    assert json.loads(written.pop("json"))["text"] == ""
    assert written == {"txt": "", "srt": "", "vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n"}


def test_without_times_of_words_a_cue_is_a_segment() -> None:
    cues = make_cues(transcript(segment(1.0, 2.0, "One. Two."), segment(4.0, 9.5, "Three.")))
    assert [(cue.start_ms, cue.end_ms, cue.lines) for cue in cues] == [
        (1000, 2000, ("One. Two.",)),
        (4000, 9500, ("Three.",)),
    ]


def test_a_transcript_without_segments_is_one_cue_of_its_audio() -> None:
    bare = Transcript("Hello there.", "en", 1.0, (), 0.9, 8, audio_s=2.5, seconds=1.0)
    assert [(cue.start_ms, cue.end_ms, cue.lines) for cue in make_cues(bare)] == [
        (0, 2500, ("Hello there.",))
    ]
    timed = Transcript(
        "Hi there.", "en", 1.0, (), 0.9, 8, audio_s=2.5, seconds=1.0, words=said("Hi there.", 0.25)
    )
    assert [(cue.start_ms, cue.end_ms) for cue in make_cues(timed)] == [(250, 1250)]


def test_a_long_sentence_is_divided_at_a_comma_near_its_middle() -> None:
    text = "we went a long way up the hill, and then we came all the way down again"
    cues = make_cues(transcript(segment(0.0, 12.0, text, said(text, 0.0, 0.7))))
    assert [cue.lines for cue in cues] == [
        ("we went a long way up the hill,",),
        ("and then we came all the way down again",),
    ]
    assert all(cue.end_ms - cue.start_ms <= 1000 * MAX_CUE_S for cue in cues)


def test_a_pause_begins_a_cue_and_an_abbreviation_does_not() -> None:
    words = (*said("Mr. Fox ran", 0.0, 0.3), *said("away", 6.0))
    cues = make_cues(transcript(segment(0.0, 7.0, "Mr. Fox ran away", words)))
    assert [cue.lines for cue in cues] == [("Mr. Fox ran",), ("away",)]


def test_width_breaks_lines_within_a_cue() -> None:
    text = "a bb ccc dddd eeeee"
    timed, untimed = segment(0.0, 3.0, text, said(text)), segment(0.0, 3.0, text)
    for one in (timed, untimed):
        (cue,) = make_cues(transcript(one), Layout(max_line_width=8))
        assert cue.lines == ("a bb ccc", "dddd", "eeeee")


def test_width_and_count_fill_cues_across_segments() -> None:
    first, second = "a bb ccc dddd", "eeeee ff"
    talk = transcript(segment(0.0, 2.0, first, said(first)), segment(2.0, 3.0, second, said(second, 2.0)))
    cues = make_cues(talk, Layout(max_line_width=8, max_line_count=2))
    assert [cue.lines for cue in cues] == [("a bb ccc", "dddd"), ("eeeee ff",)]
    assert [(cue.start_ms, cue.end_ms) for cue in cues] == [(0, 2000), (2000, 3000)]
    assert talk.to_srt(max_line_width=8, max_line_count=2).startswith(
        "1\n00:00:00,000 --> 00:00:02,000\na bb"
    )
    assert "a bb ccc\ndddd\n\n" in talk.to_vtt(max_line_width=8, max_line_count=2)


def test_chinese_is_joined_without_spaces_and_may_break_anywhere() -> None:
    words = tuple(Word(c, i * 0.4, (i + 1) * 0.4, 0.9) for i, c in enumerate(["你", "好,", "世", "界。"]))
    talk = transcript(segment(0.0, 2.0, "你好,世界。", words))
    assert make_cues(talk)[0].lines == ("你好,世界。",)
    assert make_cues(talk, Layout(max_line_width=3))[0].lines == ("你好,", "世界。")
    assert make_cues(transcript(segment(0.0, 2.0, "你好,世界。")), Layout(3))[0].lines == ("你好,", "世界。")


def test_every_format_names_speakers() -> None:
    talk = transcript(
        segment(0.0, 1.0, "Yes.", said("Yes.", 0.0, 1.0), speaker="Ann & co"),
        segment(1.0, 2.0, "No.", said("No.", 1.0, 1.0), speaker="SPEAKER_01"),
    )
    assert talk.to_txt() == "[Ann & co]: Yes.\n[SPEAKER_01]: No.\n"
    assert [one["speaker"] for one in json.loads(talk.to_json())["segments"]] == ["Ann & co", "SPEAKER_01"]
    table = list(csv.DictReader(io.StringIO(talk.to_tsv()), delimiter="\t"))
    assert [(row["text"], row["speaker"]) for row in table] == [("Yes.", "Ann & co"), ("No.", "SPEAKER_01")]
    assert "speaker" not in TALK.to_tsv()
    assert [caption.voice for caption in webvtt.from_string(talk.to_vtt())] == ["Ann &amp; co", "SPEAKER_01"]
    assert [cue.content for cue in srt.parse(talk.to_srt())] == ["[Ann & co]: Yes.", "[SPEAKER_01]: No."]
    assert len(make_cues(talk, Layout(40, 2))) == 2


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"max_line_width": 0}, "max_line_width is 0; give at least 1"),
        ({"max_line_width": 3.5}, r"max_line_width is 3\.5; give a whole number"),
        ({"max_line_count": 2}, "max_line_count has no effect without max_line_width"),
    ],
)
def test_impossible_layouts_are_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TALK.to_srt(**layout)


def test_lines_cannot_be_counted_without_times_of_words() -> None:
    with pytest.raises(OptionError, match="ask for word_timestamps"):
        transcript(segment(0.0, 1.0, "a b c")).to_srt(max_line_width=5, max_line_count=1)


# Any times, any letters

TEXT = st.text(max_size=25).map(str.strip)
NASTY = st.sampled_from(
    ["-->", "---->", "<i>", "&amp;", "1", "\x00", "\u2028", "\u200d", "00:00:01,000", "NOTE", "，"]
)
TIMES = st.lists(st.floats(0.0, 500_000.0), min_size=2, max_size=8).map(sorted)
LAYOUTS = st.builds(Layout, st.none() | st.integers(1, 50)) | st.builds(
    Layout, st.integers(1, 50), st.integers(1, 4)
)


@st.composite
def transcripts(draw: Any, *, timed: bool | None = None) -> Transcript:
    times = draw(TIMES)
    worded = draw(st.booleans()) if timed is None else timed
    made = []
    for start, end in pairwise(times):
        texts = draw(st.lists(TEXT | NASTY, max_size=5))
        texts = [text for text in (" ".join(text.split()) for text in texts) if text]
        step = (end - start) / max(1, len(texts))
        words = tuple(
            Word(text, min(start + i * step, end), min(start + (i + 1) * step, end), 0.5)
            for i, text in enumerate(texts)
        )
        made.append(segment(start, end, " ".join(texts), words if worded else None))
    return transcript(*made)


def spoken(one: Transcript) -> str:
    return "".join(one_line(one.text).split())


@hypothesis.given(one=transcripts(), layout=LAYOUTS)
@hypothesis.settings(max_examples=40, deadline=None)
def test_srt_is_read_back(one: Transcript, layout: Layout) -> None:
    if layout.max_line_count is not None and one.words is None:
        layout = Layout(layout.max_line_width)
    cues = make_cues(one, layout)
    read = list(srt.parse(to_srt(one, layout)))  # raises at what it cannot read
    assert [item.index for item in read] == list(range(1, len(cues) + 1))
    assert [item.start for item in read] == [timedelta(milliseconds=cue.start_ms) for cue in cues]
    assert [item.end for item in read] == [timedelta(milliseconds=cue.end_ms) for cue in cues]
    if "-->" not in one.text:
        assert [item.content for item in read] == ["\n".join(cue.lines) for cue in cues]


@hypothesis.given(one=transcripts(), layout=LAYOUTS)
@hypothesis.settings(max_examples=40, deadline=None)
def test_vtt_is_read_back(one: Transcript, layout: Layout) -> None:
    if layout.max_line_count is not None and one.words is None:
        layout = Layout(layout.max_line_width)
    cues = make_cues(one, layout)
    read = webvtt.from_string(to_vtt(one, layout)).captions
    assert [item.start_time.in_milliseconds() for item in read] == [cue.start_ms for cue in cues]
    assert [item.end_time.in_milliseconds() for item in read] == [cue.end_ms for cue in cues]
    assert [html.unescape(item.raw_text) for item in read] == ["\n".join(cue.lines) for cue in cues]


@hypothesis.given(one=transcripts(), layout=LAYOUTS)
@hypothesis.settings(max_examples=40, deadline=None)
def test_cues_are_in_order_and_lose_nothing(one: Transcript, layout: Layout) -> None:
    if layout.max_line_count is not None and one.words is None:
        layout = Layout(layout.max_line_width)
    cues = make_cues(one, layout)
    assert all(cue.start_ms < cue.end_ms for cue in cues)
    assert all(before.end_ms <= after.start_ms for before, after in pairwise(cues))
    assert "".join("".join("".join(cue.lines).split()) for cue in cues) == spoken(one)
    assert all(len(cue.lines) <= (layout.max_line_count or len(cue.lines)) for cue in cues)
    assert all(line.strip() for cue in cues for line in cue.lines)


@hypothesis.given(one=transcripts(timed=True))
@hypothesis.settings(max_examples=40, deadline=None)
def test_tables_and_text_are_read_back(one: Transcript) -> None:
    rows = list(csv.reader(io.StringIO(to_tsv(one)), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == ["start", "end", "text"]
    assert all(len(row) == 3 and int(row[0]) < int(row[1]) for row in rows[1:])
    assert "".join("".join(row[2].split()) for row in rows[1:]) == spoken(one)
    assert "".join(to_txt(one).split()) == spoken(one)
    assert json.loads(to_json(one)) == json.loads(json.dumps(one.to_dict()))
