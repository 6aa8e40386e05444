"""Phone names of flite and festival as the IPA symbols that espeak-ng uses for the same language.

With these, voices made from recordings of people carry frame labels of the same kind as espeak-ng's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from canvas_asr.synthesis.speech import SILENCE

# The "radio" phone set of the English voices.
_ENGLISH = {
    "aa": "ɑː", "ae": "æ", "ah": "ʌ", "ao": "ɔː", "aw": "aʊ", "ax": "ə", "axr": "ɚ", "ay": "aɪ", "b": "b",
    "ch": "tʃ", "d": "d", "dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "əl", "em": "m", "en": "n̩", "er": "ɜː",
    "ey": "eɪ", "f": "f", "g": "ɡ", "hh": "h", "hv": "h", "ih": "ɪ", "iy": "iː", "jh": "dʒ", "k": "k",
    "l": "l", "m": "m", "n": "n", "ng": "ŋ", "nx": "n", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "pau": SILENCE,
    "h#": SILENCE, "brth": SILENCE, "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ", "uh": "ʊ",
    "uw": "uː", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ",
}  # fmt: skip
_ENGLISH_UNSTRESSED = {"er": "ɚ", "iy": "i"}
_ENGLISH_MERGED = {
    ("ɑː", "ɹ"): "ɑːɹ", ("ɔː", "ɹ"): "ɔːɹ", ("ɛ", "ɹ"): "ɛɹ", ("ɪ", "ɹ"): "ɪɹ", ("ʊ", "ɹ"): "ʊɹ",
    ("ə", "l"): "əl",
}  # fmt: skip

# The phone set of festvox-hi-nsk, which writes aspirated consonants as two phones.
_HINDI = {
    "a": "ə", "aa": "aː", "ih": "ɪ", "iy": "iː", "uh": "ʊ", "uw": "uː", "eh": "eː", "ee": "ɛ", "ay": "ɛː",
    "oh": "oː", "oo": "ɔ", "aw": "ɔː", "f": "f", "k": "k", "g": "ɡ", "ch": "c", "T": "ʈ", "D": "ɖ",
    "N": "ɳ", "th": "t", "dh": "d", "n": "n", "p": "p", "b": "b", "m": "m", "y": "j", "r": "ɾ", "l": "l",
    "v": "ʋ", "L": "l", "R": "r.", "s": "s", "sh": "ʃ", "j": "ɟ", "h": "h", "pau": SILENCE, "w": "ʋ",
    "zh": "ʒ", "kh": "kʰ", "gh": "ɡʰ", "td": "ʈ", "tth": "tʰ", "ddh": "dʰ", "bh": "bʰ", "@": "ə",
    "x": "x",
}  # fmt: skip
_HINDI_MERGED = {(c, "h"): c + "ʰ" for c in ("k", "ɡ", "c", "ɟ", "ʈ", "ɖ", "t", "d", "p", "b")} | {
    ("ʃ", "h"): "ʂ"
}


@dataclass(frozen=True)
class Phone:
    """One segment of an engine's utterance: name, end in seconds, whether its syllable is stressed."""

    name: str
    end_s: float
    stressed: bool


def to_ipa(
    phones: Sequence[Phone], language: str, n_samples: int, sample_rate_hz: int
) -> list[tuple[int, str]]:
    """(start sample, IPA symbol) of an engine's phones.

    Args:
        phones: In order of time.
        language: "en" or "hi".
        n_samples: Length of the audio. Diphone voices cut the last pause short: phones beyond are left out.
        sample_rate_hz: Rate of the audio.
    """
    names, merged = (_ENGLISH, _ENGLISH_MERGED) if language == "en" else (_HINDI, _HINDI_MERGED)
    unstressed: Mapping[str, str] = _ENGLISH_UNSTRESSED if language == "en" else {}
    out: list[tuple[int, str]] = []
    start = 0
    for phone in phones:
        if start >= n_samples:
            break
        symbol = names.get(phone.name, phone.name)
        if not phone.stressed:
            symbol = unstressed.get(phone.name, symbol)
        pair = (out[-1][1], symbol) if out else None
        if pair in merged:
            out[-1] = (out[-1][0], merged[pair])
        else:
            out.append((start, symbol))
        start = round(phone.end_s * sample_rate_hz)
    return out
