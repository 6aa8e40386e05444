"""Read sentence lists, clean them into transcripts, and split them once and for all.

    sentences = read_sentences("data/text")            # data/text/{en,de,fr,es,hi,zh}.txt[.gz]
    sentences.train["de"][:3]; print(sentences.table())

What a transcript may hold is decided here: the letters of its language, case, and plain punctuation. Lines
with digits, abbreviation signs or foreign letters are dropped rather than rewritten: how "1914" or "%" is
read differs by language and by context, and a target that is not what was said teaches a recogniser to guess.
Chinese stays as it is written, simplified or traditional.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from canvas_asr.errors import DataError
from canvas_asr.languages import LANGUAGES

Split = Literal["train", "dev", "test"]

DEV_PER_MILLE: Final = 10
TEST_PER_MILLE: Final = 10

_LATIN: Final = "abcdefghijklmnopqrstuvwxyz"
# Lower case; capitals are allowed with them. Loan-word accents common in print are kept.
_LETTERS: Final = {
    "en": _LATIN + "éèêïçñöü",
    "de": _LATIN + "äöüßéèà",
    "fr": _LATIN + "àâæçéèêëîïôœùûüÿñ",
    "es": _LATIN + "áéíóúüñ",
}
_MARKS: Final = {
    "en": ".,?!;:'\"- ",
    "de": ".,?!;:'\"- ",
    "fr": ".,?!;:'\"- ",
    "es": ".,?!;:'\"-¿¡ ",
    "hi": "।.,?!;:'\"- ",
    "zh": '。，？！、；："-',
}
_DEVANAGARI: Final = "\u0901-\u0903\u0905-\u0939\u093c-\u094d\u0950\u0958-\u095f\u0972"
_HAN: Final = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"

_PLAIN: Final = str.maketrans(
    {
        **dict.fromkeys("‘’‛ʼʻ´`′", "'"),
        **dict.fromkeys("“”„‟″＂«»「」『』", '"'),
        **dict.fromkeys("‐‑‒–−─－", "-"),
        **dict.fromkeys("—―", " - "),  # these separate clauses; the shorter ones may join words
        "…": "...",
        "\u00a0": " ",
        "\u202f": " ",
        "|": "।",
    }
)
_FULL_WIDTH: Final = str.maketrans(
    {".": "。", ",": "，", "?": "？", "!": "！", ";": "；", ":": "：", "﹐": "，"}
)
_INVISIBLE: Final = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_GUILLEMET_SPACE: Final = re.compile(r"(?<=«)\s+|\s+(?=»)")
_SPACE_BEFORE_MARK: Final = re.compile(r"\s+(?=[.,?!;:।])")
_LEADING_DASHES: Final = re.compile(r"^[-\s]+")


def _allowed(language: str) -> re.Pattern[str]:
    marks = re.escape(_MARKS[language])
    if language == "hi":
        letters = _DEVANAGARI
    elif language == "zh":
        letters = _HAN
    else:
        lower = _LETTERS[language]
        # ß has a capital of its own; str.upper would give "SS".
        letters = lower + lower.replace("ß", "ẞ").upper()
    return re.compile(f"[{letters}{marks}]+")


_ALLOWED: Final = {language: _allowed(language) for language in LANGUAGES}


def clean_sentence(text: str, language: str) -> str | None:
    """Return the sentence as a transcript, or None if it cannot be one.

    NFC; spaces collapsed; quotes, apostrophes and dashes plain; invisible characters (soft hyphen, zero-width
    joiners) removed; no space before closing punctuation; Chinese without spaces, with its own punctuation.

    Args:
        text: One line.
        language: One of ``LANGUAGES``.

    Returns:
        The cleaned sentence; None where it holds a digit, a symbol or a letter outside the language's own,
        or no letter at all.

    Raises:
        DataError: If the language is not one of ``LANGUAGES``.
    """
    if language not in _ALLOWED:
        raise DataError(f"unknown language {language!r}: expected one of {', '.join(LANGUAGES)}")
    text = unicodedata.normalize("NFC", text)
    text = _INVISIBLE.sub("", text)
    text = _GUILLEMET_SPACE.sub("", text).translate(_PLAIN)
    if language == "zh":
        text = "".join(text.split()).translate(_FULL_WIDTH)
    text = " ".join(_SPACE_BEFORE_MARK.sub("", text).split())
    text = _LEADING_DASHES.sub("", text)
    if not _ALLOWED[language].fullmatch(text) or not any(c.isalpha() for c in text):
        return None
    return text


def split_of(text: str) -> Split:
    """Return the split a sentence belongs to, from its letters alone.

    The key is the SHA-1 of the NFC text, case-folded, letters and vowel signs only: it never moves when the
    lists grow or cleaning changes, and two spellings of one sentence never lie on both sides of a split.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    key = "".join(c for c in folded if unicodedata.category(c)[0] in "LM")
    bucket = int.from_bytes(hashlib.sha1(key.encode()).digest()[:8], "big") % 1000
    if bucket < TEST_PER_MILLE:
        return "test"
    return "dev" if bucket < TEST_PER_MILLE + DEV_PER_MILLE else "train"


@dataclass(frozen=True)
class Counts:
    """Lines of one language: read, dropped by cleaning, repeated, and kept in each split."""

    read: int
    dropped: int
    repeated: int
    train: int
    dev: int
    test: int


@dataclass(frozen=True)
class SentenceLists:
    """Cleaned sentences by split and language, in the order of their files."""

    train: dict[str, list[str]] = field(default_factory=dict)
    dev: dict[str, list[str]] = field(default_factory=dict)
    test: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)

    def table(self) -> str:
        """Return the counts as text, one line per language."""
        names = ("read", "dropped", "repeated", "train", "dev", "test")
        lines = ["language" + "".join(f"{name:>10}" for name in names)]
        for language, counts in self.counts.items():
            lines.append(f"{language:8}" + "".join(f"{getattr(counts, name):>10,}" for name in names))
        return "\n".join(lines)


def read_sentences(folder: str | Path, languages: Sequence[str] = LANGUAGES) -> SentenceLists:
    """Read, clean, deduplicate and split the lists of a folder.

    Args:
        folder: Holds ``<language>.txt`` or ``<language>.txt.gz``, UTF-8, one sentence a line.
        languages: Which to read.

    Raises:
        DataError: If the folder or a language's file is missing, unreadable or empty after cleaning.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; give one holding {languages[0]}.txt or {languages[0]}.txt.gz"
        )
    lists = SentenceLists()
    for language in languages:
        path = _find(folder, language)
        splits: dict[Split, list[str]] = {"train": [], "dev": [], "test": []}
        seen: set[str] = set()
        n_read = n_dropped = n_repeated = 0
        for line in _lines(path):
            n_read += 1
            text = clean_sentence(line, language)
            if text is None:
                n_dropped += 1
            elif text in seen:
                n_repeated += 1
            else:
                seen.add(text)
                splits[split_of(text)].append(text)
        if not seen:
            raise DataError(f"{path}: no usable {language} sentence among {n_read} lines")
        lists.train[language], lists.dev[language], lists.test[language] = splits.values()
        sizes = {name: len(kept) for name, kept in splits.items()}
        lists.counts[language] = Counts(read=n_read, dropped=n_dropped, repeated=n_repeated, **sizes)
    return lists


def _find(folder: Path, language: str) -> Path:
    for name in (f"{language}.txt", f"{language}.txt.gz"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: neither {language}.txt nor {language}.txt.gz is there")


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, gzipped or not, that are not blank."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from (line for line in file if not line.isspace())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
