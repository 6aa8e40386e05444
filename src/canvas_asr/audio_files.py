"""Audio files as blocks of samples, and blocks of any kind as 16 kHz mono: what reading a file rests on.

WAV, AIFF, FLAC and Ogg are read by libsndfile (quicker, and strict about damaged FLAC); everything else, and
what libsndfile does not know, by FFmpeg's libraries through PyAV.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr

from .containers import mp3_frame_bytes, promised_end
from .errors import AudioError

SAMPLE_RATE_HZ = 16_000
# Below lies no speech, above no microphone: such a rate is a forged header, or kHz given for Hz.
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 768_000
# Floats may pass full scale a little (they are clipped); far above it they are integers cast without scaling.
MAX_FLOAT_PEAK = 8.0
BLOCK_SAMPLES = 1 << 16  # of all channels together, so that a forged channel count cannot cost gigabytes
PCM_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"FORM")
SOUNDFILE_MAGIC = (*PCM_MAGIC, b"fLaC", b"OggS")

Samples: TypeAlias = npt.NDArray[np.float32]
Block: TypeAlias = npt.NDArray[Any]  # (frames, channels)
RatedBlocks: TypeAlias = Iterator[tuple[Block, int]]  # each with its rate in Hz

_REPAIR = "get the file again, or convert what is left of it with `ffmpeg -i FILE out.wav`"


@contextmanager
def open_audio(path: str) -> Iterator[BinaryIO]:
    """Open a file that is to be read as audio.

    Args:
        path: Its path, which errors name.

    Raises:
        AudioError: If it is missing, empty, no regular file, or cannot be read, now or later.
    """
    if "\0" in path:
        raise AudioError(f"{path!r}: no such file; a name cannot hold a zero character")
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{path}: is a directory; name the audio files in it")
        if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
            raise AudioError(f"{path}: is not a regular file; save the audio to a file first")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file; check the name") from error
    except PermissionError as error:
        raise AudioError(f"{path}: no permission to read it; check its owner and mode") from error
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def read_blocks(file: BinaryIO, path: str) -> RatedBlocks:
    """Decode an open file, which has to be whole, with the first library that knows it.

    Raises:
        AudioError: If it is empty, no audio, damaged or cut off.
    """
    n_bytes, end = byte_counts(file, path)
    if end is not None and end > n_bytes:
        raise AudioError(f"{path}: cut off: {n_bytes} bytes of at least {end}; {_REPAIR}")
    sound = open_soundfile(file, SOUNDFILE_MAGIC)
    if sound is None:
        yield from _read_av(file, path)
        return
    with sound:
        yield from read_soundfile(sound, path)


def byte_counts(file: BinaryIO, path: str) -> tuple[int, int | None]:
    """Count the bytes that are there, and those that the container promises if it does.

    Raises:
        AudioError: If the file is empty.
    """
    n_bytes = file.seek(0, os.SEEK_END)
    if n_bytes == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes); get it again")
    return n_bytes, promised_end(file, n_bytes)


def open_soundfile(file: BinaryIO, magic: tuple[bytes, ...]) -> sf.SoundFile | None:
    """Open a file with libsndfile if it begins with one of these marks; otherwise it stands at its start."""
    file.seek(0)
    known = file.read(4) in magic
    file.seek(0)
    if known:
        try:
            sound = sf.SoundFile(file)
        except sf.SoundFileError:
            pass  # a codec that libsndfile does not know; FFmpeg may
        else:
            if sound.frames < 2**62:  # else a FLAC of unknown length, which libsndfile reads with errors
                return sound
            sound.close()
        file.seek(0)
    return None


def read_soundfile(sound: sf.SoundFile, path: str) -> RatedBlocks:
    """Yield (frames, channels) blocks of float32 with their rate in Hz.

    Raises:
        AudioError: If the rate is absurd, a block does not decode, or there are fewer frames than promised.
    """
    rate = check_rate(sound.samplerate, path)
    n_frames = max(1, BLOCK_SAMPLES // sound.channels)
    n_read = 0
    while True:
        try:
            block = sound.read(n_frames, dtype="float32", always_2d=True)
        except (sf.SoundFileError, OSError) as error:
            raise _damaged(path, n_read / rate, error) from error
        if not len(block):
            break
        n_read += len(block)
        yield block, rate
    if n_read < sound.frames:
        promised = f"of {sound.frames / rate:.1f} s"
        raise AudioError(f"{path}: cut off at {n_read / rate:.1f} s {promised}; {_REPAIR}")


@contextmanager
def open_container(file: BinaryIO, path: str) -> Iterator[tuple[Any, Any]]:
    """Open a file with FFmpeg's libraries: PyAV's container, and the stream with the audio.

    Raises:
        AudioError: If FFmpeg knows no such format or codec, or there is no audio in it.
    """
    # Here, not above: soundfile reads most files, and FFmpeg's libraries are many and large.
    import av
    import av.error

    # PyAV before 19 refuses files with tags that are not UTF-8, unless told otherwise; 19 cannot be told.
    old = int(av.__version__.split(".")[0]) < 19
    tag_options: dict[str, Any] = {"metadata_errors": "replace"} if old else {}
    try:
        # No protocol is allowed, so that a playlist cannot make FFmpeg open other files or addresses.
        container = av.open(file, "r", options={"protocol_whitelist": "none"}, **tag_options)
    except av.error.FFmpegError as error:
        raise _no_audio(path, error) from error
    with container:
        stream = container.streams.best("audio")
        if not isinstance(stream, av.AudioStream):
            raise AudioError(f"{path}: has no audio in it; name an audio file, or a video with sound")
        if stream.codec_context is None:
            raise AudioError(f"{path}: FFmpeg has no decoder for its audio; convert it to WAV or FLAC")
        yield container, stream


def _read_av(file: BinaryIO, path: str) -> RatedBlocks:
    """Yield (frames, channels) blocks in the codec's own sample type with their rate in Hz.

    Raises:
        AudioError: If FFmpeg knows no such format, there is no audio in it, or it is damaged or cut off.
    """
    n_s = 0.0
    with open_container(file, path) as (container, stream):
        import av.error

        is_mp3 = stream.codec.name.startswith("mp3")
        junk = False
        try:
            for packet in container.demux(stream):
                if is_mp3 and packet.size:
                    frame_bytes = mp3_frame_bytes(bytes(packet)[:4])
                    if frame_bytes is None:  # tags or padding, if it comes first or last
                        junk = n_s > 0
                        continue
                    if junk or packet.size < frame_bytes:
                        raise _damaged(path, n_s, "incomplete frame")
                if packet.is_corrupt:
                    raise _damaged(path, n_s, "incomplete packet")
                for frame in stream.decode(packet):
                    rate = check_rate(frame.sample_rate, path)
                    n_s += frame.samples / rate
                    yield frame_block(frame), rate
        except av.error.FFmpegError as error:
            raise (_damaged(path, n_s, error.strerror) if n_s else _no_audio(path, error)) from error


def frame_block(frame: Any) -> Block:
    """Samples of one of PyAV's frames, (frames, channels)."""
    samples: Block = frame.to_ndarray()
    return samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)


