"""What a transcription returns: a text with its language, its tokens and words, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Token:
    """One text token of a transcript.

    Attributes:
        id: Its id in the model's vocabulary, >= 0.
        text: What it contributes to the text, leading space included.
        confidence: The model's probability of it in the last pass, 0 to 1.
    """

    id: int
    text: str
    confidence: float

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If ``id`` is negative or ``confidence`` is not within 0 to 1.
        """
        if self.id < 0:
            raise ValueError(f"Token.id must be >= 0, got {self.id}")
        _check_probability("Token.confidence", self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values for ``json.dumps``."""
        return {"id": int(self.id), "text": self.text, "confidence": float(self.confidence)}


@dataclass(frozen=True)
class Word:
    """One word of a transcript.

    Attributes:
        text: The word as it stands in the text, its punctuation included.
        start: Seconds from the beginning of the clip.
        end: Likewise.
        confidence: Probability of all its tokens in the last pass, 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If the word ends before it starts, or ``confidence`` is not within 0 to 1.
        """
        if not 0 <= self.start <= self.end < math.inf:
            raise ValueError(f"Word needs 0 <= start <= end, got {self.start} and {self.end}")
        _check_probability("Word.confidence", self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values for ``json.dumps``."""
        return {
            "text": self.text,
            "start": float(self.start),
            "end": float(self.end),
            "confidence": float(self.confidence),
        }


@dataclass(frozen=True)
class Segment:
    """A stretch of audio that was transcribed at once: a chunk of a long file, or a whole clip.

    Attributes:
        start: Seconds from the beginning of the file, counted in samples.
        end: Likewise.
        text: What was said, case and punctuation included.
        language: Language code: the one asked for, or the one detected in this segment.
        language_confidence: Probability of that language, 0 to 1 (1 if it was asked for).
        tokens: The text tokens in order, without language tag and end tokens.
        confidence: Mean confidence of ``tokens``, 0 to 1.
        passes: Denoising passes used.
        truncated: True if the text filled the canvas, so that its end may be missing.
        words: The words in order with their times in the file, if they were asked for.
        speaker: Who spoke, where speaker turns were given.
        language_probabilities: Of every language that the model knows, by code, 0 to 1; empty where the model
            was not asked or cannot tell.
    """

    start: float
    end: float
    text: str
    language: str
    language_confidence: float
    tokens: tuple[Token, ...]
    confidence: float
    passes: int
    truncated: bool = False
    words: tuple[Word, ...] | None = None
    speaker: str | None = None
    language_probabilities: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If it ends before it starts, or a probability is outside 0 to 1.
        """
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if self.words is not None:
            object.__setattr__(self, "words", tuple(self.words))
        if not 0 <= self.start <= self.end < math.inf:
            raise ValueError(f"Segment needs 0 <= start <= end, got {self.start} and {self.end}")
        _check_probability("Segment.language_confidence", self.language_confidence)
        _check_probability("Segment.confidence", self.confidence)
        for language, probability in self.language_probabilities.items():
            _check_probability(f"Segment.language_probabilities[{language!r}]", probability)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values for ``json.dumps``."""
        return {
            "start": float(self.start),
            "end": float(self.end),
            **_reading(self),
            "truncated": bool(self.truncated),
            "speaker": self.speaker,
        }


@dataclass(frozen=True)
class Gap:
    """A stretch of a file that could not be decoded, and is therefore not transcribed.

    Attributes:
        start: Seconds from the beginning of the file.
        end: Likewise, as far as can be told; ``start`` where it cannot.
        reason: What the decoder said.
    """

    start: float
    end: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values for ``json.dumps``."""
        return {"start": float(self.start), "end": float(self.end), "reason": self.reason}


@dataclass(frozen=True)
class Transcript:
    """The transcript of one clip. ``str(transcript)`` is its text.

    Attributes:
        text: The transcript, case and punctuation included; empty where nothing was said.
        language: Language code, "en" for example: the one asked for, or the one detected.
        language_confidence: Probability of that language, 0 to 1 (1 if it was asked for).
        tokens: The text tokens in order, without language tag and end tokens.
        confidence: Mean confidence of ``tokens``, 0 to 1.
        passes: Denoising passes used; 0 if the draft was taken as it is.
        audio_s: Length of the audio in seconds.
        seconds: Wall-clock seconds from waveform to text; in a batch, this clip's share.
        truncated: True if the text filled the canvas, so that its end may be missing.
        draft: Greedy CTC reading of the audio tokens, if it was computed.
        file: The file it came from, if it came from one.
        words: The words in order with their times, if they were asked for.
        segments: The stretches it was transcribed in, in order; none where nothing was said.
        gaps: What of the file could not be decoded.
        language_probabilities: Of every language that the model knows, by code, 0 to 1; empty where the model
            was not asked or cannot tell.
    """

    text: str
    language: str
    language_confidence: float
    tokens: tuple[Token, ...]
    confidence: float
    passes: int
    audio_s: float
    seconds: float
    truncated: bool = False
    draft: str | None = None
    file: str | None = None
    words: tuple[Word, ...] | None = None
    segments: tuple[Segment, ...] = ()
    gaps: tuple[Gap, ...] = ()
    language_probabilities: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If a probability is outside 0 to 1, or a count or duration is negative or not finite.
        """
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if self.words is not None:
            object.__setattr__(self, "words", tuple(self.words))
        object.__setattr__(self, "segments", tuple(self.segments))
        object.__setattr__(self, "gaps", tuple(self.gaps))
        _check_probability("Transcript.language_confidence", self.language_confidence)
        _check_probability("Transcript.confidence", self.confidence)
        for language, probability in self.language_probabilities.items():
            _check_probability(f"Transcript.language_probabilities[{language!r}]", probability)
        for name in ("passes", "audio_s", "seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Transcript.{name} must be finite and >= 0, got {value}")

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second of work; 0.0 if no time was measured."""
        return self.audio_s / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return every field, and ``rtfx``, as plain Python values for ``json.dumps``."""
        return {
            "file": self.file,
            **_reading(self),
            "audio_s": float(self.audio_s),
            "seconds": float(self.seconds),
            "rtfx": float(self.rtfx),
            "truncated": bool(self.truncated),
            "draft": self.draft,
            "segments": [segment.to_dict() for segment in self.segments],
            "gaps": [gap.to_dict() for gap in self.gaps],
        }

    def to_txt(self) -> str:
        """Return the text, a line for every segment."""
        from .formats import to_txt

        return to_txt(self)

    def to_srt(self, *, max_line_width: int | None = None, max_line_count: int | None = None) -> str:
        """Return SubRip subtitles; see :func:`canvas_asr.subtitles.make_cues`.

        Args:
            max_line_width: Most characters of a line.
            max_line_count: Most lines of a cue; words need their times for it.

        Raises:
            OptionError: If a number is below 1, or the words have no times and lines are to be counted.
        """
        from .formats import to_srt
        from .subtitles import Layout

        return to_srt(self, Layout(max_line_width, max_line_count))

    def to_vtt(self, *, max_line_width: int | None = None, max_line_count: int | None = None) -> str:
        """Return WebVTT subtitles; arguments and errors are those of :meth:`to_srt`."""
        from .formats import to_vtt
        from .subtitles import Layout

        return to_vtt(self, Layout(max_line_width, max_line_count))

    def to_tsv(self) -> str:
        """Return a table of cues: start and end in milliseconds, and text."""
        from .formats import to_tsv

        return to_tsv(self)

    def to_json(self) -> str:
        """Return every field as one line of JSON."""
        from .formats import to_json

        return to_json(self)

    def __str__(self) -> str:
        """Return the text."""
        return self.text

    def __repr__(self) -> str:
        """Fit one line: the tokens are counted, not listed."""
        parts = [
            f"text={self.text!r}",
            f"language={self.language!r} ({self.language_confidence:.2f})",
            f"confidence={self.confidence:.2f}",
            f"tokens={len(self.tokens)}",
            f"passes={self.passes}",
            f"audio_s={self.audio_s:.2f}",
            f"seconds={self.seconds:.3f}",
        ]
        if self.truncated:
            parts.append("truncated=True")
        if self.file is not None:
            parts.append(f"file={self.file!r}")
        return f"Transcript({', '.join(parts)})"


@dataclass(frozen=True)
class Decoded:
    """What was read from one clip.

    Attributes:
        ids: Text token ids, without tag and end token.
        confidences: Probability of each in the last pass; for the draft alone, the CTC tap's.
        language: Code; empty where the checkpoint's canvas carries no tag and none was given.
        language_confidence: Probability of the language among those the checkpoint knows.
        draft: Token ids of the greedy CTC reading.
        passes: Denoising passes used.
        truncated: Whether the text filled the canvas, so that some of it may be missing.
        spans: Seconds in which each token was said, start and end; None where nobody asked.
        language_probabilities: Of every language that the checkpoint knows, by code; empty where nothing is
            known.
    """

    ids: list[int]
    confidences: list[float]
    language: str
    language_confidence: float
    draft: list[int]
    passes: int
    truncated: bool
    spans: list[tuple[float, float]] | None = None
    language_probabilities: dict[str, float] = field(default_factory=dict)


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be within 0 and 1, got {value}")


def _reading(one: Segment | Transcript) -> dict[str, Any]:
    """Return what segments and transcripts both tell, as plain Python values."""
    return {
        "text": one.text,
        "language": one.language,
        "language_confidence": float(one.language_confidence),
        "language_probabilities": dict(one.language_probabilities),
        "confidence": float(one.confidence),
        "tokens": [token.to_dict() for token in one.tokens],
        "words": None if one.words is None else [word.to_dict() for word in one.words],
        "passes": int(one.passes),
    }
