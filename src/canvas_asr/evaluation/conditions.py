"""Conditions that clips are heard under: noise, a room, a telephone's band, other speeds, silence.

Each changes a clip in a way that is drawn from the clip's own samples and the seed, so a clip is changed
alike in every run, whatever stands beside it. Levels of noise share the noise: only its loudness differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from ..audio import SAMPLE_RATE_HZ
from ..errors import OptionError
from .modes import Samples

CLEAN = "clean"
SILENCE = "silence"
SNRS_DB = (20, 10, 5, 0)
SPEEDS = (0.8, 0.9, 1.1, 1.25)
TELEPHONE_HZ = 8000
RT60_S = 0.6
"""Reverberation time of the room: a living room or an office without curtains."""
WET_DB = -3.0
"""Energy of its reverberation relative to the direct sound."""


@dataclass(frozen=True)
class Condition:
    """One way of hearing clips.

    Attributes:
        name: In results.
        family: Conditions of one family stand in one plot.
        level: Place on the plot's axis; None if it has none.
        change: Makes what is heard of samples, (N,), drawing from a generator.
        silent: Whether nothing is said, so that the reference is empty.
    """

    name: str
    family: str
    level: float | None
    change: Callable[[Samples, np.random.Generator], Samples]
    silent: bool = False

    def apply(self, samples: Samples, seed: int) -> Samples:
        """Make what is heard of a clip, (N,), in [-1, 1]; the same for the same samples and seed."""
        if self.family == CLEAN or not len(samples):
            return samples
        digest = hashlib.sha256(self.family.encode() + np.ascontiguousarray(samples).tobytes()).digest()
        rng = np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))
        heard: Samples = np.clip(self.change(samples, rng), -1.0, 1.0).astype(np.float32)
        return heard


# The changes themselves are those of training; synthesis stands below evaluation, so it is imported when
# needed.


def _noisy(snr_db: float) -> Callable[[Samples, np.random.Generator], Samples]:
    def change(samples: Samples, rng: np.random.Generator) -> Samples:
        from ..synthesis.augment import NOISES, add_noise

        noise = NOISES[tuple(NOISES)[int(rng.integers(len(NOISES)))]](len(samples), rng)
        mixed = add_noise(samples, noise, snr_db)
        # Turned down as a whole where it would clip: clipping is another condition.
        return mixed / np.float32(max(1.0, float(np.max(np.abs(mixed)))))

    return change


def _in_a_room(samples: Samples, rng: np.random.Generator) -> Samples:
    from ..synthesis.augment import reverberate, room_response

    return reverberate(samples, room_response(RT60_S, WET_DB, rng))


def _by_telephone(samples: Samples, rng: np.random.Generator) -> Samples:
    narrow = soxr.resample(samples, SAMPLE_RATE_HZ, TELEPHONE_HZ)
    wide: Samples = soxr.resample(narrow, TELEPHONE_HZ, SAMPLE_RATE_HZ)
    return wide


def _faster(speed: float) -> Callable[[Samples, np.random.Generator], Samples]:
    def change(samples: Samples, rng: np.random.Generator) -> Samples:
        from ..synthesis.augment import change_speed

        return change_speed(samples, speed)

    return change


def _nothing_said(samples: Samples, rng: np.random.Generator) -> Samples:
    from ..synthesis.augment import non_speech

    return non_speech(len(samples), rng, ("zeros", "silence")[int(rng.integers(2))])


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition(CLEAN, CLEAN, None, lambda samples, rng: samples),
        *(Condition(f"noise-{snr}", "noise", float(snr), _noisy(snr)) for snr in SNRS_DB),
        Condition("reverberation", "reverberation", None, _in_a_room),
        Condition("band-8khz", "band", None, _by_telephone),
        *(Condition(f"speed-{speed:g}", "speed", speed, _faster(speed)) for speed in SPEEDS),
        Condition(SILENCE, SILENCE, None, _nothing_said, silent=True),
    )
}
"""By name. ``band-8khz``: sampled at 8 kHz, as a telephone does, so nothing above 4 kHz is left. ``speed-…``:
played so many times as fast, pitch included. ``silence``: as long as the clip, of zeros or of a quiet
room."""


def choose_conditions(names: Sequence[str] | None) -> list[Condition]:
    """Conditions by name, clean speech always first.

    Args:
        names: Of conditions or of families; an empty list means all of them, None clean speech alone.

    Raises:
        OptionError: If a name is unknown.
    """
    if names is None:
        return [CONDITIONS[CLEAN]]
    families = {condition.family for condition in CONDITIONS.values()}
    for name in names:
        if name not in CONDITIONS and name not in families:
            raise OptionError(
                f"--robustness: unknown condition {name!r}: use some of "
                f"{', '.join(dict.fromkeys([*CONDITIONS, *sorted(families)]))}"
            )
    wanted = {CLEAN, *(names or CONDITIONS)}
    return [condition for condition in CONDITIONS.values() if wanted & {condition.name, condition.family}]