def _no_audio(path: str, error: Any) -> AudioError:
    hint = "check that it is audio, and convert it to WAV or FLAC"
    return AudioError(f"{path}: cannot be read as audio ({error.strerror}); {hint}")


def _damaged(path: str, n_s: float, reason: object) -> AudioError:
    return AudioError(f"{path}: damaged or cut off somewhere after {n_s:.1f} s ({reason}); {_REPAIR}")


def check_rate(rate: Any, name: str) -> int:
    """Give a rate in Hz.

    Raises:
        AudioError: If it is no whole number, or no rate at which speech is recorded.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise AudioError(f"{name}: the sample rate must be a number of Hz, got {rate!r}")
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise AudioError(f"{name}: a sample rate of {rate} Hz is outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    if int(rate) != rate:
        raise AudioError(f"{name}: the sample rate must be a whole number of Hz, got {rate}")
    return int(rate)


def to_16k_mono(blocks: RatedBlocks, name: str) -> Iterator[Samples]:
    """Check, mix and resample blocks of shape (frames, channels).

    Yields:
        Samples (n,) within [-1, 1], 16,000 per second; together as long as the blocks.

    Raises:
        AudioError: If a sample is NaN or infinite, or they are far above full scale.
    """
    resampler: soxr.ResampleStream | None = None
    rate_now = SAMPLE_RATE_HZ
    n_seen = 0
    for block, rate in blocks:
        mono = _mono(block, n_seen, name)
        n_seen += len(mono)
        if rate != rate_now:  # at the start, and in chained streams
            yield _resampled(resampler, np.empty(0, np.float32), last=True)
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1) if rate != SAMPLE_RATE_HZ else None
            rate_now = rate
        yield _resampled(resampler, mono)
    yield _resampled(resampler, np.empty(0, np.float32), last=True)


def _resampled(resampler: soxr.ResampleStream | None, mono: Samples, *, last: bool = False) -> Samples:
    if resampler is not None:
        mono = np.asarray(resampler.resample_chunk(mono, last=last), dtype=np.float32)
    return np.clip(mono, -1.0, 1.0)


def _mono(block: Block, n_before: int, name: str) -> Samples:
    """Mix (frames, channels) of any sample type to (frames,) float32 with full scale 1.0."""
    if block.dtype.kind == "f":
        peak = max(block.max(initial=0.0), -block.min(initial=0.0))
        if not peak <= MAX_FLOAT_PEAK:
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                first = int(bad.argmax())
                what = "NaN" if np.isnan(block[first]).any() else "infinite"
                raise AudioError(f"{name}: sample {n_before + first} is {what}; repair or remove it")
            raise AudioError(
                f"{name}: samples reach {peak:.6g} where full scale is 1.0; scale them to [-1, 1]"
            )
        full_scale, centre = 1.0, 0.0
    else:
        full_scale = 2.0 ** (8 * block.dtype.itemsize - 1)
        centre = full_scale if block.dtype.kind == "u" else 0.0
    if block.shape[1] == 1 and block.dtype == np.float32:
        return np.ascontiguousarray(block[:, 0], dtype=np.float32)
    exact = np.float32 if block.dtype == np.float32 else np.float64
    mixed = block.mean(axis=1, dtype=exact)
    if block.dtype.kind != "f":
        mixed = (mixed - centre) / full_scale
    return np.asarray(mixed, dtype=np.float32)
