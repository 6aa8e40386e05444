from __future__ import annotations

from collections import Counter
from itertools import groupby, islice

import numpy as np
import pytest
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from canvas_asr.errors import DataError, RecipeError
from canvas_asr.training.text_noise import Pieces, corrupt, ctc_like
from canvas_asr.training.text_tasks import (
    TextExample,
    TextTaskOptions,
    TextTasks,
    espeak_phonemes,
    repair_case,
)
from canvas_asr.training.tokenizer import SPECIAL_TOKENS, train_tokenizer

SENTENCES = {
    "en": ["The cat sat there.", "This is the other thing that they thought.", "No."] * 3,
    "hi": ["यह एक अच्छा दिन है।", "मुझे लड़का नहीं मिला।"] * 3,
    "zh": ["我们今天去学校。", "你好，你是谁？", "他们在这里。"] * 100 + ["罕见。"],
}
SYMBOLS = ("a", "aː", "b", "k", "kʰ", "t")
BOS, TRANSCRIBE, BLANK, CONTINUE = 2, 5, 6, 13
TAGS = {"en": 7, "hi": 11, "zh": 12}


def say(text: str, language: str) -> list[str]:
    """Spell every word or character by symbols that depend on it alone."""
    return [SYMBOLS[sum(map(ord, c)) % len(SYMBOLS)] for c in text if c.isalpha()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES, SYMBOLS, vocab_size=350)


@pytest.fixture(scope="module")
def pieces(tokenizer: PreTrainedTokenizerFast) -> Pieces:
    return Pieces(tokenizer)


@pytest.fixture(scope="module")
def tasks(tokenizer: PreTrainedTokenizerFast) -> TextTasks:
    return TextTasks(tokenizer, SENTENCES, say, seed=3)


def collapse(body: list[int]) -> list[int]:
    return [token for token, _ in groupby(body) if token != BLANK]


def body_of(example: TextExample) -> list[int]:
    return example.prompt_ids[1:-1]


def only(tokenizer: PreTrainedTokenizerFast, task: str, **options: float) -> TextTasks:
    weights = dict.fromkeys(("copy", "ctc", "phonemes", "mixed", "continuation", "empty"), 0.0)
    return TextTasks(tokenizer, SENTENCES, say, TextTaskOptions(**{**weights, task: 1.0, **options}))


def test_ctc_like_collapses_to_its_tokens_even_when_they_repeat() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(20, 24, rng.integers(0, 12)).tolist()
        assert collapse(ctc_like(ids, rng, BLANK, rng.uniform(1, 3))) == ids
    assert set(ctc_like([], rng, BLANK)) <= {BLANK}


@pytest.mark.parametrize("frames_per_token", [1.3, 2.0, 3.0])
def test_ctc_like_has_the_length_asked_for(frames_per_token: float) -> None:
    rng = np.random.default_rng(1)
    lengths = [len(ctc_like(list(range(20, 60)), rng, BLANK, frames_per_token)) for _ in range(300)]
    silence = 1.5 + 1.5 + 0.3 * 6
    assert np.mean(lengths) == pytest.approx(40 * frames_per_token + silence, rel=0.03)


def test_errors_have_the_rate_asked_for_and_none_at_zero(pieces: Pieces) -> None:
    rng = np.random.default_rng(2)
    # Every piece differs from the others: an alignment by value counts what is left.
    ids = pieces.text_ids[:40].tolist()
    assert corrupt(ids, 0.0, pieces, rng) == ids
    kept = [len(set(ids) & set(corrupt(ids, 0.3, pieces, rng))) for _ in range(200)]
    lengths = [len(corrupt(ids, 0.3, pieces, rng)) for _ in range(400)]
    # 85 % of the errors remove the piece (a stray one may bring it back); 20 % delete, 15 % insert.
    assert 0.74 < np.mean(kept) / 40 < 0.90
    assert np.mean(lengths) / 40 == pytest.approx(1 - 0.3 * 0.05, abs=0.01)


