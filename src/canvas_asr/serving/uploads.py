"""Uploaded audio, decoded by processes that hostile files may crash or stall without harm to the server.

    pool = DecoderPool(n_workers=2)
    pool.start()
    upload = pool.open(file, max_audio_s=3600.0)    # the first two minutes are decoded now
    for samples in upload:                          # the rest as it is read
        ...
    upload.close()

Most uploads are decoded whole before :meth:`DecoderPool.open` returns: a damaged one is refused before it
takes a place in a queue, and its decoder is free for the next. A longer one keeps its decoder, which waits
where the pipe between them is full: memory is bounded on both sides.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..audio_files import SAMPLE_RATE_HZ, Samples
from ..errors import AudioError, CanvasASRError
from ..result import Gap
from .decoder import Decoder, DecoderDiedError, DecoderStalledError
from .decoder_process import END, ERROR, INFO, MAX_GAPS, SAMPLES
from .settings import ServerSettings

READ_AHEAD_S = 120.0  # 7.7 MB
MIN_SPEED = 4.0  # seconds of audio a second; decoders reach hundreds
MAX_FILES = 500  # of one process: what a codec leaks does not pile up
_CANNOT = "the audio cannot be decoded: "
_CONVERT = "convert it to WAV or FLAC and send that"

logger = logging.getLogger(__name__)


class AudioTooLong(AudioError):  # noqa: N818  # it says what the audio is
    """Audio longer than the server takes."""


class DecodersBusy(CanvasASRError):  # noqa: N818  # a state that passes
    """Every decoder is at work, and was for as long as one may take over a file.

    Attributes:
        retry_after_s: When to try again.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the server has no audio decoder free; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass
class DecoderStats:
    """What became of a pool's decoders.

    Attributes:
        n_files: Files that were given to one.
        n_died: Decoders that crashed or were killed by others.
        n_stalled: Those that the pool ended because they made no progress.
        n_unexpected: Files on which one raised an exception that is no AudioError.
    """

    n_files: int = 0
    n_died: int = 0
    n_stalled: int = 0
    n_unexpected: int = 0


