"""Absorbing masks in place of random tokens, from the recipe to the canvas; and adapters without LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import small_model, small_processor

from canvas_asr.checkpoint import adapter_parameters, load_checkpoint, save_checkpoint
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.errors import RecipeError
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.sampler import read_pass, sample
from canvas_asr.strategies import SamplerConfig
from canvas_asr.training.adapter_options import AdapterOptions
from canvas_asr.training.corruption import KINDS, Corruption, CorruptionOptions
from canvas_asr.training.objective import ObjectiveOptions

MASK, TAG = 15, 7


def masked_options(**model: object) -> AdapterOptions:
    return AdapterOptions(
        tokenizer=Path(),
        backbone="backbone",
        audio_encoder="audio_encoder",
        train=(),
        dev=(),
        model=model,
        objective=ObjectiveOptions(corruption=CorruptionOptions(mask_id=MASK)),
    )


def test_noise_of_masks_covers_the_same_places_as_random_ids() -> None:
    canvas, levels = torch.full((4, 500), 900), torch.tensor([0.0, 0.3, 0.7, 1.0])
    random, masked = (
        Corruption(CorruptionOptions(mask_id=mask), 4096, 1).uniform(
            canvas, levels, torch.Generator().manual_seed(3)
        )
        for mask in (None, MASK)
    )
    assert set(masked.unique().tolist()) == {MASK, 900}
    assert (masked[random != 900] == MASK).all()
    torch.testing.assert_close((masked == MASK).float().mean(1), levels, atol=0.07, rtol=0)


def test_at_the_highest_level_all_of_a_canvas_is_masked() -> None:
    corruption = Corruption(CorruptionOptions(mask_id=MASK), 4096, 1)
    kinds = torch.full((1,), KINDS.index("uniform"))
    noisy = corruption(torch.full((1, 40), 900), torch.tensor([20]), torch.ones(1), kinds)
    assert (noisy == MASK).all()


def test_the_recipe_must_decode_with_the_noise_it_trains_with() -> None:
    assert masked_options(mask_token_id=MASK).model == {"mask_token_id": MASK}
    for model in ({}, {"mask_token_id": 16}):
        with pytest.raises(RecipeError, match=r"mask_token_id is .*corruption\.mask_id is 15"):
            masked_options(**model)
    with pytest.raises(RecipeError, match="mask_id is -1"):
        CorruptionOptions(mask_id=-1)


def test_the_sampler_starts_from_masks_and_masks_again_what_it_is_not_sure_of(
    processor: CanvasASRProcessor,
) -> None:
    model = small_model(mask_token_id=MASK)
    decoder = CanvasDecoder(model, processor)
    assert decoder.vocabulary.mask == MASK
    assert not decoder.vocabulary.text[MASK]
    embeds = model.backbone.get_input_embeddings()(torch.tensor([[2, 20, 21, 5]]))
    _, prefix = model.encode_prefix(embeds)
    shown = []

    def run_pass(backbone: object, canvas: torch.Tensor, *rest: object, **named: object) -> object:
        shown.append(canvas.clone())
        return read_pass(backbone, canvas, *rest, **named)  # type: ignore[arg-type]

    output = sample(
        model.backbone,
        prefix,
        torch.tensor([4]),
        decoder.vocabulary,
        SamplerConfig(steps=4, canvas_length=12),
        clip_keys=[0],
        tags=[TAG],
        run_pass=run_pass,
    )
    assert shown[0].tolist() == [[TAG, *[MASK] * 11]]
    n_masked = [int((canvas == MASK).sum()) for canvas in shown]
    assert n_masked == sorted(n_masked, reverse=True)
    assert n_masked[-1] < 11
    assert not (output.canvas == MASK).any()


def test_a_model_without_lora_trains_and_stores_projector_and_tap_alone(tmp_path: Path) -> None:
    model = small_model(lora_rank=0)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"projector", "ctc_tap"}
    save_checkpoint(model, small_processor(), tmp_path, whole=True)
    again, _ = load_checkpoint(tmp_path)
    assert again.config.lora_rank == 0
    assert not any("lora_" in name for name in again.state_dict())
    mine = adapter_parameters(model)
    assert all(torch.equal(mine[name], p) for name, p in adapter_parameters(again).items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"mask_token_id": 300_000}, "mask_token_id is 300000, outside the vocabulary"),
        ({"mask_token_id": 6}, "mask_token_id and blank_token_id are both 6"),
    ],
)
def test_ids_and_ranks_that_cannot_be_are_named(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CanvasASRConfig(**fields)
