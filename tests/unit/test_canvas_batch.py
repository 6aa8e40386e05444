"""Batches that canvases and clips join and leave: what each gives does not depend on the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_up_clips import tones
from small_models import small_model
from torch import Tensor

from canvas_asr import Transcriber, sampler
from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.backbone import encode_prefix, join_caches, keys_values, select_cache
from canvas_asr.clip_batch import ClipBatch
from canvas_asr.ctc import greedy_ctc
from canvas_asr.cuda_graphs import GraphedBackbone
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Decoded
from canvas_asr.strategies import fusion
from canvas_asr.strategies.acceptance import SureEnough

CLIPS = [tones(duration_s, seed) for seed, duration_s in enumerate((0.7, 1.9, 0.1, 1.2, 0.4))]
# Thresholds at which the random model's clips part: some are done at once, some never.
OPTIONS: dict[str, dict[str, Any]] = {
    "slots": {"init": "draft-slots", "steps": 2, "canvas": "auto"},
    "draft threshold": {"init": "draft", "steps": 1, "draft_threshold": 0.0003},
    "draft as signal": {"steps": 2, "self_conditioning": "draft"},
    "posterior as signal": {"init": "draft", "steps": 1, "self_conditioning": "posterior"},
    "entropy bound": {"steps": 3, "acceptance": "entropy-bound", "entropy_bound": 30.0},
    "threshold": {"steps": 4, "acceptance": "threshold", "accept_threshold": 0.0006},
    "stable": {"init": "draft", "steps": 6, "stop_entropy": 8.3, "stability": 1},
    "fusion": {"init": "draft", "steps": 3, "fusion": 0.7, "canvas": "auto"},
    "candidates": {"steps": 2, "candidates": 3, "risk": "characters"},
}


@pytest.fixture(scope="module")
def decoder(model: CanvasASRModel, processor: CanvasASRProcessor) -> CanvasDecoder:
    return CanvasDecoder(model, processor)


def alone(decoder: CanvasDecoder, clip: int, **options: Any) -> Decoded:
    canvas = options.pop("canvas", None)
    (result,) = decoder(*decoder.processor.features([CLIPS[clip]]), canvas_length=canvas, **options)
    return result


def add(batch: ClipBatch, *clips: int) -> None:
    batch.add(*batch.decoder.processor.features([CLIPS[i] for i in clips]), clips)


def drain(batch: ClipBatch) -> dict[int, Decoded]:
    found = dict(batch.take())
    while len(batch):
        batch.run_pass()
        found.update(batch.take())
    return found


# Clips


@pytest.mark.parametrize("name", OPTIONS)
def test_clips_that_join_later_give_what_each_gives_alone(decoder: CanvasDecoder, name: str) -> None:
    options = OPTIONS[name]
    batch = decoder.open(DecodingOptions(**options))
    add(batch, 0, 1)
    found = dict(batch.take())
    for clip in (2, 3):
        if len(batch):
            batch.run_pass()
            found.update(batch.take())
        add(batch, clip)
    found.update(drain(batch))
    assert sorted(found) == [0, 1, 2, 3]
    for clip, result in found.items():
        expected = alone(decoder, clip, **options)
        assert (result.ids, result.passes, result.language, result.truncated) == (
            expected.ids,
            expected.passes,
            expected.language,
            expected.truncated,
        )
        assert result.confidences == pytest.approx(expected.confidences, rel=1e-3)


def test_clips_that_are_done_leave_and_the_others_go_on(decoder: CanvasDecoder) -> None:
    sizes = []
    run_pass = sampler.read_pass

    def record(backbone: Any, canvas: Tensor, *rest: Any, **named: Any) -> Any:
        sizes.append(len(canvas))
        return run_pass(backbone, canvas, *rest, **named)

    # Between the least sure token of one clip and that of another.
    options = {"init": "draft", "steps": 5, "acceptance": "threshold"}
    least = sorted(
        min(one.confidences) for one in (alone(decoder, i, **{**options, "steps": 1}) for i in (0, 1, 3))
    )
    batch = decoder.open(DecodingOptions(**options, accept_threshold=(least[1] + least[2]) / 2))
    batch._canvases._run = record
    add(batch, 0, 1, 3)
    found = drain(batch)
    assert sizes[0] == 3
    assert sizes[-1] < 3
    passes = sorted(result.passes for result in found.values())
    assert passes[0] == 1
    assert sum(sizes) == sum(passes)


def test_a_pass_is_shown_with_the_clips_it_was_for(decoder: CanvasDecoder) -> None:
    batch = decoder.open(DecodingOptions(steps=3, candidates=2))
    add(batch, 0)
    batch.run_pass()
    add(batch, 1)
    batch.run_pass()
    last = batch.shown()
    assert (last.keys, last.steps, len(last.canvas)) == ([0, 1], [2, 1], 2)
    assert len(batch) == 2


def test_the_candidates_are_what_the_next_seeds_give(decoder: CanvasDecoder) -> None:
    one_by_one = [alone(decoder, 1, steps=2, seed=seed) for seed in (5, 6, 7)]
    assert len({tuple(one.ids) for one in one_by_one}) == 3
    chosen = alone(decoder, 1, steps=2, seed=5, candidates=3)
    assert chosen.ids in [one.ids for one in one_by_one]


def test_where_every_frame_is_certain_the_draft_is_the_answer(decoder: CanvasDecoder) -> None:
    mel, n_mel = decoder.processor.features(CLIPS)
    seen: list[tuple[int, Tensor]] = []
    with torch.no_grad():
        tokens, n_audio = decoder.model.audio_tokens(mel, n_mel)
        sure = decoder.model.ctc_logits(tokens).softmax(dim=-1).amax(dim=-1)
    least = [float(row[:n].min()) for row, n in zip(sure, n_audio.tolist(), strict=True)]
    gate = sorted(least)[2]
    results = decoder(mel, n_mel, init="draft", steps=2, gate=gate, on_pass=lambda n, c: seen.append((n, c)))
    assert [one.passes for one in results] == [0 if certain >= gate else 2 for certain in least]
    assert sorted(one.passes for one in results) == [0, 0, 0, 2, 2]
    for place, one in enumerate(results):
        if one.passes == 0:
            assert one.ids == one.draft
            assert len(one.confidences) == len(one.ids)
            assert seen[-1][1][place].tolist()[: len(one.ids)] == one.ids
    assert [step for step, _ in seen] == [1, 2]
    everything = decoder(mel, n_mel, init="draft", steps=2, gate=1e-9, language="de")
    assert {(one.passes, one.language) for one in everything} == {(0, "de")}


def test_the_canvas_follows_the_draft(decoder: CanvasDecoder) -> None:
    shapes: list[tuple[int, ...]] = []
    mel, n_mel = decoder.processor.features(CLIPS[2:3])
    for draft in ([], [500] * 40):
        decoder(
            mel,
            n_mel,
            steps=1,
            init="draft",
            drafts=[draft],
            canvas_length="auto",
            on_pass=lambda _, canvas: shapes.append(tuple(canvas.shape)),
        )
    # The random model writes no end token: its text fills every canvas, up to the longest.
    assert shapes == [(1, 16), (1, 32), (1, 64), (1, 64)]


def test_a_text_that_fills_its_canvas_is_decoded_on_a_longer_one(decoder: CanvasDecoder) -> None:
    result = alone(decoder, 2, steps=2, canvas="auto", seed=3)
    longest = alone(decoder, 2, steps=2, canvas=64, seed=3)
    assert result.ids == longest.ids
    assert (result.passes, result.truncated) == (6, True)
    given = alone(decoder, 2, steps=2, canvas=16, seed=3)
    assert (len(given.ids), given.passes, given.truncated) == (15, 2, True)


def test_a_draft_that_does_not_fit_its_canvas_is_marked(
    decoder: CanvasDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the pass ends the text before."""
    eos = decoder.vocabulary.eos

    def logits(backbone: Any, hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.full(hidden.shape[:-1], eos), 4096) * 9.0

    monkeypatch.setattr(sampler, "output_logits", logits)
    mel, n_mel = decoder.processor.features(CLIPS[2:3])
    for n_tokens, truncated in ((14, False), (15, True)):
        options: dict[str, Any] = {"init": "draft", "steps": 1, "drafts": [[500] * n_tokens]}
        assert decoder(mel, n_mel, canvas_length=16, **options)[0].truncated is truncated


