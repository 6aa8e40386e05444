"""Chinese sentences as pinyin with tone digits, which espeak-ng's ``cmn-latn-pinyin`` voice reads.

The voice would spell out anything else (Arabic digits by English rules, Latin letters as pinyin), so numbers
become Chinese words, short Latin letter strings become letter names, and longer Latin words are refused.
"""

from __future__ import annotations

import re
import unicodedata

from canvas_asr.errors import DataError

_DIGITS = "零一二三四五六七八九"
_UNITS = ("", "十", "百", "千")
_GROUPS = ("", "万", "亿", "万亿")
_MAX_LETTERS = 5
# Names of Latin letters as Mandarin speakers say them, in pinyin.
_LETTERS = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "ei1 bi4 xi1 di4 yi4 ai2fu5 ji4 ei1chi5 ai4 zhei4 kai4 ai2le5 ai2mu5 en1 ou1 pi4 kiu1 a1er5 ai2si5 "
        "ti4 you1 wei1 da2bu5liu5 ai2ke5si5 wai1 zei4".split(),
        strict=True,
    )
)
_PAUSES = {"、": ",", "。": "."} | {mark: mark for mark in ",.;:?!"}  # full-width ones become ASCII first
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?:[, ]\d{3})+(?!\d)")  # 100,000 and 100 000
_NUMBER = re.compile(
    r"(?P<sign>(?<![\d.])[-\u2212])?(?P<whole>\d+)(?:\.(?P<fraction>\d+))?(?P<percent>\s*%)?"
)
_SYLLABLE = re.compile(r"[a-zê]+[1-5]")


def number_to_chinese(digits: str) -> str:
    """A whole number in Chinese characters: "105" -> 一百零五; beyond 16 digits, digit by digit."""
    digits = digits.lstrip("0") or "0"
    if len(digits) > 4 * len(_GROUPS):
        return "".join(_DIGITS[int(d)] for d in digits)
    if digits == "0":
        return "零"
    words = ""
    pending_zero = False
    for i, d in enumerate(digits):
        power = len(digits) - 1 - i
        if d == "0":
            pending_zero = True
        else:
            words += ("零" if pending_zero and words else "") + _DIGITS[int(d)] + _UNITS[power % 4]
            pending_zero = False
        group_start = max(0, len(digits) - power - 4)
        if power and power % 4 == 0 and int(digits[group_start : i + 1]) > 0:
            words += _GROUPS[power // 4]
    return words[1:] if words.startswith("一十") else words


def _spoken_number(match: re.Match[str]) -> str:
    text = match.string
    whole, fraction = match["whole"], match["fraction"]
    is_year = len(whole) == 4 and not fraction and text[match.end() : match.end() + 1] == "年"
    if is_year or (len(whole) > 1 and whole[0] == "0"):
        words = "".join(_DIGITS[int(d)] for d in whole)
    else:
        words = number_to_chinese(whole)
    if fraction:
        words += "点" + "".join(_DIGITS[int(d)] for d in fraction)
    return ("负" if match["sign"] else "") + ("百分之" if match["percent"] else "") + words


def _latin(word: str, text: str) -> str:
    letters = unicodedata.normalize("NFD", word)
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    if (not letters.isupper() and len(letters) > 1) or len(letters) > _MAX_LETTERS:
        raise DataError(f"the Chinese voice cannot read the Latin word {word!r} in {text!r}; leave it out")
    try:
        return " ".join(" ".join(_SYLLABLE.findall(_LETTERS[c])) for c in letters.upper())
    except KeyError as error:
        raise DataError(f"the Chinese voice cannot read the letter {error} in {text!r}") from error


def to_pinyin(text: str) -> str:
    """Pinyin with tone digits (5 is the neutral tone), spaces between syllables, punctuation as pauses.

    Raises:
        DataError: If pypinyin is missing, or the text has a Latin word or a character without a reading.
    """
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise DataError("Chinese speech needs pypinyin; install it with: pip install pypinyin") from error
    plain = unicodedata.normalize("NFKC", text).replace("—", ",").replace("…", ",")
    plain = _GROUPED.sub(lambda match: re.sub("[, ]", "", match[0]), plain)
    plain = _NUMBER.sub(_spoken_number, plain)

    def other(run: str) -> str:
        pieces = re.findall(r"[^\W\d_]+|[^\w\s]", run)
        return " ".join(_latin(p, text) if p[0].isalpha() else _PAUSES.get(p, "") for p in pieces)

    syllables = lazy_pinyin(plain, style=Style.TONE3, neutral_tone_with_five=True, errors=other)
    out: list[str] = []
    for piece in " ".join(syllables).split():
        if piece in _PAUSES:
            if out and out[-1] not in _PAUSES:
                out.append(piece)
        elif _SYLLABLE.fullmatch(piece):
            out.append(piece)
        else:
            raise DataError(f"no pinyin for {piece!r} in {text!r}; leave the sentence out")
    return " ".join(out)