class DecodedUpload:
    """An upload being decoded: what a job reads, once.

    Attributes:
        duration_s: Its length: what its header says, and once it is decoded what it is; None if nothing does.
        gaps: What could not be decoded so far.
    """

    def __init__(self, pool: DecoderPool, decoder: Decoder, max_audio_s: float | None) -> None:
        """Read from a decoder that has been handed the file; :meth:`DecoderPool.open` does that."""
        self.duration_s: float | None = None
        self.gaps: list[Gap] = []
        self._pool = pool
        self._max_audio_s = max_audio_s
        self._decoder: Decoder | None = decoder
        self._is_parked = self._is_closed = False
        self._blocks: deque[Samples] = deque()
        self._n_received = 0
        self._waited_s = 0.0
        self._reading = threading.Lock()  # one reads, and may wait long
        self._owning = threading.Lock()  # of the decoder, held for moments only

    def __iter__(self) -> Iterator[Samples]:
        """Give the samples in blocks of up to two seconds, each block once.

        Raises:
            AudioError: If it cannot be decoded any further, or was closed meanwhile.
            AudioTooLong: If there is more of it than allowed.
        """
        while True:
            with self._reading:
                if self._is_closed:
                    raise AudioError("the upload was closed before it was read")
                if not self._blocks:
                    self._receive()
                if not self._blocks:
                    return
                samples = self._blocks.popleft()
            yield samples

    def read_ahead(self) -> None:
        """Decode what memory is set aside for, and let the decoder wait if that is not all.

        Raises:
            AudioError: As iterating raises it.
        """
        with self._reading:
            while self._decoder is not None and self._n_received < READ_AHEAD_S * SAMPLE_RATE_HZ:
                self._receive()
            if self._decoder is not None:
                self._is_parked = self._pool._park()

    def close(self) -> None:
        """Let go of the decoder and the samples; may be called at any time, from any thread, and again."""
        self._is_closed = True
        with self._owning:
            if self._decoder is not None:
                self._decoder.kill()  # who waits for it in another thread wakes
        with self._reading:
            self._let_go(is_sound=False)
            self._blocks.clear()

    def _receive(self) -> None:
        """Take frames up to the next block, or to the end."""
        while self._decoder is not None:
            try:
                kind, payload = self._frame(self._decoder)
                if kind == SAMPLES:
                    self._take_samples(payload)
                    return
                if kind == END:
                    self.duration_s = self._n_received / SAMPLE_RATE_HZ
                    self._let_go(is_sound=True)
                elif kind == INFO:
                    self._take_info(json.loads(payload))
                elif kind == ERROR:
                    error = self._error(json.loads(payload))
                    self._let_go(is_sound=True)
                    raise error
                else:
                    raise DecoderDiedError
            except AudioError:
                self._let_go(is_sound=False)
                raise
            except (DecoderDiedError, KeyError, TypeError, ValueError) as error:
                self._let_go(is_sound=False)
                if self._is_closed:
                    raise AudioError("the upload was closed before it was read") from error
                self._pool.stats.n_died += 1
                logger.warning("a decoder process died on an upload")
                raise AudioError(f"{_CANNOT}the decoder crashed on it; {_CONVERT}") from error
            except DecoderStalledError as error:
                self._let_go(is_sound=False)
                self._pool.stats.n_stalled += 1
                raise AudioError(f"{_CANNOT}the decoder makes no progress with it; {_CONVERT}") from error

    def _frame(self, decoder: Decoder) -> tuple[bytes, bytearray]:
        """Wait for a frame, as long as a file of the length so far may take."""
        limit_s = self._pool.max_file_s
        earned_s = self._n_received / SAMPLE_RATE_HZ / MIN_SPEED
        started = time.monotonic()
        try:
            return decoder.receive(min(limit_s, limit_s + earned_s - self._waited_s))
        finally:
            self._waited_s += time.monotonic() - started

    def _take_samples(self, payload: bytearray) -> None:
        samples = np.frombuffer(payload, "<f4")
        self._n_received += len(samples)
        if self._max_audio_s is not None and self._n_received > self._max_audio_s * SAMPLE_RATE_HZ:
            raise self._too_long()
        self._blocks.append(samples)

    def _take_info(self, info: dict[str, Any]) -> None:
        self.duration_s = info["duration_s"]
        gaps = [Gap(float(start), float(end), str(reason)) for start, end, reason in info["gaps"]]
        self.gaps += gaps[: MAX_GAPS - len(self.gaps)]

    def _error(self, told: dict[str, str]) -> AudioError:
        match told["kind"]:
            case "audio":
                return AudioError(_CANNOT + told["message"])
            case "too long":
                return self._too_long()
            case "memory":
                return AudioError(f"{_CANNOT}that takes more memory than the server allows; {_CONVERT}")
            case _:
                self._pool.stats.n_unexpected += 1
                logger.warning("a decoder failed on an upload: %r", told["message"])
                return AudioError(f"{_CANNOT}the decoder failed on it; {_CONVERT}")

    def _too_long(self) -> AudioTooLong:
        return AudioTooLong(f"the audio is longer than {self._max_audio_s:g} s, the longest that is taken")

    def _let_go(self, *, is_sound: bool) -> None:
        """Give the decoder back, if that has not been done."""
        with self._owning:
            decoder, self._decoder = self._decoder, None
        if decoder is not None:
            self._pool._take_back(decoder, was_parked=self._is_parked, is_sound=is_sound)


