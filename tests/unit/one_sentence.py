"""Recordings of one sentence, and what stands in the place of a model for them.

The stand-in knows the sentence and hears it where every sample of it is there: an occurrence that is cut, or
given twice, is counted as such.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from canvas_asr import Transcriber
from canvas_asr.recordings import Piece
from canvas_asr.result import Decoded
from canvas_asr.vad import FRAME_SAMPLES

RATE_HZ = 16_000
Samples = NDArray[np.float32]


def place(sentence: Samples, starts_s: list[float], seconds: float) -> Samples:
    """A recording of the sentence at these times, with a little noise throughout."""
    noise = np.random.default_rng(0).normal(0, 1e-4, round(seconds * RATE_HZ))
    recording = noise.astype(np.float32)
    for start_s in starts_s:
        first = round(start_s * RATE_HZ)
        recording[first : first + len(sentence)] += sentence
    return recording


def occurrences(samples: Samples, sentence: Samples) -> list[int]:
    """Where the whole sentence begins in samples."""
    if len(samples) < len(sentence):
        return []
    size = 1 << (len(samples) + len(sentence)).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(sentence, size))
    match = np.fft.irfft(spectrum, size)[: len(samples) - len(sentence) + 1]
    peaks = np.flatnonzero(match > 0.98 * float(sentence @ sentence))
    return [int(peak) for i, peak in enumerate(peaks) if i == 0 or peak - peaks[i - 1] > 1000]


class StandIn:
    """In the place of a batch of the model: writes a sentence for every occurrence that it hears.

    Attributes:
        joined: The pieces that joined at once, for every time that some did.
        most_held: Most pieces at a time.
    """

    def __init__(self, asr: Transcriber, sentence: Samples, language: Callable[[Piece], str]) -> None:
        self._ids = asr.processor.text_ids("Bread.")
        self._sentence, self._language = sentence, language
        self._held: dict[Piece, int] = {}
        self._done: list[tuple[Piece, Decoded]] = []
        self.joined: list[list[Piece]] = []
        self.most_held = 0
        self.longest_s = float("inf")  # of a piece whose text fits the canvas

    def __len__(self) -> int:
        return len(self._held)

    @property
    def keys(self) -> list[Piece]:
        return list(self._held)

    def add(self, mel: Any, n_mel: Any, keys: list[Piece], **_: Any) -> None:
        self.joined.append(keys)
        self._held |= dict.fromkeys(keys, 0)
        self.most_held = max(self.most_held, len(self._held))

    def run_pass(self) -> None:
        for piece in self.keys:
            self._held[piece] += 1
            if self._held[piece] == 1 + len(piece.chunk.samples) % 3:  # some are done before others
                found = occurrences(piece.chunk.samples, self._sentence)
                n_tokens, n = len(self._ids), len(found)
                spans = [(at / RATE_HZ, at / RATE_HZ + 1) for at in found for _ in range(n_tokens)]
                truncated = piece.chunk.audio_s > self.longest_s
                language = self._language(piece)
                passes = self._held.pop(piece)
                self._done.append(
                    (
                        piece,
                        Decoded(
                            self._ids * n, [0.5] * n_tokens * n, language, 1.0, [], passes, truncated, spans
                        ),
                    )
                )

    def take(self) -> list[tuple[Piece, Decoded]]:
        done, self._done = self._done, []
        return done


class LoudEnough:
    """In the place of the detector: quick, and certain of what is louder than the noise."""

    def __call__(self, samples: Samples) -> Samples:
        return (np.abs(samples.reshape(-1, FRAME_SAMPLES)).max(axis=1) > 0.005).astype(np.float32)


def check_progress(told: list[tuple[float, float]], total_s: float) -> None:
    done = [now for now, _ in told]
    assert done == sorted(done)
    assert all(now <= total + 1e-9 for now, total in told)
    assert told[-1] == pytest.approx((total_s, total_s))
    assert len(told) > 2
