"""What speech meets between mouth and file: noise, rooms, colour, level, speed; and clips without speech.

    augment = Augmenter()                    # keeps the length, so phoneme times stay right
    noisy = augment(samples, np.random.default_rng(0))

Samples are float32, mono, 16 kHz, nominally in [-1, 1]. Every function draws from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.errors import OptionError

Samples = NDArray[np.float32]
_Spectrum = Callable[[NDArray[np.floating[Any]]], NDArray[np.floating[Any]]]
_SILENCE_RMS = 1e-6


def _fft_length(n: int) -> int:
    """A length >= n that numpy transforms fast: 2^k or 3 * 2^k."""
    power = 1 << max(0, n - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= n else power


def _rms(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def _unit_rms(samples: NDArray[np.floating[Any]]) -> Samples:
    out: Samples = (samples / (np.sqrt(np.mean(np.square(samples))) + 1e-12)).astype(np.float32)
    return out


def _unit_peak(samples: NDArray[np.floating[Any]]) -> Samples:
    out: Samples = (samples / max(1e-9, float(np.max(np.abs(samples), initial=0.0)))).astype(np.float32)
    return out


def _shaped_noise(n: int, gain: _Spectrum, rng: np.random.Generator) -> Samples:
    """Noise (n,) of RMS 1 with an amplitude spectrum given over frequencies in Hz."""
    length = _fft_length(max(n, 2))
    spectrum = np.fft.rfft(rng.standard_normal(length, dtype=np.float32))
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    noise = np.fft.irfft(spectrum * gain(frequencies), length)[:n]
    return _unit_rms(noise)


def white_noise(n: int, rng: np.random.Generator) -> Samples:
    """Equal power at every frequency, RMS 1, (n,)."""
    return rng.standard_normal(n, dtype=np.float32)


def pink_noise(n: int, rng: np.random.Generator) -> Samples:
    """Power falling by 3 dB an octave above 50 Hz, RMS 1, (n,)."""
    return _shaped_noise(n, lambda f: 1 / np.sqrt(np.maximum(f, 50.0)), rng)


def hum_noise(n: int, rng: np.random.Generator) -> Samples:
    """Mains hum or a motor: a low tone with overtones over brown noise, RMS 1, (n,)."""
    base_hz = rng.choice((50.0, 60.0, rng.uniform(80, 250)))
    t = np.arange(n) / SAMPLE_RATE_HZ
    tone = sum(
        rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * (k * base_hz * t + rng.random())) for k in range(1, 8)
    )
    noise = tone + rng.uniform(0.2, 2) * _shaped_noise(n, lambda f: 1 / np.maximum(f, 50.0), rng)
    return _unit_rms(noise)


def _speech_spectrum(f_hz: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Long-term amplitude spectrum of speech: flat to the first formant, then about -9 dB an octave."""
    spectrum: NDArray[np.floating[Any]] = (f_hz > 80) / (1 + (f_hz / 600) ** 1.5)
    return spectrum


def babble_noise(n: int, rng: np.random.Generator, n_talkers: int = 5) -> Samples:
    """Talkers too many to follow: speech-shaped noises that rise and fall with syllables, RMS 1, (n,)."""
    noise = _shaped_noise(n * n_talkers, _speech_spectrum, rng).reshape(n_talkers, n)
    coarse = np.arange(0, n + 160, 160)  # envelopes every 10 ms
    total = np.zeros(n, np.float32)
    for talker in noise:
        syllables_hz, drift_hz, phase = rng.uniform(2.5, 5.5), rng.uniform(0.05, 0.3), rng.uniform(0, 6.28)
        t = coarse / SAMPLE_RATE_HZ
        envelope = 0.5 + 0.5 * np.sin(
            2 * np.pi * syllables_hz * t + phase + 3 * np.sin(2 * np.pi * drift_hz * t)
        )
        total += talker * np.interp(np.arange(n), coarse, envelope**2).astype(np.float32)
    return _unit_rms(total)


NOISES: dict[str, Callable[[int, np.random.Generator], Samples]] = {
    "white": white_noise,
    "pink": pink_noise,
    "hum": hum_noise,
    "babble": babble_noise,
}


def add_noise(samples: Samples, noise: Samples, snr_db: float) -> Samples:
    """Mix noise under speech at a ratio of their mean powers; silence is returned as it is.

    Args:
        samples: (N,).
        noise: (N,), any level.
        snr_db: Signal-to-noise ratio in dB.
    """
    signal_rms, noise_rms = _rms(samples), _rms(noise)
    if signal_rms < _SILENCE_RMS or noise_rms < _SILENCE_RMS:
        return samples
    scale = signal_rms / noise_rms * 10 ** (-snr_db / 20)
    return samples + np.float32(scale) * noise


def change_gain(samples: Samples, gain_db: float) -> Samples:
    """Louder or quieter by ``gain_db``, but never beyond full scale."""
    peak = float(np.max(np.abs(samples), initial=0.0))
    scale = 10 ** (gain_db / 20)
    return samples * np.float32(min(scale, 1 / peak) if peak > 0 else scale)


