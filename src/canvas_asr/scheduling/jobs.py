"""What the scheduler is given to transcribe, and what it tells of it.

A job ends with exactly one :class:`Finished` or :class:`Failed`; nothing comes after that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..audio_stream import SampleSource
from ..errors import CanvasASRError
from ..result import Segment, Transcript

if TYPE_CHECKING:
    from ..canvas_view import CanvasView

__all__ = [
    "Event",
    "Failed",
    "Finished",
    "JobCancelled",
    "OnEvent",
    "PassShown",
    "Progressed",
    "SampleSource",
    "SegmentReady",
]


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