class DecoderPool:
    """Processes that decode uploads, and are replaced when they die.

    Attributes:
        max_file_s: How long a decoder may give nothing; over a whole file, that and a quarter of its length.
        stats: What became of them.
    """

    def __init__(
        self,
        n_workers: int,
        *,
        max_memory_bytes: int = ServerSettings.decode_memory_bytes,
        max_file_s: float = ServerSettings.decode_timeout_s,
        max_parked: int = ServerSettings.max_batch,
    ) -> None:
        """Describe the pool.

        Args:
            n_workers: So many files are decoded at a time, and so many processes are kept.
            max_memory_bytes: What one file may take of a process, beyond what that needs without any.
            max_file_s: See above.
            max_parked: Decoders that may wait with the rest of a long file, beside those that work.

        Raises:
            ValueError: If a number is too small.
        """
        if n_workers < 1 or max_memory_bytes < 1 << 20 or max_file_s <= 0:
            raise ValueError("a pool needs a worker, 1 MiB of memory and some time")
        self.max_file_s = max_file_s
        self.stats = DecoderStats()
        self._n_workers = n_workers
        self._max_parked = max_parked
        self._max_memory_bytes = max_memory_bytes
        self._changed = threading.Condition()
        self._decoders: set[Decoder] = set()
        self._idle: list[Decoder] = []
        self._n_active = self._n_parked = 0
        self._is_closed = False

    def start(self) -> None:
        """Start the processes, and wait until they can be used.

        Raises:
            RuntimeError: If one does not start.
        """
        with self._changed:
            self._refill()
            decoders = [*self._idle]
        try:
            for decoder in decoders:
                decoder.wait_ready()
        except RuntimeError:
            self.close()
            raise

    def close(self) -> None:
        """End all processes; uploads that are not decoded yet fail."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._decoders -= set(idle)
            for decoder in self._decoders:
                decoder.kill()
            self._changed.notify_all()
        for decoder in idle:
            decoder.end()

    def open(self, source: Path | BinaryIO, *, max_audio_s: float | None = None) -> DecodedUpload:
        """Begin to decode an upload; blocks until it is decoded or READ_AHEAD_S of it are.

        Args:
            source: A file, which may be deleted when this returns; or an open one, at its beginning, which is
                copied to a private file that is gone when this returns.
            max_audio_s: The longest that is allowed; None for any length.

        Returns:
            The upload, which has to be closed.

        Raises:
            AudioError: If it cannot be decoded.
            AudioTooLong: If it is longer than allowed, by its header or by what was decoded so far.
            DecodersBusy: If no decoder gets free in time.
            RuntimeError: If the pool is closed, or a decoder does not start.
        """
        if not isinstance(source, Path):
            with tempfile.NamedTemporaryFile(prefix="canvas-asr-") as copy:  # only its owner may read it
                shutil.copyfileobj(source, copy)
                copy.flush()
                return self.open(Path(copy.name), max_audio_s=max_audio_s)
        decoder = self._take()
        upload = DecodedUpload(self, decoder, max_audio_s)
        try:
            decoder.begin(os.path.abspath(source), max_audio_s)
            upload.read_ahead()
        except BaseException:
            upload.close()
            raise
        return upload

    def pids(self) -> list[int]:
        """Process ids of all decoders."""
        with self._changed:
            return [decoder.pid for decoder in self._decoders]

    def _take(self) -> Decoder:
        with self._changed:
            has_room = self._changed.wait_for(
                lambda: self._is_closed or self._n_active < self._n_workers, self.max_file_s
            )
            if self._is_closed:
                raise RuntimeError("the decoders have been closed")
            if not has_room:
                raise DecodersBusy(math.ceil(self.max_file_s))
            while self._idle:
                decoder = self._idle.pop()
                if decoder.is_alive():
                    break
                self.stats.n_died += 1
                self._decoders.discard(decoder)
                decoder.end()
            else:
                decoder = self._start_one()
            self._n_active += 1
            self.stats.n_files += 1
            return decoder

    def _park(self) -> bool:
        """Let a decoder that waits count no longer among those at work; whether there is room for that."""
        with self._changed:
            if self._n_parked == self._max_parked:
                return False
            self._n_parked += 1
            self._n_active -= 1
            self._refill()
            self._changed.notify()
            return True

    def _take_back(self, decoder: Decoder, *, was_parked: bool, is_sound: bool) -> None:
        with self._changed:
            if was_parked:
                self._n_parked -= 1
            else:
                self._n_active -= 1
            has_room = not self._is_closed and len(self._idle) + self._n_active < self._n_workers
            is_kept = is_sound and has_room and decoder.n_files < MAX_FILES
            if is_kept:
                self._idle.append(decoder)
            else:
                self._decoders.discard(decoder)
            self._refill()
            self._changed.notify()
        if not is_kept:
            decoder.end()

    def _refill(self) -> None:
        """Start processes in the place of those that are gone; called with the lock held."""
        while not self._is_closed and len(self._idle) + self._n_active < self._n_workers:
            self._idle.append(self._start_one())

    def _start_one(self) -> Decoder:
        decoder = Decoder(self._max_memory_bytes, self.max_file_s)
        self._decoders.add(decoder)
        return decoder
