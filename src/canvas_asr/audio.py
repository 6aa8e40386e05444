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
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile as sf

from .audio_files import (
    BLOCK_SAMPLES,
    SAMPLE_RATE_HZ,
    Block,
    RatedBlocks,
    Samples,
    check_rate,
    open_audio,
    read_blocks,
    to_16k_mono,
)
from .errors import AudioError

__all__ = ["SAMPLE_RATE_HZ", "AudioSource", "Samples", "audio_seconds", "decode_audio", "load_audio"]

MAX_ARRAY_CHANNELS = 16

AudioSource: TypeAlias = "str | os.PathLike[str] | npt.NDArray[Any] | tuple[npt.NDArray[Any], int]"

_PCM_TYPES = ("int8", "uint8", "int16", "int32")


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
        with open_audio(path) as file:
            return _check_length(_join(read_blocks(file, path), path), path)
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
    return _check_length(_join(read_blocks(io.BytesIO(content), name), name), name)


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
    rate = check_rate(sample_rate_hz, "the array")
    frames = _frames_by_channels(array)
    step = max(1, BLOCK_SAMPLES // frames.shape[1])
    blocks = ((frames[i : i + step], rate) for i in range(0, len(frames), step))
    return _join(blocks, "the array")


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


def _join(blocks: RatedBlocks, name: str) -> Samples:
    joined = bytearray()  # grows in place: a list of blocks would need the memory twice when joined
    for samples in to_16k_mono(blocks, name):
        joined += samples.tobytes()
    return np.frombuffer(joined, dtype=np.float32)


def _check_length(samples: Samples, name: str) -> Samples:
    if not len(samples):
        raise AudioError(f"{name}: holds no audio samples; check how it was recorded")
    return samples
