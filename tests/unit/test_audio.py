"""load_audio of arrays: rates, channels and sample types give the same sound; bad input one clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from audio_files import level_db, middle, peak_hz, tone

from canvas_asr.audio import SAMPLE_RATE_HZ, load_audio
from canvas_asr.errors import AudioError

RATES_HZ = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)


# Rates, channels and sample types


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_tone_keeps_its_pitch_and_level_at_every_rate(rate_hz: int) -> None:
    samples = load_audio((tone(rate_hz, 2.0), rate_hz))
    assert samples.dtype == np.float32
    assert abs(len(samples) - 2 * SAMPLE_RATE_HZ) <= 1
    assert peak_hz(middle(samples)) == pytest.approx(1000, abs=1)
    assert level_db(middle(samples)) == pytest.approx(level_db(tone(16_000)), abs=0.5)


@pytest.mark.parametrize("rate_hz", [rate for rate in RATES_HZ if rate > SAMPLE_RATE_HZ])
def test_what_lies_above_8_khz_is_removed(rate_hz: int) -> None:
    for tone_hz in np.linspace(8_050, 0.49 * rate_hz, 12):
        loud = tone(rate_hz, 0.5, tone_hz, gain=0.5)
        assert level_db(middle(load_audio((loud, rate_hz)))) - level_db(loud) <= -60, tone_hz


def test_what_lies_below_7_khz_is_kept() -> None:
    for tone_hz in np.linspace(50, 7_000, 12):
        loud = tone(44_100, 0.5, tone_hz)
        assert level_db(middle(load_audio((loud, 44_100)))) == pytest.approx(level_db(loud), abs=0.5), tone_hz


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "<i2", ">i2", "<i4", ">i4", "<f2", "<f4", ">f4", "<f8", ">f8"]
)
def test_sample_types_agree(dtype: str, rate_hz: int) -> None:
    exact = tone(rate_hz)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        array = exact.astype(kind)
    else:
        scaled = np.round(exact.astype(np.float64) * 2 ** (8 * kind.itemsize - 1))
        array = (scaled + (128 if kind.kind == "u" else 0)).astype(kind)
    step = 2.0 ** (1 - 8 * kind.itemsize) if kind.itemsize == 1 else 0
    np.testing.assert_allclose(load_audio((array, rate_hz)), load_audio((exact, rate_hz)), atol=1e-3 + step)


@pytest.mark.parametrize("n_channels", [1, 2, 6])
@pytest.mark.parametrize("as_rows", [False, True])
def test_channels_are_averaged_whichever_axis_they_are(n_channels: int, as_rows: bool) -> None:
    gains = np.linspace(0.2, 1.8, n_channels, dtype=np.float32) if n_channels > 1 else np.ones(1, np.float32)
    columns = tone(48_000)[:, None] * gains
    expected = load_audio((tone(48_000), 48_000))
    np.testing.assert_allclose(load_audio((columns.T if as_rows else columns, 48_000)), expected, atol=1e-5)


def test_more_than_a_block_is_the_same_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (200_000, 2)).astype(np.float32)
    whole = load_audio((noise, 44_100))
    monkeypatch.setattr("canvas_asr.audio.BLOCK_SAMPLES", 999)
    np.testing.assert_allclose(load_audio((noise, 44_100)), whole, atol=1e-6)


def test_a_rate_by_keyword_is_the_same_as_in_a_tuple() -> None:
    array = tone(8_000)
    np.testing.assert_array_equal(load_audio(array, sample_rate_hz=8_000), load_audio((array, 8_000)))
    np.testing.assert_array_equal(
        load_audio((array, 8_000), sample_rate_hz=8_000), load_audio((array, 8_000))
    )
    np.testing.assert_array_equal(load_audio((array, np.float64(8_000))), load_audio((array, 8_000)))


def test_a_torch_tensor_is_an_array() -> None:
    torch = pytest.importorskip("torch")
    array = tone(16_000)
    np.testing.assert_array_equal(load_audio((torch.from_numpy(array), 16_000)), array)
    with pytest.raises(AudioError, match="numpy array"):
        load_audio((torch.from_numpy(array).requires_grad_(), 16_000))


def test_the_source_array_is_left_as_it_was() -> None:
    array = tone(16_000, gain=1.5)
    before = array.copy()
    samples = load_audio((array, 16_000))
    samples[:] = 0
    np.testing.assert_array_equal(array, before)


def test_floats_a_little_over_full_scale_are_clipped() -> None:
    samples = load_audio((tone(16_000, gain=1.5), 16_000))
    assert samples.max() == 1.0
    assert samples.min() == -1.0


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), (0, 0)])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_an_empty_array_gives_no_samples(shape: tuple[int, ...], rate_hz: int) -> None:
    samples = load_audio((np.zeros(shape, np.float32), rate_hz))
    assert samples.shape == (0,)
    assert samples.dtype == np.float32


@pytest.mark.parametrize("n", [1, 2, 320])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_a_few_samples_are_enough(n: int, rate_hz: int) -> None:
    samples = load_audio((np.full(n, 0.1, np.float32), rate_hz))
    assert abs(len(samples) - n * SAMPLE_RATE_HZ / rate_hz) <= 1


# Arrays that are refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(100, np.float32), r"sample rate.*\(samples, rate\).*sample_rate_hz"),
        ((np.zeros(100, np.float32),), r"tuple must be \(samples, sample_rate_hz\)"),
        ((16_000, np.zeros(100, np.float32)), r"tuple must be \(samples, sample_rate_hz\)"),
        ((np.int64(16_000), np.zeros(100, np.float32)), r"tuple must be \(samples, sample_rate_hz\)"),
        (([0.0, 0.1], 16_000), r"tuple must be \(samples, sample_rate_hz\)"),
        ((np.zeros(100), "16000"), "rate must be a number"),
        ((np.zeros(100), True), "rate must be a number"),
        ((np.zeros(100), None), "does not say its sample rate"),
        ((np.zeros(100), 16), "16 Hz is outside 4000 to 768000"),
        ((np.zeros(100), -16_000), "outside 4000 to 768000"),
        ((np.zeros(100), float("nan")), "outside 4000 to 768000"),
        ((np.zeros(100), 10**400), "outside 4000 to 768000"),
        ((np.zeros(100), 16_000.5), "whole number"),
        ((np.zeros((2, 2)), 16_000), r"shape \(2, 2\) is ambiguous"),
        ((np.zeros((16, 6)), 16_000), r"shape \(16, 6\) is ambiguous"),
        ((np.zeros((100, 100)), 16_000), r"shape \(100, 100\) has no axis of at most 16"),
        ((np.zeros((2, 3, 100)), 16_000), r"shape \(2, 3, 100\)"),
        ((np.zeros(100, np.int64), 16_000), "type int64: convert to int16"),
        ((np.zeros(100, np.uint16), 16_000), "type uint16"),
        ((np.zeros(100, bool), 16_000), "type bool"),
        ((np.zeros(100, complex), 16_000), "type complex128"),
        ((np.array(["a"] * 100), 16_000), "cannot use samples of type"),
        ((np.array([object()] * 100), 16_000), "type object"),
        (b"RIFF", "cannot read audio from bytes"),
        ([0.1, 0.2], "cannot read audio from list"),
        (None, "cannot read audio from NoneType"),
        ((tone(16_000) * 32_768, 16_000), "samples reach 8192 where full scale is 1.0"),
    ],
)
def test_bad_array_is_refused_with_a_reason(source: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(source)


def test_two_different_rates_are_refused() -> None:
    with pytest.raises(AudioError, match="two rates for one array: 8000 in the tuple, sample_rate_hz=16000"):
        load_audio((np.zeros(100), 8_000), sample_rate_hz=16_000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_the_first_sample_that_is_no_number_is_named(value: float, word: str, dtype: type) -> None:
    array = np.zeros((150_000, 2), dtype)
    array[140_000:, 0] = np.nan
    array[123_456, 1] = value
    with pytest.raises(AudioError, match=f"the array: sample 123456 is {word}"):
        load_audio((array, 48_000))
