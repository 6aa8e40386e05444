"""A decoder process as the server sees it: handed a file, it gives frames, dies or stalls."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time

from .decoder_process import FRAME_HEAD, READY

_MAX_FRAME_BYTES = 1 << 20
_START_S = 60.0
# What a decoder needs from the server's environment; keys and tokens stay out of its reach.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR")


class DecoderDiedError(Exception):
    """The process ended, or wrote what no decoder writes."""


class DecoderStalledError(Exception):
    """Nothing came in time."""


class Decoder:
    """One process. Who has it is alone in using it, but for :meth:`kill`, which any thread may call.

    Attributes:
        n_files: Given to it so far.
    """

    def __init__(self, max_memory_bytes: int, max_file_s: float) -> None:
        """Start it; see :class:`~canvas_asr.serving.uploads.DecoderPool` for the limits."""
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
        environment |= {"PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        limits = (str(max_memory_bytes), str(math.ceil(2 * max_file_s)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "canvas_asr.serving.decoder_process", *limits],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=os.path.sep,
            start_new_session=True,
        )
        self._output = self._process.stdout.fileno()  # type: ignore[union-attr]  # it is a pipe
        self._readable = select.poll()
        self._readable.register(self._output, select.POLLIN)
        self._is_ready = False
        self.n_files = 0

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait until it has imported what it needs.

        Raises:
            RuntimeError: If it does not get there.
        """
        if self._is_ready:
            return
        try:
            kind, _ = self.receive(_START_S)
        except (DecoderDiedError, DecoderStalledError):
            kind = b""
        if kind != READY:
            raise RuntimeError("a decoder process does not start; what it wrote to standard error says why")
        self._is_ready = True

    def begin(self, path: str, max_audio_s: float | None) -> None:
        """Hand it a file.

        Raises:
            RuntimeError: If it does not take one.
        """
        self.wait_ready()
        self.n_files += 1
        line = json.dumps({"path": path, "max_audio_s": max_audio_s}).encode() + b"\n"
        try:
            self._process.stdin.write(line)  # type: ignore[union-attr]  # it is a pipe
        except OSError as error:
            raise RuntimeError("a decoder process ended before it was given a file; try again") from error

    def receive(self, seconds: float) -> tuple[bytes, bytearray]:
        """Read one frame: its kind and what it carries.

        Raises:
            DecoderDiedError: If no whole frame comes any more.
            DecoderStalledError: If it does not come within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        kind, n_bytes = FRAME_HEAD.unpack(self._read(FRAME_HEAD.size, deadline))
        if n_bytes > _MAX_FRAME_BYTES:
            raise DecoderDiedError
        return kind, self._read(n_bytes, deadline)

    def _read(self, n_bytes: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < n_bytes:
            if not self._readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise DecoderStalledError
            piece = os.read(self._output, n_bytes - len(data))
            if not piece:
                raise DecoderDiedError
            data += piece
        return data

    def kill(self) -> None:
        """End it at once; whoever waits for it wakes."""
        self._process.kill()

    def end(self) -> None:
        """End it at once, and clear away what is left of it."""
        self._process.kill()
        with self._process:  # closes the pipes and waits
            pass
