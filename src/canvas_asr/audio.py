"""Any audio file or array to the one form the model hears: 16 kHz mono float32 within [-1, 1].

    samples = load_audio("talk.m4a")
    samples = load_audio((stereo, 44_100))

WAV, FLAC, Ogg and AIFF are read by libsndfile, which is quicker; everything else, and what libsndfile does not know,
by FFmpeg's libraries through PyAV. Decoding, mixing to mono (the mean of the channels) and resampling (soxr) go block
by block, so a file needs little more memory than its 16 kHz samples.

Nothing is shortened in silence: a file that is cut off or damaged is refused where that can be known, which is
where its header promises more audio than there is, or its last packet is incomplete, or a packet does not decode. A
stream cut exactly between packets, in a format that states no length, is a valid shorter file and reads as one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from numbers import Real
from typing import Any, BinaryIO, TypeAlias

import av
import av.error
import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr

from .errors import AudioError

SAMPLE_RATE_HZ = 16_000
# Below lies no speech, above no microphone: such a rate is a forged header or kHz given for Hz.
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 768_000
MAX_ARRAY_CHANNELS = 16
# Float audio may pass full scale a little; far above, it is integers that were cast without scaling.
MAX_FLOAT_PEAK = 8.0
BLOCK_FRAMES = 1 << 16

Samples: TypeAlias = npt.NDArray[np.float32]
AudioSource: TypeAlias = "str | os.PathLike[str] | npt.NDArray[Any] | tuple[npt.NDArray[Any], int]"

_RE_ENCODE = "get the file again, or convert what is left of it with `ffmpeg -i FILE out.wav`"
_GIVE_RATE = "give the rate with the samples: (samples, 16000), or sample_rate_hz=16000"


def load_audio(source: AudioSource, sample_rate_hz: int | None = None) -> Samples:
    """Read a file, or convert an array, to 16 kHz mono float32.

    Args:
        source: A path; or an array of shape (n,), (n, channels) or (channels, n) with its rate, either as the tuple
            ``(array, rate)`` or by ``sample_rate_hz``. The axis of at most 16 is the channels; an axis of 1 is one
            channel; if both axes are from 2 to 16 the array is refused as ambiguous. Anything with ``__array__``
            (a torch tensor on the CPU) counts as an array. Floats have full scale 1.0; int8, int16 and int32 are
            scaled from their own range, uint8 from 0..255 around 128. Any byte order.
        sample_rate_hz: Rate of a bare array in Hz, 4,000 to 768,000. Not for files, which state their own.

    Returns:
        Samples (n,), float32, 16,000 per second, clipped to [-1, 1]. An empty array gives an empty array.

    Raises:
        AudioError: If the source is missing, unreadable, not audio, damaged, cut off or without samples; if a sample
            is NaN or infinite; if an array's rate is missing or its shape or type is not one of those above.
    """
    if isinstance(source, (str, os.PathLike)):
        if sample_rate_hz is not None:
            raise AudioError(f"{os.fspath(source)}: a file states its own rate; sample_rate_hz is for arrays only")
        return _load_file(os.fspath(source))
    return _load_array(source, sample_rate_hz)


def _load_array(source: Any, sample_rate_hz: Any) -> Samples:
    if isinstance(source, tuple):
        if len(source) != 2 or not hasattr(source[0], "__array__") or hasattr(source[0], "is_integer"):
            raise AudioError("a tuple must be (samples, sample_rate_hz), an array and then its rate")
        source, own_rate = source
        if sample_rate_hz is not None and sample_rate_hz != own_rate:
            raise AudioError(f"two rates for one array: {own_rate} beside it and sample_rate_hz={sample_rate_hz}")
        sample_rate_hz = own_rate
    if not hasattr(source, "__array__"):
        raise AudioError(
            f"cannot read audio from {type(source).__name__}: pass a path, or an array with its rate (samples, rate)"
        )
    try:
        array = np.asarray(source)
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor on a GPU, or one that needs gradients
        raise AudioError(f"the audio could not be read as a numpy array: {error}") from error
    if sample_rate_hz is None:
        raise AudioError(f"an array of samples does not say its sample rate: {_GIVE_RATE}")
    rate = _check_rate(sample_rate_hz, "the array")
    frames = _frames_by_channels(array)
    blocks = (frames[i : i + BLOCK_FRAMES] for i in range(0, len(frames), BLOCK_FRAMES))
    return _to_16k_mono(((block, rate) for block in blocks), "the array")


def _frames_by_channels(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a view of shape (n, channels), or raise AudioError if the type or shape is not audio."""
    if array.dtype.kind not in "fiu" or (array.dtype.kind in "iu" and not _is_pcm(array.dtype)):
        raise AudioError(f"cannot use samples of type {array.dtype}: convert to float32 in [-1, 1], int16 or int32")
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise AudioError(f"audio of shape {array.shape} has {array.ndim} dimensions: pass (n,) or (n, channels)")
    n_rows, n_columns = array.shape
    if array.size == 0:
        return array.reshape(0, 1)
    if n_columns == 1 or n_rows > MAX_ARRAY_CHANNELS >= n_columns:
        return array
    if n_rows == 1 or n_columns > MAX_ARRAY_CHANNELS >= n_rows:
        return array.T
    if n_rows > MAX_ARRAY_CHANNELS:
        raise AudioError(f"audio of shape {array.shape}: one axis must be the channels, at most {MAX_ARRAY_CHANNELS}")
    raise AudioError(
        f"audio of shape {array.shape}: either axis could be the channels; pass one channel of shape (n,)"
    )


