"""Transcripts as txt, srt, vtt, tsv and json, with openai-whisper's conventions.

txt has a line for every segment. srt, vtt and tsv have the same cues (:mod:`canvas_asr.subtitles`); tsv gives
their times in whole milliseconds. json is everything there is, on one line. All of them name speakers, where
turns of these were given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape
from typing import TypeAlias

from .result import Transcript
from .subtitles import Layout, make_cues, one_line, segments_of


def to_txt(transcript: Transcript) -> str:
    """Give the text, a line for every segment; a speaker stands before it in brackets."""
    lines = ((_bracketed(segment.speaker), one_line(segment.text)) for segment in segments_of(transcript))
    return "".join(f"{speaker}{line}\n" for speaker, line in lines if line)


def to_srt(transcript: Transcript, layout: Layout | None = None) -> str:
    """Give SubRip subtitles; arrows in it become ``->``; a speaker stands before it in brackets."""
    blocks = []
    for number, cue in enumerate(make_cues(transcript, layout), start=1):
        times = f"{_clock(cue.start_ms, ',', hours=True)} --> {_clock(cue.end_ms, ',', hours=True)}"
        text = re.sub("-{2,}>", "->", _bracketed(cue.speaker) + "\n".join(cue.lines))
        blocks.append(f"{number}\n{times}\n{text}\n\n")
    return "".join(blocks)


def to_vtt(transcript: Transcript, layout: Layout | None = None) -> str:
    """Give WebVTT subtitles; ``&``, ``<`` and ``>`` are escaped, and a speaker is a voice."""
    blocks = ["WEBVTT\n\n"]
    for cue in make_cues(transcript, layout):
        voice = f"<v {escape(one_line(cue.speaker), quote=False)}>" if cue.speaker else ""
        text = voice + escape("\n".join(cue.lines), quote=False)
        blocks.append(f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{text}\n\n")
    return "".join(blocks)


def to_tsv(transcript: Transcript) -> str:
    """Give a table: start and end in milliseconds, text; a fourth column if speakers are known."""
    cues = make_cues(transcript)
    rows = ["start\tend\ttext", *(f"{cue.start_ms}\t{cue.end_ms}\t{cue.lines[0]}" for cue in cues)]
    if any(cue.speaker for cue in cues):
        speakers = ("speaker", *(one_line(cue.speaker or "") for cue in cues))
        rows = [f"{row}\t{speaker}" for row, speaker in zip(rows, speakers, strict=True)]
    return "".join(row + "\n" for row in rows)


def to_json(transcript: Transcript, *, ascii_only: bool = False) -> str:
    """Give every field as one line of JSON.

    Args:
        transcript: Its file name may hold bytes that are no text; they are escaped.
        ascii_only: Escape all letters that are not ASCII.
    """
    line = json.dumps(transcript.to_dict(), ensure_ascii=ascii_only, allow_nan=False)
    return line.encode("utf-8", errors="backslashreplace").decode("utf-8")


Writer: TypeAlias = Callable[[Transcript, Layout], str]

# Name of a format, which is also how its files end.
FORMATS: dict[str, Writer] = {
    "txt": lambda transcript, _layout: to_txt(transcript),
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": lambda transcript, _layout: to_tsv(transcript),
    "json": lambda transcript, _layout: to_json(transcript) + "\n",
}


def _bracketed(speaker: str | None) -> str:
    return f"[{one_line(speaker)}]: " if speaker else ""


def _clock(milliseconds: int, mark: str, *, hours: bool = False) -> str:
    """Write a time; hours are left out below one, but where they are always there."""
    seconds, ms = divmod(milliseconds, 1000)
    minutes, s = divmod(seconds, 60)
    h, m = divmod(minutes, 60)
    shown = f"{h:02d}:" if hours or h else ""
    return f"{shown}{m:02d}:{s:02d}{mark}{ms:03d}"
