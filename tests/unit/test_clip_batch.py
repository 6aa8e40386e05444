"""Clips of one batch with options of their own; clips set aside, resumed and removed between passes."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_clips import tones

from canvas_asr.clip_batch import ClipBatch, shared_options
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Decoded

CLIPS = [tones(duration_s, seed) for seed, duration_s in enumerate((0.7, 1.9, 0.1, 1.2))]


@pytest.fixture(scope="module")
def decoder(model: CanvasASRModel, processor: CanvasASRProcessor) -> CanvasDecoder:
    return CanvasDecoder(model, processor)


def add(batch: ClipBatch, *clips: int, **given: Any) -> None:
    batch.add(*batch.decoder.processor.features([CLIPS[i] for i in clips]), clips, **given)


def drain(batch: ClipBatch) -> dict[int, Decoded]:
    while len(batch):
        batch.run_pass()
    return dict(batch.take())


def alone(decoder: CanvasDecoder, clip: int, options: DecodingOptions) -> Decoded:
    batch = decoder.open(options)
    add(batch, clip)
    return drain(batch)[clip]


def check(found: Decoded, expected: Decoded) -> None:
    assert (found.ids, found.passes, found.language) == (expected.ids, expected.passes, expected.language)
    assert found.language_confidence == pytest.approx(expected.language_confidence, rel=1e-3)
    assert found.spans == expected.spans


@pytest.mark.parametrize("steps", [0, 3])
def test_language_seed_and_word_times_are_each_clips_own(decoder: CanvasDecoder, steps: int) -> None:
    own = [
        DecodingOptions(language="de", steps=steps, init="draft"),
        DecodingOptions(seed=7, steps=steps, init="draft", word_timestamps=True),
        DecodingOptions(steps=steps, init="draft"),
        DecodingOptions(language="zh", steps=steps, init="draft", word_timestamps=True),
    ]
    batch = decoder.open(shared_options(own[0]))
    add(batch, 0, 1, options=own[:2])
    if steps:
        batch.run_pass()
        assert [batch.given_language(key) for key in (0, 1)] == ["de", ""]
    add(batch, 2, 3, options=own[2:])
    found = drain(batch)
    for clip, options in enumerate(own):
        check(found[clip], alone(decoder, clip, options))
    assert [found[clip].spans is None for clip in range(4)] == [True, False, True, False]


def test_options_of_another_batch_are_refused(decoder: CanvasDecoder) -> None:
    batch = decoder.open(DecodingOptions(steps=2))
    with pytest.raises(ValueError, match="differ in language, seed"):
        add(batch, 0, options=[DecodingOptions(steps=3)])
    assert not len(batch)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("given", [{}, {"self_conditioning": "draft"}, {"candidates": 2}])
def test_clips_that_are_set_aside_go_on_where_they_were(
    decoder: CanvasDecoder, given: dict[str, Any], compact: bool
) -> None:
    options = DecodingOptions(steps=4, init="draft", **given)
    batch = decoder.open(options)
    batch._canvases.compact = compact
    add(batch, 0, 1, 2)
    batch.run_pass()
    batch.pause({0, 2})
    assert (batch.keys, batch.paused, len(batch)) == ([1], [0, 2], 1)
    batch.run_pass()
    assert batch.shown().keys == [1]
    batch.resume({2})
    add(batch, 3)
    batch.run_pass()
    batch.pause({1, 2, 3})
    assert not len(batch)
    batch.resume({0, 1, 2, 3})
    found = drain(batch)
    for clip in range(4):
        check(found[clip], alone(decoder, clip, options))


@pytest.mark.parametrize("compact", [True, False])
def test_clips_that_are_removed_leave_their_rows(decoder: CanvasDecoder, compact: bool) -> None:
    batch = decoder.open(DecodingOptions(steps=3))
    batch._canvases.compact = compact
    add(batch, 0, 1, 2)
    batch.run_pass()
    batch.pause({2})
    batch.remove({0, 2})
    assert (batch.keys, batch.paused) == ([1], [])
    add(batch, 3)
    assert len(batch._canvases._keys) == (2 if compact else 3)  # rows that are done keep the shape
    found = drain(batch)
    assert sorted(found) == [1, 3]
    for clip, result in found.items():
        check(result, alone(decoder, clip, DecodingOptions(steps=3)))
    add(batch, 0)
    batch.remove({0})
    assert not len(batch)
    assert not batch.take()
    add(batch, 1)
    check(drain(batch)[1], found[1])


def test_a_result_that_was_not_taken_is_removed_too(decoder: CanvasDecoder) -> None:
    batch = decoder.open(DecodingOptions(steps=1))
    add(batch, 0, 1)
    batch.run_pass()
    batch.remove({0})
    assert [key for key, _ in batch.take()] == [1]