def test_errors_never_bring_in_special_tokens_or_mix_kinds(pieces: Pieces) -> None:
    rng = np.random.default_rng(3)
    text = pieces.encode("The cat sat there.") * 20
    phonemes = [pieces.phoneme(symbol) for symbol in SYMBOLS] * 20
    for _ in range(20):
        assert set(corrupt(text, 1.0, pieces, rng)) <= set(pieces.text_ids.tolist()) | set(text)
        assert set(corrupt(phonemes, 1.0, pieces, rng)) <= set(pieces.phoneme_ids.tolist())
    first_text_piece = len(SPECIAL_TOKENS) + len(SYMBOLS) + 256
    assert pieces.text_ids.min() == first_text_piece
    assert pieces.phoneme_ids.tolist() == [17, 18, 19, 20, 21, 22]


def test_near_misses_share_a_sound(pieces: Pieces) -> None:
    rng = np.random.default_rng(4)
    near = {pieces.strings[pieces.near(pieces.vocab["T"], rng)] for _ in range(200)}
    assert "t" in near
    assert all(piece[0] in "tT" for piece in near)
    assert {pieces.near(pieces.vocab["他"], rng) for _ in range(20)} != {pieces.vocab["他"]}
    assert {pieces.strings[pieces.near(pieces.vocab["是"], rng)] for _ in range(20)} - {"是"}
    assert {pieces.near(pieces.phoneme("a"), rng) for _ in range(9)} == {pieces.phoneme("aː")}
    assert {pieces.near(pieces.phoneme("kʰ"), rng) for _ in range(9)} == {pieces.phoneme("k")}


def test_words_are_cut_at_spaces_and_chinese_characters(pieces: Pieces) -> None:
    words = pieces.words(pieces.encode("The cat sat there."), "en")
    assert [pieces.spell(word) for word in words] == ["The", "cat", "sat", "there."]
    ids = pieces.encode("罕见。")
    assert len(ids) > 3
    assert [pieces.spell(word) for word in pieces.words(ids, "zh")] == ["罕", "见", "。"]


def test_copy_is_the_clean_sentence(tasks: TextTasks, pieces: Pieces) -> None:
    example = tasks.make("The cat sat there.", "en", np.random.default_rng(0), "copy")
    ids = pieces.encode("The cat sat there.")
    assert example == TextExample([BOS, *ids, TRANSCRIBE], [TAGS["en"], *ids], "en", "copy")


def test_ctc_without_errors_collapses_to_the_target(tokenizer: PreTrainedTokenizerFast) -> None:
    for example in islice(only(tokenizer, "ctc", clean_share=1.0, join_share=0.5), 200):
        assert example.task == "ctc"
        assert collapse(body_of(example)) == example.target_ids[1:]
        assert example.target_ids[0] == TAGS[example.language]


def test_phonemes_hide_the_language_and_give_the_text(
    tokenizer: PreTrainedTokenizerFast, pieces: Pieces
) -> None:
    tasks = only(tokenizer, "phonemes", clean_share=1.0)
    example = tasks.make("The cat.", "en", np.random.default_rng(0))
    assert collapse(body_of(example)) == [pieces.phoneme(symbol) for symbol in say("The cat.", "en")]
    assert tokenizer.decode(example.target_ids[1:]) == "The cat."
    assert set(TAGS.values()).isdisjoint(example.prompt_ids)


def test_mixed_replaces_whole_words(tokenizer: PreTrainedTokenizerFast, pieces: Pieces) -> None:
    tasks = only(tokenizer, "mixed", clean_share=1.0)
    text = "This is the other thing that they thought."
    words = text.split()
    seen = Counter()
    for i in range(50):
        rest = collapse(body_of(tasks.make(text, "en", np.random.default_rng(i))))
        for word in words:
            for kind, ids in (
                ("text", pieces.encode(word)),
                ("ipa", [pieces.phoneme(s) for s in say(word, "en")]),
            ):
                if rest[: len(ids)] == ids:
                    rest, seen[kind] = rest[len(ids) :], seen[kind] + 1
                    break
            else:
                pytest.fail(f"{word!r} is neither text nor phonemes in example {i}")
        assert rest == []
    assert min(seen["text"], seen["ipa"]) > 100


