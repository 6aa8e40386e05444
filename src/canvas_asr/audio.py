"""Any audio file or array to the one form the model hears: 16 kHz mono float32 within [-1, 1].

    samples = load_audio("talk.m4a")
    samples = load_audio((stereo, 44_100))

WAV, AIFF, FLAC and Ogg are read by libsndfile (quicker, and strict about damaged FLAC); everything else, and
what libsndfile does not know, by FFmpeg's libraries through PyAV. Decoding, mixing to mono (the mean of the
channels) and resampling (soxr) go block by block, so a file needs little more memory than its 16 kHz samples.

Nothing is shortened in silence. A file that a decoder finds damaged is refused, and so is one that was cut
off: where a header promises more than is there (WAV, AIFF, FLAC, CAF, MP4 and M4A, Matroska and WebM, MP3
with an Info frame), or where the last page or frame is incomplete (Ogg, MP3, AAC). What cannot be told is a
format that states no length, cut between two pages or frames: that is a valid shorter file. Formats not named
here (AC-3 and MPEG-TS, say) are read as far as they go.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
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
MAX_ARRAY_CHANNELS = 16
# Floats may pass full scale a little (they are clipped); far above it they are integers cast without scaling.
MAX_FLOAT_PEAK = 8.0
BLOCK_SAMPLES = 1 << 16  # of all channels together, so that a forged channel count cannot cost gigabytes

Samples: TypeAlias = npt.NDArray[np.float32]
Block: TypeAlias = npt.NDArray[Any]  # (frames, channels)
AudioSource: TypeAlias = "str | os.PathLike[str] | npt.NDArray[Any] | tuple[npt.NDArray[Any], int]"

_PCM_TYPES = ("int8", "uint8", "int16", "int32")
_REPAIR = "get the file again, or convert what is left of it with `ffmpeg -i FILE out.wav`"


def load_audio(source: AudioSource, sample_rate_hz: int | None = None) -> Samples:
    """Read a file, or convert an array, to 16 kHz mono float32.

    Args:
        source: A path; or an array with its rate, as the tuple ``(array, rate)`` or by ``sample_rate_hz``. An
            array has shape (n,), (n, channels) or (channels, n): an axis of 1 is one channel, otherwise the
            axis of at most 16 is the channels, and if both are that short the array is refused as ambiguous.
            Anything with ``__array__`` (a torch tensor on the CPU) is an array. Floats have full scale 1.0;
            int8, int16 and int32 are scaled from their own range, uint8 around 128; any byte order will do.
        sample_rate_hz: Rate of a bare array in Hz, 4,000 to 768,000. Not for files, which state their own.

    Returns:
        Samples (n,), float32, 16,000 per second, clipped to [-1, 1]. An empty array gives an empty array.

    Raises:
        AudioError: If the source is missing, unreadable, not audio, damaged, cut off or without samples; if a
            sample is NaN or infinite; if an array has no rate, or a shape or type that is none of the above.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if sample_rate_hz is not None:
            raise AudioError(f"{path}: a file states its own rate; give sample_rate_hz for arrays only")
        return _load_file(path)
    return _load_array(source, sample_rate_hz)


def decode_audio(content: bytes, name: str) -> Samples:
    """Read the content of an audio file that is held in memory, as a table of a data set has it.

    Args:
        content: The whole file.
        name: What errors call it.

    Returns:
        Samples (n,) as :func:`load_audio` gives them.

    Raises:
        AudioError: If the content is not audio, damaged, cut off or without samples.
    """
    return _check_length(_decode(io.BytesIO(content), name), name)


def audio_seconds(source: str | os.PathLike[str] | bytes, name: str) -> float:
    """Length of an audio file, from its header where that tells, otherwise by decoding it.

    Args:
        source: Its path, or its content.
        name: What errors call it.

    Returns:
        Seconds.

    Raises:
        AudioError: If it cannot be read.
    """
    try:
        info = sf.info(io.BytesIO(source) if isinstance(source, bytes) else os.fsdecode(source))
    except (sf.SoundFileError, OSError):
        info = None
    if info is not None and 0 < info.frames < 2**62:
        return float(info.frames / info.samplerate)
    samples = decode_audio(source, name) if isinstance(source, bytes) else load_audio(source)
    return len(samples) / SAMPLE_RATE_HZ


