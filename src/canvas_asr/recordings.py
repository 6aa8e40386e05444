"""Recordings on their way through the model: read piece by piece, put together again in order.

A clip that the model can take is one piece, and its transcript is what the model makes of it, token for
token what ``generate`` gives. Anything longer is read in chunks of speech; one whose text fills its canvas is
cut in two and read again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .audio import SAMPLE_RATE_HZ, AudioSource, Samples, load_audio
from .audio_stream import AudioStream, is_longer
from .chunks import Chunk, ChunkPacker
from .errors import AudioError, OptionError
from .options import DecodingOptions
from .result import Segment, Transcript
from .transcripts import empty_transcript, join_transcripts, shift_transcript
from .vad import FRAME_SAMPLES, Detector, LoudnessDetector, SileroDetector

READ_SAMPLES = 64 * FRAME_SAMPLES  # 2 s: the detector is quick with many frames at once
SILENT_BLOCKS = 15  # are read before those that wait get their turn


@dataclass(eq=False)
class Piece:
    """What the model is given at once.

    Attributes:
        recording: That it is of.
        chunk: The audio.
        seconds: Its share of the time spent so far.
        transcript: Of it alone, once it is done.
    """

    recording: Recording
    chunk: Chunk
    seconds: float = 0.0
    transcript: Transcript | None = None


class Recording:
    """One recording of those that are transcribed together.

    Attributes:
        place: Among them.
        name: Of its file; None if it is an array.
        audio_s: Its length in seconds; until it is read, what is known of it; 0 if nothing is.
        done_s: Seconds of it that are transcribed, or need not be.
        error: Why it cannot be transcribed.
        is_read: Whether no further pieces will come.
        segments: That are ready and in order.
    """

    def __init__(self, place: int, name: str | None, audio_s: float = 0.0) -> None:
        """Name a recording."""
        self.place = place
        self.name = name
        self.audio_s = audio_s
        self.done_s = 0.0
        self.error: AudioError | None = None
        self.is_read = False
        self.segments: list[Segment] = []
        self.seconds = 0.0
        self._pieces: deque[Piece] = deque()  # in order, those that wait for the model or for one before
        self._parts: list[Transcript] = []

    @classmethod
    def failed(cls, place: int, name: str, error: AudioError) -> Recording:
        """Give a recording that could not be opened."""
        recording = cls(place, name)
        recording.error, recording.is_read = error, True
        return recording

    @property
    def is_done(self) -> bool:
        """Whether all of it is transcribed."""
        return self.is_read and not self._pieces

    def read(self, on_read: Callable[[], None]) -> Iterator[Piece | None]:
        """Read on to the next piece; None where there is none in some seconds.

        Args:
            on_read: Called when some more is read and :attr:`done_s` may have grown.
        """
        self.is_read = True
        yield from ()

    def split(self, piece: Piece) -> list[Piece]:
        """Put two pieces in the place of one whose text is too long; none if it stays."""
        return []

    def settle(self) -> bool:
        """Put in order what is done; whether that is more than before."""
        n_before = len(self._parts)
        while self._pieces and (transcript := self._pieces[0].transcript) is not None:
            piece = self._pieces.popleft()
            self.seconds += piece.seconds
            part = shift_transcript(transcript, piece.chunk.start)
            self._parts.append(part)
            self.segments += part.segments
            self.done_s = piece.chunk.end / SAMPLE_RATE_HZ
        return len(self._parts) > n_before

    def take_segments(self) -> list[Segment]:
        """Give the segments that are ready, once; :meth:`result` is not to be asked for then.

        Raises:
            AudioError: If the recording cannot be read on.
        """
        if self.is_done and self.error is not None:
            raise self.error
        segments, self.segments = self.segments, []
        self._parts.clear()  # what is given away is not kept: memory stays bounded
        return segments

    def result(self, options: DecodingOptions) -> Transcript | AudioError:
        """Give the whole transcript of a recording that is done."""
        if self.error is not None:
            return self.error
        if not self._parts:
            return replace(empty_transcript(options), file=self.name)
        return replace(self._parts[0], seconds=self.seconds, file=self.name)


class Clip(Recording):
    """A recording that is one piece."""

    def __init__(self, place: int, name: str | None, samples: Samples) -> None:
        """Take the samples, (n,) at 16 kHz, as many as the model can take."""
        super().__init__(place, name, len(samples) / SAMPLE_RATE_HZ)
        self._samples = samples

    def read(self, on_read: Callable[[], None]) -> Iterator[Piece | None]:
        """Give the piece; of zero samples none."""
        if len(self._samples):
            self._pieces.append(Piece(self, Chunk(0, self._samples, np.zeros(0, np.float32))))
            self._samples = self._samples[:0]
            self.is_read = True
            yield self._pieces[0]
        self.is_read = True


class LongRecording(Recording):
    """A recording that is read in chunks of speech."""

    def __init__(
        self,
        place: int,
        name: str | None,
        source: AudioStream | Samples,
        max_samples: int,
        *,
        vad: bool = True,
    ) -> None:
        """Prepare to read.

        Args:
            place: Among those that are transcribed together.
            name: Of its file.
            source: The file, or samples (n,) at 16 kHz.
            max_samples: Of the longest chunk.
            vad: Whether only speech is transcribed.

        Raises:
            CheckpointError: If the detector's model is missing.
        """
        if isinstance(source, AudioStream):
            audio_s = source.duration_s or 0.0
        else:
            audio_s = len(source) / SAMPLE_RATE_HZ
        super().__init__(place, name, audio_s)
        self._source = source
        self._detector: Detector = SileroDetector() if vad else LoudnessDetector()
        self._packer = ChunkPacker(max_samples, all_is_speech=not vad)

    def read(self, on_read: Callable[[], None]) -> Iterator[Piece | None]:
        """Read block by block, and give the chunks that are complete; see :meth:`Recording.read`."""
        n_samples = n_silent = 0
        started = time.perf_counter()
        try:
            for block in in_blocks(self._source, READ_SAMPLES):
                n_samples += len(block)
                padded = np.pad(block, (0, -len(block) % FRAME_SAMPLES))
                chunks = self._packer.feed(padded, self._detector(padded))
                if len(block) < READ_SAMPLES:  # the last
                    chunks += self._packer.finish(n_samples)
                new = [Piece(self, chunk) for chunk in chunks]
                self._pieces += new
                n_silent = 0 if new else n_silent + 1
                self._find_done()
                self.seconds += time.perf_counter() - started
                on_read()
                yield from new
                if n_silent == SILENT_BLOCKS:
                    n_silent = 0
                    yield None
                started = time.perf_counter()
            self.audio_s = n_samples / SAMPLE_RATE_HZ
        except AudioError as error:
            self.error = error
        self.is_read = True
        self._find_done()

    def _find_done(self) -> None:
        """Count silence as done, up to the first piece that is not."""
        if self._pieces:
            self.done_s = max(self.done_s, self._pieces[0].chunk.start_s)
        else:
            self.done_s = self.audio_s if self.is_read else self._packer.settled / SAMPLE_RATE_HZ

    def settle(self) -> bool:
        """Put in order what is done; see :meth:`Recording.settle`."""
        is_more = super().settle()
        self._find_done()
        return is_more

    def split(self, piece: Piece) -> list[Piece]:
        """Cut a piece at a silence near its middle; see :meth:`Recording.split`."""
        halves = piece.chunk.halves()
        if halves is None:
            return []
        new = [Piece(self, chunk) for chunk in halves]
        new[0].seconds = piece.seconds
        at = self._pieces.index(piece)
        del self._pieces[at]
        for i, half in enumerate(new):
            self._pieces.insert(at + i, half)
        return new

    def result(self, options: DecodingOptions) -> Transcript | AudioError:
        """Join the chunks' transcripts."""
        if self.error is not None:
            return self.error
        gaps = self._source.gaps if isinstance(self._source, AudioStream) else []
        joined = join_transcripts(self._parts, self.audio_s, options)
        return replace(joined, seconds=self.seconds, file=self.name, gaps=tuple(gaps))


