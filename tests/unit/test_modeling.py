from __future__ import annotations

import pytest
import torch
from made_up_clips import tones
from small_models import small_model

from canvas_asr.backbone import encode_prefix, output_logits
from canvas_asr.encoder import encode_audio
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, pad_ids

AUDIO = 4


def test_only_projector_tap_and_lora_are_trained(model: CanvasASRModel) -> None:
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("projector.", "ctc_tap.")) or "lora_" in name
    }
    assert {"projector.out.weight", "ctc_tap.scale"} < trained
    assert any("lora_A" in name for name in trained)


@torch.no_grad()
def test_audio_tokens_are_the_projected_encoder_frames(
    model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    mel, n_mel = processor.features([tones(0.9, 1), tones(0.5, 2)])
    tokens, n_audio = model.audio_tokens(mel, n_mel)
    expected, n_expected = model.projector(*encode_audio(model.audio_encoder, mel, n_mel, pad_to_30s=False))
    assert torch.equal(tokens, expected)
    # 45 and 25 mel frames of 20 ms, halved by the encoder and again by the projector, rounding up
    assert n_audio.tolist() == n_expected.tolist() == [12, 7]
    alone, _ = model.audio_tokens(*processor.features([tones(0.5, 2)]))
    torch.testing.assert_close(tokens[1, :7], alone[0], atol=1e-5, rtol=1e-4)


def test_a_frozen_encoder_keeps_no_activations_and_a_trained_one_does() -> None:
    model = small_model()
    mel, n_mel = torch.randn(1, 80, 20), torch.tensor([20])
    model.audio_tokens(mel, n_mel)[0].sum().backward()
    assert all(p.grad is None for p in model.audio_encoder.parameters())
    assert model.projector.out.weight.grad is not None
    model.audio_encoder.requires_grad_(True)
    model.audio_tokens(mel, n_mel)[0].sum().backward()
    assert model.audio_encoder.conv1.weight.grad.abs().max() > 0


def test_audio_tokens_take_the_place_of_the_placeholders(model: CanvasASRModel) -> None:
    prompts, _ = pad_ids([[2, AUDIO, AUDIO, AUDIO, 5], [2, AUDIO, 5]], 0)
    audio = torch.randn(2, 3, 32)
    embeds = model.embed_prompt(prompts, audio, torch.tensor([3, 1]), AUDIO)
    words = model.backbone.get_input_embeddings()(prompts)
    assert torch.equal(embeds[0], torch.stack([words[0, 0], *audio[0], words[0, 4]]))
    assert torch.equal(embeds[1], torch.stack([words[1, 0], audio[1, 0], *words[1, 2:]]))


def test_gradients_reach_the_audio_tokens_through_the_prompt(model: CanvasASRModel) -> None:
    audio = torch.randn(1, 2, 32, requires_grad=True)
    embeds = model.embed_prompt(torch.tensor([[2, AUDIO, AUDIO, 5]]), audio, torch.tensor([2]), AUDIO)
    (gradient,) = torch.autograd.grad(encode_prefix(model.backbone, embeds)[0][0, -1].sum(), audio)
    assert (gradient.abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("n_audio", [[1, 1], [3, 2], [2, 1]])
def test_slots_and_audio_tokens_must_agree_in_number(model: CanvasASRModel, n_audio: list[int]) -> None:
    prompts, _ = pad_ids([[2, AUDIO, AUDIO, AUDIO, 5], [2, AUDIO, 5]], 0)
    with pytest.raises(ValueError, match=r"\[3, 1\] audio slots for \[\d, \d\] audio tokens"):
        model.embed_prompt(prompts, torch.randn(2, 3, 32), torch.tensor(n_audio), AUDIO)


@torch.no_grad()
@pytest.mark.parametrize("softcap", [False, True])
def test_ctc_reads_the_tap_through_the_frozen_output_layer(softcap: bool) -> None:
    model = small_model(ctc_softcap=softcap)
    model.ctc_tap.scale.fill_(400.0)  # far into the soft-cap
    audio = torch.randn(1, 3, 32)
    raw = model.ctc_tap(audio) @ model.backbone.lm_head.weight.T
    expected = 30 * torch.tanh(raw / 30) if softcap else raw
    assert raw.abs().max() > 30
    torch.testing.assert_close(model.ctc_logits(audio), expected)


@torch.no_grad()
def test_the_decoder_hears_the_audio(model: CanvasASRModel) -> None:
    """The whole path: other audio tokens in the prompt, other logits on the canvas."""
    prompts, n_prompt = pad_ids([[2, AUDIO, AUDIO, 5]], 0)
    canvas = torch.arange(100, 108)[None]
    logits = []
    for seed in (0, 1):
        audio = 3 * torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(seed))
        _, prefix = model.encode_prefix(model.embed_prompt(prompts, audio, torch.tensor([2]), AUDIO))
        hidden = model.denoise(canvas, prefix, n_prompt)
        logits.append(model.output_logits(hidden))
        assert torch.equal(logits[-1], output_logits(model.backbone, hidden))
    assert (logits[0] - logits[1]).abs().max() > 1e-3
