"""A long audio file as blocks of 16 kHz mono, in bounded memory, read on behind what is damaged.

    stream = AudioStream("lecture.mp3")
    for samples in stream:
        ...
    print(stream.gaps)

``load_audio`` refuses a damaged file; of an hour, one bad place should cost that place only. What cannot be
decoded is replaced by silence of its length, as timestamps or, in MP3, lost bytes tell it, so that what
follows keeps its time. How long it was in a file without timestamps cannot be told: its gap has no length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np

from .audio_files import (
    BLOCK_SAMPLES,
    PCM_MAGIC,
    SAMPLE_RATE_HZ,
    SOUNDFILE_MAGIC,
    Block,
    RatedBlocks,
    Samples,
    byte_counts,
    check_rate,
    frame_block,
    open_audio,
    open_container,
    open_soundfile,
    read_soundfile,
    to_16k_mono,
)
from .containers import mp3_frame_bytes
from .errors import AudioError
from .result import Gap

# Timestamps of whole recordings are this uneven; behind a decoder's error every millisecond counts.
_JITTER_S, _PRECISE_S = 0.1, 0.005
_SHORT_END_S = 1.0  # headers estimate: by less than this is no sign of a missing end
_LONGEST_FILL_S = 3600.0  # for a forged timestamp
_MAX_BAD_READS = 1000  # in a row, of a container that is noise from here on


class SampleSource(Protocol):
    """Audio that is read once, block by block, as an :class:`AudioStream` is."""

    @property
    def duration_s(self) -> float | None:
        """Its length as far as a header tells; None if it does not."""
        ...

    @property
    def gaps(self) -> Sequence[Gap]:
        """What could not be decoded so far."""
        ...

    def __iter__(self) -> Iterator[Samples]:
        """Give 16 kHz mono samples in blocks, waiting for them where need be.

        Raises:
            AudioError: If it cannot be decoded.
        """
        ...


def header_seconds(path: str) -> float | None:
    """Length of a file as its header tells or lets estimate; None if it does not, or there is no file."""
    try:
        with open_audio(path) as file:
            sound = open_soundfile(file, SOUNDFILE_MAGIC)
            if sound is not None:
                with sound:
                    return float(sound.frames / check_rate(sound.samplerate, path))
            with open_container(file, path) as (container, _):
                return container.duration / 1e6 if container.duration else None
    except AudioError:
        return None


def is_longer(path: str, n_samples: int) -> bool:
    """Whether a file is longer than so many samples at 16 kHz; it is read as far as is needed to tell.

    Raises:
        AudioError: If not even its beginning can be read.
    """
    stream = AudioStream(path)
    if stream.duration_s is not None and stream.duration_s <= n_samples / SAMPLE_RATE_HZ:
        return False
    n_read = 0
    for samples in stream:
        n_read += len(samples)
        if n_read > n_samples or (n_read and stream.duration_s is not None):
            return True
    return False


class AudioStream:
    """A file being read.

    Attributes:
        path: Of the file.
        duration_s: What its header says; None if nothing.
        gaps: What could not be decoded so far.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at the header; the file itself is opened by iterating."""
        self.path = os.fsdecode(path)
        self.duration_s = header_seconds(self.path)
        self.gaps: list[Gap] = []
        self._clock_s = 0.0  # read so far, silence in place of gaps included

    def __iter__(self) -> Iterator[Samples]:
        """Give the samples in blocks.

        Raises:
            AudioError: If the file cannot be opened, or nothing in it be decoded.
        """
        n_samples = 0
        with open_audio(self.path) as file:
            for samples in to_16k_mono(self._read(file), self.path):
                n_samples += len(samples)
                yield samples
        if not n_samples:
            raise AudioError(f"{self.path}: holds no audio samples; check how it was recorded")

    def _read(self, file: BinaryIO) -> RatedBlocks:
        """Decode with libsndfile as far as that goes, from there with FFmpeg."""
        n_bytes, end = byte_counts(file, self.path)
        reason = ""
        # Of Ogg, libsndfile does not tell where pages are missing.
        sound = open_soundfile(file, (*PCM_MAGIC, b"fLaC"))
        if sound is not None:
            try:
                with sound:
                    for block, rate in read_soundfile(sound, self.path):
                        yield self._finite(block, rate), rate
                        self._clock_s += len(block) / rate
            except AudioError as error:
                if not self._clock_s:
                    raise
                reason = str(error.__cause__ or "cut off")
            file.seek(0)
        if sound is None or reason:
            yield from self._read_av(file, reason)
        end_s = self._clock_s
        if end is not None and end > n_bytes:
            end_s = max(end_s * end / n_bytes, self.duration_s or 0.0)
        elif self.duration_s is not None and self.duration_s > end_s + _SHORT_END_S:
            end_s = self.duration_s
        if end_s > self._clock_s:
            self.gaps.append(Gap(self._clock_s, end_s, "cut off"))

    def _read_av(self, file: BinaryIO, reason: str) -> RatedBlocks:
        """Decode with FFmpeg, past what is damaged, and leave out what the clock has already."""
        now_s = 0.0  # of the decoder, which may be behind the clock
        with open_container(file, self.path) as (container, stream):
            times = _Times(stream)
            for packet in times.packets(container):
                for frame in times.frames(packet):
                    rate = check_rate(frame.sample_rate, self.path)
                    block = frame_block(frame)
                    lost_s = times.lost_s(frame, packet, now_s)
                    if lost_s is None:
                        continue
                    if now_s + lost_s > self._clock_s and lost_s > 0:
                        missing_s = now_s + lost_s - self._clock_s
                        yield from self._fill(missing_s, block, rate, times.reason or reason)
                        reason = ""
                    now_s += lost_s
                    times.settle(packet, len(block) / rate)
                    new = block[max(0, round((self._clock_s - now_s) * rate)) :]
                    now_s += len(block) / rate
                    if len(new):
                        yield self._finite(new, rate), rate
                        self._clock_s = now_s
        if not self._clock_s and times.reason:
            raise AudioError(f"{self.path}: cannot be read as audio ({times.reason}); get the file again")
        if times.reason:  # up to the end, or without length
            self.gaps.append(Gap(self._clock_s, max(self._clock_s, self.duration_s or 0.0), times.reason))
            self.duration_s = self.gaps[-1].end

    def _fill(self, missing_s: float, like: Block, rate: int, reason: str) -> RatedBlocks:
        """Report a gap, and give silence in its place, as far as the file can be that long."""
        start_s, end_s = self._clock_s, self._clock_s + missing_s
        limit_s = start_s + _LONGEST_FILL_S if self.duration_s is None else max(self.duration_s, start_s)
        n_left = round((min(end_s, limit_s) - start_s) * rate)
        self.gaps.append(Gap(start_s, start_s + n_left / rate, reason or "damaged, or not in the file"))
        while n_left > 0:
            n_frames = min(n_left, BLOCK_SAMPLES)
            value = 128 if like.dtype.kind == "u" else 0
            yield np.full((n_frames, 1), value, like.dtype), rate
            self._clock_s += n_frames / rate
            n_left -= n_frames

    def _finite(self, block: Block, rate: int) -> Block:
        """Replace samples that are no numbers by silence, and report them."""
        if block.dtype.kind != "f":
            return block
        bad = np.asarray(~np.isfinite(block).all(axis=1))
        if not bad.any():
            return block
        first, last = int(bad.argmax()), len(bad) - int(bad[::-1].argmax())
        start_s, end_s = self._clock_s + first / rate, self._clock_s + last / rate
        self.gaps.append(Gap(start_s, end_s, "samples are NaN or infinite"))
        return np.where(bad[:, None], np.zeros_like(block), block)


class _Times:
    """Where the frames of a damaged stream belong.

    Attributes:
        reason: What went wrong since the last good frame; empty if nothing.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_mp3 = stream.codec.name.startswith("mp3")
        self._origin_s: float | None = None
        self._end_byte: int | None = None  # behind the last good packet
        self._good_bytes, self._good_s = 0, 0.0
        self.reason = ""

    def packets(self, container: Any) -> Iterator[Any]:
        """Give the packets, those behind a place that cannot be read as well."""
        import av.error

        n_bad = 0
        while n_bad < _MAX_BAD_READS:
            try:
                for packet in container.demux(self._stream):
                    n_bad = 0
                    yield packet
                return
            except av.error.FFmpegError as error:
                n_bad += 1
                self.reason = error.strerror or str(error)

    def frames(self, packet: Any) -> list[Any]:
        """Decode a packet; nothing where that fails."""
        import av.error

        if self._is_mp3 and packet.size:
            frame_bytes = mp3_frame_bytes(bytes(packet)[:4])
            if frame_bytes is None or packet.size < frame_bytes:
                # Tags and padding at the beginning and end are no damage: no good frame follows or precedes.
                return []
        if packet.is_corrupt:
            self.reason = "incomplete packet"
            return []
        try:
            return list(self._stream.decode(packet))
        except av.error.FFmpegError as error:
            self.reason = error.strerror or str(error)
            return []

    def lost_s(self, frame: Any, packet: Any, now_s: float) -> float | None:
        """Seconds that are missing before a frame; None for one that cannot be placed."""
        if self._is_mp3:  # its timestamps count packets
            if self._end_byte is None or packet.pos is None or packet.pos <= self._end_byte:
                return 0.0
            lost_s = (packet.pos - self._end_byte) * self._good_s / max(1, self._good_bytes)
        elif frame.pts is None:
            return None if self.reason and self._origin_s is not None else 0.0
        else:
            time_s = float(frame.pts * frame.time_base)
            if self._origin_s is None or time_s - self._origin_s < now_s - _JITTER_S:
                self._origin_s = time_s - now_s  # the first, or the start of a chained stream
            lost_s = time_s - self._origin_s - now_s
        return lost_s if lost_s > (_PRECISE_S if self.reason else _JITTER_S) else 0.0

    def settle(self, packet: Any, seconds: float) -> None:
        """Note a good frame."""
        self.reason = ""
        self._good_s += seconds
        if packet.pos is not None and packet.size:
            if self._end_byte != packet.pos + packet.size:  # its first frame
                self._good_bytes += packet.size
            self._end_byte = packet.pos + packet.size
