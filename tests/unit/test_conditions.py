"""What each condition does to a clip, measured; and that it does so alike every time."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_clips import tones

from canvas_asr.errors import OptionError
from canvas_asr.evaluation.conditions import CONDITIONS, SNRS_DB, choose_conditions

CLIP = tones(2.0, 3)


def heard(name: str, samples: np.ndarray = CLIP, seed: int = 0) -> np.ndarray:
    return CONDITIONS[name].apply(samples, seed)


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_alike_for_the_same_clip_and_seed_and_within_full_scale(name: str) -> None:
    first = heard(name)
    assert np.array_equal(first, heard(name))
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1.0
    assert len(heard(name, np.zeros(0, np.float32))) == 0


@pytest.mark.parametrize("name", ["noise-10", "reverberation"])
def test_another_clip_or_seed_gives_other_noise(name: str) -> None:
    assert not np.array_equal(heard(name), heard(name, seed=1))
    other = tones(2.0, 4)
    assert not np.allclose(heard(name) - CLIP, heard(name, other) - other, atol=1e-3)


@pytest.mark.parametrize("snr_db", SNRS_DB)
def test_noise_has_the_level_it_says(snr_db: int) -> None:
    mixed = heard(f"noise-{snr_db}").astype(np.float64)
    scale = float(mixed @ CLIP / (CLIP.astype(np.float64) @ CLIP))  # it may be turned down as a whole
    noise = mixed / scale - CLIP
    assert 10 * np.log10(power(CLIP) / power(noise)) == pytest.approx(snr_db, abs=0.3)


def test_levels_share_the_noise() -> None:
    quiet = 0.1 * CLIP  # so that nothing is turned down
    strong, weak = (heard(f"noise-{snr}", quiet) - quiet for snr in (0, 20))
    assert np.allclose(strong, 10 * weak, atol=1e-5)


def test_a_telephone_has_nothing_above_4_khz() -> None:
    t = np.arange(32_000) / 16_000
    low, high = (np.sin(2 * np.pi * f * t).astype(np.float32) * 0.5 for f in (1000, 5000))
    assert power(heard("band-8khz", high)) < 1e-4 * power(high)  # its ends ring
    assert power(heard("band-8khz", low)) == pytest.approx(power(low), rel=0.02)


def test_speed_changes_the_length() -> None:
    for speed in (0.8, 1.25):
        assert len(heard(f"speed-{speed:g}")) == pytest.approx(len(CLIP) / speed, abs=2)


def test_a_room_keeps_length_and_level_and_adds_a_tail() -> None:
    click = np.zeros(16_000, np.float32)
    click[100] = 0.5
    wet = heard("reverberation", click)
    assert len(wet) == len(click)
    assert power(wet[3000:]) > 0
    assert np.abs(wet[:100]).max() < 1e-6


def test_silence_has_no_trace_of_the_clip() -> None:
    silent = heard("silence")
    assert len(silent) == len(CLIP)
    assert power(silent) < 1e-4 * power(CLIP)
    assert CONDITIONS["silence"].silent


def test_choice_of_conditions() -> None:
    assert [c.name for c in choose_conditions(None)] == ["clean"]
    assert [c.name for c in choose_conditions([])] == list(CONDITIONS)
    assert [c.name for c in choose_conditions(["noise-5", "silence"])] == ["clean", "noise-5", "silence"]
    speeds = [c.name for c in choose_conditions(["speed"])]
    assert speeds == ["clean", "speed-0.8", "speed-0.9", "speed-1.1", "speed-1.25"]
    with pytest.raises(
        OptionError, match="--robustness: unknown condition 'moon': use some of clean, noise-20"
    ):
        choose_conditions(["moon"])