# Arrays


def _load_array(source: Any, sample_rate_hz: Any) -> Samples:
    if isinstance(source, tuple):
        if len(source) != 2 or not hasattr(source[0], "__array__") or np.ndim(source[0]) == 0:
            raise AudioError("a tuple must be (samples, sample_rate_hz): an array, then its rate in Hz")
        source, own_rate = source
        if sample_rate_hz is not None and sample_rate_hz != own_rate:
            raise AudioError(
                f"two rates for one array: {own_rate} in the tuple, sample_rate_hz={sample_rate_hz}"
            )
        sample_rate_hz = own_rate
    if not hasattr(source, "__array__"):
        kind = type(source).__name__
        raise AudioError(f"cannot read audio from {kind}: pass a path, or (samples, rate) with a numpy array")
    try:
        array = np.asarray(source)
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor on a GPU, or one with gradients
        raise AudioError(f"the audio cannot be read as a numpy array: {error}") from error
    if sample_rate_hz is None:
        raise AudioError(
            "an array does not say its sample rate: pass (samples, rate) or sample_rate_hz=rate, say 16000"
        )
    rate = _check_rate(sample_rate_hz, "the array")
    frames = _frames_by_channels(array)
    step = max(1, BLOCK_SAMPLES // frames.shape[1])
    blocks = ((frames[i : i + step], rate) for i in range(0, len(frames), step))
    return _to_16k_mono(blocks, "the array")


def _frames_by_channels(array: npt.NDArray[Any]) -> Block:
    """Return a view of shape (n, channels), or raise AudioError if the type or shape is not audio."""
    # Wider integers hardly ever span their range: scaled by it they would be silence.
    if array.dtype.kind != "f" and array.dtype.name not in _PCM_TYPES:
        raise AudioError(
            f"cannot use samples of type {array.dtype}: convert to int16 or to float32 in [-1, 1]"
        )
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise AudioError(f"cannot use an array of shape {array.shape}: pass (n,) or (n, channels)")
    if array.size == 0:
        return array.reshape(0, 1)
    n_rows, n_columns = array.shape
    if 1 in array.shape:
        return array.reshape(-1, 1)
    if n_rows <= MAX_ARRAY_CHANNELS and n_columns <= MAX_ARRAY_CHANNELS:
        raise AudioError(
            f"shape {array.shape} is ambiguous: either axis could be the channels; pass one channel (n,)"
        )
    if n_columns <= MAX_ARRAY_CHANNELS:
        return array
    if n_rows <= MAX_ARRAY_CHANNELS:
        return array.T
    raise AudioError(
        f"shape {array.shape} has no axis of at most {MAX_ARRAY_CHANNELS} that could be the channels"
    )


def _check_rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise AudioError(f"{name}: the sample rate must be a number of Hz, got {rate!r}")
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise AudioError(f"{name}: a sample rate of {rate} Hz is outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    if int(rate) != rate:
        raise AudioError(f"{name}: the sample rate must be a whole number of Hz, got {rate}")
    return int(rate)


# Files


def _load_file(path: str) -> Samples:
    if "\0" in path:
        raise AudioError(f"{path!r}: no such file; a name cannot hold a zero character")
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{path}: is a directory; name the audio files in it")
        if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
            raise AudioError(f"{path}: is not a regular file; save the audio to a file first")
        with open(path, "rb") as file:
            samples = _decode(file, path)
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file; check the name") from error
    except PermissionError as error:
        raise AudioError(f"{path}: no permission to read it; check its owner and mode") from error
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    return _check_length(samples, path)


def _check_length(samples: Samples, name: str) -> Samples:
    if not len(samples):
        raise AudioError(f"{name}: holds no audio samples; check how it was recorded")
    return samples


def _decode(file: BinaryIO, path: str) -> Samples:
    """Decode an open file with the first library that knows it."""
    n_bytes = file.seek(0, os.SEEK_END)
    if n_bytes == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes); get it again")
    end = promised_end(file, n_bytes)
    if end is not None and end > n_bytes:
        raise AudioError(f"{path}: cut off: {n_bytes} bytes of at least {end}; {_REPAIR}")
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS"):
        try:
            sound = sf.SoundFile(file)
        except sf.SoundFileError:
            pass  # a codec that libsndfile does not know; FFmpeg may
        else:
            with sound:
                if sound.frames < 2**62:  # else a FLAC of unknown length, which libsndfile reads with errors
                    return _to_16k_mono(_read_soundfile(sound, path), path)
        file.seek(0)
    return _to_16k_mono(_read_av(file, path), path)


def _read_soundfile(sound: sf.SoundFile, path: str) -> Iterator[tuple[Block, int]]:
    """Yield (frames, channels) blocks of float32 with their rate in Hz.

    Raises:
        AudioError: If the rate is absurd, a block does not decode, or there are fewer frames than promised.
    """
    rate = _check_rate(sound.samplerate, path)
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


def _read_av(file: BinaryIO, path: str) -> Iterator[tuple[Block, int]]:
    """Yield (frames, channels) blocks in the codec's own sample type with their rate in Hz.

    Raises:
        AudioError: If FFmpeg knows no such format, there is no audio in it, or it is damaged or cut off.
    """
    # Here, not above: soundfile reads most files, and FFmpeg's libraries are many and large.
    import av
    import av.error

    # PyAV before 19 refuses files with tags that are not UTF-8, unless told otherwise; 19 cannot be told.
    old = int(av.__version__.split(".")[0]) < 19
    tag_options: dict[str, Any] = {"metadata_errors": "replace"} if old else {}
    n_s = 0.0
    try:
        # No protocol is allowed, so that a playlist cannot make FFmpeg open other files or addresses.
        with av.open(file, "r", options={"protocol_whitelist": "none"}, **tag_options) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, av.AudioStream):
                raise AudioError(f"{path}: has no audio in it; name an audio file, or a video with sound")
            if stream.codec_context is None:
                raise AudioError(f"{path}: FFmpeg has no decoder for its audio; convert it to WAV or FLAC")
            is_mp3 = stream.codec.name.startswith("mp3")
            junk = False
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
                    rate = _check_rate(frame.sample_rate, path)
                    n_s += frame.samples / rate
                    samples = frame.to_ndarray()
                    planar = frame.format.is_planar
                    yield (samples.T if planar else samples.reshape(-1, frame.layout.nb_channels)), rate
    except av.error.FFmpegError as error:
        if n_s:
            raise _damaged(path, n_s, error.strerror) from error
        hint = "check that it is audio, and convert it to WAV or FLAC"
        raise AudioError(f"{path}: cannot be read as audio ({error.strerror}); {hint}") from error