def test_with_fusion_a_likely_token_of_the_tap_wins_where_the_pass_wavers(
    decoder: CanvasDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mel, n_mel = decoder.processor.features(CLIPS[:1])
    draft = decoder(mel, n_mel, init="draft", steps=0)[0].ids
    monkeypatch.setattr(fusion, "FLOOR", 1e-6)  # a random model is sure of nothing
    monkeypatch.setattr(
        sampler, "output_logits", lambda backbone, hidden: torch.zeros(*hidden.shape[:-1], 4096)
    )
    fused = decoder(mel, n_mel, init="draft", steps=1, fusion=1.0, language="en")[0]
    n_shown = min(len(draft), 31)
    text = [token for token in draft[:n_shown] if decoder.vocabulary.text[token]]
    assert len(text) > 3
    assert [token for token in fused.ids[:n_shown] if token in text] == text


# Options against a model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "draft"}, "init=draft needs a CTC draft, and this model has no draft head"),
        ({"init": "draft", "steps": 0}, "init=draft needs a CTC draft"),
        ({"init": "draft-slots"}, "init=draft-slots needs"),
        ({"canvas": "auto"}, "canvas=auto needs"),
        ({"self_conditioning": "posterior"}, "self_conditioning=posterior needs"),
        ({"fusion": 0.5}, "fusion=0.5 needs"),
        ({"gate": 0.9}, "gate=0.9 needs"),
    ],
)
def test_a_model_without_a_draft_head_refuses_what_needs_one(
    processor: CanvasASRProcessor, options: dict[str, Any], message: str
) -> None:
    asr = Transcriber(small_model(has_draft=False), processor)
    assert not asr.has_draft
    with pytest.raises(OptionError, match=message):
        asr.transcribe((CLIPS[0], SAMPLE_RATE_HZ), **options)


