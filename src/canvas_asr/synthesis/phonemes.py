"""The fixed list of phoneme symbols, their numbers, and labels for the frames of a clip.

The list is what espeak-ng 1.51 says in all voices of `voices.py` over about 2,000 sentences of each language,
plus the five Mandarin tones. Order is part of trained checkpoints: append, never sort again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from canvas_asr.synthesis.speech import SILENCE

UNKNOWN = "<unk>"

# fmt: off
PHONEMES: tuple[str, ...] = (
    SILENCE, UNKNOWN,
    "??", "a", "a-", "a:", "ai", "aɪ", "aɪə", "aɪɚ", "aʊ", "aː", "ã", "b", "bʰ", "c", "cʰ", "d", "dʒ",
    "dʰ", "e", "e-", "ei", "eə", "eɪ", "eʊ", "eː", "ẽ", "f", "h", "i", "i.", "iou", "iɑ", "iə", "iɛ",
    "iː", "ĩ", "i̪", "j", "k", "kh", "kʰ", "l", "m", "n", "n̩", "o", "o-", "onɡ", "ou", "oɪ", "oʊ", "oː",
    "oːɹ", "õ", "p", "pf", "ph", "pʰ", "q", "r", "r.", "s", "s.", "t", "th", "ts", "ts.", "ts.h", "tsh",
    "tɕ", "tɕh", "tʃ", "tʰ", "u", "ua", "uai", "uei", "uo", "uə", "uː", "ũ", "v", "w", "x", "y", "y-",
    "yi", "yu", "yæ", "yə", "yɛ", "yː", "z", "æ", "ç", "ð", "ø", "øː", "ŋ", "œ", "œ̃", "ɐ", "ɑ", "ɑu",
    "ɑː", "ɑːɹ", "ɑ̃", "ɒ", "ɔ", "ɔø", "ɔɪ", "ɔː", "ɔːɹ", "ɔ̃", "ɕ", "ɖ", "ɖʰ", "ə", "ə-", "əl", "ər",
    "əɹ", "əʊ", "ɚ", "ɛ", "ɛɪ", "ɛɹ", "ɛː", "ɛ̃", "ɜ", "ɜː", "ɟ", "ɟʰ", "ɡ", "ɡʰ", "ɣ", "ɪ", "ɪɹ", "ɲ",
    "ɳ", "ɹ", "ɾ", "ʁ", "ʂ", "ʃ", "ʈ", "ʈʰ", "ʉ", "ʉɹ", "ʊ", "ʊə", "ʊɹ", "ʋ", "ʌ", "ʌɹ", "ʌʉ", "ʍ", "ʎ",
    "ʐ", "ʒ", "ʔ", "ʝ", "ʰχ", "ʲ", "˥", "˥˩", "˧˥", "˨˩˦", "˩", "β", "θ", "χ", "ᵻ",
)
# fmt: on

_INDEX = {symbol: i for i, symbol in enumerate(PHONEMES)}
UNKNOWN_INDEX = _INDEX[UNKNOWN]
# Removed one kind after the other until the rest is known: stress, length, espeak-ng's variant marks, glides.
_MODIFIERS = ("ˈˌ'", "ː", "-.", "ʲʷʰ")


def phoneme_index(symbol: str) -> int:
    """Number of a symbol; one not in the list loses stress, length, marks and diacritics, or is unknown.

    Args:
        symbol: An IPA symbol as `espeak.say` gives it; "" is silence.
    """
    if symbol in _INDEX:
        return _INDEX[symbol]
    for marks in _MODIFIERS:
        symbol = symbol.translate({ord(c): None for c in marks})
        if symbol and symbol in _INDEX:
            return _INDEX[symbol]
    symbol = "".join(c for c in unicodedata.normalize("NFD", symbol) if not unicodedata.combining(c))
    return _INDEX[symbol] if symbol and symbol in _INDEX else UNKNOWN_INDEX


def frame_labels(phonemes: Sequence[tuple[str, float]], n_frames: int, frame_s: float) -> NDArray[np.int64]:
    """The phoneme sounding in the middle of every frame.

    Args:
        phonemes: (symbol, start in seconds) in order of time.
        n_frames: T.
        frame_s: Seconds from one frame to the next.

    Returns:
        Indices into ``PHONEMES``, (T,); silence before the first phoneme.
    """
    indices = np.array([_INDEX[SILENCE], *(phoneme_index(symbol) for symbol, _ in phonemes)], np.int64)
    starts = np.array([start for _, start in phonemes], np.float64)
    middles = (np.arange(n_frames) + 0.5) * frame_s
    labels: NDArray[np.int64] = indices[np.searchsorted(starts, middles, side="right")]
    return labels
