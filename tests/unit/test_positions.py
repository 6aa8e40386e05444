"""Positions by CTC spikes: by hand, against linear interpolation, and what a model makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from canvas_asr.backbone import denoise, encode_prefix
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.positions import prompt_positions, spike_positions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.training.text import text_places

BLANK = 6


def by_interpolation(labels: list[int], blank: int = BLANK) -> tuple[list[float], int]:
    """The definition, said another way: linear between spikes, from before the first to behind the last."""
    spikes = [i for i, x in enumerate(labels) if x != blank and (i == 0 or x != labels[i - 1])]
    points = [-1, *spikes, len(labels)]
    return np.interp(range(len(labels)), points, range(len(points))).tolist(), len(spikes)


def test_spikes_by_hand() -> None:
    labels = torch.tensor([[6, 9, 9, 6, 8, 8, 6, 8, 6, 6]])
    positions, n_spikes = spike_positions(labels, torch.tensor([10]), BLANK)
    expected = [0.5, 1, 4 / 3, 5 / 3, 2, 7 / 3, 8 / 3, 3, 10 / 3, 11 / 3]
    assert positions[0].tolist() == pytest.approx(expected)
    assert n_spikes.tolist() == [3]


def test_rows_of_any_length_are_as_alone() -> None:
    rng = np.random.default_rng(3)
    lengths = [1, 2, 7, 30, 30]
    labels = torch.from_numpy(rng.choice([BLANK, BLANK, 7, 8], (5, 30)))
    labels[3] = BLANK  # no spike at all
    labels[4] = 9  # one that lasts
    positions, n_spikes = spike_positions(labels, torch.tensor(lengths), BLANK)
    for row, n in enumerate(lengths):
        expected, count = by_interpolation(labels[row, :n].tolist())
        assert positions[row, :n].tolist() == pytest.approx(expected)
        assert n_spikes[row] == count
        assert bool((positions[row].diff() >= 0).all())


def test_text_around_the_audio_keeps_its_order() -> None:
    slots = torch.tensor([[False, False, True, True, True, True, False, False, False]])
    labels = torch.tensor([[6, 9, 6, 8]])
    found = prompt_positions(slots, labels, torch.tensor([4]), BLANK)
    # Two tokens before; spikes at 2 and 3; behind them, 4 and 5, and padding.
    assert found[0].tolist() == [0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0]


def test_without_audio_a_prompt_is_as_ever() -> None:
    slots = torch.zeros(1, 4, dtype=torch.bool)
    found = prompt_positions(slots, torch.full((1, 1), BLANK), torch.tensor([0]), BLANK)
    assert found[0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_text_prompts_stand_as_audio_will() -> None:
    prompt = torch.tensor([[2, 9, 9, 6, 8, 4], [2, 6, 7, 4, 0, 0]])
    places = text_places(prompt, torch.tensor([6, 4]), BLANK)
    assert places["canvas_start"] == 0
    assert places["positions"][0].tolist() == pytest.approx([0, 1, 4 / 3, 5 / 3, 2, 3])
    assert places["positions"][1, :4].tolist() == pytest.approx([0, 0.5, 1, 2])
    assert text_places(prompt, torch.tensor([6, 4]), None) == {"positions": None, "canvas_start": None}


def embedded(model: CanvasASRModel, ids: Tensor) -> Tensor:
    return model.backbone.get_input_embeddings()(ids)


@torch.no_grad()
def test_only_differences_of_positions_matter(model: CanvasASRModel) -> None:
    ids, n_prompt = torch.randint(20, 60, (2, 7)), torch.tensor([7, 7])
    canvas = torch.randint(20, 60, (2, 5))
    places = torch.arange(7.0).repeat(2, 1)
    plain = denoise(model.backbone, canvas, encode_prefix(model.backbone, embedded(model, ids))[1], n_prompt)
    same = encode_prefix(model.backbone, embedded(model, ids), places)[1]
    assert torch.equal(denoise(model.backbone, canvas, same, n_prompt), plain)
    moved = encode_prefix(model.backbone, embedded(model, ids), places + 3)[1]
    shifted = denoise(model.backbone, canvas, moved, n_prompt, canvas_start=10)
    assert torch.allclose(shifted, plain, atol=1e-4)
    at_start = denoise(model.backbone, canvas, same, n_prompt, canvas_start=0)
    assert not torch.allclose(at_start, plain, atol=1e-3)


@pytest.fixture(scope="module")
def by_spikes(model: CanvasASRModel) -> CanvasASRModel:
    config = type(model.config).from_dict({**model.config.to_dict(), "audio_positions": "spikes"})
    made = CanvasASRModel(config).eval()
    made.load_state_dict(model.state_dict())
    return made


def decode(model: CanvasASRModel, processor: CanvasASRProcessor, *lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(len(lengths), model.config.audio_encoder_config.num_mel_bins, 90, generator=generator)
    decoder = CanvasDecoder(model, processor)
    found = decoder(mel[:, :, : max(lengths)], torch.tensor(lengths), clip_keys=range(len(lengths)), steps=3)
    return [one.ids for one in found]


def test_a_batch_by_spikes_is_as_its_clips_alone(
    by_spikes: CanvasASRModel, model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    together = decode(by_spikes, processor, 90, 60)
    assert decode(by_spikes, processor, 90)[0] == together[0]
    assert together != decode(model, processor, 90, 60)


def test_the_canvas_starts_where_the_audio_does(
    by_spikes: CanvasASRModel, model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    n_before = len(processor.tokenizer.encode(model.config.prompt_prefix, add_special_tokens=False))
    assert processor.canvas_start(by_spikes.config) == n_before - 1  # a language tag, then the text
    assert processor.canvas_start(model.config) is None


def test_other_positions_are_refused(model: CanvasASRModel) -> None:
    with pytest.raises(ValueError, match="audio_positions is 'words'; choose one of frames, spikes"):
        type(model.config).from_dict({**model.config.to_dict(), "audio_positions": "words"})
