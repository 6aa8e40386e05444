"""Samples as they are spoken, for ``canvas-asr listen``: from standard input or a microphone."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt

from canvas_asr.audio_files import check_rate
from canvas_asr.errors import AudioError, OptionError

from .messages import complain

PIECE_S = 0.1
_HEADERS = (b"RIFF", b"fLaC", b"OggS", b"ID3")
_OTHER_WAY = "or pipe raw 16-bit samples in: canvas-asr listen - --rate 16000"


class StandardInput:
    """Raw samples that come by a pipe."""

    name = "standard input"

    def __init__(self, rate_hz: int) -> None:
        """Look at it.

        Raises:
            AudioError: If nobody records at this rate.
            OptionError: If it is a terminal, where nobody types samples.
        """
        self.rate_hz = check_rate(rate_hz, self.name)
        if sys.stdin.isatty():
            raise OptionError("standard input is a terminal; pipe raw 16-bit samples in.")

    def pieces(self) -> Generator[npt.NDArray[Any], None, None]:
        """Give the samples as they come.

        Raises:
            AudioError: If there are none, or they are a file with a header.
        """
        n_bytes = 2 * round(PIECE_S * self.rate_hz)
        n_read, left = 0, b""
        pipe: Any = sys.stdin.buffer  # the stubs know no read1: what there is, without waiting for more
        while data := pipe.read1(n_bytes):
            if not n_read and data.startswith(_HEADERS):
                raise AudioError(f"{self.name}: is a file with a header; use canvas-asr transcribe for files")
            n_read += len(data)
            data = left + data
            left = data[len(data) // 2 * 2 :]
            yield np.frombuffer(data, "<i2", len(data) // 2)
        if left:
            complain(f"warning: {self.name}: it ends within a sample, whose half is left out")
        if n_read < 2:
            raise AudioError(f"{self.name}: holds no audio samples; check what writes to it")


class Microphone:
    """A microphone of this machine, through PortAudio."""

    name = "the microphone"

    def __init__(self, name: str | None, rate_hz: int | None) -> None:
        """Find it.

        Args:
            name: Part of its name, or its number; None: the usual one.
            rate_hz: None: its own.

        Raises:
            AudioError: If there is none, or nobody records at this rate.
            OptionError: If the library for microphones is missing.
        """
        try:
            import sounddevice
        except ModuleNotFoundError as error:
            message = "the microphone needs sounddevice: pip install 'canvas-asr[listen]'"
            raise OptionError(f"{message}; {_OTHER_WAY}.") from error
        except OSError as error:
            message = "the microphone needs the PortAudio library (Debian: apt-get install libportaudio2)"
            raise OptionError(f"{message}; {_OTHER_WAY}.") from error
        self._library = sounddevice
        self._device = int(name) if name is not None and name.isdecimal() else name
        try:
            found = sounddevice.query_devices(self._device, "input")
        except (ValueError, sounddevice.PortAudioError) as error:
            raise AudioError(f"{name or self.name}: no such microphone ({error}); {_OTHER_WAY}") from error
        self.rate_hz = check_rate(rate_hz or int(found["default_samplerate"]), self.name)

    def pieces(self) -> Generator[npt.NDArray[Any], None, None]:
        """Give what it hears.

        Raises:
            AudioError: If it does not work.
        """
        try:
            with self._library.RawInputStream(
                samplerate=self.rate_hz, device=self._device, channels=1, dtype="int16"
            ) as stream:
                complain("listening; Ctrl-C ends it")
                is_warned = False
                while True:
                    data, has_lost = stream.read(round(PIECE_S * self.rate_hz))
                    if has_lost and not is_warned:
                        complain("warning: some audio was lost; the machine is too busy")
                        is_warned = True
                    yield np.frombuffer(bytes(data), np.int16)
        except self._library.PortAudioError as error:
            raise AudioError(f"{self.name}: cannot be heard ({error}); try another --rate") from error