def _is_pcm(dtype: np.dtype[Any]) -> bool:
    # 64-bit and unsigned wide integers hardly ever span their range: scaled by it they would be silence.
    return dtype.newbyteorder("=") in (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.int32))


def _check_rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, (Real, np.integer)) or rate != rate or int(rate) != rate:
        raise AudioError(f"{name}: the sample rate must be a whole number of Hz, got {rate!r}")
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise AudioError(f"{name}: a sample rate of {int(rate)} Hz is outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    return int(rate)


def _load_file(path: str) -> Samples:
    """Check that ``path`` is a readable file, and decode it with the first library that knows it."""
    if not os.path.exists(path):
        raise AudioError(f"{path}: no such file")
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a directory; name the audio files in it")
    if not os.path.isfile(path):
        raise AudioError(f"{path}: is not a regular file; save the audio to a file first")
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise AudioError(f"{path}: the file is empty (0 bytes)")
            samples = _decode(file, path)
    except PermissionError as error:
        raise AudioError(f"{path}: no permission to read it") from error
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not len(samples):
        raise AudioError(f"{path}: holds no audio samples")
    return samples


def _decode(file: BinaryIO, path: str) -> Samples:
    magic = file.read(4)
    file.seek(0)
    if magic in (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM"):
        try:
            sound = sf.SoundFile(file)
        except sf.SoundFileError:
            file.seek(0)  # a codec that libsndfile does not know; FFmpeg may
        else:
            with sound:
                return _to_16k_mono(_read_soundfile(sound, path), path)
    return _to_16k_mono(_read_av(file, path), path)


def _read_soundfile(sound: sf.SoundFile, path: str) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Yield (frames, channels) blocks of float32 with their rate.

    Raises:
        AudioError: If the header is absurd, a block does not decode, or there are fewer frames than it promises.
    """
    rate = _check_rate(sound.samplerate, path)
    n_read = 0
    while True:
        try:
            block = sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except sf.SoundFileError as error:
            raise AudioError(f"{path}: damaged after {n_read / rate:.2f} s ({error}); {_RE_ENCODE}") from error
        if not len(block):
            break
        n_read += len(block)
        yield block, rate
    if n_read < sound.frames:
        raise AudioError(f"{path}: cut off at {n_read / rate:.2f} s of {sound.frames / rate:.2f} s; {_RE_ENCODE}")


def _read_av(file: BinaryIO, path: str) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Yield (frames, channels) blocks in the codec's own type with their rate.

    Raises:
        AudioError: If FFmpeg knows no such format, there is no audio in it, or it is damaged or cut off.
    """
    n_s = 0.0
    try:
        with av.open(file, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: has no audio in it")
            for frame in container.decode(container.streams.audio[0]):
                rate = _check_rate(frame.sample_rate, path)
                samples = frame.to_ndarray()
                n_channels = frame.layout.nb_channels
                n_s += frame.samples / rate
                yield (samples.T if frame.format.is_planar else samples.reshape(-1, n_channels)), rate
    except av.error.FFmpegError as error:
        if n_s:
            raise AudioError(f"{path}: damaged after {n_s:.2f} s ({error.strerror}); {_RE_ENCODE}") from error
        raise AudioError(f"{path}: is not audio in a known format ({error.strerror})") from error


def _to_16k_mono(blocks: Iterator[tuple[npt.NDArray[Any], int]], name: str) -> Samples:
    """Check, mix, resample and join blocks of shape (frames, channels), each with its rate in Hz."""
    joined = bytearray()  # grows in place: a list of chunks would need the memory twice when joined
    resampler: soxr.ResampleStream | None = None
    rate_now = SAMPLE_RATE_HZ
    n_seen = 0
    for block, rate in blocks:
        mono = _mono(block, n_seen, name)
        n_seen += len(mono)
        if rate != rate_now:
            joined += _flush(resampler)
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32") if rate != SAMPLE_RATE_HZ else None
            rate_now = rate
        joined += (resampler.resample_chunk(mono) if resampler else mono).tobytes()
    joined += _flush(resampler)
    samples = np.frombuffer(joined, dtype=np.float32)
    return np.clip(samples, -1.0, 1.0, out=samples)


def _flush(resampler: soxr.ResampleStream | None) -> bytes:
    if resampler is None:
        return b""
    return bytes(resampler.resample_chunk(np.empty(0, np.float32), last=True).tobytes())


def _mono(block: npt.NDArray[Any], n_before: int, name: str) -> Samples:
    """Mix (frames, channels) of any sample type to (frames,) float32 with full scale 1.0."""
    if block.dtype.kind == "f":
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            raise AudioError(f"{name}: sample {n_before + first} is {'NaN' if np.isnan(block[first]).any() else 'infinite'}")
        peak = float(np.abs(block).max(initial=0.0))
        if peak > MAX_FLOAT_PEAK:
            raise AudioError(f"{name}: float samples reach {peak:.6g}, where full scale is 1.0: divide them by their full scale")
        return block.mean(axis=1, dtype=np.float32 if block.dtype.itemsize <= 4 else np.float64).astype(np.float32)
    full_scale = 2.0 ** (8 * block.dtype.itemsize - 1)
    centre = full_scale if block.dtype.kind == "u" else 0.0
    mono: Samples = ((block.mean(axis=1, dtype=np.float64) - centre) / full_scale).astype(np.float32)
    return mono