class RecordingReader:
    """Opens recordings: short ones as clips, the others to be read in chunks."""

    def __init__(self, max_clip_samples: int, max_chunk_samples: int, vad: bool | None) -> None:
        """Decide how.

        Args:
            max_clip_samples: Of the longest clip that the model can take.
            max_chunk_samples: Of the longest chunk of longer recordings.
            vad: Whether only speech is transcribed; None: where a recording is longer than a clip.

        Raises:
            OptionError: If ``vad`` is something else.
        """
        if vad is not None and not isinstance(vad, bool):
            raise OptionError(f"vad is {vad!r}; give True, False or None.")
        self._max_clip = max_clip_samples
        self._max_chunk = max_chunk_samples
        self._vad = vad

    def open(self, place: int, source: AudioSource, sample_rate_hz: int | None = None) -> Recording:
        """Open a recording: read it if it is short, or its beginning.

        Args:
            place: Among those that are transcribed together.
            source: As :func:`canvas_asr.load_audio` takes it.
            sample_rate_hz: Likewise.

        Raises:
            AudioError: If it cannot be read.
            CheckpointError: If voice activity detection is needed and its model is missing.
        """
        name = file_name(source)
        if name is not None and sample_rate_hz is None and is_longer(name, self._max_clip):
            return self._long(place, name, AudioStream(name))
        samples = load_audio(source, sample_rate_hz)
        if len(samples) > self._max_clip or (self._vad and len(samples)):
            return self._long(place, name, samples)
        return Clip(place, name, samples)

    def open_list(self, sources: Sequence[AudioSource], sample_rate_hz: int | None = None) -> list[Recording]:
        """Open recordings, all of them before any is transcribed.

        Args:
            sources: As :func:`canvas_asr.load_audio` takes them.
            sample_rate_hz: Of arrays that come without one.

        Raises:
            AudioError: If one cannot be read, naming its file or its place.
            CheckpointError: See :meth:`open`.
        """
        recordings = []
        for place, source in enumerate(sources):
            try:
                recordings.append(self.open(place, source, sample_rate_hz))
            except AudioError as error:
                if file_name(source) is not None:
                    raise
                raise AudioError(f"item {place} of the list: {error}") from error
        return recordings

    def open_or_fail(self, place: int, path: str | os.PathLike[str]) -> Recording:
        """Open a file; a recording with an error if that fails."""
        try:
            return self.open(place, path)
        except AudioError as error:
            return Recording.failed(place, os.fsdecode(path), error)

    def _long(self, place: int, name: str | None, source: AudioStream | Samples) -> LongRecording:
        return LongRecording(place, name, source, self._max_chunk, vad=self._vad is not False)


def file_name(source: AudioSource) -> str | None:
    """The path of a file; None of an array."""
    return os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else None


def in_blocks(source: Iterable[Samples] | Samples, n_samples: int) -> Iterator[Samples]:
    """Give samples in blocks of one length; the last is shorter, perhaps empty."""
    if isinstance(source, np.ndarray):
        for at in range(0, len(source) + 1, n_samples):
            yield source[at : at + n_samples]
        return
    held: list[Samples] = []
    n_held = 0
    for samples in source:
        held.append(samples)
        n_held += len(samples)
        while n_held >= n_samples:
            joined = np.concatenate(held)
            yield joined[:n_samples]
            held = [joined[n_samples:]]
            n_held = len(held[0])
    yield np.concatenate([np.zeros(0, np.float32), *held])
