"""Decodes uploads in a process of its own, which may crash, hang or run out of memory without the server.

:class:`~canvas_asr.serving.decoder.Decoder` starts it as ``python -m canvas_asr.serving.decoder_process
MAX_MEMORY_BYTES ALARM_S``. It reads lines of JSON, one a file, from standard input, and answers each on
standard output with frames (a byte that says of what kind, four with the length, the payload), of which the
last is ``END`` or ``ERROR``. The pipe is the only buffer: where the server reads no further, decoding waits.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..audio_files import SAMPLE_RATE_HZ, Samples, open_audio, read_blocks, to_16k_mono
from ..audio_stream import AudioStream, is_longer
from ..errors import AudioError
from ..result import Gap

FRAME_HEAD = struct.Struct("<cI")
READY, INFO, SAMPLES, END, ERROR = b"R", b"I", b"S", b"E", b"X"
BLOCK_SAMPLES = 1 << 15  # 2 s, 128 KiB: decoders give blocks of MP3 and AAC that are a hundred times shorter
MAX_GAPS = 1000  # are told of a file
# Up to here a file has to be whole, as for Transcriber.transcribe; of a longer one, gaps are reported.
_MAX_WHOLE_SAMPLES = 30 * SAMPLE_RATE_HZ
_MAX_OPEN_FILES = 32


class _TooLongError(Exception):
    """More audio than the server takes."""


def main() -> None:
    """Decode one file after another until standard input ends."""
    # The server ends it by closing the pipe; signals go to all of a service's processes when it is to drain.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Now: the first file that needs it should neither wait for it nor count it as its own memory.
    import av  # noqa: F401

    max_memory_bytes, alarm_s = map(int, sys.argv[1:])
    output = _Output(alarm_s)
    _limit_resources(max_memory_bytes)
    try:
        output.send(READY)
        for line in sys.stdin.buffer:
            request = json.loads(line)
            _answer(output, request["path"], request["max_audio_s"])
    except BrokenPipeError:
        os._exit(0)  # the server is gone: what is left in buffers cannot be flushed


class _Output:
    """Standard output, for frames alone: what libraries print goes nowhere, for it quotes hostile files.

    Args:
        alarm_s: After so many seconds between two frames the process ends. The server ends it sooner; this is
            for one that hangs when the server is gone.
    """

    def __init__(self, alarm_s: int) -> None:
        self._file = os.fdopen(os.dup(1), "wb")
        self._alarm_s = alarm_s
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Write a frame, and wait until the server has taken the most of it."""
        signal.alarm(0)
        self._file.write(FRAME_HEAD.pack(kind, len(payload)))
        self._file.write(payload)
        self._file.flush()
        if kind in (INFO, SAMPLES):
            signal.alarm(self._alarm_s)

    def start(self) -> None:
        """Begin to count time."""
        signal.alarm(self._alarm_s)


def _limit_resources(max_memory_bytes: int) -> None:
    """Allow so much memory beyond what is held already, no writing to files and no core dump."""
    import resource

    statm = Path("/proc/self/statm")
    held = int(statm.read_text().split()[5]) * resource.getpagesize() if statm.exists() else 0
    limits = {
        resource.RLIMIT_DATA: held + max_memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _answer(output: _Output, path: str, max_audio_s: float | None) -> None:
    """Decode one file."""
    output.start()
    try:
        _send_file(output, path, max_audio_s)
    except AudioError as error:
        _send_json(output, ERROR, kind="audio", message=_without_path(str(error), path))
    except _TooLongError:
        _send_json(output, ERROR, kind="too long")
    except MemoryError:
        _send_json(output, ERROR, kind="memory")
    except BrokenPipeError:
        raise
    except Exception as error:  # a decoder's, on a damaged file: the next one is none the worse for it
        message = _without_path(f"{type(error).__name__}: {error}", path)
        _send_json(output, ERROR, kind="unexpected", message=message)
    else:
        output.send(END)


def _send_file(output: _Output, path: str, max_audio_s: float | None) -> None:
    """Send what a file's header says, its samples, and each gap before the samples that follow it."""
    source = AudioStream(path) if is_longer(path, _MAX_WHOLE_SAMPLES) else _WholeFile(path)
    n_max = float("inf") if max_audio_s is None else max_audio_s * SAMPLE_RATE_HZ
    if (source.duration_s or 0.0) * SAMPLE_RATE_HZ > n_max:
        raise _TooLongError
    n_samples = 0
    n_gaps = _send_info(output, source, path, 0)
    for samples in _gathered(source):
        n_samples += len(samples)
        if n_samples > n_max:
            raise _TooLongError
        if len(source.gaps) > n_gaps:
            n_gaps = _send_info(output, source, path, n_gaps)
        output.send(SAMPLES, samples.astype("<f4", copy=False).tobytes())
    if not n_samples:
        raise AudioError(f"{path}: holds no audio samples; check how it was recorded")
    _send_info(output, source, path, n_gaps)


class _WholeFile:
    """A short file, of which nothing may be missing; as :class:`AudioStream` otherwise."""

    def __init__(self, path: str) -> None:
        self.duration_s: float | None = None
        self.gaps: list[Gap] = []
        self._path = path

    def __iter__(self) -> Iterator[Samples]:
        with open_audio(self._path) as file:
            yield from to_16k_mono(read_blocks(file, self._path), self._path)


def _gathered(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """Put short blocks together and cut long ones, to BLOCK_SAMPLES at most."""
    held: list[Samples] = []
    n_held = 0
    for block in blocks:
        for at in range(0, len(block), BLOCK_SAMPLES):
            piece = block[at : at + BLOCK_SAMPLES]
            if n_held + len(piece) > BLOCK_SAMPLES:
                yield np.concatenate(held)
                held, n_held = [], 0
            held.append(piece)
            n_held += len(piece)
    if held:
        yield np.concatenate(held)


def _send_info(output: _Output, source: AudioStream | _WholeFile, path: str, n_told: int) -> int:
    """Send the length and the gaps that were not told yet; give how many are told now."""
    new = source.gaps[n_told:MAX_GAPS]
    gaps = [[gap.start, gap.end, _without_path(gap.reason, path)] for gap in new]
    _send_json(output, INFO, duration_s=source.duration_s, gaps=gaps)
    return len(source.gaps)


def _send_json(output: _Output, frame: bytes, /, **fields: Any) -> None:
    output.send(frame, json.dumps(fields).encode())


def _without_path(message: str, path: str) -> str:
    """Leave out the private name of the server's copy, which begins most messages."""
    return message.removeprefix(f"{path}: ").replace(path, "the file")


if __name__ == "__main__":
    main()
