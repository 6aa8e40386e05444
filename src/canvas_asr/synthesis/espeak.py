"""Speech and phonemes from the espeak-ng library, with the sample position of every phoneme.

    python -c "from canvas_asr.synthesis import espeak; print(espeak.say('guten Morgen', 'de').phonemes)"

Needs libespeak-ng.so.1 (Debian: apt-get install espeak-ng). The library keeps one global state per process;
`say` and `text_to_phonemes` open it lazily, again after a fork, and serialise threads.

Symbols are espeak-ng's IPA names without stress. "" is silence. Mandarin tones are symbols of their own after
the syllable's vowel (espeak-ng's events leave them out; its text side knows them).

The library also remembers what it said: the phase of its voice source and, now and then, the length of
vowels. The same call gives the same symbols, but samples only after the same earlier calls, and durations
within a few percent.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading

import numpy as np
from numpy.typing import NDArray

from canvas_asr.errors import DataError
from canvas_asr.synthesis.speech import Speech

LIBRARY = "libespeak-ng.so.1"
INSTALL_HINT = "install it with: apt-get install espeak-ng"
# Chao tone letters for the tones that espeak-ng writes as 55, 35, 214, 51 and 11 (neutral).
TONES = {"55": "˥", "35": "˧˥", "214": "˨˩˦", "51": "˥˩", "11": "˩"}

# Constants of speak_lib.h (espeak-ng 1.51).
_AUDIO_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA = 1, 2
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_TEXT_IPA, _TEXT_ASCII = 2, 0
_SEPARATOR = ord("_") << 8

_STRESS = re.compile("[ˈˌ']")
_SWITCH = re.compile(r"\([^)]*\)")
_TONE_ASCII = re.compile(r"(55|35|214|51|11)$")
_TONE_IPA = re.compile(r"(?<=.)[1-5ɜ]$")
# Length that espeak-ng's text side writes by rule and its audio events do not: on consonants, on nasal vowels
# and, in French, on vowels that are short in its phoneme table; long consonants may be doubled instead.
_LONG_ORAL_VOWEL = re.compile(r"^[aeiouyøœɑɒɔɛɜəɪʊ][^\u0303]*ː$")
_FRENCH_SHORT = frozenset(("aː", "eː", "oː", "yː", "øː", "ɛː"))
# Glides that the text side writes onto the vowel before them.
_ATTACHED = re.compile(r"(?<=[^_\s])(ʰχ|ʲ)")
_DOUBLED = re.compile(r"^([^?]+)\1$")


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


class _Library:
    """The opened library of one process."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DataError(f"{LIBRARY} was not found; {INSTALL_HINT}") from error
        self.lock = threading.Lock()
        self._chunks: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, str]] = []
        self._words: list[tuple[int, int]] = []  # (place in the text, number of phoneme events before it)
        self._voice = ""
        rate = self._lib.espeak_Initialize(_AUDIO_SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _PHONEME_IPA)
        if rate <= 0:
            raise DataError(f"{LIBRARY} found no voice data; {INSTALL_HINT}")
        self.sample_rate_hz = int(rate)
        self._to_phonemes = self._lib.espeak_TextToPhonemes
        self._to_phonemes.restype = ctypes.c_char_p
        self._to_phonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
        callback_type = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
        )
        self._callback = callback_type(self._on_audio)  # kept: the library holds only its address
        self._lib.espeak_SetSynthCallback(self._callback)

    def _on_audio(
        self, wav: ctypes._Pointer[ctypes.c_short], n_samples: int, events: ctypes._Pointer[_Event]
    ) -> int:
        if wav and n_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(wav, (n_samples,)).copy())
        i = 0
        while events[i].type != _EVENT_END:
            if events[i].type == _EVENT_PHONEME:
                name = events[i].id.string.decode("utf-8", "ignore")
                self._events.append((int(events[i].sample), name))
            elif events[i].type == _EVENT_WORD and events[i].text_position > 0:
                self._words.append((int(events[i].text_position) - 1, len(self._events)))
            i += 1
        return 0

    def set_voice(self, voice: str) -> None:
        if voice != self._voice:
            self._voice = ""
            if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
                raise DataError(f"espeak-ng has no voice {voice!r}; see `espeak-ng --voices`")
            self._voice = voice

    def synthesise(
        self, text: bytes, rate_wpm: int, pitch: int, pitch_range: int
    ) -> tuple[NDArray[np.int16], list[tuple[int, str]], list[tuple[int, int]]]:
        self._chunks.clear()
        self._events.clear()
        self._words.clear()
        for parameter, value in ((_RATE, rate_wpm), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        status = self._lib.espeak_Synth(text, len(text) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise DataError(f"espeak-ng failed with code {status} on {text.decode()!r}")
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return samples, list(self._events), list(self._words)

    def phoneme_text(self, text: bytes, mode: int) -> list[str]:
        """Phoneme names of a text, stress marks and language switches removed."""
        buffer = ctypes.create_string_buffer(text)
        position = ctypes.c_char_p(ctypes.addressof(buffer))
        names: list[str] = []
        while position.value is not None:  # one clause a call
            clause = self._to_phonemes(ctypes.byref(position), _CHARS_UTF8, mode | _SEPARATOR) or b""
            plain = _SWITCH.sub(" ", clause.decode("utf-8", "ignore"))
            if mode == _TEXT_IPA:
                plain = _ATTACHED.sub(r"_\1", _STRESS.sub("", plain))
            names += [name for name in re.split(r"[_\s|]+", plain) if name]
        return names


_library: tuple[int, _Library] | None = None
_open_lock = threading.Lock()


def _get() -> _Library:
    global _library
    pid = os.getpid()
    if _library is None or _library[0] != pid:
        with _open_lock:
            if _library is None or _library[0] != pid:
                _library = (pid, _Library())
    return _library[1]


def available() -> bool:
    """Whether the library can be opened here."""
    try:
        _get()
    except DataError:
        return False
    return True


def _encode(text: str) -> bytes:
    return text.replace("\0", " ").encode("utf-8", "ignore")


def _plain(name: str, language: str) -> str:
    """A name as both sides of the library would give it."""
    name = _DOUBLED.sub(r"\1", _STRESS.sub("", name))
    if not name.endswith("ː"):
        return name
    long = _LONG_ORAL_VOWEL.match(name) and not (language == "fr" and name in _FRENCH_SHORT)
    return name if long else name[:-1]


def _names(library: _Library, text: bytes, voice: str) -> list[tuple[str, str]]:
    """(symbol, tone or "") of every phoneme of a text, in order."""
    ipa = library.phoneme_text(text, _TEXT_IPA)
    if not voice.startswith("cmn"):
        return [(_plain(name, voice[:2]), "") for name in ipa]
    # IPA mode cannot tell tone 1 from tone 4 (both "5"); espeak-ng's own notation can.
    own = [name for name in library.phoneme_text(text, _TEXT_ASCII) if name.strip("',")]
    if len(own) != len(ipa):
        return [(_TONE_IPA.sub("", name), "") for name in ipa]
    named = []
    for name, code in zip(ipa, own, strict=True):
        tone = _TONE_ASCII.search(code)
        named.append((_TONE_IPA.sub("", name), TONES[tone[1]] if tone else ""))
    return named


def text_to_phonemes(text: str, voice: str) -> list[str]:
    """Phonemes of a text without making audio: the symbols that `say` gives, without silences.

    Args:
        text: One sentence; Mandarin as pinyin with tone digits.
        voice: An espeak-ng voice name such as ``en-us`` or ``de+f3``.

    Raises:
        DataError: If the library or the voice is missing.
    """
    library = _get()
    with library.lock:
        library.set_voice(voice)
        named = _names(library, _encode(text), voice)
    return [symbol for name, tone in named for symbol in ((name, tone) if tone else (name,))]


def say(text: str, voice: str, rate_wpm: int = 160, pitch: int = 50, pitch_range: int = 50) -> Speech:
    """Synthesise a text.

    Args:
        text: One sentence; Mandarin as pinyin with tone digits.
        voice: An espeak-ng voice name such as ``en-us`` or ``de+f3`` (an unknown variant is ignored).
        rate_wpm: Words a minute, 80 to 450.
        pitch: Base pitch, 0 to 99.
        pitch_range: Liveliness of the intonation, 0 (monotone) to 99.

    Raises:
        DataError: If the library or the voice is missing, or the library refuses the text.
    """
    library = _get()
    data = _encode(text)
    with library.lock:
        library.set_voice(voice)
        samples, events, places = library.synthesise(data, rate_wpm, pitch, pitch_range)
        tones = _names(library, data, voice) if voice.startswith("cmn") else None
    words = _word_times(events, places, len(samples))
    events = [
        (start, _plain(name, voice[:2]))
        for start, name in events
        if not name.startswith("(") and start < len(samples)
    ]
    if tones is not None:
        events = _with_tones(events, tones, len(samples))
    return Speech(samples, library.sample_rate_hz, events, words)


def _word_times(
    events: list[tuple[int, str]], places: list[tuple[int, int]], n_samples: int
) -> list[tuple[int, int, int]]:
    """(place in the text, start, end) of every word, from its first phoneme to the next word or silence."""
    words = []
    bounds = [*(first for _, first in places[1:]), len(events)][: len(places)]
    for (place, first), bound in zip(places, bounds, strict=True):
        spoken = [i for i in range(first, bound) if events[i][1] and not events[i][1].startswith("(")]
        if spoken:
            after = spoken[-1] + 1
            end = events[after][0] if after < len(events) else n_samples
            words.append((place, events[spoken[0]][0], min(end, n_samples)))
    return words


def _with_tones(
    events: list[tuple[int, str]], named: list[tuple[str, str]], n_samples: int
) -> list[tuple[int, str]]:
    """Give the second half of each tone-bearing vowel to its tone symbol."""
    if sum(1 for _, name in events if name) != len(named):
        return events
    ends = [start for start, _ in events[1:]] + [n_samples]
    tones = iter(named)
    out: list[tuple[int, str]] = []
    for (start, name), end in zip(events, ends, strict=True):
        out.append((start, name))
        if name:
            tone = next(tones)[1]
            if tone:
                out.append((start + max(0, end - start) // 2, tone))
    return out
