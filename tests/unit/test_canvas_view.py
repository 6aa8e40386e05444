"""What those who watch are told of every pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from made_up_clips import tones
from small_models import small_model

from canvas_asr import CanvasView, Transcriber
from canvas_asr.canvas_view import spelled, view_canvases
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor

RATE_HZ = 16_000
CLIPS = [(tones(seconds, seed), RATE_HZ) for seed, seconds in enumerate((1.3, 0.4, 0.9))]


@pytest.fixture(scope="module")
def asr(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    return Transcriber(model, processor)


def watch(asr: Transcriber, source: Any, **options: Any) -> tuple[Any, dict[int, list[CanvasView]]]:
    views: dict[int, list[CanvasView]] = {}
    found = asr.transcribe(
        source, on_canvas=lambda view: views.setdefault(view.place, []).append(view), **options
    )
    return found, views


def test_every_pass_of_every_clip_is_shown_and_the_last_is_the_transcript(asr: Transcriber) -> None:
    found, views = watch(asr, CLIPS, steps=3, batch_size=2)
    assert sorted(views) == [0, 1, 2]
    for place, passes in views.items():
        assert [view.step for view in passes] == [1, 2, 3]
        last = passes[-1]
        assert [token.id for token in last.tokens] == [token.id for token in found[place].tokens]
        assert [t.confidence for t in last.tokens] == [t.confidence for t in found[place].tokens]
        assert (last.text, last.language) == (found[place].text, found[place].language)
        assert last.kept is None
        assert all(view.kept is not None and len(view.kept) == len(view.tokens) for view in passes[:-1])


def test_what_is_kept_stands_on_the_next_canvas_and_the_rest_is_noise_again(asr: Transcriber) -> None:
    batch = asr.decoder.open(DecodingOptions(steps=3))
    batch.add(*asr.processor.features([clip for clip, _ in CLIPS]), range(3))
    batch.run_pass()
    last = batch.shown()
    views = list(view_canvases(batch))
    batch.run_pass()
    following = batch.shown()
    assert last.kept is not None
    assert torch.equal(following.before[last.kept], last.canvas[last.kept])
    assert (following.before[~last.kept] != last.canvas[~last.kept]).float().mean() > 0.9
    for row, view in enumerate(views):
        assert view.kept == tuple(last.kept[row, 1 : 1 + len(view.tokens)].tolist())
        assert 0 < sum(view.kept) < len(view.kept)


def test_the_first_canvas_is_the_noise_or_the_draft(asr: Transcriber) -> None:
    draft, drafted = watch(asr, CLIPS[0], steps=1, init="draft")
    _, random = watch(asr, CLIPS[0], steps=1)
    assert "".join(drafted[0][0].before).strip() == draft.draft
    assert len(random[0][0].before) == 31  # all places of a canvas of 32 but the tag's


def test_ids_that_are_no_text_have_none(asr: Transcriber) -> None:
    _, views = watch(asr, CLIPS, steps=3)
    for passes in views.values():
        for view in passes:
            assert not any("<|" in text or "<pad>" in text for text in view.before)


def test_a_blank_on_a_canvas_takes_no_space_from_the_next_word(processor: CanvasASRProcessor) -> None:
    decoder = CanvasDecoder(small_model(canvas_places="draft"), processor)
    words, blank = [processor.text_ids(text) for text in ("the", "cat")], decoder.config.blank_token_id
    for ids in ([*words[0], blank, *words[1]], [blank, *words[0], *words[1], blank]):
        texts = spelled(decoder, ids)
        assert [text for i, text in zip(ids, texts, strict=True) if i == blank] == [""] * ids.count(blank)
        assert "".join(texts) == "the cat"


def test_of_canvases_of_several_lengths_each_shows_its_own_places(asr: Transcriber) -> None:
    _, views = watch(asr, CLIPS, steps=2, init="draft", canvas="auto")
    for passes in views.values():
        assert all(len(view.tokens) <= 64 and len(view.before) <= 64 for view in passes)


def test_of_several_candidates_the_first_is_shown(asr: Transcriber) -> None:
    _, views = watch(asr, CLIPS[0], steps=2, candidates=3)
    _, alone = watch(asr, CLIPS[0], steps=2)
    assert [view.text for view in views[0]] == [view.text for view in alone[0]]


def test_watching_changes_nothing_and_its_time_is_not_counted(
    asr: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("canvas_asr.piece_batch.time.perf_counter", lambda: clock[0])

    def dawdle(_: CanvasView) -> None:
        clock[0] += 100.0

    watched = asr.transcribe(CLIPS[0], steps=2, on_canvas=dawdle)
    assert watched == asr.transcribe(CLIPS[0], steps=2)
    assert watched.seconds < 100


def test_without_a_watcher_no_canvas_is_read(asr: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvas_asr.canvas_batch.LastPass.select", None)
    assert asr.transcribe(CLIPS[0], steps=2).passes == 2


def test_a_canvas_without_tags_shows_the_language_that_was_given(
    asr: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr.decoder, "languages", {})
    monkeypatch.setattr(asr.decoder, "vocabulary", replace(asr.decoder.vocabulary, tags=()))
    _, views = watch(asr, CLIPS[0], steps=1, language="fr")
    assert views[0][0].language == "fr"
    assert len(views[0][0].before) == 32
