"""What a recogniser does to text: near misses, deletions, insertions, and CTC's repeats and blanks.

pieces = Pieces(tokenizer)
ctc_like(corrupt(pieces.encode("good morning"), 0.2, pieces, rng), rng, pieces.blank)
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from canvas_asr.errors import DataError
from canvas_asr.synthesis import chinese
from canvas_asr.training.tokenizer import BLANK, BOS, BYTE_PIECES, CONTINUE, SPACE, TRANSCRIBE, phoneme_token


class Pieces:
    """What the tasks have to know of a tokenizer: which ids are text, and which are easily mistaken.

    Args:
        tokenizer: Made by ``train_tokenizer`` (any with its special tokens will do).

    Raises:
        DataError: If a special token is missing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        vocab: dict[str, int] = tokenizer.get_vocab()
        missing = [token for token in (BOS, TRANSCRIBE, BLANK, CONTINUE) if token not in vocab]
        if missing:
            raise DataError(f"the tokenizer has no token {', '.join(missing)}")
        self.vocab = vocab
        self.bos, self.transcribe = vocab[BOS], vocab[TRANSCRIBE]
        self.blank, self.continuation = vocab[BLANK], vocab[CONTINUE]
        special = set(tokenizer.all_special_ids)
        bytes_of = {vocab[piece]: value for value, piece in enumerate(BYTE_PIECES) if piece in vocab}
        self.strings = [""] * (max(vocab.values()) + 1)
        for piece, index in vocab.items():
            self.strings[index] = piece
        text = [i for i, piece in enumerate(self.strings) if piece and i not in special and i not in bytes_of]
        phonemes = [i for i, piece in enumerate(self.strings) if piece.startswith("<p:") and len(piece) > 4]
        self.text_ids = np.array(text)
        self.phoneme_ids = np.array(phonemes)
        self.is_phoneme = frozenset(phonemes)
        self._encoded = [
            bytes([bytes_of[i]]) if i in bytes_of else piece.replace(SPACE, "").encode()
            for i, piece in enumerate(self.strings)
        ]
        self._near = self._near_misses(text, phonemes)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def tag(self, language: str) -> int:
        """Return the id of a language's tag.

        Raises:
            DataError: If the tokenizer has no tag for it.
        """
        if (tag := self.vocab.get(f"<|{language}|>")) is None:
            raise DataError(f"the tokenizer has no tag for language {language!r}")
        return tag

    def phoneme(self, symbol: str) -> int:
        """Return the id of an IPA symbol.

        Raises:
            DataError: If the tokenizer has none.
        """
        if (token := self.vocab.get(phoneme_token(symbol))) is None:
            raise DataError(f"the tokenizer has no phoneme {symbol!r}")
        return token

    def near(self, token: int, rng: np.random.Generator) -> int:
        """Draw a piece that a recogniser could take for this one; any of its kind if there is none."""
        group = self._near.get(token)
        if group is None:
            return self.stray(token, rng)
        drawn = int(rng.integers(len(group)))
        return int(group[drawn] if group[drawn] != token else group[drawn - 1])

    def stray(self, token: int, rng: np.random.Generator) -> int:
        """Draw any other piece of the same kind, phoneme or text."""
        pool = self.phoneme_ids if token in self.is_phoneme else self.text_ids
        while (drawn := int(pool[rng.integers(len(pool))])) == token and len(pool) > 1:
            pass
        return drawn

    def words(self, ids: Sequence[int], language: str) -> list[list[int]]:
        """Cut token ids where words begin; in Chinese, where characters begin."""
        groups: list[list[int]] = []
        for token in ids:
            encoded = self._encoded[token]
            if language == "zh":  # the second and later bytes of a character are 0x80 to 0xBF
                starts = not (len(encoded) == 1 and 0x80 <= encoded[0] < 0xC0)
            else:
                starts = self.strings[token].startswith(SPACE)
            if starts or not groups:
                groups.append([])
            groups[-1].append(token)
        return groups

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of one word's ids; faster than decoding them."""
        return b"".join([self._encoded[token] for token in ids]).decode("utf-8", "replace")

    def _near_misses(self, text: Sequence[int], phonemes: Sequence[int]) -> dict[int, NDArray[np.int64]]:
        """Group pieces by first letter without case and accent, marks together, Chinese by sound."""
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index in text:
            groups[_sound(self.strings[index])].append(index)
        for index in phonemes:
            groups["phoneme", unicodedata.normalize("NFD", self.strings[index][3])[0]].append(index)
        return {index: np.array(group) for group in groups.values() if len(group) > 1 for index in group}


def _sound(piece: str) -> tuple[str, ...]:
    """Return what pieces that are easily mistaken for each other have in common."""
    first = unicodedata.normalize("NFD", piece.strip(SPACE + "'").casefold())[:1]
    if not first or unicodedata.category(first)[0] not in "LM":
        return ("mark",)
    if unicodedata.name(first, "").startswith("CJK"):
        try:
            return "pinyin", chinese.to_pinyin(piece).rstrip("12345")
        except DataError:  # a character without a reading sounds like itself alone
            return "pinyin", piece
    return "letter", first, SPACE if piece.startswith(SPACE) else ""


def corrupt(ids: Sequence[int], rate: float, pieces: Pieces, rng: np.random.Generator) -> list[int]:
    """Make errors in a sequence of text or phoneme pieces.

    Of the errors 45 % are near misses, 20 % any other piece, 20 % deletions, 15 % insertions.

    Args:
        ids: Pieces without special tokens other than phonemes.
        rate: Errors per token.
        pieces: Of the tokenizer.
        rng: Draws them.
    """
    kinds = rng.random(len(ids)) / rate if rate > 0 else np.ones(len(ids))
    out: list[int] = []
    for token, kind in zip(ids, kinds.tolist(), strict=True):
        if kind >= 1:
            out.append(token)
        elif kind < 0.45:
            out.append(pieces.near(token, rng))
        elif kind < 0.65:
            out.append(pieces.stray(token, rng))
        elif kind >= 0.85:
            out += [token, pieces.stray(token, rng)]
    return out


def ctc_like(
    ids: Sequence[int], rng: np.random.Generator, blank: int, frames_per_token: float = 2.0
) -> list[int]:
    """Stretch tokens into frames as CTC writes them: repeats, blanks between, silence around and within.

    Merging repeats and dropping blanks gives ``ids`` back exactly.

    Args:
        ids: Tokens, none of them the blank.
        rng: Draws the lengths.
        blank: Id of the blank.
        frames_per_token: Mean frames of a token with the blanks after it, at least 1; silence comes on top.
    """
    n = len(ids)
    if n == 0:
        return [blank] * int(rng.poisson(3))
    tokens = np.asarray(ids)
    repeat_share = 0.6 * rng.random()  # a well-trained CTC is peaky, a fresh one is not
    n_frames = 1 + rng.poisson((frames_per_token - 1) * repeat_share, n)
    n_blanks = rng.poisson((frames_per_token - 1) * (1 - repeat_share), n)
    n_blanks[:-1] = np.maximum(n_blanks[:-1], tokens[:-1] == tokens[1:])
    n_blanks[-1] += rng.poisson(1.5)
    if rng.random() < 0.3:
        n_blanks[rng.integers(n)] += rng.poisson(6.0)
    interleaved = np.full((n, 2), blank)
    interleaved[:, 0] = tokens
    frames = np.repeat(interleaved.ravel(), np.stack([n_frames, n_blanks], axis=1).ravel())
    stretched: list[int] = [blank] * int(rng.poisson(1.5)) + frames.tolist()
    return stretched
