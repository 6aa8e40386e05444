"""A sentence said 40 times over five minutes is found 40 times by the embedded model, none extra."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import canvas_asr

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "es": "mañana por la tarde vamos a visitar a mi abuela".split(),
    "zh": list("今天晚上我们一起去饭店吃饭"),
}
N_TIMES, ALL_S = 40, 300.0


def n_in_order(words: list[str], heard: list[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(heard) + 1)
    for word in words:
        diagonal = 0
        for i, other in enumerate(heard, start=1):
            diagonal, best[i] = best[i], diagonal + 1 if word == other else max(best[i], best[i - 1])
    return best[-1]


@pytest.mark.parametrize("language", sorted(SAID))
def test_a_sentence_said_40_times_is_found_40_times(language: str, tmp_path: Path) -> None:
    clip, rate_hz = sf.read(EXAMPLES / f"{language}.flac", dtype="float32")
    draw = random.Random(1)
    pause_s = ALL_S / N_TIMES - len(clip) / rate_hz
    parts, starts_s, n_samples = [], [], 0
    for _ in range(N_TIMES):
        silence = np.zeros(int(rate_hz * pause_s * draw.uniform(0.25, 1.75)), np.float32)
        starts_s.append((n_samples + len(silence)) / rate_hz)
        parts += [silence, clip]
        n_samples += len(silence) + len(clip)
    sf.write(tmp_path / "often.wav", np.concatenate(parts), rate_hz)

    segments = [*canvas_asr.load().stream_file(tmp_path / "often.wav", steps=1, init="draft")]

    texts = [segment.text.lower().strip('"¿¡.,。') for segment in segments]
    heard = [list(text) if language == "zh" else text.split() for text in texts]
    assert len(segments) == N_TIMES
    assert all(n_in_order(SAID[language], words) >= 0.6 * len(SAID[language]) for words in heard), texts
    assert {segment.language for segment in segments} == {language}
    for segment, start_s in zip(segments, starts_s, strict=True):
        assert segment.start == pytest.approx(start_s, abs=0.35)  # 0.3 s are kept before speech
        assert segment.end <= start_s + len(clip) / rate_hz + 0.8  # the detector lets go late
