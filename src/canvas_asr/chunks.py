"""Speech packed into chunks that the model can take, cut at silences.

A chunk is a stretch of the file as it is, short pauses included, so that times in it are times in the file.
Chunks do not overlap, and all speech is in one of them. Longer silence is left out.

Positions are counted in frames of 32 ms, which the detector scores; chunks know theirs in samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .audio_files import SAMPLE_RATE_HZ, Samples
from .vad import FRAME_SAMPLES, LoudnessDetector, Scores

FRAMES_PER_S = SAMPLE_RATE_HZ / FRAME_SAMPLES

# Speech begins where its probability reaches the first, and ends below the second: Silero's own figures.
BEGIN_SCORE, STAY_SCORE = 0.5, 0.35
PAD_FRAMES = round(0.3 * FRAMES_PER_S)  # kept around speech, whose soft ends score low
MAX_PAUSE_FRAMES = round(0.8 * FRAMES_PER_S)  # longer ones end a chunk: the speaker or language may change
MIN_SPEECH_FRAMES = 3  # shorter is a click
EARLIEST_CUT = 0.5  # of the longest chunk: before that it is too short to be worth a silence
MIN_CHUNK_SAMPLES = SAMPLE_RATE_HZ // 2  # shorter ones are not split again
_AROUND_FRAMES = (3, 11, 31)  # 0.1, 0.35 and 1 s


@dataclass(frozen=True, eq=False)
class Chunk:
    """A stretch of a recording.

    Attributes:
        start: Its first sample, counted from the beginning of the recording.
        samples: (n,).
        scores: Of its frames, (ceil(n / FRAME_SAMPLES),).
    """

    start: int
    samples: Samples
    scores: Scores

    @property
    def end(self) -> int:
        """The sample behind its last."""
        return self.start + len(self.samples)

    @property
    def start_s(self) -> float:
        """Seconds from the beginning of the recording."""
        return self.start / SAMPLE_RATE_HZ

    @property
    def audio_s(self) -> float:
        """Its length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ

    def halves(self) -> tuple[Chunk, Chunk] | None:
        """Cut it near the middle, at a silence if there is one; None if that would be too short."""
        if len(self.samples) < 2 * MIN_CHUNK_SAMPLES:
            return None
        n_frames = len(self.samples) // FRAME_SAMPLES
        cut = _best_cut(self.samples, self.scores, n_frames // 4, n_frames - n_frames // 4)
        at = cut * FRAME_SAMPLES
        first = Chunk(self.start, self.samples[:at], self.scores[:cut])
        return first, Chunk(self.start + at, self.samples[at:], self.scores[cut:])


class ChunkPacker:
    """Takes a recording block by block and gives chunks; holds no more than one chunk and one block."""

    def __init__(self, max_samples: int, *, all_is_speech: bool = False) -> None:
        """Start a recording.

        Args:
            max_samples: Of the longest chunk, at least a few frames.
            all_is_speech: Whatever the scores, so that nothing is left out.
        """
        self._max_frames = max(4, max_samples // FRAME_SAMPLES)
        self._begin_score, self._stay_score = (0.0, 0.0) if all_is_speech else (BEGIN_SCORE, STAY_SCORE)
        self._first = 0  # frame at which what is held begins
        self._samples = np.zeros(0, np.float32)
        self._scores = np.zeros(0, np.float32)
        self._speech = np.zeros(0, np.bool_)
        self._start: int | None = None  # frame of the chunk that is being packed
        self._is_rest = False  # of a chunk that was cut
        self._last_speech = -1

    @property
    def settled(self) -> int:
        """The sample up to which everything is in a chunk that was given, or is silence."""
        frame = self._first if self._start is None else self._start
        return frame * FRAME_SAMPLES

    def feed(self, samples: Samples, scores: Scores) -> list[Chunk]:
        """Take the next frames.

        Args:
            samples: (F * FRAME_SAMPLES,).
            scores: (F,), 0 to 1.

        Returns:
            The chunks that are complete.
        """
        begin = self._first + len(self._scores)
        self._samples = np.concatenate([self._samples, samples])
        self._scores = np.concatenate([self._scores, scores])
        self._speech = np.concatenate([self._speech, np.zeros(len(scores), np.bool_)])
        chunks = []
        for frame, score in enumerate(scores.tolist(), start=begin):
            chunk = self._step(frame, score)
            if chunk is not None:
                chunks.append(chunk)
        self._forget(begin + len(scores))
        return chunks

    def finish(self, n_samples: int) -> list[Chunk]:
        """Give the last chunk, if there is one.

        Args:
            n_samples: Of the whole recording, without what filled its last frame.
        """
        chunk = self._close() if self._start is not None else None
        if chunk is None or chunk.start >= n_samples:
            return []
        return [Chunk(chunk.start, chunk.samples[: n_samples - chunk.start], chunk.scores)]

    def _step(self, frame: int, score: float) -> Chunk | None:
        was_speech = self._last_speech == frame - 1 and frame > 0
        if score >= self._begin_score or (was_speech and score >= self._stay_score):
            self._speech[frame - self._first] = True
            self._last_speech = frame
            if self._start is None:
                self._start = max(frame - PAD_FRAMES, self._first)
        if self._start is None:
            return None
        if frame - self._last_speech >= MAX_PAUSE_FRAMES:
            return self._close()
        if frame + 1 - self._start >= self._max_frames:
            return self._cut(frame + 1)
        return None

    def _close(self) -> Chunk | None:
        """End the chunk behind its last speech; None if it was only a click."""
        start = self._start or 0
        end = min(self._last_speech + 1 + PAD_FRAMES, self._first + len(self._scores))
        n_speech = int(self._speech[start - self._first : end - self._first].sum())
        is_click = n_speech < MIN_SPEECH_FRAMES and not self._is_rest
        self._start, self._is_rest = None, False
        chunk = None if is_click else self._take(start, end)
        self._drop(end)
        return chunk

    def _cut(self, end: int) -> Chunk:
        """Cut a chunk that is full at the best place of its later part, and go on with the rest."""
        start = self._start or 0
        first, last = start - self._first, end - self._first
        earliest = first + int(EARLIEST_CUT * self._max_frames)
        cut = self._first + _best_cut(self._samples, self._scores, earliest, last)
        spoken = np.flatnonzero(self._speech[first : cut - self._first])
        last_spoken = start + int(spoken[-1]) if len(spoken) else start
        chunk = self._take(start, min(cut, last_spoken + 1 + PAD_FRAMES))
        left = np.flatnonzero(self._speech[cut - self._first : last])
        self._drop(cut)
        self._is_rest = bool(len(left))
        self._start = max(cut, cut + int(left[0]) - PAD_FRAMES) if len(left) else None
        return chunk

    def _take(self, start: int, end: int) -> Chunk:
        at = slice((start - self._first) * FRAME_SAMPLES, (end - self._first) * FRAME_SAMPLES)
        scores = self._scores[start - self._first : end - self._first]
        return Chunk(start * FRAME_SAMPLES, self._samples[at].copy(), scores.copy())

    def _forget(self, now: int) -> None:
        """Drop what no chunk will need."""
        self._drop(self._start if self._start is not None else now - PAD_FRAMES)

    def _drop(self, frame: int) -> None:
        n_frames = frame - self._first
        if n_frames > 0:
            self._samples = self._samples[n_frames * FRAME_SAMPLES :]
            self._scores, self._speech = self._scores[n_frames:], self._speech[n_frames:]
            self._first = frame


def _best_cut(samples: Samples, scores: Scores, earliest: int, latest: int) -> int:
    """Find the frame to cut before: where least is heard around it, so that a long silence beats a short one.

    Args:
        samples: All frames, of FRAME_SAMPLES each.
        scores: One for each, those behind ``latest`` unused.
        earliest: First frame that will do.
        latest: The one behind the last.
    """
    earliest = max(1, earliest)
    # Loudness too: a certain detector scores 1.0 throughout, and a doubtful one scores low within words.
    heard = scores[:latest] + LoudnessDetector()(samples[: latest * FRAME_SAMPLES])
    around = np.zeros(latest, np.float64)
    for n_frames in _AROUND_FRAMES:
        padded = np.pad(heard, n_frames // 2, mode="edge")
        around += np.convolve(padded, np.ones(n_frames) / n_frames, mode="valid")
    return earliest + int(around[earliest:].argmin())
