"""Voices made from recordings of people (flite, festival), beside espeak-ng's formant synthesis.

One formant synthesiser alone teaches its own sound, not speech. English has seven such voices, Hindi one.
The awb voice of flite speaks in tests only; no other voice is of that speaker.
"""

from __future__ import annotations

import re
import unicodedata

from canvas_asr.errors import DataError
from canvas_asr.synthesis import festival, flite
from canvas_asr.synthesis.speech import Speech


class UnreadableError(DataError):
    """A text that a recorded voice cannot read, though another engine may."""


# Engine and voice, by split and language.
VOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "en": (
            "flite:rms", "flite:slt", "flite:kal16",
            "festival:ked_diphone", "festival:kal_diphone", "festival:cmu_us_slt_arctic_hts",
        ),
        "hi": ("festival:hindi_NSK_diphone",),
    },
    "test": {"en": ("flite:awb",)},
    "test-accent": {"en": ("flite:awb",)},  # a Scottish speaker
}  # fmt: skip

_ASCII = {
    "’": "'",
    "‘": "'",
    "“": "",
    "”": "",
    "„": "",
    "«": "",
    "»": "",
    "–": ", ",
    "—": ", ",
    "…": ".",
    '"': "",
}
_ASCII_TABLE = str.maketrans(_ASCII)

_VIRAMA, _NUKTA, _ANUSVARA = "\u094d", "\u093c", "\u0902"
_CONSONANT = "[\u0915-\u0939]"
_VOWEL_SIGN = "[\u093e-\u094c]"
_MARK = "[\u0901-\u0903]"
_SYLLABLE = re.compile(
    f"(?P<onset>(?:{_CONSONANT}{_VIRAMA})*{_CONSONANT})"
    f"(?P<vowel>{_VOWEL_SIGN}?)(?P<mark>{_MARK}?)(?P<end>{_VIRAMA}?)"
    f"|(?P<free>[\u0904-\u0914]{_MARK}?)"
)
# Letters that festival's Hindi rules misread or crash on, as ones it knows.
_HINDI_LETTERS = str.maketrans({"ञ": "न", "ङ": "न", "ऽ": None, "ॐ": "ओम", "।": "."})


def english_for_festival(text: str) -> str:
    """ASCII of an English sentence, without what Scheme strings or the voices cannot take.

    Raises:
        UnreadableError: If no letter is left.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_ASCII_TABLE)).encode("ascii", "ignore").decode()
    plain = re.sub(r"[\\\"\s\x00-\x1f]+", " ", plain).strip()
    if not re.search("[A-Za-z0-9]", plain):
        raise UnreadableError(f"nothing in {text!r} is spoken in 'en'; leave the sentence out")
    return plain


def _delete_schwas(word: str) -> str:
    """Write the silent inherent vowels of a Hindi word with a virama, so that a literal reader drops them.

    Ohala's rule, from the right: the inherent vowel falls at the end of a word, and between VC_CV; not
    after a cluster of consonants, nor beside another vowel that fell (Narasimhan, Sproat, Kiraz 2004).
    """
    syllables = [m.groupdict(default="") for m in _SYLLABLE.finditer(word)]
    inherent = [bool(s["onset"]) and not (s["vowel"] or s["mark"] or s["end"]) for s in syllables]
    simple = [len(s["onset"]) == 1 for s in syllables]
    dropped = [False] * len(syllables)
    last = len(syllables) - 1
    if last > 0 and inherent[last] and simple[last]:
        dropped[last] = True
    for i in range(last - 1, 0, -1):
        voiced_next = not dropped[i + 1] and simple[i + 1] and not syllables[i + 1]["end"]
        before_voiced = not syllables[i - 1]["end"]
        if inherent[i] and simple[i] and voiced_next and before_voiced:
            dropped[i] = True
    return "".join(
        s["free"] or s["onset"] + s["vowel"] + s["mark"] + (_VIRAMA if drop else s["end"])
        for s, drop in zip(syllables, dropped, strict=True)
    )


def hindi_for_festival(text: str) -> str:
    """A Hindi sentence respelt as it is spoken, in the letters that festival's rules know.

    Raises:
        UnreadableError: If it has digits, Latin letters or other signs that the voice would misread.
    """
    plain = unicodedata.normalize("NFD", text).replace(_NUKTA, "").translate(_HINDI_LETTERS)
    plain = plain.replace("ज्\u091e", "ग्य").replace("ज्न", "ग्य")  # jñ is said gy
    plain = plain.replace("\u0943", f"{_VIRAMA}रि").replace("\u200c", "").replace("\u200d", "")
    if re.search("[0-9A-Za-z\u0966-\u096f]", plain):
        raise UnreadableError(f"festival's Hindi voice cannot read digits and Latin letters: {text!r}")
    tokens = re.findall("[\u0900-\u0963]+|[,.?!;:]", plain)
    words: list[str] = []
    for token in tokens:
        if token[0] not in ",.?!;:":
            words.append(_delete_schwas(token))
        elif words:
            words[-1] = words[-1].rstrip(",.?!;:") + ("," if token in ",;:" else ".")
    if not any(words):
        raise UnreadableError(f"nothing in {text!r} is spoken in 'hi'; leave the sentence out")
    return " ".join(word for word in words if word)


def voices(language: str, split: str) -> tuple[str, ...]:
    """Recorded voices of a language in a split; empty where there are none."""
    return VOICES.get(split, {}).get(language, ())


def say(text: str, voice: str, stretch: float = 1.0) -> Speech:
    """Say a sentence in a voice named as in ``VOICES``.

    Raises:
        UnreadableError: If the voice cannot read the text.
        DataError: If the engine or the voice is missing, or the engine failed.
    """
    engine, name = voice.split(":")
    if engine == "flite":
        return flite.say(english_for_festival(text), name, stretch)
    clean = hindi_for_festival if festival.voice_language(name) == "hi" else english_for_festival
    return festival.say(clean(text), name, stretch)
