"""English and Hindi speech from festival's voices, with the phones' positions.

    python -c "from canvas_asr.synthesis import festival as f; print(f.say('hello', 'ked_diphone').phonemes)"

Needs the ``festival`` program and its voices (Debian: festival festvox-kallpc16k festvox-kdlpc16k
festvox-us-slt-hts festvox-hi-nsk). Starting takes up to a second, so each process keeps one festival
running and sends it sentences.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
import wave
from pathlib import Path

import numpy as np

from canvas_asr.errors import DataError
from canvas_asr.synthesis.phone_sets import Phone, to_ipa
from canvas_asr.synthesis.speech import Speech

# Voice, and the Debian package it comes with.
VOICES = {
    "kal_diphone": "festvox-kallpc16k",
    "ked_diphone": "festvox-kdlpc16k",
    "cmu_us_slt_arctic_hts": "festvox-us-slt-hts",
    "hindi_NSK_diphone": "festvox-hi-nsk",
}
TIMEOUT_S = 60.0
_DONE = "@done"
_PRELUDE = r"""
(define (canvas_say words stretch path)
  (Parameter.set 'Duration_Stretch stretch)
  (let ((utt (utt.synth (eval (list 'Utterance 'Text words)))))
    (utt.save.wave utt path 'riff)
    (mapcar
      (lambda (phone)
        (format t "%s %f %s\n" (item.name phone) (item.feat phone 'end)
                (item.feat phone "R:SylStructure.parent.stress")))
      (utt.relation.items utt 'Segment))
    (format t "@done\n")
    (fflush nil)))
(define (canvas_voices)
  (mapcar (lambda (name) (format t "%s\n" name)) (voice.list))
  (format t "@done\n")
  (fflush nil))
"""


class _Festival:
    """One running festival program."""

    def __init__(self) -> None:
        if shutil.which("festival") is None:
            packages = " ".join(sorted(VOICES.values()))
            raise DataError(
                f"the festival program was not found; install it with: apt-get install festival {packages}"
            )
        self._process = subprocess.Popen(
            ["festival", "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._voice = ""
        self.voices = frozenset(line.strip() for line in self.ask(_PRELUDE + "(canvas_voices)\n"))

    def ask(self, command: str) -> list[str]:
        """Send Scheme, return the lines printed before the mark.

        Raises:
            DataError: If festival ends or stays silent too long; it must be started again.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # never with the pipes above
            raise DataError("festival has no pipes")
        answer = b""
        deadline = time.monotonic() + TIMEOUT_S
        try:
            stdin.write(command.encode())
            stdin.flush()
            while not answer.endswith(f"{_DONE}\n".encode()):
                if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise DataError(f"festival did not answer within {TIMEOUT_S:g} s")
                piece = os.read(stdout.fileno(), 1 << 16)
                if not piece:
                    raise DataError("festival ended without an answer")
                answer += piece
        except BrokenPipeError as error:
            raise DataError("festival ended before it was asked") from error
        return answer.decode("utf-8", "replace").splitlines()[:-1]

    def say(self, text: str, voice: str, stretch: float) -> Speech:
        if voice not in self.voices:
            raise DataError(
                f"festival has no voice {voice!r}; install it with: apt-get install {VOICES[voice]}"
            )
        select_voice = "" if voice == self._voice else f"(voice_{voice})\n"
        handle, name = tempfile.mkstemp(suffix=".wav", prefix="canvas-asr-")
        os.close(handle)
        try:
            lines = self.ask(f'{select_voice}(canvas_say "{text}" {stretch:.3f} "{name}")\n')
            self._voice = voice
            with wave.open(name) as file:
                rate = file.getframerate()
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
        finally:
            Path(name).unlink(missing_ok=True)
        phones = [Phone(name, float(end), stress == "1") for name, end, stress in (x.split() for x in lines)]
        return Speech(samples, rate, to_ipa(phones, voice_language(voice), len(samples), rate))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


_running: tuple[int, _Festival] | None = None
_lock = threading.Lock()


def voice_language(voice: str) -> str:
    """Language code of a voice."""
    return "hi" if voice.startswith("hindi") else "en"


def say(text: str, voice: str, stretch: float = 1.0) -> Speech:
    """Say a sentence.

    Args:
        text: English in ASCII, or Hindi in Devanagari letters as `recorded.hindi_for_festival` writes it
            (festival crashes on what it does not expect, and is started again at the next call).
        voice: One of ``VOICES``.
        stretch: Duration factor; 1.2 is a fifth slower (the HTS voice ignores it).

    Raises:
        DataError: If festival or the voice is missing, or festival crashes on the text.
    """
    global _running
    if voice not in VOICES:
        raise DataError(f"festival has no voice {voice!r}; choose from {', '.join(VOICES)}")
    if any(c in text for c in '"\\\0\n'):
        raise DataError(f"festival cannot be given quotes, backslashes or line breaks: {text!r}")
    with _lock:
        if _running is None or _running[0] != os.getpid():
            _running = (os.getpid(), _Festival())
        festival = _running[1]
        if voice not in festival.voices:
            return festival.say(text, voice, stretch)  # raises, and festival stays
        try:
            return festival.say(text, voice, stretch)
        except (DataError, wave.Error, EOFError, ValueError) as error:
            festival.close()
            _running = None
            raise DataError(f"festival's voice {voice} failed on {text!r}: {error}") from error


def available(voice: str) -> bool:
    """Whether festival runs here and has the voice."""
    try:
        say("a" if voice_language(voice) == "en" else "एक", voice)
    except DataError:
        return False
    return True
