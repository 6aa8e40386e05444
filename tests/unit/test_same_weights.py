"""Autoregressive decoding and stock ``generate`` see what the canvas sees, in both layouts of positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from made_up_clips import tones
from small_models import small_model
from torch import Tensor

from canvas_asr.autoregressive import AutoregressiveDecoder, write_greedily
from canvas_asr.backbone import denoise, encode_prefix, keys_values, output_logits
from canvas_asr.decoding import CanvasDecoder, Prefix
from canvas_asr.errors import OptionError
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.stock import generate_stock

EOS, EN, ZH = 1, 7, 12
CLIPS = [tones(duration_s, seed) for seed, duration_s in enumerate((0.7, 1.9, 1.2))]


@pytest.fixture(scope="module", params=["frames", "spikes"])
def decoder(request: pytest.FixtureRequest, processor: CanvasASRProcessor) -> CanvasDecoder:
    return CanvasDecoder(small_model(audio_positions=request.param), processor)


def prefix_of(decoder: CanvasDecoder, clips: list[Any]) -> Prefix:
    with torch.no_grad():
        tokens, n_audio = decoder.model.audio_tokens(*decoder.processor.features(clips))
        return decoder.prefix(tokens, n_audio, decoder.model.ctc_logits(tokens))


def embeddings_of(decoder: CanvasDecoder, clip: Any) -> Tensor:
    """Prompt embeddings (1, P, D) of one clip, which nothing pads."""
    seen: list[Tensor] = []
    encoder = decoder.model.backbone.model.encoder.language_model
    hook = encoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        prefix_of(decoder, [clip])
    finally:
        hook.remove()
    return seen[0]


def test_the_growing_cache_gives_what_reading_all_again_gives(decoder: CanvasDecoder) -> None:
    """Each clip alone, prompt and text encoded anew for each token, positions going on behind the prompt."""
    backbone, vocabulary = decoder.model.backbone, decoder.vocabulary
    found = write_greedily(backbone, prefix_of(decoder, CLIPS), vocabulary, 6)
    for row, clip in enumerate(CLIPS):
        alone, embeds = prefix_of(decoder, [clip]), embeddings_of(decoder, clip)
        places = torch.arange(embeds.shape[1])[None].float()
        positions = places if alone.positions is None else alone.positions
        ids: list[int] = []
        with torch.no_grad():
            for _ in range(6):
                logits = output_logits(backbone, encode_prefix(backbone, embeds, positions)[0][0, -1])
                allowed = list(vocabulary.tags) if not ids else vocabulary.text.nonzero().flatten().tolist()
                ids.append(max(allowed, key=logits.tolist().__getitem__))
                new = backbone.get_input_embeddings()(torch.tensor([[ids[-1]]]))
                embeds = torch.cat([embeds, new], dim=1)
                positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
        assert found.ids[row].tolist() == ids
    assert found.n_written.tolist() == [6, 6, 6]
    assert len(set(map(tuple, found.ids.tolist()))) > 1  # clips are told apart


def test_rows_end_and_the_prompts_stay(decoder: CanvasDecoder) -> None:
    prefix = prefix_of(decoder, CLIPS)
    before = [keys.clone() for keys, _ in keys_values(prefix.cache)]
    only_end = torch.zeros_like(decoder.vocabulary.text)
    only_end[EOS] = True
    vocabulary = replace(decoder.vocabulary, text=only_end)
    found = write_greedily(decoder.model.backbone, prefix, vocabulary, 9, [EN, None, ZH])
    assert found.ids[:, 1:].tolist() == [[EOS]] * 3
    assert [found.ids[0, 0], found.ids[2, 0]] == [EN, ZH]
    assert found.n_written.tolist() == [2, 2, 2]
    assert found.tag_probabilities[2].tolist() == [0, 0, 0, 0, 0, 1]
    assert all(map(torch.equal, before, (keys for keys, _ in keys_values(prefix.cache))))


def test_decoding_token_by_token(decoder: CanvasDecoder) -> None:
    decode = AutoregressiveDecoder(decoder.model, decoder.processor)
    mel, n_mel = decoder.processor.features(CLIPS)
    results = decode(mel, n_mel, language="zh", max_tokens=5)
    assert {(one.language, one.passes, one.truncated, len(one.ids)) for one in results} == {
        ("zh", 5, True, 4)
    }
    assert all(0 < sure <= 1 for one in results for sure in one.confidences)
    alone = decode(*decoder.processor.features(CLIPS[1:2]), language="zh", max_tokens=5)
    assert alone[0].ids == results[1].ids
    with pytest.raises(OptionError, match="language is 'xx'; this model knows en, de"):
        decode(mel, n_mel, language="xx")
    with pytest.raises(OptionError, match="max_tokens is 0"):
        decode(mel, n_mel, max_tokens=0)


@pytest.mark.parametrize("clips", [CLIPS, CLIPS[1:2]], ids=["padded", "alone"])
def test_stock_generate_sees_what_a_pass_of_ours_sees(decoder: CanvasDecoder, clips: list[Any]) -> None:
    backbone, prefix = decoder.model.backbone, prefix_of(decoder, clips)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = backbone.model.decoder.register_forward_hook(
        lambda _module, _args, kwargs, output: seen.append(
            (kwargs["decoder_input_ids"], output.last_hidden_state)
        ),
        with_kwargs=True,
    )
    try:
        canvas, steps = generate_stock(
            backbone, prefix, canvas_start=decoder.canvas_start, canvas_length=12, steps=3
        )
    finally:
        hook.remove()
    first_canvas, stock = seen[0]
    with torch.no_grad():
        ours = denoise(
            backbone, first_canvas, prefix.cache, prefix.n_prompt, canvas_start=decoder.canvas_start
        )
    torch.testing.assert_close(stock, ours, rtol=1e-4, atol=1e-5)
    assert canvas.shape == (len(clips), 12)
    assert steps.tolist() == [3] * len(clips)
    assert len(seen) == 3
    assert backbone.config.canvas_length == 32  # as it was
    again, _ = generate_stock(backbone, prefix, canvas_start=decoder.canvas_start, canvas_length=12, steps=3)
    assert torch.equal(again, canvas)
