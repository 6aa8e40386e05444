"""Train the small tokenizer of the embedded model: six languages in 4,096 pieces, short enough for CTC.

    tokenizer = train_tokenizer(read_sentences("data/text").train, PHONEMES)
    tokenizer.save_pretrained("src/canvas_asr/models/tiny"); print(piece_table(tokenizer, sentences))

Gemma's manner (byte fallback, "▁" for a space) with three differences. Every special token has a fixed id.
Chinese characters are single pieces, the frequent ones only, the rest falls back to bytes. The remaining
pieces are shared by the other five languages and kept short, because an audio token every 80 ms must be
able to spell them. A "▁" is put before the first word, so that a word is the same piece wherever it stands,
but not before a Chinese character, which has no use for it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from canvas_asr.errors import DataError

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
AUDIO, TRANSCRIBE, BLANK = "<|audio|>", "<|transcribe|>", "<|blank|>"
CONTINUE, PHONEMES_TASK = "<|continue|>", "<|phonemes|>"
LANGUAGE_TAGS: Final = tuple(f"<|{language}|>" for language in ("en", "de", "fr", "es", "hi", "zh"))
# Ids are positions in this tuple: checkpoints depend on the order.
SPECIAL_TOKENS: Final = (
    *(PAD, EOS, BOS, UNK, AUDIO, TRANSCRIBE, BLANK),
    *LANGUAGE_TAGS,
    *(CONTINUE, PHONEMES_TASK, "<|spare0|>", "<|spare1|>"),
)
BYTE_PIECES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE: Final = "▁"

VOCAB_SIZE: Final = 4096
# Of the Chinese text. 2,372 characters on the lists of the embedded model; 0.995 would be 3,150 and leave the
# other languages 1.9 characters a token instead of 2.3, for characters seen fewer than 20 times in training.
HAN_COVERAGE: Final = 0.985
MAX_PIECE_CHARACTERS: Final = 6  # with its "▁"
MIN_CHARACTER_COUNT: Final = 5  # a rarer character outside Chinese is spelled in bytes

# A word with its apostrophes, or one mark; each with the space before it.
_WORDS: Final = Regex(SPACE + r"?[\p{L}\p{M}']+|" + SPACE + r"?[^\p{L}\p{M}" + SPACE + r"]|" + SPACE)


def phoneme_token(symbol: str) -> str:
    """Return the token of an IPA symbol: ``ə`` is ``<p:ə>``."""
    return f"<p:{symbol}>"


def train_tokenizer(
    sentences: Mapping[str, Iterable[str]],
    phonemes: Sequence[str],
    vocab_size: int = VOCAB_SIZE,
    seed: int = 0,
) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same input and seed give the same file.

    Args:
        sentences: Cleaned training sentences by language. ``zh`` gives its frequent characters, every other
            language an equal amount of text for the shared pieces.
        phonemes: IPA symbols in the order of their ids.
        vocab_size: Pieces in all, special tokens included; reached exactly.
        seed: Draws the sample that balances the languages.

    Raises:
        DataError: If a phoneme repeats, or the vocabulary cannot be filled or has no room for merges.
    """
    if len(set(phonemes)) != len(phonemes):
        raise DataError("phonemes: a symbol is there twice")
    special = [*SPECIAL_TOKENS, *(phoneme_token(symbol) for symbol in phonemes)]
    texts = {language: list(lines) for language, lines in sentences.items()}
    han = _frequent_han(texts.get("zh", []))
    spelled = [line for language, lines in texts.items() if language != "zh" for line in lines]
    alphabet = _alphabet([*spelled, *texts.get("zh", [])])
    n_merged = vocab_size - len(special) - len(BYTE_PIECES) - len(alphabet) - len(han)
    if n_merged < 1:
        raise DataError(
            f"vocab_size {vocab_size} leaves no room for merges: give at least {vocab_size - n_merged + 1}"
        )
    merged, merges = _merges(_balanced(texts, seed), alphabet, n_merged)
    if len(merged) < n_merged:
        raise DataError(
            f"vocab_size {vocab_size}: the sentences give only {len(merged)} of {n_merged} merged pieces"
        )
    return _assemble([*special, *BYTE_PIECES, *alphabet, *merged, *han], merges, special)


