"""The calls into DiffusionGemma's parts, against its own forward on the same small random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import BACKBONE, small_model
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
    DiffusionGemmaRMSNorm,
    DiffusionGemmaText4MLP,
)

from canvas_asr.backbone import (
    build_backbone,
    crop_cache,
    denoise,
    encode_keys,
    encode_prefix,
    inject_lora,
    keys_values,
    output_logits,
    select_cache,
    soft_embed,
    view_cache,
)
from canvas_asr.checkpoint import load_checkpoint, save_checkpoint
from canvas_asr.cpu_layers import FusedRMSNorm, InPlaceText4MLP, SortedTextExperts, fuse_norms, quicken
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, pad_ids

V, D, C = 4096, 32, 12


@pytest.fixture(scope="module")
def backbone(model: CanvasASRModel) -> DiffusionGemmaForBlockDiffusion:
    """With LoRA that is not zero."""
    return model.backbone


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def prefix_of(backbone: DiffusionGemmaForBlockDiffusion, prompt: Tensor) -> DynamicCache:
    return encode_prefix(backbone, backbone.get_input_embeddings()(prompt))[1]


def copies(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


def parameters_of(side: str, backbone: DiffusionGemmaForBlockDiffusion) -> dict[str, Tensor]:
    """LoRA matrices of one side, "encoder" or "decoder"."""
    return {n: p for n, p in backbone.named_parameters() if "lora_" in n and f"model.{side}." in n}


@torch.no_grad()
def test_prefix_and_pass_equal_the_stock_forward(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    prompt, canvas = random_ids(2, 9), random_ids(2, C, seed=1)
    stock = backbone(input_ids=prompt, decoder_input_ids=canvas)
    states, prefix = encode_prefix(backbone, backbone.get_input_embeddings()(prompt))
    torch.testing.assert_close(states, stock.encoder_last_hidden_state)
    hidden = denoise(backbone, canvas, prefix, torch.tensor([9, 9]))
    torch.testing.assert_close(output_logits(backbone, hidden), stock.logits)


@torch.no_grad()
def test_self_conditioning_by_soft_embedding_equals_that_by_logits(
    backbone: DiffusionGemmaForBlockDiffusion,
) -> None:
    prompt, canvas = random_ids(2, 9), random_ids(2, C, seed=1)
    earlier = 5 * torch.randn(2, C, V, generator=torch.Generator().manual_seed(2))
    stock = backbone(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=earlier).logits
    prefix, n_prompt = prefix_of(backbone, prompt), torch.tensor([9, 9])
    soft = soft_embed(backbone, earlier)
    conditioned = output_logits(backbone, denoise(backbone, canvas, prefix, n_prompt, soft_embeddings=soft))
    torch.testing.assert_close(conditioned, stock)
    # A row of zeros has no signal, and none is left behind for the next call.
    soft[1] = 0
    mixed = output_logits(backbone, denoise(backbone, canvas, prefix, n_prompt, soft_embeddings=soft))
    without = output_logits(backbone, denoise(backbone, canvas, prefix, n_prompt))
    torch.testing.assert_close(mixed[0], stock[0])
    torch.testing.assert_close(mixed[1], without[1])
    assert (without[0] - stock[0]).abs().max() > 1e-3


@torch.no_grad()
def test_rows_of_a_padded_batch_equal_single_rows(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    rows = [random_ids(n, seed=n).tolist() for n in (9, 3, 6)]
    prompts, n_prompt = pad_ids(rows, 7)
    canvas = random_ids(3, C, seed=1)
    logits = output_logits(backbone, denoise(backbone, canvas, prefix_of(backbone, prompts), n_prompt))
    for row, ids in enumerate(rows):
        stock = backbone(input_ids=torch.tensor([ids]), decoder_input_ids=canvas[row : row + 1]).logits
        torch.testing.assert_close(logits[row], stock[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_shorter_canvas_in_a_batch_equals_it_alone(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    prompts, n_prompt, canvas = random_ids(2, 5), torch.tensor([5, 5]), random_ids(2, C, seed=1)
    prefix = prefix_of(backbone, prompts)
    hidden = denoise(backbone, canvas, prefix, n_prompt, n_canvas=torch.tensor([C, 7]))
    alone = denoise(backbone, canvas[1:, :7], select_cache(prefix, torch.tensor([1])), n_prompt[1:])
    torch.testing.assert_close(hidden[1, :7], alone[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_pass_reads_the_prefix_and_does_not_write_it(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    prefix = prefix_of(backbone, random_ids(2, 9))
    before = copies(prefix)
    denoise(backbone, random_ids(2, C), prefix, torch.tensor([9, 4]))
    for (keys, values), layer in zip(before, prefix.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


@torch.no_grad()
def test_a_cropped_cache_is_the_shorter_prompts_and_leaves_the_original_alone(
    backbone: DiffusionGemmaForBlockDiffusion,
) -> None:
    prompt = random_ids(2, 9)
    whole = prefix_of(backbone, prompt)
    before = copies(whole)
    cropped, shorter = crop_cache(whole, 5), prefix_of(backbone, prompt[:, :5])
    for layer, expected in zip(cropped.layers, shorter.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(layer.values, expected.values, atol=1e-6, rtol=1e-5)
    cropped.layers[0].keys.zero_()
    cropped.update(torch.zeros(2, 1, 1, 16), torch.zeros(2, 1, 1, 16), 1)
    for (keys, values), layer in zip(before, whole.layers, strict=True):
        assert layer.keys.shape[-2] == 9
        assert torch.equal(values, layer.values)
        assert torch.equal(keys, layer.keys)


@torch.no_grad()
def test_selected_rows_of_a_cache(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    whole = prefix_of(backbone, random_ids(3, 4))
    selected = select_cache(whole, torch.tensor([2, 0]))
    for layer, (keys, values) in zip(selected.layers, copies(whole), strict=True):
        assert torch.equal(layer.keys, keys[[2, 0]])
        assert torch.equal(layer.values, values[[2, 0]])


def test_logits_are_soft_capped_as_the_backbone_does_or_not_at_all(
    backbone: DiffusionGemmaForBlockDiffusion,
) -> None:
    assert backbone.final_logit_softcapping == 30
    states = 1000 * torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    raw = states @ backbone.lm_head.weight.T
    assert raw.abs().max() > 60
    torch.testing.assert_close(output_logits(backbone, states), 30 * torch.tanh(raw / 30))
    torch.testing.assert_close(output_logits(backbone, states, softcap=False), raw)


@torch.no_grad()
def test_a_soft_embedding_is_the_mean_of_the_input_embeddings(
    backbone: DiffusionGemmaForBlockDiffusion,
) -> None:
    logits = torch.full((1, 1, V), -torch.inf)
    logits[0, 0, [7, 300]] = torch.tensor([0.75, 0.25]).log()
    embedded = backbone.get_input_embeddings()(torch.tensor([7, 300]))
    expected = 0.75 * embedded[0] + 0.25 * embedded[1]
    torch.testing.assert_close(soft_embed(backbone, logits)[0, 0], expected)


@torch.no_grad()
def test_a_position_of_all_canvases_is_that_of_each(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    prompts, n_prompt, canvas = random_ids(2, 9), torch.tensor([9, 9]), random_ids(2, C, seed=1)
    prefix = prefix_of(backbone, prompts)
    given = denoise(backbone, canvas, prefix, n_prompt, canvas_start=9)
    assert torch.equal(given, denoise(backbone, canvas, prefix, n_prompt))
    assert not torch.allclose(given, denoise(backbone, canvas, prefix, n_prompt, canvas_start=2))


@torch.no_grad()
def test_eager_and_sdpa_attention_agree_on_padded_rows() -> None:
    backbone = small_model().backbone
    prompts, n_prompt = pad_ids([random_ids(n, seed=n).tolist() for n in (9, 3)], 0)
    canvas, n_canvas = random_ids(2, C), torch.tensor([8, C])
    results = {}
    for kind in ("sdpa", "eager"):
        backbone.set_attn_implementation(kind)
        assert backbone.config._attn_implementation == kind
        states, prefix = encode_prefix(backbone, backbone.get_input_embeddings()(prompts))
        hidden = denoise(backbone, canvas, prefix, n_prompt, n_canvas=n_canvas)
        results[kind] = states[0], states[1, :3], hidden[0, :8], hidden[1]
    torch.testing.assert_close(results["eager"], results["sdpa"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_fused_norms_compute_what_the_stock_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = small_model().backbone
    for module in backbone.modules():
        if isinstance(module, DiffusionGemmaRMSNorm) and module.with_scale:
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)  # at ones a weight left out would go unseen
    prompt, canvas, n_prompt = random_ids(2, 9), random_ids(2, C, seed=1), torch.tensor([9, 4])
    stock = denoise(backbone, canvas, prefix_of(backbone, prompt), n_prompt)
    fuse_norms(backbone)
    fused = denoise(backbone, canvas, prefix_of(backbone, prompt), n_prompt)
    torch.testing.assert_close(fused, stock, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(DiffusionGemmaRMSNorm, "forward", None)  # none of them runs the stock code
    assert torch.equal(denoise(backbone, canvas, prefix_of(backbone, prompt), n_prompt), fused)


@torch.no_grad()
def test_keys_alone_are_those_of_the_whole_prefix(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    embeds = backbone.get_input_embeddings()(random_ids(2, 7))
    positions = torch.linspace(0, 3, 7).expand(2, -1)
    ran: list[object] = []
    handle = backbone.model.encoder.language_model.layers[-1].mlp.register_forward_hook(
        lambda *args: ran.append(args)
    )
    try:
        found = encode_keys(backbone, embeds, positions)
        assert not ran  # what comes behind the keys of the last layer is left out
        expected = encode_prefix(backbone, embeds, positions)[1]
    finally:
        handle.remove()
    assert type(found) is DynamicCache
    assert len(keys_values(found)) == len(keys_values(expected)) == 2
    for ours, theirs in zip(keys_values(found), keys_values(expected), strict=True):
        assert all(map(torch.equal, ours, theirs))
    found.update(*keys_values(expected)[1], 1)  # it may grow like any other


@torch.no_grad()
def test_a_view_of_a_cache_reads_the_same_memory(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    cache = prefix_of(backbone, random_ids(3, 5))
    view = view_cache(cache, slice(1, 3))
    for ours, theirs in zip(keys_values(view), keys_values(cache), strict=True):
        assert ours[0].shape[0] == 2
        assert ours[0].data_ptr() == theirs[0][1].data_ptr()
        assert torch.equal(ours[1], theirs[1][1:])
        assert theirs[0].shape[0] == 3


@pytest.mark.parametrize("n_tokens", [1, 3, 40])
def test_a_quickened_backbone_computes_the_same_bit_for_bit(n_tokens: int) -> None:
    stock, quick = (small_model(seed=3).backbone for _ in range(2))
    quicken(quick)
    kinds = [type(module) for module in quick.modules()]
    assert SortedTextExperts in kinds
    assert InPlaceText4MLP in kinds
    assert DiffusionGemmaRMSNorm not in kinds
    assert DiffusionGemmaText4MLP not in kinds
    prompt, canvas, n_prompt = random_ids(2, 9), random_ids(2, n_tokens, seed=1), torch.tensor([9, 4])
    with torch.no_grad():
        for soft in (None, torch.randn(2, n_tokens, stock.lm_head.in_features)):
            expected, found = (
                denoise(one, canvas, prefix_of(one, prompt), n_prompt, soft_embeddings=soft)
                for one in (stock, quick)
            )
            assert torch.equal(found, expected)
    # With gradients the stock code runs, and they are the same too.
    for one in (stock, quick):
        one.requires_grad_(True)
        embeds = one.get_input_embeddings()(prompt)
        encode_prefix(one, embeds)[0].square().mean().backward()
    for name, parameter in stock.named_parameters():
        other = quick.get_parameter(name)
        assert (parameter.grad is None) == (other.grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad)


def test_a_quickened_backbone_computes_the_same_where_types_are_mixed() -> None:
    stock, quick = (small_model(seed=3).backbone for _ in range(2))
    quicken(quick)
    prompt, canvas, n_prompt = random_ids(2, 9), random_ids(2, 5, seed=1), torch.tensor([9, 4])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = (denoise(one, canvas, prefix_of(one, prompt), n_prompt) for one in (stock, quick))
    assert torch.equal(found, expected)


def test_a_backbone_of_another_type_is_not_quickened() -> None:
    backbone = small_model().backbone.to(torch.bfloat16)
    quicken(backbone)
    assert not any(isinstance(module, (SortedTextExperts, FusedRMSNorm)) for module in backbone.modules())


def test_random_queries_start_with_a_gain_that_lets_attention_learn() -> None:
    text = {**BACKBONE["text_config"], "global_head_dim": 64}
    backbone = build_backbone(DiffusionGemmaConfig(**{**BACKBONE, "text_config": text}))
    for side in (backbone.model.encoder.language_model, backbone.model.decoder):
        for layer, n_head in zip(side.layers, (16, 64), strict=True):
            gain = layer.self_attn.q_norm.weight
            assert torch.equal(gain, torch.full((n_head,), n_head**-0.5))
            assert torch.equal(layer.self_attn.k_norm.weight, torch.ones(n_head))
    vision = backbone.model.encoder.vision_tower
    assert not [n for n, p in vision.named_parameters() if "q_norm" in n and (p != 1).any()]


# LoRA of the two sides


def tie_nothing(model: CanvasASRModel) -> None:
    pass


def tie_all(model: CanvasASRModel) -> None:
    model.backbone.model.tie_weights()
    model.backbone.tie_weights()
    model.tie_weights()


def shift(parameters: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.5)


def assert_sides_are_apart(model: CanvasASRModel) -> None:
    """Change the encoder's LoRA and find the decoder's, and what it computes, as they were."""
    backbone = model.backbone
    encoder, decoder = parameters_of("encoder", backbone), parameters_of("decoder", backbone)
    # q, k, v, o of two layers, A and B; the full-attention layer may have no v_proj.
    assert len(encoder) == len(decoder) >= 2 * (4 + 3)
    prefix = prefix_of(backbone, random_ids(1, 5))
    canvas, n_prompt = random_ids(1, C), torch.tensor([5])
    with torch.no_grad():
        before = denoise(backbone, canvas, prefix, n_prompt)
        kept = {name: p.clone() for name, p in decoder.items()}
        shift(encoder)
        again = parameters_of("decoder", backbone)
        assert all(torch.equal(again[name], p) for name, p in kept.items())
        assert torch.equal(denoise(backbone, canvas, prefix, n_prompt), before)
        changed = prefix_of(backbone, random_ids(1, 5))
        assert not torch.allclose(changed.layers[1].keys, prefix.layers[1].keys)
        shift(decoder)
        assert not torch.allclose(denoise(backbone, canvas, prefix, n_prompt), before)


def assert_base_is_tied(backbone: DiffusionGemmaForBlockDiffusion) -> None:
    sides = backbone.model.encoder.language_model, backbone.model.decoder
    for index in range(2):
        ours, theirs = (dict(side.layers[index].named_parameters()) for side in sides)
        shared = [name for name in ours if "lora_" not in name and not name.endswith("layer_scalar")]
        assert "self_attn.q_proj.base_layer.weight" in shared
        assert "experts.gate_up_proj" in shared
        for name in shared:
            assert ours[name] is theirs[name], name
    assert sides[0].embed_tokens.weight is sides[1].embed_tokens.weight
    assert backbone.lm_head.weight is sides[1].embed_tokens.weight


@pytest.mark.parametrize("tie", [tie_nothing, tie_all])
@pytest.mark.parametrize("loaded", [False, True])
def test_changing_the_encoders_lora_leaves_the_decoder_alone(
    tie: Callable[[CanvasASRModel], None], loaded: bool, processor: CanvasASRProcessor, tmp_path: Path
) -> None:
    model = small_model()
    tie(model)
    if loaded:
        saved = {n: p.clone() for n, p in model.backbone.named_parameters() if "lora_" in n}
        save_checkpoint(model, processor, tmp_path, whole=True)
        model, _ = load_checkpoint(tmp_path)
        tie(model)
        again = dict(model.backbone.named_parameters())
        assert all(torch.equal(again[name], p) for name, p in saved.items())
    assert_base_is_tied(model.backbone)
    assert_sides_are_apart(model)
    assert_base_is_tied(model.backbone)


def test_stock_tying_would_join_the_two_sides() -> None:
    """The trap that the narrowed pattern is for: if this fails, ``inject_lora`` may be simplified."""
    backbone = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**BACKBONE))
    patterns = copy.deepcopy(backbone.model._tied_weights_keys)
    inject_lora(backbone, rank=2, alpha=4)
    assert len(parameters_of("encoder", backbone)) == len(parameters_of("decoder", backbone))
    backbone.model._tied_weights_keys = patterns
    for module in (backbone, backbone.model):
        module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)
    backbone.tie_weights()
    assert not parameters_of("decoder", backbone) or not parameters_of("encoder", backbone)


def test_lora_is_all_that_trains_and_stands_on_attention_alone() -> None:
    backbone = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**BACKBONE))
    inject_lora(backbone, rank=3, alpha=6)
    trained = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n and "self_attn." in n and "vision" not in n for n in trained)
    assert all(3 in p.shape for p in trained.values())
    q_proj = backbone.model.decoder.layers[0].self_attn.q_proj
    assert q_proj.scaling["default"] == 2.0
