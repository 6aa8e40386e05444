"""Noise, rooms, colour, level and speed, against what their units promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from canvas_asr.errors import OptionError
from canvas_asr.synthesis import augment
from canvas_asr.synthesis.augment import AugmentationConfig, Augmenter

RATE_HZ = 16_000
NOTHING: dict[str, Any] = {"noise_share": 0, "reverberation_share": 0, "colour_share": 0, "gain_db": (0, 0)}


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def tone(f_hz: float, n: int = RATE_HZ, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * f_hz * np.arange(n) / RATE_HZ)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("kind", augment.NOISES)
def test_noises_have_rms_one_and_follow_the_generator(kind: str, rng: np.random.Generator) -> None:
    noise = augment.NOISES[kind](20_001, rng)
    assert noise.dtype == np.float32
    assert noise.shape == (20_001,)
    assert rms(noise) == pytest.approx(1, rel=0.05)
    assert np.array_equal(noise, augment.NOISES[kind](20_001, np.random.default_rng(7)))
    assert not np.array_equal(noise, augment.NOISES[kind](20_001, rng))


def test_pink_noise_falls_by_three_decibels_an_octave(rng: np.random.Generator) -> None:
    power = np.abs(np.fft.rfft(augment.pink_noise(1 << 17, rng))) ** 2
    hz = np.fft.rfftfreq(1 << 17, 1 / RATE_HZ)
    low = power[(hz > 500) & (hz < 600)].mean()
    high = power[(hz > 4000) & (hz < 4800)].mean()
    assert 10 * np.log10(low / high) == pytest.approx(9, abs=1)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_is_added_at_the_ratio(snr_db: float, rng: np.random.Generator) -> None:
    speech = tone(440)
    noisy = augment.add_noise(speech, 5 * augment.white_noise(len(speech), rng), snr_db)
    assert 20 * np.log10(rms(speech) / rms(noisy - speech)) == pytest.approx(snr_db, abs=0.05)


def test_silence_gets_no_noise(rng: np.random.Generator) -> None:
    silence = np.zeros(100, np.float32)
    assert np.array_equal(augment.add_noise(silence, augment.white_noise(100, rng), 0), silence)


def test_gain_is_in_decibels_and_stops_at_full_scale() -> None:
    assert rms(augment.change_gain(tone(440), -6)) == pytest.approx(rms(tone(440)) / 1.9953, rel=1e-3)
    assert np.abs(augment.change_gain(tone(440), 40)).max() == pytest.approx(1)
    assert np.array_equal(augment.change_gain(np.zeros(5, np.float32), 6), np.zeros(5))


def test_speed_moves_length_and_pitch() -> None:
    fast = augment.change_speed(tone(440), 1.25)
    assert len(fast) == pytest.approx(RATE_HZ / 1.25, abs=2)
    assert np.argmax(np.abs(np.fft.rfft(fast))) * RATE_HZ / len(fast) == pytest.approx(550, abs=2)


def test_a_room_decays_by_sixty_decibels_in_its_time(rng: np.random.Generator) -> None:
    response = augment.room_response(0.5, -10, rng)
    assert len(response) == 8000
    assert response[0] == 1  # the direct sound comes first, so phoneme times stay
    assert 10 * np.log10(np.sum(response[1:].astype(float) ** 2)) == pytest.approx(-10, abs=0.01)
    early, late = rms(response[800:1600]), rms(response[6400:7200])  # 0.35 s apart: 42 dB
    assert 20 * np.log10(early / late) == pytest.approx(42, abs=1.5)


def test_reverberation_is_a_convolution_that_keeps_length_and_level(rng: np.random.Generator) -> None:
    speech = augment.white_noise(1000, rng) * np.float32(0.1)
    response = np.array([1, 0, 0.5, -0.25], np.float32)
    expected = np.convolve(speech, response)[:1000]
    out = augment.reverberate(speech, response)
    assert out.shape == speech.shape
    assert rms(out) == pytest.approx(rms(speech), rel=1e-4)
    assert np.allclose(out / rms(out), expected / rms(expected), atol=1e-4)


def test_colour_removes_what_is_above_the_cutoff_and_tilts_the_rest() -> None:
    mixed = tone(500) + tone(6000)
    spectrum = np.abs(np.fft.rfft(augment.colour(mixed, 0, 3400)))
    assert spectrum[6000] < 0.02 * spectrum[500]
    spectrum = np.abs(np.fft.rfft(augment.colour(mixed, -16, 8000)))
    assert 20 * np.log10(spectrum[500] / spectrum[6000]) == pytest.approx(11, abs=0.3)  # 5.5 of 8 kHz


@pytest.mark.parametrize("kind", augment.NON_SPEECH)
@pytest.mark.parametrize("n", [1, 500, 40_000])
def test_clips_without_speech_are_finite_and_within_full_scale(kind: str, n: int) -> None:
    for seed in range(5):
        samples = augment.non_speech(n, np.random.default_rng(seed), kind)
        assert samples.dtype == np.float32
        assert samples.shape == (n,)
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1


def test_music_has_tones_where_noise_has_none(rng: np.random.Generator) -> None:
    def peakiness(samples: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(samples)) ** 2
        return float(np.sort(spectrum)[-50:].sum() / spectrum.sum())

    assert peakiness(augment.music(RATE_HZ, rng)) > 0.5 > 5 * peakiness(augment.white_noise(RATE_HZ, rng))


def test_an_unknown_kind_of_non_speech_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(OptionError, match="birds"):
        augment.non_speech(10, rng, "birds")


def test_the_default_augmenter_keeps_length_range_and_follows_the_generator() -> None:
    speech = tone(440, 30_001)
    outputs = [Augmenter()(speech, np.random.default_rng(seed)) for seed in range(30)]
    for out in outputs:
        assert out.dtype == np.float32
        assert out.shape == speech.shape
        assert np.abs(out).max() <= 1
    assert np.array_equal(outputs[3], Augmenter()(speech, np.random.default_rng(3)))
    assert len({out.tobytes() for out in outputs}) == 30


def test_augmenter_with_nothing_to_do_changes_nothing() -> None:
    config = AugmentationConfig(**NOTHING)
    speech = tone(440)
    assert np.array_equal(Augmenter(config)(speech, np.random.default_rng(0)), speech)


def test_augmenter_tells_where_sounds_went() -> None:
    config = AugmentationConfig(**NOTHING, speed=(1.25, 1.25), padding_s=(0.1, 0.3))
    click = np.zeros(RATE_HZ, np.float32)
    click[8000] = 1
    out, speed, offset_s = Augmenter(config).apply(click, np.random.default_rng(0))
    assert 0.1 <= offset_s <= 0.3
    assert np.argmax(np.abs(out)) / RATE_HZ == pytest.approx(offset_s + 0.5 / speed, abs=0.001)


def test_augmenter_takes_an_empty_clip() -> None:
    assert len(Augmenter()(np.zeros(0, np.float32), np.random.default_rng(0))) == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"noise_share": 1.5}, "noise_share"),
        ({"snr_db": (20.0, 5.0)}, "snr_db"),
        ({"speed": (0.0, 1.0)}, "speed"),
        ({"padding_s": (-1.0, 1.0)}, "padding_s"),
        ({"noises": ("birds",)}, "birds"),
        ({"noises": ()}, "noises"),
    ],
)
def test_impossible_settings_are_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError, match=name):
        AugmentationConfig(**options)
