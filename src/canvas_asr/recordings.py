"""Recordings on their way through the model: read piece by piece, put together again in order.

A clip that the model can take is one piece, and its transcript is what the model makes of it, token for
token what ``generate`` gives. Anything longer is read in chunks of speech; one whose text fills its canvas is
cut in two and read again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from .audio_files import SAMPLE_RATE_HZ, Samples
from .audio_stream import SampleSource
from .chunks import Chunk, ChunkPacker
from .errors import AudioError
from .options import DecodingOptions
from .read_ahead import ReadAhead
from .result import Gap, Segment, Transcript
from .transcripts import empty_transcript, join_transcripts, shift_transcript
from .vad import FRAME_SAMPLES, Detector, LoudnessDetector, SileroDetector

# Less work for the detector than 2 s at a time, which do for what comes no faster than speech.
READ_SAMPLES = 128 * FRAME_SAMPLES  # 4 s
LIVE_SAMPLES = 64 * FRAME_SAMPLES  # 2 s, of what does not tell its length
SILENT_BLOCKS = 8  # are read before those that wait get their turn
BLOCKS_AHEAD = 48  # of a long recording, read beside the model: 3 minutes, 12 MB


@dataclass(frozen=True)
class Stretch:
    """What reading on has found.

    Attributes:
        chunks: That are complete now, in order.
        settled: The sample up to which everything is in a chunk that was given, or is silence.
        seconds: That reading took.
        n_samples: Of the whole recording; None: there is more to read.
    """

    chunks: Sequence[Chunk]
    settled: int
    seconds: float
    n_samples: int | None = None


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

    def stretches(self) -> Generator[Stretch, None, None]:
        """Read on, and leave the recording as it is: this may run beside the model.

        Raises:
            AudioError: If it cannot be read on.
            CheckpointError: If the detector's model is missing.
        """
        yield from ()

    def receive(self, stretch: Stretch) -> list[Piece]:
        """Take in what was read; the pieces that this gives."""
        new = [Piece(self, chunk) for chunk in stretch.chunks]
        self._pieces += new
        self.seconds += stretch.seconds
        if stretch.n_samples is not None:
            self.audio_s = stretch.n_samples / SAMPLE_RATE_HZ
        return new

    def end(self, error: AudioError | None = None) -> None:
        """Know that nothing more will be read.

        Args:
            error: Why it cannot be read on; None: all is read.
        """
        self.error = self.error or error
        self.is_read = True

    def read(self, on_read: Callable[[], None]) -> Generator[Piece | None, None, None]:
        """Read on to the next piece; None where there is none in some seconds.

        Args:
            on_read: Called when some more is read and :attr:`done_s` may have grown.

        Raises:
            CheckpointError: If the detector's model is missing.
        """
        n_silent = 0
        error = None
        with closing(self._reading()) as stretches:
            try:
                for stretch in stretches:
                    new = self.receive(stretch)
                    if stretch.n_samples is not None:
                        self.end()
                    n_silent = 0 if new else n_silent + 1
                    on_read()
                    yield from new
                    if n_silent == SILENT_BLOCKS:
                        n_silent = 0
                        yield None
            except AudioError as why:
                error = why
        self.end(error)

    def _reading(self) -> Generator[Stretch, None, None] | ReadAhead[Stretch]:
        """What :meth:`read` reads."""
        return self.stretches()

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
        """Give the whole transcript of a recording that is done, or why it could not be read."""
        if self.error is not None:
            return self.error
        if not self._parts:
            return replace(empty_transcript(options), file=self.name)
        return replace(self._parts[0], seconds=self.seconds, file=self.name)

    def transcript(self, options: DecodingOptions) -> Transcript:
        """Give the whole transcript of a recording that is done.

        Raises:
            AudioError: If it could not be read.
        """
        result = self.result(options)
        if isinstance(result, AudioError):
            raise result
        return result


class Clip(Recording):
    """A recording that is one piece."""

    def __init__(self, place: int, name: str | None, samples: Samples) -> None:
        """Take the samples, (n,) at 16 kHz, as many as the model can take."""
        super().__init__(place, name, len(samples) / SAMPLE_RATE_HZ)
        self._samples = samples

    def stretches(self) -> Generator[Stretch, None, None]:
        """Give the whole; of zero samples no piece."""
        samples, self._samples = self._samples, self._samples[:0]
        chunks = [Chunk(0, samples, np.zeros(0, np.float32))] if len(samples) else []
        yield Stretch(chunks, 0, 0.0, len(samples))


class LongRecording(Recording):
    """A recording that is read in chunks of speech."""

    def __init__(
        self,
        place: int,
        name: str | None,
        source: SampleSource | Samples,
        max_samples: int,
        *,
        vad: bool = True,
    ) -> None:
        """Prepare to read.

        Args:
            place: Among those that are transcribed together.
            name: Of its file.
            source: The file, or whatever else gives samples, or these themselves, (n,) at 16 kHz.
            max_samples: Of the longest chunk.
            vad: Whether only speech is transcribed.

        Raises:
            CheckpointError: If the detector's model is missing.
        """
        if isinstance(source, np.ndarray):
            audio_s = len(source) / SAMPLE_RATE_HZ
        else:
            audio_s = source.duration_s or 0.0
        super().__init__(place, name, audio_s)
        self._n_block = READ_SAMPLES if audio_s else LIVE_SAMPLES
        self._source = source
        self._detector: Detector = SileroDetector() if vad else LoudnessDetector()
        self._packer = ChunkPacker(max_samples, all_is_speech=not vad)
        self._settled_s = 0.0

    def stretches(self) -> Generator[Stretch, None, None]:
        """Read block by block, and find the chunks that are complete; see :meth:`Recording.stretches`."""
        n_samples = 0
        started = time.perf_counter()
        for block in in_blocks(self._source, self._n_block):
            n_samples += len(block)
            padded = np.pad(block, (0, -len(block) % FRAME_SAMPLES))
            chunks = self._packer.feed(padded, self._detector(padded))
            is_last = len(block) < self._n_block
            if is_last:
                chunks += self._packer.finish(n_samples)
            seconds = time.perf_counter() - started
            yield Stretch(chunks, self._packer.settled, seconds, n_samples if is_last else None)
            started = time.perf_counter()

    def receive(self, stretch: Stretch) -> list[Piece]:
        """Take in what was read; see :meth:`Recording.receive`."""
        new = super().receive(stretch)
        self._settled_s = stretch.settled / SAMPLE_RATE_HZ
        self._find_done()
        return new

    def end(self, error: AudioError | None = None) -> None:
        """Know that nothing more will be read; see :meth:`Recording.end`."""
        super().end(error)
        self._find_done()

    def _reading(self) -> Generator[Stretch, None, None] | ReadAhead[Stretch]:
        return ReadAhead(self.stretches(), BLOCKS_AHEAD)

    def _find_done(self) -> None:
        """Count silence as done, up to the first piece that is not."""
        if self._pieces:
            self.done_s = max(self.done_s, self._pieces[0].chunk.start_s)
        else:
            self.done_s = self.audio_s if self.is_read else self._settled_s

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
        gaps: Sequence[Gap] = () if isinstance(self._source, np.ndarray) else self._source.gaps
        joined = join_transcripts(self._parts, self.audio_s, options)
        return replace(joined, seconds=self.seconds, file=self.name, gaps=tuple(gaps))


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
