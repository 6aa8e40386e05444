"""What the scheduler is given to transcribe, and what it tells of it.

A job ends with exactly one :class:`Finished` or :class:`Failed`; nothing comes after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import CanvasASRError
from ..result import Gap, Segment, Transcript

if TYPE_CHECKING:
    from ..audio_files import Samples
    from ..canvas_view import CanvasView


class JobCancelled(CanvasASRError):  # noqa: N818 - as `asyncio` calls it, not an error of anybody
    """A job that was cancelled before it was done."""


@dataclass(frozen=True)
class Progressed:
    """More is transcribed, or was found to be silence.

    Attributes:
        done_s: Seconds of audio that are done; never fewer than before.
        total_s: Seconds there are in all; None while nothing is known of it.
    """

    done_s: float
    total_s: float | None


@dataclass(frozen=True)
class PassShown:
    """What one pass made of one chunk.

    Attributes:
        start: Of the chunk, in seconds from the beginning of the recording.
        end: Likewise.
        view: The canvas; its ``place`` says nothing.
    """

    start: float
    end: float
    view: CanvasView


@dataclass(frozen=True)
class SegmentReady:
    """A segment that will not change any more; segments come in order."""

    segment: Segment


@dataclass(frozen=True)
class Finished:
    """The end of a job: what ``Transcriber.transcribe`` gives for the same audio and options."""

    transcript: Transcript


@dataclass(frozen=True)
class Failed:
    """The end of a job that has no transcript.

    Attributes:
        error: ``AudioError`` if it cannot be read, :class:`JobCancelled`, or what went wrong unexpectedly.
    """

    error: Exception


Event: TypeAlias = "Progressed | PassShown | SegmentReady | Finished | Failed"
OnEvent: TypeAlias = Callable[[Event], None]


class SampleSource(Protocol):
    """What a job reads, as :class:`~canvas_asr.audio_stream.AudioStream` is.

    Attributes:
        duration_s: Its length as far as a header tells; None if it does not.
        gaps: What could not be decoded so far.
    """

    duration_s: float | None
    gaps: list[Gap]

    def __iter__(self) -> Iterator[Samples]:
        """Give 16 kHz mono float32 samples in blocks, waiting for them where need be.

        Raises:
            AudioError: If it cannot be decoded.
        """
        ...
