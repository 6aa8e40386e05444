"""Audio files for the tests, made on the spot, and measures of what is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile as sf

from canvas_asr.audio import SAMPLE_RATE_HZ

# suffix -> (encoder, its rate in Hz); the rest libsndfile writes
ENCODERS = {
    ".mp3": ("libmp3lame", 44_100),
    ".m4a": ("aac", 44_100),
    ".aac": ("aac", 44_100),
    ".opus": ("libopus", 48_000),
    ".webm": ("libopus", 48_000),
    ".mka": ("flac", 44_100),
    ".caf": ("pcm_s16be", 44_100),
    ".mov": ("pcm_s24le", 48_000),
    ".ac3": ("ac3", 48_000),
}
SNDFILE_SUFFIXES = (".wav", ".aiff", ".flac", ".ogg")
SUFFIXES = (*SNDFILE_SUFFIXES, *ENCODERS)


def tone(
    rate_hz: int, seconds: float = 1.0, tone_hz: float = 1000.0, gain: float = 0.25
) -> npt.NDArray[np.float32]:
    """Return a sine, (n,), float32."""
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    return (gain * np.sin(2 * np.pi * tone_hz * t)).astype(np.float32)


def write_audio(
    path: Path, samples: npt.NDArray[np.float32], rate_hz: int, title: str = "", **options: str
) -> Path:
    """Encode (n,) or (n, channels) float samples in the format of the path's suffix.

    ``rate_hz`` must be the encoder's where ENCODERS names one; ``options`` are those of FFmpeg's muxer.
    """
    if path.suffix in SNDFILE_SUFFIXES and not options:
        sf.write(path, samples, rate_hz)
        return path
    codec = ENCODERS[path.suffix][0] if path.suffix in ENCODERS else path.suffix[1:]
    planes = np.ascontiguousarray(np.atleast_2d(samples.T), dtype=np.float32)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(planes)]
    with av.open(str(path), "w", options=options) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate_hz)
        stream.layout = layout
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate_hz)
        pieces = av.AudioFifo()
        if planes.size:
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate = rate_hz
            for piece in resampler.resample(frame):
                pieces.write(piece)
        while (piece := pieces.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def middle(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cut 50 ms off both ends, where a tone that starts at once is no tone."""
    return samples[SAMPLE_RATE_HZ // 20 : -SAMPLE_RATE_HZ // 20]


def level_db(samples: npt.NDArray[Any]) -> float:
    return 20 * np.log10(np.sqrt(np.mean(np.square(samples, dtype=np.float64))) + 1e-12)


def peak_hz(samples: npt.NDArray[Any]) -> float:
    n_fft = 1 << 19  # bins of 0.03 Hz
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n_fft))
    return float(np.argmax(spectrum)) * SAMPLE_RATE_HZ / n_fft
