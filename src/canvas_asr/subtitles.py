"""Cues of subtitles: which words stand on the screen together, on which lines, from when to when.

Where words have times, a cue is a sentence, or a part of one that takes longer than ``MAX_CUE_S``; with a
width and a number of lines, cues are filled up to these, as openai-whisper fills them. Where words have no
times, a cue is a segment. Cues never overlap, and each lasts at least a millisecond, whatever the times were.
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .errors import OptionError
from .result import Segment, Transcript, Word
from .words import split_words

LONG_PAUSE_S = 3.0  # after which openai-whisper begins a new cue
MAX_CUE_S = 7.0  # what guides for subtitles give as the longest; of sentences that last longer
MIN_CUE_S = 1.0  # "Mr." ends no sentence, and nobody reads so fast
_SENTENCE_ENDS = tuple(".?!…。？！।॥")
_CLAUSE_ENDS = tuple(",;:，、；：")
_CLOSING = "\"'”’»)]」』）"


@dataclass(frozen=True)
class Layout:
    """How the text of a cue is set.

    Attributes:
        max_line_width: Most characters of a line; a longer word has a line of its own. None: one line a cue.
        max_line_count: Most lines of a cue, which are filled across sentences; None: as many as it takes.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None

    def __post_init__(self) -> None:
        """Raise OptionError for what no text can be set by."""
        for name in ("max_line_width", "max_line_count"):
            value = getattr(self, name)
            try:
                number = 1 if value is None else operator.index(value)
            except TypeError as error:
                raise OptionError(f"{name} is {value!r}; give a whole number.") from error
            if number < 1:
                raise OptionError(f"{name} is {value}; give at least 1.")
        if self.max_line_count is not None and self.max_line_width is None:
            raise OptionError("max_line_count has no effect without max_line_width; give both.")


@dataclass(frozen=True)
class Cue:
    """What is shown at once.

    Attributes:
        start_ms: Milliseconds from the beginning of the file.
        end_ms: Likewise, after ``start_ms``.
        lines: Of text, none of them empty, without line breaks and control characters.
        speaker: Who says it, where that is known.
    """

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    speaker: str | None = None


@dataclass(frozen=True)
class _Piece:
    """A word, or a segment's text where its words have no times.

    ``glue`` is what stands between it and the piece before: a space, or nothing in Chinese.
    """

    text: str
    start: float
    end: float
    glue: str
    segment: int
    speaker: str | None


