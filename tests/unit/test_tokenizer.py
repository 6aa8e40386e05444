from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from canvas_asr.errors import DataError
from canvas_asr.training.tokenizer import (
    BYTE_PIECES,
    LANGUAGE_TAGS,
    MAX_PIECE_CHARACTERS,
    SPECIAL_TOKENS,
    phoneme_token,
    piece_table,
    train_tokenizer,
)

PHONEMES = ("ə", "iː", "ʃ", "p")
VOCAB_SIZE = 420
SENTENCES = {
    "en": [
        "The cat doesn't mind the other cats.",
        "Then they thought that this was the thing.",
        'He said "no".',
    ]
    * 6,
    "de": ["Der Bär läuft über die große Straße.", "Die anderen Kinder sind in der Schule."] * 6,
    "fr": ["L'été dernier, c'était déjà très long.", "Où est-ce que tu l'as trouvé?"] * 6,
    "es": ["¿Qué quieres hacer mañana?", "¡No puede ser! El niño está aquí."] * 6,
    "hi": ["यह एक अच्छा दिन है।", "मुझे लड़का नहीं मिला।"] * 6,
    "zh": ["我们今天去学校。", "你好，你是谁？", "天气很好。"] * 200 + ["罕"],
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES, PHONEMES, vocab_size=VOCAB_SIZE)


def test_layout_of_ids_is_fixed(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCAB_SIZE
    names = tokenizer.convert_ids_to_tokens(list(range(VOCAB_SIZE)))
    assert names[:7] == ["<pad>", "<eos>", "<bos>", "<unk>", "<|audio|>", "<|transcribe|>", "<|blank|>"]
    assert names[7:13] == ["<|en|>", "<|de|>", "<|fr|>", "<|es|>", "<|hi|>", "<|zh|>"] == list(LANGUAGE_TAGS)
    assert names[13:17] == ["<|continue|>", "<|phonemes|>", "<|spare0|>", "<|spare1|>"]
    assert names[17:21] == ["<p:ə>", "<p:iː>", "<p:ʃ>", "<p:p>"] == [phoneme_token(p) for p in PHONEMES]
    assert names[21:277] == list(BYTE_PIECES)
    assert names[21 + 0x41] == "<0x41>"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer.unk_token_id == 3


def test_cleaned_sentences_come_back_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in {line for lines in SENTENCES.values() for line in lines}:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_any_text_comes_back_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    alphabet = "abzÀßœñ'\"-.,?¿ TÜकि़ंटढ。，们罕龘ж1%🙂"
    for _ in range(2000):
        words = "".join(rng.choices(alphabet, k=rng.randrange(1, 30))).split()
        text = " ".join(words)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_token_id not in tokenizer.encode(alphabet)


def test_words_are_the_same_piece_wherever_they_stand(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("the cat, the cat")[:1] == ["▁the"]
    assert tokenizer.tokenize("the")[0] == tokenizer.tokenize("a the")[-1]


def test_chinese_is_one_piece_a_character_without_a_space_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("我们今天") == ["我", "们", "今", "天"]
    # Below the coverage that is asked for: three bytes.
    assert tokenizer.tokenize("罕") == ["<0xE7>", "<0xBD>", "<0x95>"]


def test_pieces_are_short_and_hold_one_word(tokenizer: PreTrainedTokenizerFast) -> None:
    for piece in tokenizer.convert_ids_to_tokens(list(range(277, VOCAB_SIZE))):
        assert len(piece) <= MAX_PIECE_CHARACTERS
        assert "▁" not in piece[1:]
        assert len(piece) == 1 or not re.search("[\u4e00-\u9fff]", piece)


def test_special_tokens_are_not_text(tokenizer: PreTrainedTokenizerFast) -> None:
    special = tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, *map(phoneme_token, PHONEMES)])
    assert special == list(range(21))
    assert tokenizer.decode(special, skip_special_tokens=True) == ""
    ids = [tokenizer.convert_tokens_to_ids("<|en|>"), *tokenizer.encode("The cat"), 1, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The cat"


def test_training_is_deterministic_and_survives_saving(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    again = train_tokenizer(
        {k: list(reversed(v)) for k, v in reversed(SENTENCES.items())}, PHONEMES, VOCAB_SIZE
    )
    assert again.get_vocab() == tokenizer.get_vocab()
    again.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for lines in SENTENCES.values():
        assert loaded.encode(lines[0]) == tokenizer.encode(lines[0])
        assert loaded.decode(loaded.encode(lines[0])) == lines[0]
    assert loaded.decode([7, 17, 0, 1, 2], skip_special_tokens=True) == ""


def test_impossible_vocabularies_are_refused() -> None:
    with pytest.raises(DataError, match="no room for merges"):
        train_tokenizer(SENTENCES, PHONEMES, vocab_size=300)
    with pytest.raises(DataError, match="give only"):
        train_tokenizer(SENTENCES, PHONEMES, vocab_size=4096)
    with pytest.raises(DataError, match="twice"):
        train_tokenizer(SENTENCES, ("a", "a"))


def test_table_counts_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = piece_table(tokenizer, {"zh": ["我们", "我们今天"]}).splitlines()
    assert rows[1].split() == ["zh", "3.0", "1.00", "4", "4", "0.00"]
