"""Who spoke when: speaker turns from an RTTM file or a callable, joined with a transcript.

    turns = read_rttm("meeting.rttm")
    join_speakers(asr.transcribe("meeting.wav", word_timestamps=True), turns)

A segment has the speaker whose turns overlap it most. Where words have times each word has its own, and the
segment is split where the speaker changes. Of turns that overlap as much, the one that began first counts.

The turns of an audio file are found by its name, without folder and ending: in a folder of RTTM files those
of ``meeting.wav`` are in ``meeting.rttm``, in an RTTM file of several recordings they are called ``meeting``.

An RTTM file (NIST, "Rich Transcription Time Marked") has a turn a line, fields between spaces: ``SPEAKER``,
name of the recording, channel, start and length in seconds, two fields that mean nothing here, and the
speaker; others may follow.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from .audio import SAMPLE_RATE_HZ, AudioSource, load_audio
from .errors import AudioError, DataError, OptionError
from .result import Segment, Transcript, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FEWEST_FIELDS = 8
_NAMES_SHOWN = 8
RTTM_SUFFIX = ".rttm"


@dataclass(frozen=True)
class Turn:
    """A stretch in which one person speaks; turns of several may overlap.

    Attributes:
        start: Seconds from the beginning of the file.
        end: Likewise.
        speaker: Whoever it is, by any name.
    """

    start: float
    end: float
    speaker: str

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            DataError: If it ends before it starts, or nobody is named.
        """
        if not 0 <= self.start <= self.end < math.inf:
            raise DataError(f"a turn needs 0 <= start <= end, got {self.start} and {self.end}.")
        if not self.speaker:
            raise DataError(f"the turn from {self.start} to {self.end} s names no speaker.")


# Takes samples, (N,) float32, and their rate in Hz; gives turns, or (start, end, speaker) of each.
Diarize: TypeAlias = "Callable[[NDArray[np.float32], int], Iterable[Turn | tuple[float, float, str]]]"


def read_rttm(path: str | os.PathLike[str], recording: str | None = None) -> list[Turn]:
    """Read the speaker turns of one recording.

    Args:
        path: RTTM file. Lines of other types than ``SPEAKER`` and comments (``;;``) are left out.
        recording: Name of the recording in the file; None: the only one that it is about.

    Returns:
        Turns by start.

    Raises:
        DataError: If the file cannot be read, a line is none of RTTM, several recordings are in it and none
            is named, or the one that is has no turn; the message names the file, and the line.
    """
    name = os.fsdecode(path)
    return _choose(_read_recordings(name), recording, name)


def _choose(recordings: dict[str, list[Turn]], recording: str | None, name: str) -> list[Turn]:
    """Turns of one recording of the file ``name``; see :func:`read_rttm`."""
    known = ", ".join(list(recordings)[:_NAMES_SHOWN]) or "none"
    if len(recordings) > _NAMES_SHOWN:
        known += f" and {len(recordings) - _NAMES_SHOWN} others"
    if recording is None and len(recordings) > 1:
        raise DataError(f"{name}: turns of several recordings ({known}); name one of them.")
    if recording is not None and recording not in recordings:
        raise DataError(f"{name}: no turns of the recording {recording!r}; it has {known}.")
    return next(iter(recordings.values()), []) if recording is None else recordings[recording]


def _read_recordings(name: str) -> dict[str, list[Turn]]:
    """Turns of every recording of an RTTM file, by start; see :func:`read_rttm`."""
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: cannot be read as an RTTM file ({reason}).") from error
    turns: dict[str, list[Turn]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith(";;"):
            continue
        if not fields[0].isupper():  # SPEAKER, SPKR-INFO, LEXEME, ...
            raise DataError(f"{name}, line {number}: no type such as SPEAKER at its start; this is no RTTM.")
        if fields[0] == "SPEAKER":
            turn = _turn(fields, f"{name}, line {number}")
            turns[fields[1]].append(turn)
    return {recording: _sorted(own) for recording, own in turns.items()}


def _sorted(turns: Iterable[Turn]) -> list[Turn]:
    return sorted(turns, key=lambda turn: (turn.start, turn.end))


def _turn(fields: Sequence[str], where: str) -> Turn:
    """Read a SPEAKER line.

    Raises:
        DataError: If it has too few fields, or times that are none.
    """
    if len(fields) < _FEWEST_FIELDS:
        raise DataError(f"{where}: {len(fields)} fields; SPEAKER lines have at least {_FEWEST_FIELDS}.")
    try:
        start, length = float(fields[3]), float(fields[4])
        return Turn(start, start + length, fields[7])
    except ValueError as error:
        raise DataError(
            f"{where}: start {fields[3]!r} and length {fields[4]!r} are no seconds of at least 0."
        ) from error


def as_turns(turns: Iterable[Turn | tuple[float, float, str]]) -> list[Turn]:
    """Give what a callable returned as turns, by start.

    Raises:
        DataError: If one is no turn.
    """
    found = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, Turn):
            try:
                start, end, speaker = turn
                turn = Turn(float(start), float(end), str(speaker))
            except (TypeError, ValueError) as error:
                raise DataError(f"turn {place}: {turn!r} is no (start, end, speaker): {error}") from error
        found.append(turn)
    return _sorted(found)


