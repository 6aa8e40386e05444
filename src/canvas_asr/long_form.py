"""Recordings of any length through one batch: pieces of all join as others leave, results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from .audio_files import SAMPLE_RATE_HZ
from .canvas_view import Watchers
from .options import AUTO, DecodingOptions
from .piece_batch import PieceBatch
from .recordings import LongRecording, Piece, Recording

if TYPE_CHECKING:
    from .decoding import CanvasDecoder

LONGEST_CHUNK_S = 30.0
# Tokens of fast speech in a second, in the pieces of `tiny`, whose vocabulary is small. A chunk is to fit its
# canvas: one that does not is read twice.
TOKENS_PER_S = 8.0
# Of a long recording, to find chunks of similar length: padding costs more than memory.
BATCHES_AHEAD = 4

OnProgress: TypeAlias = Callable[[float, float], None]  # seconds of audio done, seconds in all


def max_chunk_samples(decoder: CanvasDecoder, options: DecodingOptions, max_audio_s: float) -> int:
    """Length of the longest chunk: at most 30 s, what the model takes, and what a canvas holds."""
    config, options = decoder.config, decoder.resolve(options)
    canvas = options.canvas or config.canvas_length
    n_tokens = config.max_canvas_length if canvas == AUTO else int(canvas)
    fits_s = LONGEST_CHUNK_S if options.draft_alone else n_tokens / TOKENS_PER_S
    return int(min(LONGEST_CHUNK_S, max_audio_s, fits_s) * SAMPLE_RATE_HZ)


class Progress:
    """Seconds of audio that are done, for somebody who asked."""

    def __init__(self, on_progress: OnProgress | None, total_s: float) -> None:
        """Start at nothing.

        Args:
            on_progress: Called with the seconds done and those in all.
            total_s: Those in all, as far as they are known.
        """
        self._on_progress = on_progress
        self._total_s = total_s
        self._done_s = 0.0
        self._told_s = 0.0
        self._counted: dict[Recording, tuple[float, float]] = {}  # length and seconds done

    def open(self, recording: Recording, expected_s: float | None) -> None:
        """Count a recording in; its length is not yet in the total if it was not expected."""
        self._counted[recording] = (expected_s or 0.0, 0.0)
        self.update(recording)

    def update(self, recording: Recording) -> None:
        """See how far a recording is."""
        length_s, done_s = self._counted[recording]
        self._total_s += recording.audio_s - length_s
        self._done_s += recording.done_s - done_s
        self._counted[recording] = (recording.audio_s, recording.done_s)
        told_s = min(self._done_s, self._total_s)
        if self._on_progress is not None and told_s > self._told_s:
            self._told_s = told_s
            self._on_progress(told_s, self._total_s)

    def close(self, recording: Recording) -> None:
        """Count a recording as done, if only because it cannot be read."""
        recording.done_s = recording.audio_s
        self.update(recording)
        del self._counted[recording]

    def finish(self) -> None:
        """Say that all is done."""
        if self._on_progress is not None:
            self._on_progress(max(self._told_s, self._total_s), max(self._told_s, self._total_s))


class LongForm:
    """Transcribes recordings with one model."""

    def __init__(
        self,
        decoder: CanvasDecoder,
        options: DecodingOptions,
        batch_size: int,
        *,
        watchers: Watchers,
    ) -> None:
        """Start without recordings.

        Args:
            decoder: Of the model.
            options: Of decoding, checked.
            batch_size: Pieces that are transcribed together; some times as many wait, in memory.
            watchers: Are told of every pass.
        """
        self._batch = PieceBatch(decoder, options, watchers)
        self._batch_size = batch_size
        self._waiting: deque[Piece] = deque()
        self._order: deque[Recording] = deque()  # those begun and not yet given back
        self._all_read = False

    def run(
        self,
        recordings: Iterable[tuple[Recording, float | None]],
        progress: Progress,
        *,
        first_alone: bool = False,
    ) -> Iterator[Recording]:
        """Transcribe recordings.

        Args:
            recordings: As they are read, each with the seconds that ``progress`` has counted for it already.
            progress: Of all of them.
            first_alone: Whether the first piece does not wait for others to share its batch.

        Yields:
            The recording that is next in order, whenever there is more of it, and at last when it is done.
        """
        n_ahead = self._batch_size if first_alone else BATCHES_AHEAD * self._batch_size
        with closing(self._read(recordings, progress)) as pieces:
            while self._waiting or len(self._batch) or not self._all_read:
                n_free = self._batch_size - len(self._batch)
                # Few at a time are slow to encode: a quarter of the batch waits for each other.
                has_room = not len(self._batch) or 4 * n_free >= self._batch_size
                may_read = not self._waiting and not self._all_read
                if has_room and may_read and not (first_alone and len(self._batch)):
                    self._pull(pieces, *((1, 1) if first_alone else (self._batch_size, n_ahead)))
                halves: list[Piece] = []
                if has_room and self._waiting:
                    n_new = min(n_free, len(self._waiting))
                    halves = self._batch.encode([self._waiting.popleft() for _ in range(n_new)])
                elif len(self._batch):
                    halves = self._batch.run_pass()
                self._waiting.extendleft(reversed(halves))
                for recording in self._in_order(progress):
                    first_alone = False
                    yield recording
        progress.finish()

    def run_all(self, recordings: Iterable[Recording], on_progress: OnProgress | None) -> Iterator[Recording]:
        """Transcribe recordings that are open, and give each when it is done.

        Args:
            recordings: In any order: clips of similar length go together; long recordings, which are read as
                they are needed, last.
            on_progress: Called with the seconds of audio done and those in all.
        """
        ordered = sorted(recordings, key=lambda one: (isinstance(one, LongRecording), one.audio_s))
        progress = Progress(on_progress, sum(one.audio_s for one in ordered))
        news = self.run(((one, one.audio_s) for one in ordered), progress)
        return (one for one in news if one.is_done)

    def _read(
        self, recordings: Iterable[tuple[Recording, float | None]], progress: Progress
    ) -> Generator[Piece | None, None, None]:
        """Give the pieces of all recordings; None where there are none, or none for long."""
        for recording, expected_s in recordings:
            self._order.append(recording)
            progress.open(recording, expected_s)
            is_empty = True
            with closing(recording.read(partial(progress.update, recording))) as pieces:
                for piece in pieces:
                    is_empty = False
                    yield piece
            if is_empty:
                yield None
        self._all_read = True

    def _pull(self, pieces: Iterator[Piece | None], n_pieces: int, n_ahead: int) -> None:
        """Read some pieces, more of a recording that has more; those of similar length will be together."""
        pulled = list(islice(pieces, n_pieces))
        while pulled and len(pulled) < n_ahead and (last := pulled[-1]) and not last.recording.is_read:
            pulled += islice(pieces, 1)
        found = (piece for piece in pulled if piece is not None)
        self._waiting += sorted(found, key=lambda piece: len(piece.chunk.samples))

    def _in_order(self, progress: Progress) -> Iterator[Recording]:
        """Give the recordings that are next and have more than before."""
        while self._order:
            recording = self._order[0]
            is_more = recording.settle()
            is_done = recording.is_done
            if not is_more and not is_done:
                return
            if is_done:
                self._order.popleft()
                progress.close(recording)
            else:
                progress.update(recording)
            yield recording
            if not is_done:
                return
