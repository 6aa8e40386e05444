"""Speakers of uploads, told apart by a callable of whoever runs the server; none comes with it.

    canvas-asr serve --diarizer my_package.my_module:diarize

The callable is :data:`canvas_asr.speakers.Diarize`. It is given a whole recording, which is therefore kept on
the disk while it is read, and is asked about one recording at a time, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import numpy as np

from ..audio_files import SAMPLE_RATE_HZ, Samples
from ..errors import OptionError
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
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # whatever the module does
        raise OptionError(f"diarizer {name!r}: {module_name} cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
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
        """Give the samples as the upload does, and keep them."""
        for samples in self._upload:
            self._file.write(samples.astype(np.float32, copy=False).tobytes())
            yield samples

    def samples(self) -> Samples:
        """All that was read, (N,) float32; pages of the file, not memory of their own."""
        self._file.flush()
        if not self._file.tell():
            return np.empty(0, np.float32)
        return np.memmap(self._file, np.float32, "c")  # who writes to it changes no file

    def close(self) -> None:
        """Close the upload, and let go of the samples."""
        self._upload.close()
        self._file.close()


class Diarizer:
    """Asks the callable, one recording at a time."""

    def __init__(self, diarize: Diarize) -> None:
        """Keep the callable."""
        self._diarize = diarize
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="canvas-asr-diarizer")

    async def join(self, transcript: Transcript, upload: KeptUpload) -> Transcript:
        """Say who spoke each segment of a recording that has been read: :func:`join_speakers`.

        Raises:
            DataError: If the callable gives something that is no turn.
            Exception: Whatever it raises.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._join, transcript, upload)

    def close(self) -> None:
        """Ask about nothing more; what is being asked is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _join(self, transcript: Transcript, upload: KeptUpload) -> Transcript:
        return join_speakers(transcript, self._diarize(upload.samples(), SAMPLE_RATE_HZ))