def test_a_model_without_a_draft_head_reads_from_noise(processor: CanvasASRProcessor) -> None:
    transcript = Transcriber(small_model(has_draft=False), processor).transcribe(
        (CLIPS[0], SAMPLE_RATE_HZ), steps=1
    )
    assert transcript.draft is None
    assert transcript.passes == 1


# Transcribers


@pytest.mark.parametrize("name", ["stable", "threshold", "candidates"])
def test_a_list_with_clips_that_leave_early_gives_what_each_clip_gives(
    model: CanvasASRModel, processor: CanvasASRProcessor, name: str
) -> None:
    asr = Transcriber(model, processor)
    clips = [(clip, SAMPLE_RATE_HZ) for clip in CLIPS]
    seen: list[tuple[int, int]] = []
    found = asr.transcribe(clips, batch_size=2, on_pass=lambda i, n, _: seen.append((i, n)), **OPTIONS[name])
    for place, (clip, transcript) in enumerate(zip(clips, found, strict=True)):
        expected = asr.transcribe(clip, **OPTIONS[name])
        assert (transcript.text, transcript.passes) == (expected.text, expected.passes)
        assert [n for i, n in seen if i == place] == list(range(1, transcript.passes + 1))
        assert transcript.seconds > 0


def test_clips_of_which_only_later_candidates_take_further_passes(
    model: CanvasASRModel, processor: CanvasASRProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All canvases but the last are done at once."""
    monkeypatch.setattr(
        SureEnough, "done", lambda _, seen: torch.arange(len(seen.canvas)) < len(seen.canvas) - 1
    )
    transcript = Transcriber(model, processor).transcribe(
        (CLIPS[2], SAMPLE_RATE_HZ), steps=3, candidates=2, acceptance="threshold"
    )
    assert transcript.passes in (1, 3)
    assert transcript.seconds > 0


# Caches and recordings


def test_joined_caches_hold_each_ones_rows(model: CanvasASRModel) -> None:
    embed = model.backbone.get_input_embeddings()
    with torch.no_grad():
        caches = [encode_prefix(model.backbone, embed(torch.full((n, p), 9)))[1] for n, p in ((2, 3), (1, 5))]
    joined = join_caches(caches)
    for cache, rows in zip(caches, ([0, 1], [2]), strict=True):
        chosen = select_cache(joined, torch.tensor(rows))
        for ours, theirs in zip(keys_values(chosen), keys_values(cache), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a[:, :, : b.shape[2]], b)
                assert not a[:, :, b.shape[2] :].any()


@pytest.mark.parametrize("name", ["threshold", "fusion", "entropy bound"])
def test_recorded_passes_keep_their_shape_while_clips_come_and_go(
    processor: CanvasASRProcessor, name: str
) -> None:
    plain = CanvasDecoder(small_model(), processor)
    recorded = CanvasDecoder(small_model(), processor, cuda_graphs=True)
    assert isinstance(recorded.graphs, GraphedBackbone)
    options = {**OPTIONS[name], "canvas": 24}
    batch = recorded.open(DecodingOptions(**options))
    add(batch, 0, 3)
    found: dict[int, Decoded] = {}
    waiting = [4, 2]
    while len(batch):
        batch.run_pass()
        found.update(batch.take())
        if waiting and len(batch) < 2:
            add(batch, waiting.pop())
    assert {n_batch for n_batch, _ in recorded.graphs._shapes if n_batch > 1} == {2}
    for clip, result in found.items():
        assert result.ids == alone(plain, clip, **options).ids


def test_the_reading_of_states_is_the_greedy_one(decoder: CanvasDecoder) -> None:
    """The draft is the same whether or not anything else is asked of the tap."""
    mel, n_mel = decoder.processor.features(CLIPS)
    with torch.no_grad():
        tokens, n_audio = decoder.model.audio_tokens(mel, n_mel)
        expected = greedy_ctc(decoder.model.ctc_logits(tokens), n_audio, decoder.config.blank_token_id)
    for options in ({}, {"fusion": 0.5}, {"self_conditioning": "posterior"}):
        assert [one.draft for one in decoder(mel, n_mel, steps=1, **options)] == expected
