"""``--show-canvas``: what a terminal shows while a clip is denoised, and what anything else is sent."""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import fake_transcriber
import pytest
from fake_transcriber import FakeTranscriber

from canvas_asr.canvas_view import CanvasView
from canvas_asr.cli import main, show_canvas
from canvas_asr.cli.show_canvas import CanvasAnimation, CanvasLines, make_show, pause_seconds
from canvas_asr.cli.terminal import Piece, fit, n_columns, printable, wrap
from canvas_asr.errors import AudioError
from canvas_asr.result import Token, Transcript

XTERM = {"TERM": "xterm-256color"}
# Everything that may be sent to a terminal besides text.
OWN = re.compile(r"\x1b\[(\d*A|J|\?7[lh]|\d*m)")


class Screen:
    """What a terminal shows of what it is sent; a line too long for it is an error."""

    def __init__(self, columns: int, n_lines: int) -> None:
        self.columns, self.n_lines = columns, n_lines
        self.lines: list[str] = [""]
        self.row = 0
        self.most = 0
        self.cut = False

    def feed(self, sent: str) -> None:
        place = 0
        for match in OWN.finditer(sent):
            self._text(sent[place : match.start()])
            self._obey(match[1])
            place = match.end()
        self._text(sent[place:])

    def _obey(self, command: str) -> None:
        if command.endswith("A"):
            self.row -= int(command[:-1])
            assert self.row >= max(0, len(self.lines) - self.n_lines)
        elif command == "J":
            del self.lines[self.row + 1 :]
            self.lines[self.row] = ""

    def _text(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self.row += 1
                self.lines[self.row :] = [""]
            elif character != "\r":
                assert character.isprintable(), repr(character)
                self.lines[self.row] += character
        self.cut |= any(n_columns(line) > self.columns for line in self.lines)
        self.most = max(self.most, len(self.lines))


@pytest.fixture
def terminal() -> Iterator[Callable[[int, int], tuple[TextIO, Callable[[], str]]]]:
    """Open pseudo-terminals of a size; the second of a pair gives what was sent."""
    opened: list[int | TextIO] = []

    def open_one(columns: int, n_lines: int) -> tuple[TextIO, Callable[[], str]]:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", n_lines, columns, 0, 0))
        os.set_blocking(master, False)
        stream = os.fdopen(slave, "w", encoding="utf-8", newline="")
        opened.extend((master, stream))

        def sent() -> str:
            parts = []
            while True:
                try:
                    parts.append(os.read(master, 1 << 16))
                except BlockingIOError:
                    return b"".join(parts).decode()

        return stream, sent

    yield open_one
    for one in opened:
        os.close(one) if isinstance(one, int) else one.close()


def view(step: int, texts: list[str], sure: float = 0.9, kept: list[bool] | None = None) -> CanvasView:
    tokens = tuple(Token(i, text, sure) for i, text in enumerate(texts))
    return CanvasView(0, step, tokens, kept and tuple(kept), (" qux", "語", "", "zz"), "de")


def play(
    terminal: Callable[[int, int], tuple[TextIO, Callable[[], str]]],
    views: list[CanvasView],
    size: tuple[int, int] = (60, 24),
    name: str = "clip.wav",
    **environ: str,
) -> tuple[str, Screen]:
    """Everything sent for a clip, and the screen before it is wiped."""
    stream, sent = terminal(*size)
    show = make_show(stream, 2, 0.0, {**XTERM, **environ})
    assert isinstance(show, CanvasAnimation)
    show.start(name)
    screen = Screen(*(size if all(size) else (80, 24)))
    everything = ""
    for one in views:
        show.draw(one)
        everything += (part := sent())
        screen.feed(part)
    show.finish()
    wiped = Screen(screen.columns, screen.n_lines)
    everything += sent()
    wiped.feed(everything)
    assert wiped.lines == [""]
    return everything, screen


def test_noise_turns_into_text_and_the_text_makes_room_for_the_result(terminal) -> None:
    views = [view(1, [" guten", " Tak"], 0.4, [True, False]), view(2, [" guten", " Tag"], 0.99)]
    sent, screen = play(terminal, views)
    assert screen.lines[0] == "clip.wav  pass 2 of 2  [de]"
    assert screen.lines[1].strip() == "guten Tag"
    assert sent.index("clip.wav  start") < sent.index("qux") < sent.index("Tak") < sent.index("Tag")
    assert "\x1b[31m guten" in sent  # unsure
    assert "\x1b[90m語" in sent  # noise
    assert " Tag" in sent.rpartition("\x1b[J")[0]


def test_what_is_kept_stays_between_the_passes_and_the_rest_is_noise(terminal) -> None:
    first = view(1, [" guten", " Tak"], 0.6, [True, False])
    second = CanvasView(0, 2, first.tokens, None, (" guten", " xyz", "noise"), "de")
    sent, _ = play(terminal, [first, second])
    between = sent.split("\x1b[J")[3]
    assert "\x1b[33m guten" in between
    assert "\x1b[90m xyz" in between


def test_without_colour_nothing_is_styled_and_noise_is_blocks(terminal) -> None:
    sent, screen = play(terminal, [view(1, [" ja"])], NO_COLOR="1")
    assert "m" not in {match[1][-1] for match in OWN.finditer(sent)}
    assert "qux" not in sent
    assert "░░░░" in sent
    assert screen.lines[1].strip() == "ja"


def test_nothing_of_a_transcript_or_a_name_is_obeyed(terminal) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\r\n\x9b31m\u202e"
    seen = CanvasView(0, 1, (Token(1, evil, 0.5),), None, (evil, "\x1b"), "de")
    sent, _ = play(terminal, [seen], name=f"a{evil}.wav")
    rest = OWN.sub("", sent)
    assert not [c for c in rest if not c.isprintable() and c not in "\r\n"]
    lines = io.StringIO()
    show = make_show(lines, 2, 0.0, XTERM)
    show.start(evil)
    show.draw(seen)
    assert [c for c in lines.getvalue() if not c.isprintable()] == ["\n"]


@pytest.mark.parametrize("size", [(20, 6), (37, 10), (80, 24), (3, 2), (1, 1)])
def test_no_line_is_too_long_and_no_picture_too_high(terminal, size: tuple[int, int]) -> None:
    words = [" spazieren", "今", "天", "晚", "上", " हिन्दी", " में", "।", " " + "x" * 90, " é́"] * 4
    _, screen = play(terminal, [view(1, words)], size, "a/very/long/" * 9 + "name.wav")
    assert screen.most <= size[1]
    if size[0] >= 40:
        assert not screen.cut


def test_a_terminal_of_no_known_size_is_drawn_on(terminal) -> None:
    _, screen = play(terminal, [view(1, [" ja"])], (0, 0))
    assert screen.lines[1].strip() == "ja"


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(terminal, term: str | None) -> None:
    stream, sent = terminal(80, 24)
    show = make_show(stream, 2, 0.0, {"TERM": term} if term else {})
    assert isinstance(show, CanvasLines)
    show.start("clip.wav")
    show.draw(view(1, [" guten", " Tag"], 0.25))
    show.finish()
    assert sent() == "clip.wav  pass 1 of 2   25 %  guten Tag\r\n"


def test_a_stream_that_writes_no_unicode_gets_question_marks() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show = make_show(stream, 2, 0.0, XTERM)
    show.start("é.wav")
    show.draw(view(1, ["今天"]))
    stream.flush()
    assert stream.buffer.getvalue() == b"?.wav  pass 1 of 2   90 %  ??\n"  # type: ignore[attr-defined]


def test_pictures_stay_as_long_as_asked(terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(show_canvas.time, "sleep", slept.append)
    stream, _ = terminal(80, 24)
    show = make_show(stream, 2, 0.5, XTERM)
    show.start("clip.wav")
    show.draw(view(1, [" ja"]))
    assert slept == [0.5, 0.5]
    show.finish()
    assert sum(slept) == pytest.approx(0.5 * (1 + show_canvas.HOLD))
    show.draw(view(1, [" ja"]))
    slept.clear()
    show.finish(hold=False)
    assert slept == []
    assert pause_seconds("0") == 0
    for wrong in ("-1", "nan", "inf", "soon"):
        with pytest.raises(argparse.ArgumentTypeError, match="no number of seconds"):
            pause_seconds(wrong)


def test_files_are_shown_one_after_the_other_and_a_bad_one_is_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Scripted:
        def transcribe(self, path: str, *, on_canvas, batch_size: int, **decoding: object) -> str:
            if path == "bad.wav":
                raise AudioError("bad.wav: no audio")
            assert (batch_size, decoding) == (1, {"steps": 3})
            on_canvas(view(1, [f" {path}"]))
            return path

    options = argparse.Namespace(steps=3, canvas_pause=0.0)
    found = list(
        show_canvas.shown_transcripts(Scripted(), ["a.wav", "bad.wav", "b.wav"], options, steps=3)  # type: ignore[arg-type]
    )
    assert [str(one) for one in found] == ["a.wav", "bad.wav: no audio", "b.wav"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [f"{x}.wav  pass 1 of 3   90 %  {x}.wav" for x in "ab"]


def test_what_is_written_has_timed_words_if_it_would_have_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Shown(FakeTranscriber):
        def transcribe(self, path: str, *, word_timestamps: bool = False, **_: Any) -> Transcript:
            return fake_transcriber.read(path, Path(path).read_text(), timed=word_timestamps)

    monkeypatch.setitem(sys.modules, "canvas_asr.transcriber", fake_transcriber.module(Shown(0.0)))
    (tmp_path / "a.wav").write_text("One two three. Four five six.")
    command = ["transcribe", str(tmp_path / "a.wav"), "-o", "-", "--output-format", "srt"]
    assert main(command) == main([*command, "--show-canvas"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("-->") == 2 + 2
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]


def test_after_ctrl_c_the_picture_is_wiped_at_once(terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, sent = terminal(80, 24)
    slept: list[float] = []
    monkeypatch.setattr(show_canvas.time, "sleep", slept.append)
    monkeypatch.setattr(show_canvas, "make_show", lambda *_: CanvasAnimation(stream, 2, 1.0, colour=True))

    class Interrupted:
        def transcribe(self, _path: str, *, on_canvas, **_: object) -> None:
            on_canvas(view(1, [" ja"]))
            raise KeyboardInterrupt

    options = argparse.Namespace(steps=2, canvas_pause=1.0)
    with pytest.raises(KeyboardInterrupt):
        list(show_canvas.shown_transcripts(Interrupted(), ["a.wav"], options, steps=3))  # type: ignore[arg-type]
    assert slept == [1.0, 1.0]  # the two pictures
    screen = Screen(80, 24)
    screen.feed(sent())
    assert screen.lines == [""]


# Text in columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abc", 3), ("今天", 4), ("é", 1), ("e\u0301", 1), ("हिन्दी", 5), ("।", 1), ("ｱ", 1), ("Ａ", 2), ("", 0)],
)
def test_columns(text: str, expected: int) -> None:
    assert n_columns(text) == expected


def test_text_is_broken_before_spaces_and_wide_letters() -> None:
    def broken(columns: int, *texts: str) -> list[str]:
        return ["".join(p.text for p in line) for line in wrap([Piece(t) for t in texts], columns)]

    assert broken(8, " ge", "hen", " wir", " heim") == [" gehen", "wir heim"]
    assert broken(5, "今", "天", "晚") == ["今天", "晚"]
    assert broken(4, "abcdefghij") == ["abcd", "efgh", "ij"]
    assert broken(6, " a", " bcdefghij") == [" a", "bcdefg", "hij"]
    assert broken(5) == [""]


def test_a_long_name_loses_its_start() -> None:
    assert fit("clip.wav", 8) == "clip.wav"
    assert fit("folder/clip.wav", 9) == "…clip.wav"
    assert n_columns(fit("今天晚上.wav", 8)) <= 8


def test_letters_that_an_encoding_lacks_are_questions() -> None:
    assert printable("naïve 今", "ascii") == "na?ve ?"
    assert printable("a\tb\u200b") == "a b "