def change_speed(samples: Samples, speed: float) -> Samples:
    """Play ``speed`` times as fast, pitch included: (N,) -> about (N / speed,)."""
    if speed == 1.0:
        return samples
    out: Samples = soxr.resample(samples, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="MQ")
    return out


def room_response(rt60_s: float, wet_db: float, rng: np.random.Generator) -> Samples:
    """Impulse response of a simple room: the direct sound at time 0, then noise that decays exponentially.

    Args:
        rt60_s: Time in which the reverberation falls by 60 dB, in seconds.
        wet_db: Energy of the reverberation relative to the direct sound, in dB.
        rng: Draws the reflections.
    """
    n = max(2, round(rt60_s * SAMPLE_RATE_HZ))
    t = np.arange(n) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(n) * 10 ** (-3 * t / rt60_s)
    tail[: round(0.002 * SAMPLE_RATE_HZ)] = 0.0  # the first wall is at least about 30 cm away
    tail *= np.sqrt(10 ** (wet_db / 10) / (np.sum(tail**2) + 1e-12))
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberate(samples: Samples, response: Samples) -> Samples:
    """Convolve with an impulse response, keeping length (N,) and RMS."""
    length = _fft_length(len(samples) + len(response) - 1)
    wet = np.fft.irfft(np.fft.rfft(samples, length) * np.fft.rfft(response, length), length)[: len(samples)]
    out: Samples = wet.astype(np.float32)
    return out * np.float32(_rms(samples) / (_rms(out) + 1e-12))


def colour(samples: Samples, tilt_db: float, cutoff_hz: float) -> Samples:
    """A microphone and a codec: a tilted spectrum and nothing above a frequency, RMS kept.

    Args:
        samples: (N,).
        tilt_db: Gain at 8 kHz relative to 0 Hz, linear between.
        cutoff_hz: Upper end of the band; 8,000 or more keeps all.
    """
    length = _fft_length(len(samples) + 256)
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    gain = 10 ** (tilt_db * frequencies / SAMPLE_RATE_HZ / 10)
    if cutoff_hz < SAMPLE_RATE_HZ / 2:
        gain *= 1 / (1 + (frequencies / cutoff_hz) ** 16)
    out: Samples = np.fft.irfft(np.fft.rfft(samples, length) * gain, length)[: len(samples)].astype(
        np.float32
    )
    return out * np.float32(_rms(samples) / (_rms(out) + 1e-12))


def music(n: int, rng: np.random.Generator) -> Samples:
    """Chords of plucked or held tones, one after the other, peak at most 1, (n,)."""
    total = np.zeros(n, np.float64)
    beat_s = rng.uniform(0.2, 0.8)
    step = round(beat_s * SAMPLE_RATE_HZ)
    root_hz = 110.0 * 2 ** rng.uniform(0, 2)
    decay_s = rng.uniform(0.1, 1.5)
    n_harmonics = int(rng.integers(1, 7))
    for start in range(0, n, step):
        length = min(n - start, 2 * step)
        t = np.arange(length) / SAMPLE_RATE_HZ
        degree = rng.choice((0, 2, 4, 5, 7, 9))
        for interval in (0, *rng.choice((3, 4, 7, 10, 12), size=rng.integers(0, 3), replace=False)):
            f_hz = root_hz * 2 ** ((degree + interval) / 12)
            tone = sum(
                np.sin(2 * np.pi * k * f_hz * t) / k**1.5
                for k in range(1, n_harmonics + 1)
                if k * f_hz < 7500
            )
            # 5 ms in and out, or each chord would click.
            total[start : start + length] += (
                tone * np.exp(-t / decay_s) * np.minimum(1, np.minimum(t, t[::-1]) / 0.005)
            )
    return _unit_peak(total)


def clicks(n: int, rng: np.random.Generator) -> Samples:
    """Knocks, keys and steps: short bursts at random times, peak at most 1, (n,)."""
    total = np.zeros(n, np.float32)
    for _ in range(rng.poisson(3 * n / SAMPLE_RATE_HZ) + 1):
        start, length = int(rng.integers(n)), int(rng.integers(80, 2400))
        length = min(length, n - start)
        burst = rng.standard_normal(length) * np.exp(-np.arange(length) / (length / 5 + 1))
        total[start : start + length] += (rng.uniform(0.1, 1) * burst).astype(np.float32)
    return _unit_peak(total)


NON_SPEECH = ("zeros", "silence", *NOISES, "music", "clicks")


