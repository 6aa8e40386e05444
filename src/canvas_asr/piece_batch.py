"""Pieces of recordings in one batch of the model, until their transcripts are written."""

from __future__ import annotations

import time
from collections.abc import Collection, Container, Iterator, Sequence
from typing import TYPE_CHECKING

from .canvas_view import NOBODY, CanvasView, Watchers, view_canvases
from .options import DecodingOptions
from .recordings import Piece
from .result import Decoded
from .transcripts import read_transcript

if TYPE_CHECKING:
    from .decoding import CanvasDecoder


class PieceBatch:
    """Pieces that join between passes, and leave with their transcripts.

    A piece whose text fills its canvas has none: its halves are given back, to be read in its place. Steps
    that several threads take with one decoder wait for each other.
    """

    def __init__(self, decoder: CanvasDecoder, options: DecodingOptions, watchers: Watchers = NOBODY) -> None:
        """Start without pieces.

        Args:
            decoder: Of the model.
            options: Of decoding.
            watchers: Are told of every pass.

        Raises:
            OptionError: If the model cannot follow the options.
        """
        self._decoder = decoder
        self._watchers = watchers
        self._batch = decoder.open(options)

    def __len__(self) -> int:
        """Count the pieces that the next pass is for."""
        return len(self._batch)

    @property
    def options(self) -> DecodingOptions:
        """Of decoding, with what the checkpoint says where they leave it open."""
        return self._batch.options

    @property
    def pieces(self) -> list[Piece]:
        """The pieces that the next pass is for, those that joined first before the others."""
        return self._batch.keys

    @property
    def paused(self) -> list[Piece]:
        """The pieces that are set aside."""
        return self._batch.paused

    def encode(self, new: Sequence[Piece], options: Sequence[DecodingOptions] | None = None) -> list[Piece]:
        """Encode pieces, at least one, to be denoised from the next pass on.

        Args:
            new: The pieces.
            options: Of each; see :meth:`~canvas_asr.clip_batch.ClipBatch.add`.

        Returns:
            Halves of those that need no pass and were cut.
        """
        started = time.perf_counter()
        device = self._decoder.model.projector.device
        mel, n_mel = self._decoder.features([piece.chunk.samples for piece in new])
        with self._decoder.lock:
            self._batch.add(mel.to(device), n_mel.to(device), new, options=options)
            return self._settle(new, started)

    def run_pass(self) -> list[Piece]:
        """Run one pass on all pieces that are not set aside; halves of those that are done and were cut."""
        started = time.perf_counter()
        worked = self._batch.keys
        with self._decoder.lock:
            self._batch.run_pass()
            halves = self._settle(worked, started)
        self._watchers.tell(self._batch, lambda piece: piece.recording.place)  # their time is theirs
        return halves

    def pause(self, pieces: Container[Piece]) -> None:
        """Set pieces aside as they are; no pass is for them until they are resumed."""
        self._batch.pause(pieces)

    def resume(self, pieces: Container[Piece]) -> None:
        """Let pieces that are set aside go on where they were."""
        self._batch.resume(pieces)

    def remove(self, pieces: Container[Piece]) -> None:
        """Forget pieces."""
        self._batch.remove(pieces)

    def views(self, pieces: Collection[Piece]) -> Iterator[tuple[Piece, CanvasView]]:
        """Give what the last pass made of those of these pieces that it was for."""
        shown = [piece for piece in self._batch.shown().keys if piece in pieces]
        return zip(shown, view_canvases(self._batch, lambda _: 0, pieces), strict=True)

    def _settle(self, worked: Sequence[Piece], started: float) -> list[Piece]:
        """Share out the time since a step was started, and write the transcripts of what is done."""
        done = self._batch.take()
        seconds = (time.perf_counter() - started) / len(worked)
        for piece in worked:
            piece.seconds += seconds
        return [half for piece, decoded in done for half in self._read(piece, decoded)]

    def _read(self, piece: Piece, decoded: Decoded) -> list[Piece]:
        """Write the transcript of a piece, or cut it if it filled its canvas."""
        halves = piece.recording.split(piece) if decoded.truncated else []
        if not halves:
            decoder = self._decoder
            has_draft = bool(decoder.config.has_draft)
            piece.transcript = read_transcript(
                decoded, piece.chunk.audio_s, decoder.processor, decoder.vocabulary, has_draft=has_draft
            )
        return halves
