"""Speakers of uploads, told apart by a callable of whoever runs the server; none comes with it.

    canvas-asr serve --diarizer my_package.my_module:diarize

The callable is :data:`canvas_asr.speakers.Diarize`. It is given a whole recording, which is therefore kept on
the disk while it is read, and is asked about one recording at a time, in a thread of its own. As samples take
disk and calls take time, only so many requests as share a pass may ask for it at once.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import numpy as np

from ..audio_files import SAMPLE_RATE_HZ, Samples
from ..errors import AudioError, CanvasASRError, OptionError
from ..result import Gap, Transcript
from ..speakers import join_speakers

if TYPE_CHECKING:
    from ..speakers import Diarize
    from .uploads import DecodedUpload


def load_diarizer(name: str) -> Diarize:
    """Import a callable; the working directory is looked through too.

    Args:
        name: ``MODULE:FUNCTION``.

    Raises:
        OptionError: If there is none of that name.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise OptionError(f"diarizer is {name!r}; give MODULE:FUNCTION.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # and stays: it may import others when it is called
    try:
        found = getattr(importlib.import_module(module_name), function_name, None)
    except (Exception, SystemExit) as error:  # whatever the module does
        raise OptionError(f"diarizer {name!r}: {module_name} cannot be imported: {error}") from error
    if not callable(found):
        raise OptionError(f"diarizer {name!r}: {module_name} has no function {function_name}.")
    return cast("Diarize", found)


class KeptUpload:
    """An upload whose samples are kept in a file without a name as they are read."""

    def __init__(self, upload: DecodedUpload) -> None:
        """Take an upload that is not read yet."""
        self._upload = upload
        self._file = tempfile.TemporaryFile(prefix="canvas-asr-")

    @property
    def duration_s(self) -> float | None:
        """Its length, as far as it is known."""
        return self._upload.duration_s

    @property
    def gaps(self) -> Sequence[Gap]:
        """What could not be decoded so far."""
        return self._upload.gaps

    def __iter__(self) -> Iterator[Samples]:
        """Give the samples as the upload does, and keep them.

        Raises:
            AudioError: As the upload raises it.
            OSError: If the disk is full.
        """
        for samples in self._upload:
            try:
                self._file.write(samples.astype(np.float32, copy=False).tobytes())
                self._file.flush()
            except ValueError as error:
                raise AudioError("the upload was closed before it was read") from error
            yield samples

    def samples(self) -> Samples:
        """All that was read, (N,) float32; pages of the file, not memory of their own."""
        if not self._file.tell():
            return np.empty(0, np.float32)
        return np.memmap(self._file, np.float32, "c")  # who writes to it changes no file

    def close(self) -> None:
        """Close the upload, and let go of the samples."""
        self._upload.close()
        with suppress(OSError):  # a full disk, which was told when it was written
            self._file.close()


class DiarizerClosed(CanvasASRError):  # noqa: N818  # a state
    """The server is being stopped."""


class Diarizer:
    """Asks the callable, one recording at a time, in a thread that nothing waits for.

    A thread of an executor would be waited for when the process ends, however long the callable takes.
    """

    def __init__(self, diarize: Diarize, n_places: int) -> None:
        """Start no thread yet.

        Args:
            diarize: The callable.
            n_places: Requests that it is asked for, or that hold samples for it, at a time.
        """
        self._diarize = diarize
        self._n_free = n_places
        self._waiting: dict[Future[Transcript], tuple[Transcript, KeptUpload]] = {}  # the first comes first
        self._asked: Future[Transcript] | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="canvas-asr-diarizer", daemon=True)

    @property
    def is_asking(self) -> bool:
        """Whether the callable is at work."""
        return self._asked is not None

    def enter(self) -> bool:
        """Take a place for a request, whose samples will be kept; whether there was one."""
        with self._changed:
            has_place = self._n_free > 0
            self._n_free -= has_place
            return has_place

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._n_free += 1

    def join(self, transcript: Transcript, upload: KeptUpload) -> asyncio.Future[Transcript]:
        """Say who spoke each segment of a recording that has been read: :func:`join_speakers`.

        Returns:
            A future of the running loop. Cancelled, it is not asked about if that has not begun. Its errors
            are DiarizerClosed, or a RuntimeError from what the callable raised or gave.
        """
        future: Future[Transcript] = Future()
        with self._changed:
            if self._is_closed:
                future.set_exception(DiarizerClosed())
            else:
                self._waiting[future] = transcript, upload
                if self._thread.ident is None:
                    self._thread.start()
                self._changed.notify()
        future.add_done_callback(self._forget)
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """Let all who wait know that the server is being stopped; what is being asked is not waited for."""
        with self._changed:
            self._is_closed = True
            unfinished = [*self._waiting, *([self._asked] if self._asked else [])]
            self._changed.notify()
        for future in unfinished:
            with suppress(InvalidStateError):
                future.set_exception(DiarizerClosed())

    def _forget(self, future: Future[Transcript]) -> None:
        """Keep nothing for who has left."""
        with self._changed:
            self._waiting.pop(future, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                future = next(iter(self._waiting))
                transcript, upload = self._waiting.pop(future)
                self._asked = future if future.set_running_or_notify_cancel() else None
            if self._asked is not None:
                self._ask(future, transcript, upload)
            self._asked = None
            del future, transcript, upload  # while nobody asks, nothing is held

    def _ask(self, future: Future[Transcript], transcript: Transcript, upload: KeptUpload) -> None:
        try:
            joined = join_speakers(transcript, self._diarize(upload.samples(), SAMPLE_RATE_HZ))
        except BaseException as error:
            # Whatever it is, SystemExit too, it is about this recording; a future may not hold StopIteration.
            failure = RuntimeError("the callable that tells speakers apart failed")
            # Without this frame, and without what the others hold: samples, or a GPU's memory.
            failure.__cause__ = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            traceback.clear_frames(error.__traceback__)
            with suppress(InvalidStateError):  # closed meanwhile
                future.set_exception(failure)
        else:
            with suppress(InvalidStateError):
                future.set_result(joined)