def test_continuation_splits_at_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    tasks = only(tokenizer, "continuation")
    for i in range(20):
        example = tasks.make("The cat sat there.", "en", np.random.default_rng(i))
        assert (example.prompt_ids[0], example.prompt_ids[-1], example.target_ids[0]) == (BOS, CONTINUE, 7)
        first, rest = tokenizer.decode(body_of(example)), tokenizer.decode(example.target_ids[1:])
        assert f"{first} {rest}" == "The cat sat there."
    assert tasks.make("No.", "en", np.random.default_rng(0)).task == "copy"


def test_no_speech_gives_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for example in islice(only(tokenizer, "empty"), 100):
        assert (example.target_ids, example.language) == ([], "")
        body = body_of(example)
        assert body.count(BLANK) > 0.6 * len(body)


def test_without_strays_no_speech_is_blanks(tokenizer: PreTrainedTokenizerFast, pieces: Pieces) -> None:
    options = TextTaskOptions(copy=0, ctc=0, continuation=0, empty=1, stray_share=0)
    examples = list(islice(TextTasks(tokenizer, SENTENCES, None, options), 30))
    assert {token for example in examples for token in example.prompt_ids[1:-1]} == {pieces.blank}


def test_short_examples_are_one_to_three_words_of_a_sentence(
    tokenizer: PreTrainedTokenizerFast, pieces: Pieces
) -> None:
    options = TextTaskOptions(copy=1, ctc=0, continuation=0, empty=0, short_share=1, join_share=0)
    text = "one two three four five"
    tasks = TextTasks(tokenizer, {"en": [text]}, None, options)
    found = {tokenizer.decode(example.target_ids[1:]).strip() for example in islice(tasks, 200)}
    assert all(one in text and len(one.split()) <= 3 for one in found)
    assert {"one", "five", "two three", "two three four"} <= found


def test_targets_hold_a_tag_and_then_text_only(tasks: TextTasks, tokenizer: PreTrainedTokenizerFast) -> None:
    special = set(tokenizer.all_special_ids)
    allowed = special - {BLANK} - set(range(17, 17 + len(SYMBOLS)))
    for example in islice(tasks, 500):
        assert example.prompt_ids[0] == BOS
        assert example.prompt_ids[-1] == (CONTINUE if example.task == "continuation" else TRANSCRIBE)
        assert allowed.isdisjoint(body_of(example))
        if example.task != "empty":
            assert example.target_ids[0] == TAGS[example.language]
            assert len(example.target_ids) > 1
            assert special.isdisjoint(example.target_ids[1:])


def test_weights_and_languages_are_respected(tokenizer: PreTrainedTokenizerFast) -> None:
    options = TextTaskOptions(copy=1, ctc=3, phonemes=0, mixed=0, continuation=0, empty=0)
    examples = list(islice(TextTasks(tokenizer, SENTENCES, say, options), 3000))
    tasks, languages = Counter(e.task for e in examples), Counter(e.language for e in examples)
    assert tasks["ctc"] / 3000 == pytest.approx(0.75, abs=0.04)
    assert tasks["ctc"] + tasks["copy"] == 3000
    assert [languages[language] / 3000 for language in TAGS] == pytest.approx([1 / 3] * 3, abs=0.04)


def test_stream_is_deterministic_and_can_be_entered_anywhere(tokenizer: PreTrainedTokenizerFast) -> None:
    first = list(islice(TextTasks(tokenizer, SENTENCES, say, seed=5), 40))
    assert first == list(islice(TextTasks(tokenizer, SENTENCES, say, seed=5), 40))
    assert first[25:] == list(islice(TextTasks(tokenizer, SENTENCES, say, seed=5, start=25), 15))
    assert first != list(islice(TextTasks(tokenizer, SENTENCES, say, seed=6), 40))


