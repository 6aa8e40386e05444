"""Opening recordings: a file, an array or a stream, as a clip or as what is read in chunks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from .audio import SAMPLE_RATE_HZ, AudioSource, Samples, load_audio
from .audio_stream import AudioStream, SampleSource, is_longer
from .errors import AudioError, OptionError
from .recordings import Clip, LongRecording, Recording
from .result import Gap


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

    @property
    def max_clip_s(self) -> float:
        """Seconds of the longest clip that the model can take."""
        return self._max_clip / SAMPLE_RATE_HZ

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

    def open_stream(self, place: int, source: SampleSource | Samples) -> Recording:
        """Open what gives samples block by block, or these themselves, (n,) at 16 kHz.

        It is waited for until it ends or is longer than a clip, if it does not tell its length.

        Raises:
            AudioError: If it cannot be read, or is no longer than a clip and damaged.
            CheckpointError: See :meth:`open`.
        """
        if isinstance(source, np.ndarray):
            return self.open(place, (source, SAMPLE_RATE_HZ))
        if source.duration_s is not None and source.duration_s > self._max_clip / SAMPLE_RATE_HZ:
            return self._long(place, None, source)
        begun = _BegunSource(source, self._max_clip)
        if begun.is_longer:
            return self._long(place, None, begun)
        if source.gaps:
            raise AudioError(f"the audio is damaged at {source.gaps[0].start:.1f} s: {source.gaps[0].reason}")
        return self.open(place, (begun.samples, SAMPLE_RATE_HZ))

    def open_all(
        self, source: AudioSource | list[AudioSource], sample_rate_hz: int | None = None
    ) -> list[Recording]:
        """Open a recording, or a list of them, all before any is transcribed.

        Args:
            source: As :func:`canvas_asr.load_audio` takes it, or a list.
            sample_rate_hz: Of arrays that come without one.

        Raises:
            AudioError: If one cannot be read, naming its file or its place in the list.
            CheckpointError: See :meth:`open`.
        """
        if not isinstance(source, list):
            return [self.open(0, source, sample_rate_hz)]
        recordings = []
        for place, item in enumerate(source):
            try:
                recordings.append(self.open(place, item, sample_rate_hz))
            except AudioError as error:
                if file_name(item) is not None:
                    raise
                raise AudioError(f"item {place} of the list: {error}") from error
        return recordings

    def open_or_fail(
        self, place: int, path: str | os.PathLike[str], refusal: AudioError | None = None
    ) -> Recording:
        """Open a file; a recording with an error if that fails, or if it is refused for another reason."""
        try:
            if refusal is not None:
                raise refusal
            return self.open(place, path)
        except AudioError as error:
            return Recording.failed(place, os.fsdecode(path), error)

    def _long(self, place: int, name: str | None, source: SampleSource | Samples) -> LongRecording:
        return LongRecording(place, name, source, self._max_chunk, vad=self._vad is not False)


class _BegunSource:
    """A source whose beginning was read already.

    Attributes:
        is_longer: Whether there is more than was asked for.
        samples: The beginning.
    """

    def __init__(self, source: SampleSource, n_samples: int) -> None:
        """Read on to more than a number of samples, or the end."""
        self._source = source
        self._rest = iter(source)
        read, n_read = [np.zeros(0, np.float32)], 0
        while n_read <= n_samples and (block := next(self._rest, None)) is not None:
            read.append(block)
            n_read += len(block)
        self.is_longer = n_read > n_samples
        self.samples: Samples = np.concatenate(read)

    @property
    def duration_s(self) -> float | None:
        """What the source says; None where it is longer than that."""
        return None if self.is_longer else self._source.duration_s

    @property
    def gaps(self) -> Sequence[Gap]:
        """What of the source could not be decoded so far."""
        return self._source.gaps

    def __iter__(self) -> Iterator[Samples]:
        """Give all of it, once."""
        beginning, self.samples = self.samples, self.samples[:0]
        yield beginning
        yield from self._rest


def file_name(source: AudioSource) -> str | None:
    """The path of a file; None of an array."""
    return os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else None
