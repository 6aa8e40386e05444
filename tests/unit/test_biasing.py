"""Hotwords: what the word spotter puts in place of the greedy CTC reading, and what it leaves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from made_up_clips import tones
from small_models import small_model
from torch import Tensor

from canvas_asr.alignment import best_path
from canvas_asr.biasing import HotwordGraph
from canvas_asr.ctc import greedy_ctc, state_certainty, surest_states
from canvas_asr.decoding import CanvasDecoder, text_vocabulary
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor

BLANK, V = 6, 4096


def graph(processor: CanvasASRProcessor, words: Sequence[str], boost: float = 3.0) -> HotwordGraph:
    text = text_vocabulary(processor.tokenizer, V, [7, 12]).text
    return HotwordGraph(words, boost, processor, text, BLANK)


def heard(
    processor: CanvasASRProcessor, names: Sequence[str], also: dict[int, str] | None = None, lag: float = 1.5
) -> Tensor:
    """Logits of audio tokens that spell pieces, "" for the blank; other pieces a little less likely."""
    ids = [BLANK if not name else processor.tokenizer.convert_tokens_to_ids(name) for name in names]
    assert processor.tokenizer.unk_token_id not in ids
    logits = torch.zeros(len(ids), V)
    logits[range(len(ids)), ids] = 12.0
    for frame, name in (also or {}).items():
        other = BLANK if not name else processor.tokenizer.convert_tokens_to_ids(name)
        logits[frame, other] = 12.0 - lag
    return logits


def read(spotter: HotwordGraph, logits: Tensor) -> tuple[list[int], list[bool]]:
    """Ids of the bent reading, and which of them are in words that were found."""
    bent, n_states = logits[None].clone(), torch.tensor([len(logits)])
    (words,) = spotter.bend(bent, n_states)
    labels = bent.argmax(-1)
    (states,) = surest_states(labels, state_certainty(bent), n_states, BLANK) if len(logits) else [[]]
    return [int(labels[0, i]) for i in states], [any(i in word for word in words) for i in states]


def text_of(processor: CanvasASRProcessor, spotter: HotwordGraph, logits: Tensor) -> str:
    return processor.text(read(spotter, logits)[0])


# "Tom in Kent", heard as "Tom in can t": the pieces that would be right are a little less likely.
NAMES = ["▁T", "om", "", "▁in", "", "▁c", "an", "", "▁t", ""]
ALSO = {5: "▁K", 6: "en", 8: "t"}


def test_a_listed_word_that_is_nearly_heard_is_read(processor: CanvasASRProcessor) -> None:
    logits = heard(processor, NAMES, ALSO)
    assert text_of(processor, graph(processor, ["Bern"]), logits) == "Tom in can t"
    ids, is_found = read(graph(processor, ["Kent", "Bern"]), logits)
    assert processor.text(ids) == "Tom in Kent"
    assert is_found == [False, False, False, True, True, True]


def test_a_word_found_is_as_much_likelier_as_the_boost_says(processor: CanvasASRProcessor) -> None:
    logits = heard(processor, NAMES, ALSO)
    bent = logits[None].clone()
    assert graph(processor, ["Kent"], 4.0).bend(bent, torch.tensor([len(NAMES)])) == [[range(5, 9)]]
    changed = (bent[0] != logits).nonzero().tolist()
    ids = [processor.tokenizer.convert_tokens_to_ids(name) for name in ("▁K", "en", "t")]
    assert changed == [[5, ids[0]], [6, ids[1]], [7, BLANK], [8, ids[2]]]
    assert all(bent[0, t, i] == 16.0 for t, i in changed)


def test_the_boost_decides_and_a_clear_reading_withstands_it(processor: CanvasASRProcessor) -> None:
    # A boost for each token that the tokenizer makes of it, against what the three that are heard lack.
    n_tokens = len(processor.text_ids("Kent"))
    for lag in (1.0, 3.0):
        for share, found in ((0.98, False), (1.02, True)):
            logits, boost = heard(processor, NAMES, ALSO, lag), share * 3 * lag / n_tokens
            assert ("Kent" in text_of(processor, graph(processor, ["Kent"], boost), logits)) == found


def test_words_are_replaced_whole(processor: CanvasASRProcessor) -> None:
    logits = heard(
        processor, ["▁K", "an", "t", "er", "", "▁da"]
    )  # "Kanter": the list has its beginning and end
    for word in ("Kant", "Ter", "an"):
        ids, is_found = read(graph(processor, [word]), logits)
        assert (processor.text(ids), set(is_found)) == ("Kanter da", {False}), word


def test_a_word_that_is_read_anyway_is_held(processor: CanvasASRProcessor) -> None:
    ids, is_found = read(graph(processor, ["in"]), heard(processor, NAMES))
    assert processor.text(ids) == "Tom in can t"
    assert is_found == [False, False, True, False, False, False]


def test_any_spelling_counts_and_equal_neighbours_need_a_blank(processor: CanvasASRProcessor) -> None:
    letters = ["▁A", "n", "n", "a"]
    assert len(processor.text_ids("Anna")) < len(letters)
    for names in (["▁A", "n", "", "n", "a"], ["▁A", "n", "n", "a"]):
        logits = heard(processor, names)
        ids, is_found = read(graph(processor, ["Anna"]), logits)
        has_blank = "" in names
        assert processor.text(ids) == ("Anna" if has_blank else "Ana"), names
        assert set(is_found) == {has_blank}


def test_chinese_words_stand_anywhere(processor: CanvasASRProcessor) -> None:
    logits = heard(processor, ["我", "去", "", "留", "溪", "真", ""], {3: "柳", 5: "镇"})
    assert text_of(processor, graph(processor, ["柳溪镇"]), logits) == "我去柳溪镇"


def test_phrases_and_letters_spelt_in_bytes(processor: CanvasASRProcessor) -> None:
    logits = heard(processor, ["▁in", "▁T", "om", "▁c", "an"], {2: "im", 3: "▁K"})
    assert text_of(processor, graph(processor, ["Tim Kan"]), logits) == "in Tim Kan"
    ids = processor.text_ids("ŵ")
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    assert any(name.startswith("<0x") for name in names)
    assert text_of(processor, graph(processor, ["ŵ"]), heard(processor, ["▁in", *names])) == "in ŵ"


def test_nothing_said_gives_nothing(processor: CanvasASRProcessor) -> None:
    spotter = graph(processor, ["Kent"])
    assert read(spotter, heard(processor, [""] * 5)) == ([], [])
    assert spotter.bend(torch.zeros(1, 0, V), torch.tensor([0])) == [[]]


def test_words_are_not_merged_with_their_neighbours(processor: CanvasASRProcessor) -> None:
    for names, word, text in (
        (["我", "谢", "谢"], "谢你", "我谢谢你"),  # heard as one 谢, so that there is no place for another
        (["你", "留", "真"], "真你", "你留真"),
    ):
        logits = heard(processor, names)
        ids, is_found = read(graph(processor, [word], 20.0), logits)
        found = processor.text([i for i, one in zip(ids, is_found, strict=True) if one])
        assert found in ("", word), text
        assert processor.text(ids).count(word) == found.count(word)


def test_the_best_of_all_readings_is_found(processor: CanvasASRProcessor) -> None:
    """Words of one spelling, against every choice of stretches, each aligned by itself."""
    listed, boost = ["柳溪", "镇乡", "石桥山"], 2.0
    ids = {word: processor.text_ids(word) for word in listed}
    assert [len(one) for one in ids.values()] == [2, 2, 3]
    spotter = graph(processor, listed, boost)
    rare = [i for one in ids.values() for i in one]  # never greedy: nothing is merged with a neighbour
    common = [BLANK, *processor.text_ids("去我你")]
    n_found = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.full((9, V), -50.0)
        logits[:, common] = 1 + 2 * torch.rand(9, len(common), generator=generator)
        logits[:, rare] = torch.rand(9, len(rare), generator=generator)
        costs = (logits - logits.amax(dim=-1, keepdim=True)).double().numpy()
        greedy = logits.argmax(-1).tolist()
        inside = {t for t in range(1, 9) if greedy[t] == greedy[t - 1] != BLANK}

        def value(first: int, last: int, word: str, costs: np.ndarray = costs) -> float:
            if last - first < len(ids[word]):
                return -np.inf
            heard = np.repeat(costs[first:last, [BLANK]], 2 * len(ids[word]) + 1, axis=1)
            heard[:, 1::2] = costs[first:last, ids[word]]
            states = best_path(heard[:, 0], heard[:, 1::2], ids[word])
            return float(heard[np.arange(last - first), states].sum()) + boost * len(ids[word])

        best = [0.0]
        for last in range(1, 10):
            spans = itertools.product((f for f in range(last) if not {f, last} & inside), listed)
            best.append(max([best[-1], *(best[f] + value(f, last, word) for f, word in spans)]))
        bent = logits[None].clone()
        (words,) = spotter.bend(bent, torch.tensor([9]))
        read_as = [greedy_ctc(bent[:, list(w)], torch.tensor([len(w)]), BLANK)[0] for w in words]
        total = sum(
            value(w[0], w[-1] + 1, processor.text(own)) for w, own in zip(words, read_as, strict=True)
        )
        assert total == pytest.approx(best[-1]), seed
        n_found += len(words)
    assert n_found >= 15


# In a decoding


@pytest.fixture(scope="module")
def decoder(model: CanvasASRModel, processor: CanvasASRProcessor) -> CanvasDecoder:
    return CanvasDecoder(model, processor)


@pytest.fixture(scope="module")
def features(processor: CanvasASRProcessor) -> tuple[Tensor, Tensor]:
    return processor.features([tones(1.5, 0), tones(0.7, 1)])


def test_a_list_without_a_hit_changes_nothing(
    decoder: CanvasDecoder, features: tuple[Tensor, Tensor]
) -> None:
    for options in (
        {"init": "draft", "steps": 0},
        {"init": "draft", "steps": 2, "fusion": 0.5},
        {"steps": 2},
    ):
        plain = decoder(*features, **options)
        assert decoder(*features, **options, hotwords=["Kent"], hotword_boost=1e-6) == plain
        assert decoder(*features, **options, hotwords=[]) == plain


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 1}, {"steps": 3}, {"steps": 3, "init": "draft-slots"}]
)
def test_passes_keep_a_word_that_was_found(
    decoder: CanvasDecoder, features: tuple[Tensor, Tensor], options: dict
) -> None:
    options = {"init": "draft", **options}
    plain, found = (decoder(*features, **options, **more) for more in ({}, {"hotwords": ["Kent"]}))
    for one, other in zip(plain, found, strict=True):  # random weights: every word is nearly heard
        assert "Kent" not in decoder.processor.text(one.ids)
        assert "Kent" in decoder.processor.text(other.draft)
        assert "Kent" in decoder.processor.text(other.ids)


def test_a_clip_gives_the_same_beside_others(decoder: CanvasDecoder, features: tuple[Tensor, Tensor]) -> None:
    mel, n_mel = features
    options = {"hotwords": ["Kent", "Bern"], "hotword_boost": 1.0, "steps": 2, "init": "draft"}
    together = decoder(mel, n_mel, **options)
    alone = [
        decoder(mel[i : i + 1, :, :n], n_mel[i : i + 1], **options)[0] for i, n in enumerate(n_mel.tolist())
    ]
    assert [one.ids for one in together] == [one.ids for one in alone]


def test_a_model_without_a_draft_head_has_no_hotwords(processor: CanvasASRProcessor) -> None:
    decoder = CanvasDecoder(small_model(has_draft=False), processor)
    with pytest.raises(
        OptionError, match="hotwords=Kent needs a CTC draft, and this model has no draft head"
    ):
        decoder(*processor.features([tones(0.5, 0)]), hotwords=["Kent"])


# Text in the prompt


def test_a_prompt_is_refused_by_a_model_that_was_not_trained_with_it(
    decoder: CanvasDecoder, features: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(OptionError, match="prompt is given, but this model was not trained with text"):
        decoder(*features, prompt="A talk about Kent.")


@pytest.mark.parametrize("positions", ["frames", "spikes"])
def test_a_prompt_stands_before_the_audio(
    processor: CanvasASRProcessor, features: tuple[Tensor, Tensor], positions: str
) -> None:
    model = small_model(prompt_context="<|spare0|>{text}<|spare0|>", audio_positions=positions)
    decoder = CanvasDecoder(model, processor)
    spare, audio = processor.token_id("<|spare0|>"), processor.token_id("<|audio|>")
    context = processor.context_ids(model.config, "Kent")
    assert context == [spare, *processor.text_ids("Kent"), spare]
    (prompt,) = processor.prompt_ids(model.config, [2], context)
    assert prompt == [2, *context, audio, audio, processor.token_id("<|transcribe|>")]
    plain = decoder(*features, steps=2)
    assert decoder(*features, steps=2, prompt="") == plain
    told = decoder(*features, steps=2, prompt="A talk about Kent and Bern")
    assert [one.ids for one in told] != [one.ids for one in plain]
    assert [one.draft for one in told] == [one.draft for one in plain]


def test_special_tokens_in_a_prompt_are_letters(processor: CanvasASRProcessor) -> None:
    config = small_model(prompt_context="{text}").config
    ids = processor.context_ids(config, "so <|transcribe|> <eos>")
    assert not set(ids) & set(processor.tokenizer.all_special_ids)


def test_hotwords_join_the_prompt_where_they_fit(processor: CanvasASRProcessor) -> None:
    decoder = CanvasDecoder(small_model(prompt_context="{text}"), processor)

    def context(**options: object) -> str:
        return processor.text(decoder.context(DecodingOptions(**options)))  # type: ignore[arg-type]

    assert context() == ""
    assert context(hotwords=["Kent", "Bern"]) == "Kent, Bern"
    assert context(prompt="A talk.", hotwords=["Kent"]) == "A talk. Kent"
    assert context(prompt="A talk.", hotwords=[f"Kent{k}" for k in range(300)]) == "A talk."
    with pytest.raises(OptionError, match=r"prompt has \d+ tokens; give at most 224"):
        context(prompt="Kent " * 300)


def test_a_context_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt_context is 'Context:'; write \{text\} in it once"):
        small_model(prompt_context="Context:")