def non_speech(n: int, rng: np.random.Generator, kind: str | None = None) -> Samples:
    """A clip whose transcript is empty, at a random level, (n,).

    Args:
        n: Samples, at least 1.
        rng: Draws kind, level and content.
        kind: One of ``NON_SPEECH``; drawn if None.

    Raises:
        OptionError: If the kind is unknown.
    """
    kind = NON_SPEECH[int(rng.integers(len(NON_SPEECH)))] if kind is None else kind
    if kind not in NON_SPEECH:
        raise OptionError(f"unknown kind of non-speech {kind!r}; choose from {', '.join(NON_SPEECH)}")
    if kind == "zeros":
        return np.zeros(n, np.float32)
    if kind == "silence":  # what a microphone hears in a quiet room
        return pink_noise(n, rng) * np.float32(10 ** (rng.uniform(-80, -50) / 20))
    if kind in ("music", "clicks"):
        made, rms_db = (music if kind == "music" else clicks)(n, rng), rng.uniform(-30, 0)
    else:
        made, rms_db = NOISES[kind](n, rng), rng.uniform(-50, -15)
    out: Samples = np.clip(made * np.float32(10 ** (rms_db / 20)), -1.0, 1.0)
    return out


@dataclass(frozen=True)
class AugmentationConfig:
    """How often and how strongly speech is changed; ranges are (low, high), drawn uniformly.

    Attributes:
        noise_share: Share of clips with added noise.
        snr_db: Signal-to-noise ratio of the noise, dB.
        noises: Kinds of noise, names of ``NOISES``.
        reverberation_share: Share of clips put in a room.
        rt60_s: Reverberation time, seconds.
        wet_db: Energy of the reverberation relative to the direct sound, dB.
        colour_share: Share of clips with a changed spectrum.
        tilt_db: Gain at 8 kHz relative to 0 Hz, dB.
        cutoff_hz: Upper end of the band, Hz.
        gain_db: Change of level, dB.
        speed: Playback speed. (1, 1) keeps the length of clips, which labels of frames need.
        padding_s: Silence put before and after, each, seconds. (0, 0) keeps the length.
    """

    noise_share: float = 0.5
    snr_db: tuple[float, float] = (5.0, 30.0)
    noises: tuple[str, ...] = tuple(NOISES)
    reverberation_share: float = 0.3
    rt60_s: tuple[float, float] = (0.1, 0.6)
    wet_db: tuple[float, float] = (-20.0, 0.0)
    colour_share: float = 0.4
    tilt_db: tuple[float, float] = (-15.0, 10.0)
    cutoff_hz: tuple[float, float] = (3400.0, 8000.0)
    gain_db: tuple[float, float] = (-20.0, 6.0)
    speed: tuple[float, float] = (1.0, 1.0)
    padding_s: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_share") and not 0 <= value <= 1:
                raise OptionError(f"{field.name} must lie in [0, 1], not {value}")
            if field.name != "noises" and isinstance(value, tuple | list):
                if len(value) != 2 or not value[0] <= value[1]:
                    raise OptionError(f"{field.name} must be (low, high), not {value}")
                if field.name in ("rt60_s", "cutoff_hz", "speed") and value[0] <= 0:
                    raise OptionError(f"{field.name} must be above 0, not {value}")
        if self.padding_s[0] < 0:
            raise OptionError(f"padding_s must not be negative, not {self.padding_s}")
        unknown = set(self.noises) - set(NOISES)
        if unknown or (self.noise_share > 0 and not self.noises):
            raise OptionError(f"noises must be some of {', '.join(NOISES)}, not {self.noises}")


class Augmenter:
    """Changes clips at random as a configuration says.

    Args:
        config: What to do; the default keeps the length of every clip.
    """

    def __init__(self, config: AugmentationConfig | None = None) -> None:
        self.config = AugmentationConfig() if config is None else config

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Change one clip: (N,) -> (N,), or another length if speed or padding are configured."""
        return self.apply(samples, rng)[0]

    def apply(self, samples: Samples, rng: np.random.Generator) -> tuple[Samples, float, float]:
        """Change one clip, and say where its sounds went: time t becomes ``offset_s + t / speed``.

        Returns:
            Samples in [-1, 1], speed, offset_s.
        """
        config = self.config
        speed = float(rng.uniform(*config.speed))
        before, after = (round(float(rng.uniform(*config.padding_s)) * SAMPLE_RATE_HZ) for _ in range(2))
        samples = change_speed(samples.astype(np.float32, copy=False), speed)
        if before or after:
            samples = np.pad(samples, (before, after))
        if len(samples) and rng.random() < config.reverberation_share:
            samples = reverberate(
                samples, room_response(rng.uniform(*config.rt60_s), rng.uniform(*config.wet_db), rng)
            )
        if len(samples) and rng.random() < config.noise_share:
            kind = config.noises[int(rng.integers(len(config.noises)))]
            samples = add_noise(samples, NOISES[kind](len(samples), rng), rng.uniform(*config.snr_db))
        if len(samples) and rng.random() < config.colour_share:
            samples = colour(samples, rng.uniform(*config.tilt_db), rng.uniform(*config.cutoff_hz))
        samples = change_gain(samples, rng.uniform(*config.gain_db))
        return np.clip(samples, -1.0, 1.0), speed, before / SAMPLE_RATE_HZ