def test_workers_share_the_stream_and_hear_of_the_curriculum(tokenizer: PreTrainedTokenizerFast) -> None:
    tasks = TextTasks(tokenizer, SENTENCES, None, TextTaskOptions(empty=0, join_share=0), seed=5)
    single = [tasks.example(i) for i in range(8)]
    loader = iter(DataLoader(tasks, batch_size=2, num_workers=2, collate_fn=list, prefetch_factor=1))
    batches = [next(loader) for _ in range(4)]
    # Worker 0 makes the even numbers, worker 1 the odd ones.
    expected = [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert batches == [[single[i] for i in batch] for batch in expected]
    shortest = max(len(tasks.pieces.encode(min(texts, key=len))) for texts in SENTENCES.values()) + 1
    tasks.max_target_tokens = shortest
    for _ in range(6):  # what was made ahead
        next(loader)
    lengths = [len(example.target_ids) for _ in range(20) for example in next(loader)]
    assert max(lengths) <= shortest


def test_short_sentences_first_and_long_ones_joined(tokenizer: PreTrainedTokenizerFast) -> None:
    tasks = only(tokenizer, "copy", join_share=1.0)
    tasks.max_target_tokens = 100
    examples = list(islice(tasks, 100))
    assert 60 < max(len(example.target_ids) for example in examples) <= 100
    for example in examples:
        assert tokenizer.encode(tokenizer.decode(example.target_ids[1:])) == example.target_ids[1:]
    with pytest.raises(RecipeError, match=r"max_target_tokens 2: the shortest \w\w target has"):
        tasks.max_target_tokens = 2


def test_repair_case_is_fixed_and_has_a_tenth_wrong(pieces: Pieces) -> None:
    text = "This is the other thing that they thought."
    case = repair_case(pieces, text, "en")
    assert case == repair_case(pieces, text, "en")
    assert case != repair_case(pieces, text, "en", seed=1)
    ids = pieces.encode(text)
    n_wrong = []
    for seed in range(100):
        case = repair_case(pieces, text, "en", seed)
        assert case.target_ids == [TAGS["en"], *ids]
        body = collapse(body_of(case))
        assert len(body) == len(ids)
        n_wrong.append(sum(a != b for a, b in zip(body, ids, strict=True)))
    assert set(n_wrong) <= {len(ids) // 10, len(ids) // 10 + 1}
    assert np.mean(n_wrong) == pytest.approx(len(ids) / 10, abs=0.15)


def test_bad_settings_are_named(tokenizer: PreTrainedTokenizerFast, tasks: TextTasks) -> None:
    with pytest.raises(RecipeError, match="copy is -1"):
        TextTaskOptions(copy=-1)
    with pytest.raises(RecipeError, match="max_error_rate is 2"):
        TextTaskOptions(max_error_rate=2)
    with pytest.raises(RecipeError, match="min_frames"):
        TextTaskOptions(min_frames=0.5)
    with pytest.raises(RecipeError, match="every weight is 0"):
        TextTaskOptions(copy=0, ctc=0, phonemes=0, mixed=0, continuation=0, empty=0)
    options = TextTaskOptions(copy=0, ctc=0, continuation=0, empty=0)
    with pytest.raises(RecipeError, match="no phonemizer"):
        TextTasks(tokenizer, SENTENCES, None, options)
    with pytest.raises(DataError, match="no sentences for fr"):
        TextTasks(tokenizer, {"fr": []}, None)
    with pytest.raises(DataError, match="'xx'"):
        TextTasks(tokenizer, {"xx": ["text"]}, None)
    with pytest.raises(RecipeError, match="'sing'"):
        tasks.make("No.", "en", np.random.default_rng(0), "sing")
    with pytest.raises(DataError, match="not empty"):
        tasks.make("", "en", np.random.default_rng(0))


def test_espeak_gives_symbols_of_the_list() -> None:
    from canvas_asr.synthesis import espeak
    from canvas_asr.synthesis.phonemes import PHONEMES

    if not espeak.available():
        pytest.skip("espeak-ng is not installed")
    for text, language in (("good morning", "en"), ("नमस्ते", "hi"), ("你好", "zh")):
        symbols = espeak_phonemes(text, language)
        assert len(symbols) > 3
        assert set(symbols) <= set(PHONEMES)
    assert espeak_phonemes("你好", "zh")[0] == "n"