def one_line(text: str) -> str:
    """Give a text without line breaks, control characters and surrogates, spaces single."""
    shown = (c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cs"))
    return "".join(shown).strip()


def segments_of(transcript: Transcript) -> tuple[Segment, ...]:
    """Give the segments of a transcript; one that states none is a segment itself."""
    segments = transcript.segments
    unworded = transcript.words and not any(segment.words for segment in segments)
    if (segments and not unworded) or not transcript.text:
        return segments
    end = max([transcript.audio_s, *(word.end for word in transcript.words or ())])
    return (
        Segment(
            0.0,
            end,
            transcript.text,
            transcript.language,
            transcript.language_confidence,
            transcript.tokens,
            transcript.confidence,
            transcript.passes,
            transcript.truncated,
            transcript.words,
        ),
    )


def make_cues(transcript: Transcript, layout: Layout | None = None) -> list[Cue]:
    """Divide a transcript into cues.

    Args:
        transcript: With times of words or without.
        layout: How lines are set.

    Returns:
        Cues in order; none where nothing was said.

    Raises:
        OptionError: If a number of lines is asked for and the words have no times.
    """
    layout = layout or Layout()
    segments = [segment for segment in segments_of(transcript) if segment.text.strip()]
    if layout.max_line_count is not None and any(segment.words is None for segment in segments):
        raise OptionError("max_line_count divides segments at words; ask for word_timestamps too.")
    pieces = _pieces(transcript.text, segments)
    groups = _sentences(pieces) if layout.max_line_count is None else _filled(pieces, layout)
    return _in_order([_cue(group, layout) for group in groups])


def _pieces(text: str, segments: Sequence[Segment]) -> list[_Piece]:
    """Words with their times, or whole segments."""
    pieces: list[_Piece] = []
    seen = 0  # characters of the text
    for place, segment in enumerate(segments):
        whole = Word(segment.text.strip(), segment.start, segment.end, 0.0)
        for word in segment.words or (whole,):
            found = text.find(word.text, seen)
            glue = "" if found == seen else " "
            seen = seen if found < 0 else found + len(word.text)
            shown = one_line(word.text)
            if shown:
                pieces.append(_Piece(shown, word.start, word.end, glue, place, segment.speaker))
    return pieces


def _groups(pieces: Sequence[_Piece], ends: Callable[[list[_Piece], _Piece], bool]) -> Iterator[list[_Piece]]:
    """Gather pieces until the next may not join them."""
    group: list[_Piece] = []
    for piece in pieces:
        if group and ends(group, piece):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _sentences(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Sentences within segments, long ones in parts."""

    def ends(group: list[_Piece], following: _Piece) -> bool:
        last = group[-1]
        if last.segment != following.segment or following.start - last.end > LONG_PAUSE_S:
            return True
        is_sentence = last.text.rstrip(_CLOSING).endswith(_SENTENCE_ENDS)
        return is_sentence and last.end - group[0].start >= MIN_CUE_S

    for sentence in _groups(pieces, ends):
        yield from _parts(sentence)


def _parts(sentence: list[_Piece]) -> Iterator[list[_Piece]]:
    """Halve what lasts too long, near its middle and rather behind a comma."""
    start, end = sentence[0].start, sentence[-1].end
    if end - start <= MAX_CUE_S or len(sentence) == 1:
        yield sentence
        return

    def cost(place: int) -> float:
        is_clause = sentence[place - 1].text.rstrip(_CLOSING).endswith(_CLAUSE_ENDS)
        return abs(sentence[place].start - (start + end) / 2) / (end - start) - 0.25 * is_clause

    place = min(range(1, len(sentence)), key=cost)
    yield from _parts(sentence[:place])
    yield from _parts(sentence[place:])


def _filled(pieces: Sequence[_Piece], layout: Layout) -> Iterator[list[_Piece]]:
    """As many words as the lines of a cue take."""

    def ends(group: list[_Piece], following: _Piece) -> bool:
        if following.start - group[-1].start > LONG_PAUSE_S or following.speaker != group[-1].speaker:
            return True
        return len(_lines([*group, following], layout.max_line_width)) > (layout.max_line_count or 1)

    return _groups(pieces, ends)


def _lines(group: Sequence[_Piece], width: int | None) -> list[str]:
    lines: list[str] = []
    for piece in group:
        joined = lines[-1] + piece.glue + piece.text if lines else piece.text
        if lines and (width is None or len(joined) <= width):
            lines[-1] = joined
        else:
            lines.append(piece.text)
    return lines


def _unwrapped(piece: _Piece) -> list[_Piece]:
    """The words of a piece, for lines to be broken at."""
    ends = split_words(piece.text)
    befores = [0, *(end for _, end in ends)]
    return [
        replace(piece, text=piece.text[start:end], glue=piece.text[before:start])
        for (start, end), before in zip(ends, befores, strict=False)
    ]


def _cue(group: Sequence[_Piece], layout: Layout) -> Cue:
    is_filled = layout.max_line_count is not None or len(group) > 1
    lines = tuple(_lines(group if is_filled else _unwrapped(group[0]), layout.max_line_width))
    return Cue(round(1000 * group[0].start), round(1000 * group[-1].end), lines, group[0].speaker)


def _in_order(cues: Sequence[Cue]) -> list[Cue]:
    """Let no cue begin before the one before it has ended, nor end when it begins."""
    ordered: list[Cue] = []
    for cue in cues:
        start = max(cue.start_ms, ordered[-1].end_ms if ordered else 0)
        ordered.append(replace(cue, start_ms=start, end_ms=max(cue.end_ms, start + 1)))
    return ordered