def piece_table(tokenizer: PreTrainedTokenizerFast, sentences: Mapping[str, Iterable[str]]) -> str:
    """Return, as text by language, the length of sentences in tokens and the share spelled in bytes."""
    lines = ["language  tokens/sentence  characters/token  p95 tokens   max  bytes %"]
    vocab = tokenizer.get_vocab()
    byte_ids = {vocab[piece] for piece in BYTE_PIECES}
    for language, texts in sentences.items():
        texts = list(texts)
        rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        lengths = sorted(map(len, rows))
        n_tokens = sum(lengths)
        n_bytes = sum(token in byte_ids for row in rows for token in row)
        lines.append(
            f"{language:8}{n_tokens / len(rows):>17.1f}{sum(map(len, texts)) / n_tokens:>18.2f}"
            f"{lengths[int(0.95 * len(lengths))]:>12}{lengths[-1]:>6}{100 * n_bytes / n_tokens:>9.2f}"
        )
    return "\n".join(lines)


def _is_han(character: str) -> bool:
    """Say whether a character is Chinese, by the ranges of Unicode's unified ideographs."""
    code = ord(character)
    return (
        code == 0x3007 or 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0x20000 <= code <= 0x3FFFF
    )


def _frequent_han(lines: Sequence[str]) -> list[str]:
    """Return the most frequent Chinese characters that cover ``HAN_COVERAGE`` of them all."""
    counts = Counter(c for line in lines for c in line if _is_han(c))
    wanted, kept = HAN_COVERAGE * counts.total(), []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if wanted <= 0:
            break
        kept.append(character)
        wanted -= count
    return kept


def _alphabet(lines: Sequence[str]) -> list[str]:
    """Return every character outside Chinese that is not rare, the space included, in code point order."""
    counts = Counter(c for line in lines for c in line if not _is_han(c) and c != " ")
    return sorted({SPACE, *(c for c, count in counts.items() if count >= MIN_CHARACTER_COUNT)})


def _balanced(texts: Mapping[str, list[str]], seed: int) -> list[str]:
    """Return as many characters of every language but Chinese as the smallest of them has."""
    spelled = {language: lines for language, lines in texts.items() if language != "zh" and lines}
    budget = min((sum(map(len, lines)) for lines in spelled.values()), default=0)
    sample: list[str] = []
    for language in sorted(spelled):
        lines = sorted(spelled[language])
        random.Random(f"{seed}/{language}").shuffle(lines)
        left = budget
        for line in lines:
            if left <= 0:
                break
            sample.append(line)
            left -= len(line)
    return sample


def _merges(
    lines: Sequence[str], alphabet: Sequence[str], n_merged: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn ``n_merged`` pieces; return them and their merges, of which two may give the same piece."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = _normalizer()
    learner.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + n_merged,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        max_token_length=MAX_PIECE_CHARACTERS,
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    state = json.loads(learner.to_str())["model"]
    merged = [piece for piece in sorted(state["vocab"], key=state["vocab"].__getitem__) if len(piece) > 1]
    return merged, [(left, right) for left, right in state["merges"]]


def _normalizer() -> normalizers.Normalizer:
    """Write "▁" for a space, and one before the text unless it begins with a Chinese character."""
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\A(?=[^\p{Han}])"), SPACE),
            normalizers.Replace(" ", SPACE),
        ]
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(_WORDS, behavior="isolated")


def _assemble(
    pieces: Sequence[str], merges: list[tuple[str, str]], special: Sequence[str]
) -> PreTrainedTokenizerFast:
    """Build the tokenizer whose ids are the positions in ``pieces``."""
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK, byte_fallback=True))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        additional_special_tokens=list(special[4:]),
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
