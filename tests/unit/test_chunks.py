"""Chunks of speech: nothing lost, nothing doubled, cut at silences."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from canvas_asr.chunks import (
    BEGIN_SCORE,
    MAX_PAUSE_FRAMES,
    MIN_SPEECH_FRAMES,
    PAD_FRAMES,
    Chunk,
    ChunkPacker,
)
from canvas_asr.vad import FRAME_SAMPLES

Array = NDArray[np.float32]


def counted(n_frames: int) -> Array:
    """Samples whose values are their own positions, exactly, so that a chunk shows where it is from."""
    return np.arange(n_frames * FRAME_SAMPLES, dtype=np.float32)


def frames_of(*runs: tuple[float, int]) -> Array:
    return np.concatenate([np.full(n, score, np.float32) for score, n in runs])


def pack(scores: Array, max_frames: int, n_samples: int | None = None, **options: bool) -> list[Chunk]:
    """Pack frames, fed in blocks of uneven length."""
    samples = counted(len(scores))
    packer = ChunkPacker(max_frames * FRAME_SAMPLES, **options)
    chunks, at, n = [], 0, 1
    while at < len(scores):
        chunks += packer.feed(samples[at * FRAME_SAMPLES : (at + n) * FRAME_SAMPLES], scores[at : at + n])
        at, n = at + n, n % 97 + 13
        held = len(packer._scores)
        assert held <= max(max_frames, PAD_FRAMES) + 110
    return chunks + packer.finish(len(samples) if n_samples is None else n_samples)


def random_scores(rng: np.random.Generator) -> Array:
    """Stretches of speech, pauses and doubt, of all lengths."""
    runs = []
    for _ in range(rng.integers(1, 40)):
        low, high = [(0.5, 1.0), (0.0, 0.34), (0.2, 0.7)][rng.integers(3)]
        n = int(rng.choice([rng.integers(1, 6), rng.integers(5, 60), rng.integers(60, 400)]))
        runs.append(rng.uniform(low, high, n).astype(np.float32))
    return np.concatenate(runs)


@pytest.mark.parametrize("seed", range(24))
def test_every_frame_of_speech_is_in_exactly_one_chunk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = random_scores(rng)
    max_frames = int(rng.integers(20, 300))
    n_samples = len(scores) * FRAME_SAMPLES - int(rng.integers(0, FRAME_SAMPLES))
    times = np.zeros(len(scores), int)
    end = 0
    for chunk in pack(scores, max_frames, n_samples):
        assert end <= chunk.start < chunk.end <= n_samples
        assert len(chunk.samples) <= max_frames * FRAME_SAMPLES
        np.testing.assert_array_equal(chunk.samples, np.arange(chunk.start, chunk.end, dtype=np.float32))
        first, n = chunk.start // FRAME_SAMPLES, -(-len(chunk.samples) // FRAME_SAMPLES)
        np.testing.assert_array_equal(chunk.scores, scores[first : first + n])
        times[first : first + n] += 1
        end = chunk.end
    lost = np.flatnonzero((scores >= BEGIN_SCORE) & (times == 0))
    assert times.max(initial=0) <= 1
    # Only clicks may be missing: so few frames, and silence around them.
    for frame in lost:
        around = scores[max(0, frame - PAD_FRAMES) : frame + PAD_FRAMES]
        assert (around >= BEGIN_SCORE).sum() < MIN_SPEECH_FRAMES


@pytest.mark.parametrize("seed", range(6))
def test_without_voice_activity_nothing_at_all_is_left_out(seed: int) -> None:
    scores = np.random.default_rng(seed).uniform(0, 1, 1000).astype(np.float32)
    chunks = pack(scores, 150, 999 * FRAME_SAMPLES + 7, all_is_speech=True)
    assert [chunk.start for chunk in chunks] == [0, *(chunk.end for chunk in chunks[:-1])]
    assert chunks[-1].end == 999 * FRAME_SAMPLES + 7


def test_silence_gives_no_chunk() -> None:
    assert pack(frames_of((0.1, 2000)), 300) == []
    assert pack(frames_of((0.1, 100), (0.9, MIN_SPEECH_FRAMES - 1), (0.1, 100)), 300) == []
    assert ChunkPacker(16_000).finish(0) == []


def test_speech_is_given_with_a_margin_and_without_long_silence() -> None:
    scores = frames_of((0.0, 200), (0.9, 50), (0.0, 300), (0.9, 40), (0.0, 100))
    first, second = pack(scores, 900)
    assert first.start == (200 - PAD_FRAMES) * FRAME_SAMPLES
    assert first.end == (250 + PAD_FRAMES) * FRAME_SAMPLES
    assert second.start == (550 - PAD_FRAMES) * FRAME_SAMPLES
    assert second.end == (590 + PAD_FRAMES) * FRAME_SAMPLES


def test_short_pauses_stay_inside_a_chunk() -> None:
    scores = frames_of((0.9, 50), (0.0, MAX_PAUSE_FRAMES - 1), (0.9, 50))
    (chunk,) = pack(scores, 900)
    assert len(chunk.scores) == len(scores)


def test_a_full_chunk_is_cut_in_the_longest_silence_of_its_later_half() -> None:
    # Silences from 20 to 40 (early), 60 to 64, 70 to 80 (the longest of the later half) and 92 to 95.
    scores = frames_of((0.9, 20), (0.1, 20), (0.9, 20), (0.1, 4), (0.9, 6), (0.1, 10), (0.9, 12), (0.1, 3))
    scores = np.concatenate([scores, frames_of((0.9, 60))])
    first, second = pack(scores, 100)
    assert 73 <= first.end / FRAME_SAMPLES <= 77
    assert first.end == second.start


def test_where_there_is_no_silence_the_least_speech_like_point_is_cut() -> None:
    scores = frames_of((0.99, 80), (0.6, 5), (0.99, 60))
    samples = np.random.default_rng(0).normal(0, 0.1, len(scores) * FRAME_SAMPLES).astype(np.float32)
    packer = ChunkPacker(100 * FRAME_SAMPLES)
    first, second = [*packer.feed(samples, scores), *packer.finish(len(samples))]
    assert 80 <= first.end / FRAME_SAMPLES <= 85
    assert second.start == first.end
    loud = frames_of((0.99, 150))  # a detector that is certain throughout
    samples[62 * FRAME_SAMPLES : 68 * FRAME_SAMPLES] *= 0.01
    packer = ChunkPacker(100 * FRAME_SAMPLES)
    first, *_ = packer.feed(samples, loud[: len(scores)])
    assert 62 <= first.end / FRAME_SAMPLES <= 68


def test_a_chunk_is_halved_at_its_silence() -> None:
    scores = frames_of((0.9, 40), (0.1, 6), (0.9, 30))
    (chunk,) = pack(scores, 900)
    halves = chunk.halves()
    assert halves is not None
    left, right = halves
    assert 41 <= left.end / FRAME_SAMPLES <= 45
    assert left.end == right.start
    np.testing.assert_array_equal(np.concatenate([left.samples, right.samples]), chunk.samples)
    np.testing.assert_array_equal(np.concatenate([left.scores, right.scores]), chunk.scores)
    assert right.start_s == pytest.approx(right.start / 16_000)


def test_halving_ends() -> None:
    (chunk,) = pack(frames_of((0.9, 400)), 900)
    waiting, n_parts = [chunk], 0
    while waiting:
        halves = waiting.pop().halves()
        n_parts += halves is None
        waiting += halves or ()
    assert 8 < n_parts < 60