class _Overlaps:
    """Finds the turns that overlap a stretch."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        """Prepare.

        Args:
            turns: By start.
        """
        self._turns = turns
        self._starts = [turn.start for turn in turns]
        self._longest = max((turn.end - turn.start for turn in turns), default=0.0)

    def speaker(self, start: float, end: float) -> str | None:
        """Say whose turns overlap a stretch most; None where none does.

        Args:
            start: In seconds.
            end: Likewise; a stretch of no length belongs to the turn it lies in.
        """
        shares: dict[str, float] = defaultdict(float)
        first = bisect_left(self._starts, start - self._longest)
        for turn in self._turns[first : bisect_right(self._starts, end)]:
            overlap = min(end, turn.end) - max(start, turn.start)
            if overlap > 0 or (start == end and overlap == 0):
                shares[turn.speaker] += overlap
        return max(shares, key=shares.__getitem__) if shares else None


def join_speakers(transcript: Transcript, turns: Iterable[Turn | tuple[float, float, str]]) -> Transcript:
    """Say who spoke each segment, and split segments where the speaker changes and words have times.

    Args:
        transcript: With its segments.
        turns: Of its file, in any order.

    Returns:
        The transcript with other segments; all else stays.

    Raises:
        DataError: If a turn is none.
    """
    overlaps = _Overlaps(as_turns(turns))
    segments = [part for segment in transcript.segments for part in _split(segment, overlaps)]
    return replace(transcript, segments=tuple(segments))


class Speakers:
    """Finds the speaker turns of recordings, and joins what was said with them."""

    def __init__(self, diarize: Diarize | str | os.PathLike[str] | None, *, by_name: bool = False) -> None:
        """Read an RTTM file, so that a bad one is told of before anything is transcribed.

        Args:
            diarize: A callable that is given all samples, (N,) float32 mono, and their rate, 16 000 Hz, and
                gives turns; an RTTM file; or a folder of them, which are read as they are needed. None:
                nobody is told apart.
            by_name: Whether an RTTM file about one recording counts for that alone. If not it counts for
                whatever is transcribed, by any name.

        Raises:
            DataError: If the RTTM file cannot be used, or there is none in the folder.
            OptionError: If it is none of these.
        """
        self._diarize = diarize
        self._by_name = by_name
        self._recordings: dict[str, list[Turn]] = {}
        self._where = ""  # the RTTM file or folder
        self._folder: Path | None = None
        if isinstance(diarize, (str, os.PathLike)):
            self._where = os.fsdecode(diarize)
            path = Path(self._where)
            if not path.is_dir():
                self._recordings = _read_recordings(self._where)
            elif next(path.glob(f"*{RTTM_SUFFIX}"), None) is None:
                raise DataError(f"{path}: no RTTM file is in this folder; their names end in {RTTM_SUFFIX}.")
            else:
                self._folder = path
        elif diarize is not None and not callable(diarize):
            raise OptionError(f"diarize is {diarize!r}; give a callable, an RTTM file or a folder of them.")

    @classmethod
    def of(cls, diarize: SpeakerSource, sources: Sequence[AudioSource] | None) -> Speakers:
        """Give what is one already, or make one, for sources that it has to know; None: files by their names.

        Raises:
            DataError: See :meth:`check`.
        """
        by_name = sources is None or len(sources) > 1
        speakers = diarize if isinstance(diarize, Speakers) else cls(diarize, by_name=by_name)
        for source in sources or ():
            speakers.check(source)
        return speakers

    def check(self, source: AudioSource) -> None:
        """See that RTTM files tell of a recording; a callable is not asked.

        Raises:
            DataError: If they do not, or cannot be used.
        """
        if self._where:
            self._listed(source)

    def refusal(self, path: str | os.PathLike[str]) -> AudioError | None:
        """Give what :meth:`check` raises as an error of this file, one among many."""
        try:
            self.check(path)
        except DataError as error:
            return AudioError(f"{os.fsdecode(path)}: who speaks cannot be told: {error}")
        return None

    def join_or_fail(self, result: Transcript | AudioError) -> Transcript | AudioError:
        """Join the transcript of a file as :meth:`join` does; an error if there is or comes one."""
        if isinstance(result, AudioError) or result.file is None:
            return result
        try:
            return self.join(result, result.file)
        except AudioError as error:
            return error

    def turns(self, source: AudioSource, sample_rate_hz: int | None = None) -> list[Turn]:
        """Find the turns of a recording, by start.

        Args:
            source: Its audio, as :func:`canvas_asr.load_audio` takes it.
            sample_rate_hz: Rate of an array that comes without one.

        Raises:
            AudioError: If a callable is to be asked and the audio cannot be read.
            DataError: If a turn is none, or RTTM files cannot be used or do not tell of this recording.
        """
        if self._diarize is None:
            return []
        if callable(self._diarize):
            return as_turns(self._diarize(load_audio(source, sample_rate_hz), SAMPLE_RATE_HZ))
        return self._listed(source)

    def join(
        self, transcript: Transcript, source: AudioSource, sample_rate_hz: int | None = None
    ) -> Transcript:
        """Say who spoke in a transcript: see :func:`join_speakers`, and :meth:`turns` for what is raised."""
        if self._diarize is None:
            return transcript
        return join_speakers(transcript, self.turns(source, sample_rate_hz))

    def join_segments(self, segments: Iterator[Segment], source: AudioSource) -> Iterator[Segment]:
        """Say who spoke each segment as it comes; turns are found before the first, as :meth:`turns` does."""
        if self._diarize is None:
            return segments
        overlaps = _Overlaps(self.turns(source))
        return (part for segment in segments for part in _split(segment, overlaps))

    def _listed(self, source: AudioSource) -> list[Turn]:
        """The turns that RTTM files have of a recording."""
        own = Path(os.fsdecode(source)).stem if isinstance(source, (str, os.PathLike)) else None
        where, recordings, by_name = self._where, self._recordings, self._by_name
        if own is None and (by_name or self._folder is not None):
            raise DataError(f"{where}: turns go by the name of an audio file, which an array does not have.")
        if self._folder is not None:
            path = self._folder / f"{own}{RTTM_SUFFIX}"
            if not path.is_file():
                raise DataError(f"{where}: no {path.name} is in this folder.")
            where, recordings, by_name = str(path), _read_recordings(str(path)), False
        return _choose(recordings, own if by_name or own in recordings else None, where)


SpeakerSource: TypeAlias = "Speakers | Diarize | str | os.PathLike[str] | None"


def _split(segment: Segment, turns: _Overlaps) -> list[Segment]:
    """Split a segment where the speaker changes; without words it stays whole.

    A word in no turn has the speaker of the word before it, at the beginning of the one behind: a pause of
    the diarisation is no change of speakers.
    """
    if not segment.words:
        return [replace(segment, speaker=turns.speaker(segment.start, segment.end))]
    speakers = [turns.speaker(word.start, word.end) for word in segment.words]
    known = next((speaker for speaker in speakers if speaker is not None), None)
    for k, speaker in enumerate(speakers):
        speakers[k] = known = known if speaker is None else speaker
    groups = [[k for k, _ in group] for _, group in groupby(enumerate(speakers), key=lambda pair: pair[1])]
    if len(groups) == 1:
        return [replace(segment, speaker=known)]
    firsts = [group[0] for group in groups]
    return [
        replace(part, speaker=speakers[first])
        for part, first in zip(_cut(segment, segment.words, firsts), firsts, strict=True)
    ]


def _cut(segment: Segment, words: Sequence[Word], firsts: Sequence[int]) -> list[Segment]:
    """Cut a segment before the words of the given places, of which the first is 0."""
    text, place, begins = segment.text, 0, []
    for word in words:
        begins.append(text.index(word.text, place))
        place = begins[-1] + len(word.text)
    edges = [0, *(begins[first] for first in firsts[1:]), len(text)]
    tokens: list[list[int]] = [[] for _ in firsts]
    written = "".join(token.text for token in segment.tokens)
    place = len(written.lstrip()) - len(written)  # the text is without the space of its first token
    for k, token in enumerate(segment.tokens):
        place += len(token.text)
        part = next((i for i, edge in enumerate(edges[1:]) if place <= edge), len(firsts) - 1)
        tokens[part].append(k)
    found = []
    for i, (first, behind) in enumerate(zip(firsts, [*firsts[1:], len(words)], strict=True)):
        is_last = behind == len(words)
        own = [segment.tokens[k] for k in tokens[i]]
        found.append(
            replace(
                segment,
                start=words[first].start if i else segment.start,
                end=segment.end if is_last else words[behind - 1].end,
                text=text[edges[i] : edges[i + 1]].strip(),
                tokens=tuple(own),
                confidence=sum(token.confidence for token in own) / max(1, len(own)),
                words=tuple(words[first:behind]),
                truncated=segment.truncated and is_last,
            )
        )
    return found