def _damaged(path: str, n_s: float, reason: object) -> AudioError:
    return AudioError(f"{path}: damaged or cut off somewhere after {n_s:.1f} s ({reason}); {_REPAIR}")


# Samples


def _to_16k_mono(blocks: Iterator[tuple[Block, int]], name: str) -> Samples:
    """Check, mix, resample and join blocks of shape (frames, channels), each with its rate in Hz."""
    joined = bytearray()  # grows in place: a list of chunks would need the memory twice when joined
    resampler: soxr.ResampleStream | None = None
    rate_now = SAMPLE_RATE_HZ
    n_seen = 0
    for block, rate in blocks:
        mono = _mono(block, n_seen, name)
        n_seen += len(mono)
        if rate != rate_now:  # at the start, and in chained streams
            joined += _flush(resampler)
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1) if rate != SAMPLE_RATE_HZ else None
            rate_now = rate
        joined += (resampler.resample_chunk(mono) if resampler else mono).tobytes()
    joined += _flush(resampler)
    samples = np.frombuffer(joined, dtype=np.float32)
    return np.clip(samples, -1.0, 1.0, out=samples)


def _flush(resampler: soxr.ResampleStream | None) -> bytes:
    if resampler is None:
        return b""
    return bytes(resampler.resample_chunk(np.empty(0, np.float32), last=True).tobytes())


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
