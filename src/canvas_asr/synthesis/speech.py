"""What every synthesis engine returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SILENCE = ""


@dataclass(frozen=True)
class Speech:
    """What an engine made of one text.

    Attributes:
        samples: int16, (N,).
        sample_rate_hz: Rate of ``samples``.
        phonemes: (start sample, IPA symbol) in order of time; "" is silence.
        words: (place of its first character in the text that was said, start sample, end sample) of every
            word whose time the engine tells, in order; words that it runs together ("of the") have one.
    """

    samples: NDArray[np.int16]
    sample_rate_hz: int
    phonemes: list[tuple[int, str]]
    words: list[tuple[int, int, int]] = field(default_factory=list)
