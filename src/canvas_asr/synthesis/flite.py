"""English speech from flite's voices (made from recordings of people), with the phones' positions.

    python -c "from canvas_asr.synthesis import flite; print(flite.say('hello', 'slt').phonemes)"

Needs libflite.so.1 and its voice libraries (Debian: apt-get install flite), opened once per process.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

from canvas_asr.errors import DataError
from canvas_asr.synthesis.phone_sets import Phone, to_ipa
from canvas_asr.synthesis.speech import Speech

VOICES = ("awb", "rms", "slt", "kal16")
INSTALL_HINT = "install it with: apt-get install flite"
# Stretch that each voice's own duration model is used with (kal16 sets 1.1 itself).
_STRETCH = {"kal16": 1.1}


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _Voice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))  # the head of cst_voice


class _Library:
    def __init__(self) -> None:
        try:
            # Each library leaves symbols to the next, so they are loaded globally and in this order.
            for name in ("libflite.so.1", "libflite_usenglish.so.1", "libflite_cmulex.so.1"):
                lib = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            self._lib = ctypes.CDLL("libflite.so.1")
            voice_libs = {name: ctypes.CDLL(f"libflite_cmu_us_{name}.so.1") for name in VOICES}
        except OSError as error:
            raise DataError(f"flite's libraries were not found ({error}); {INSTALL_HINT}") from error
        del lib
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        self._synthesise = self._function("flite_synth_text", pointer, text, pointer)
        self._wave = self._function("utt_wave", ctypes.POINTER(_Wave), pointer)
        self._delete = self._function("delete_utterance", None, pointer)
        self._relation = self._function("utt_relation", pointer, pointer, text)
        self._head = self._function("relation_head", pointer, pointer)
        self._next = self._function("item_next", pointer, pointer)
        self._string = self._function("item_feat_string", text, pointer, text)
        self._float = self._function("item_feat_float", ctypes.c_float, pointer, text)
        self._path_string = self._function("ffeature_string", text, pointer, text)
        self._set_float = self._function("feat_set_float", None, pointer, text, ctypes.c_float)
        self._lib.flite_init()
        self._voices: dict[str, int] = {}
        for name, voice_lib in voice_libs.items():
            register = getattr(voice_lib, f"register_cmu_us_{name}")
            register.restype, register.argtypes = pointer, [pointer]
            self._voices[name] = register(None)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._lib, name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def say(self, text: str, voice: str, stretch: float) -> Speech:
        handle = self._voices[voice]
        features = ctypes.cast(handle, ctypes.POINTER(_Voice)).contents.features
        self._set_float(features, b"duration_stretch", stretch * _STRETCH.get(voice, 1.0))
        utterance = self._synthesise(text.encode("ascii"), handle)
        if not utterance:
            raise DataError(f"flite could not say {text!r}")
        try:
            wave = self._wave(utterance).contents
            if wave.num_samples <= 0:
                raise DataError(f"flite found nothing to say in {text!r}")
            samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.int16, copy=True)
            rate = int(wave.sample_rate)
            phones = self._phones(utterance)
        finally:
            self._delete(utterance)
        return Speech(samples, rate, to_ipa(phones, "en", len(samples), rate))

    def _phones(self, utterance: int) -> list[Phone]:
        phones = []
        item = self._head(self._relation(utterance, b"Segment"))
        while item:
            stress = self._path_string(item, b"R:SylStructure.parent.stress")
            phones.append(
                Phone(self._string(item, b"name").decode(), self._float(item, b"end"), stress == b"1")
            )
            item = self._next(item)
        return phones


_library: _Library | None = None
_lock = threading.Lock()


def say(text: str, voice: str, stretch: float = 1.0) -> Speech:
    """Say an English sentence.

    Args:
        text: ASCII.
        voice: One of ``VOICES``.
        stretch: Duration factor; 1.2 is a fifth slower.

    Raises:
        DataError: If flite is missing, does not know the voice, or finds nothing to say.
    """
    global _library
    if voice not in VOICES:
        raise DataError(f"flite has no voice {voice!r}; choose from {', '.join(VOICES)}")
    with _lock:
        if _library is None:
            _library = _Library()
        return _library.say(text, voice, stretch)


def available() -> bool:
    """Whether flite's libraries can be opened here."""
    try:
        say("a", VOICES[-1])
    except DataError:
        return False
    return True
