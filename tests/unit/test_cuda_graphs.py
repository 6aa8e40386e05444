"""Recorded prefix and passes against the plain ones: without CUDA the same code runs, only not recorded."""

from __future__ import annotations

import pytest
import torch
from small_models import small_model
from torch import Tensor
from transformers import DynamicCache

from canvas_asr.backbone import encode_prefix, keys_values, select_cache
from canvas_asr.cuda_graphs import GraphedBackbone, Recording
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import pad_ids
from canvas_asr.sampler import SamplerConfig, SamplerOutput, Vocabulary, sample

V, EOS = 4096, 1


def vocabulary(tags: tuple[int, ...] = (7, 8)) -> Vocabulary:
    text = torch.ones(V, dtype=torch.bool)
    text[:16] = False
    text[EOS] = True
    return Vocabulary(V, EOS, tags, text)


def prompt(model: CanvasASRModel, seed: int, *lengths: int) -> tuple[Tensor, Tensor]:
    """Embedded random prompts, right-padded, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(V, (n,), generator=generator).tolist() for n in lengths]
    ids, n_prompt = pad_ids(rows, 0)
    device = model.backbone.lm_head.weight.device
    with torch.no_grad():
        return model.backbone.get_input_embeddings()(ids.to(device)), n_prompt.to(device)


def run(
    model: CanvasASRModel, prefix: DynamicCache, n_prompt: Tensor, steps: int, length: int, **options: object
) -> SamplerOutput:
    config = SamplerConfig(steps, length)
    keys = range(len(n_prompt))
    return sample(model.backbone, prefix, n_prompt, vocabulary(), config, clip_keys=keys, **options)


def test_recorded_passes_give_the_same_tokens_clip_after_clip(model: CanvasASRModel) -> None:
    graphs = GraphedBackbone(model.backbone, vocabulary(), prompt_step=8)
    for seed, lengths, steps, length in ((0, (5, 9), 3, 16), (1, (12, 2), 1, 16), (2, (7, 9), 3, 12)):
        embeds, n_prompt = prompt(model, seed, *lengths)
        with torch.no_grad():
            states, plain = encode_prefix(model.backbone, embeds)
        recorded_states, recorded = graphs.encode_prefix(embeds)
        for row, n in enumerate(lengths):
            torch.testing.assert_close(recorded_states[row, :n], states[row, :n], atol=1e-5, rtol=1e-4)
        expected = run(model, plain, n_prompt, steps, length)
        for prefix in (recorded, plain):
            found = run(model, prefix, n_prompt, steps, length, run_pass=graphs.read_pass)
            assert torch.equal(found.canvas, expected.canvas)
            torch.testing.assert_close(found.confidence, expected.confidence, atol=1e-5, rtol=1e-3)


def test_the_signal_of_the_clip_before_is_gone(model: CanvasASRModel) -> None:
    graphs = GraphedBackbone(model.backbone, vocabulary())
    embeds, n_prompt = prompt(model, 0, 6)
    _, prefix = graphs.encode_prefix(embeds)
    first = run(model, prefix, n_prompt, 4, 16, run_pass=graphs.read_pass)
    again = run(model, prefix, n_prompt, 4, 16, run_pass=graphs.read_pass)
    assert torch.equal(first.canvas, again.canvas)
    assert torch.equal(first.confidence, again.confidence)


def test_prompts_of_nearby_lengths_share_a_recording_and_the_oldest_shape_is_dropped(
    model: CanvasASRModel,
) -> None:
    graphs = GraphedBackbone(model.backbone, vocabulary(), prompt_step=8, max_shapes=2)
    for n in (3, 8, 9, 5):
        _, cache = graphs.encode_prefix(prompt(model, 0, n)[0])
        assert cache.layers[0].keys.shape[-2] == -(-n // 8) * 8
    assert list(graphs._shapes) == [(1, 16), (1, 8)]
    graphs.encode_prefix(prompt(model, 0, 20)[0])
    assert list(graphs._shapes) == [(1, 8), (1, 24)]


def test_a_foreign_prefix_is_read_and_left_as_it_is(model: CanvasASRModel) -> None:
    graphs = GraphedBackbone(model.backbone, vocabulary())
    embeds, n_prompt = prompt(model, 0, 6)
    with torch.no_grad():
        _, first = encode_prefix(model.backbone, embeds)
        _, second = encode_prefix(model.backbone, prompt(model, 5, 6)[0])
    kept = select_cache(first, torch.tensor([0]))
    expected = [run(model, cache, n_prompt, 2, 8) for cache in (first, second)]
    found = [run(model, cache, n_prompt, 2, 8, run_pass=graphs.read_pass) for cache in (first, second)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.confidence, theirs.confidence, atol=1e-5, rtol=1e-3)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(first.layers, kept.layers, strict=True))


def test_the_next_prompt_is_read_where_the_passes_have_a_cache_of_their_own(model: CanvasASRModel) -> None:
    """A replay gives the same cache object with another prompt's keys in it."""
    graphs = GraphedBackbone(model.backbone, vocabulary(), prompt_step=8)
    embeds, n_prompt = prompt(model, 0, 8)
    with torch.no_grad():
        run(model, encode_prefix(model.backbone, embeds)[1], n_prompt, 1, 8, run_pass=graphs.read_pass)
        _, prefix = graphs.encode_prefix(embeds)
        encode = graphs._shapes[1, 8].encode
        assert encode is not None
        record(encode, prefix)
        for seed in (1, 2):
            embeds, n_prompt = prompt(model, seed, 8)
            expected = run(model, encode_prefix(model.backbone, embeds)[1], n_prompt, 1, 8)
            _, prefix = graphs.encode_prefix(embeds)
            found = run(model, prefix, n_prompt, 1, 8, run_pass=graphs.read_pass)
            torch.testing.assert_close(found.confidence, expected.confidence, atol=1e-5, rtol=1e-3)


def record(encode: Recording[tuple[Tensor, DynamicCache]], cache: DynamicCache) -> None:
    """Have a prefix written to the same tensors each time, as a CUDA graph does."""
    function = encode.function

    def replay() -> tuple[Tensor, DynamicCache]:
        states, fresh = function()
        for ours, theirs in zip(keys_values(cache), keys_values(fresh), strict=True):
            ours[0].copy_(theirs[0])
            ours[1].copy_(theirs[1])
        return states, cache

    encode.function = replay


def test_what_was_recorded_for_others_is_refused(model: CanvasASRModel) -> None:
    graphs = GraphedBackbone(model.backbone, vocabulary(()))
    embeds, n_prompt = prompt(model, 0, 6)
    _, prefix = graphs.encode_prefix(embeds)
    with pytest.raises(ValueError, match="another backbone or vocabulary"):
        run(model, prefix, n_prompt, 1, 8, run_pass=graphs.read_pass)


@pytest.mark.gpu
def test_on_a_gpu_a_recording_replays_what_the_plain_pass_computes() -> None:
    model = small_model()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.to("cuda")
    graphs = GraphedBackbone(model.backbone, vocabulary(), prompt_step=8)
    for seed in (0, 1):
        embeds, n_prompt = prompt(model, seed, 5, 9)
        _, prefix = graphs.encode_prefix(embeds)
        plain = run(model, prefix, n_prompt, 3, 16)
        recorded = run(model, prefix, n_prompt, 3, 16, run_pass=graphs.read_pass)
        assert torch.equal(plain.canvas, recorded.canvas)
        torch.testing.assert_close(plain.confidence, recorded.confidence, atol=1e-3, rtol=1e-2)
