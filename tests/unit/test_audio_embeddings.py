"""What stands in the audio slots of a prompt: audio tokens, or what their CTC reading expects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import small_model
from torch import Tensor

from canvas_asr import decoding
from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor


@pytest.fixture(scope="module")
def by_posterior() -> CanvasASRModel:
    return small_model(audio_embeddings="posterior")


def audio_tokens(model: CanvasASRModel) -> Tensor:
    return torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))


def test_a_certain_reading_stands_there_as_the_token_it_reads(by_posterior: CanvasASRModel) -> None:
    ids = torch.tensor([[30, 6, 31], [40, 40, 6]])
    logits = torch.nn.functional.one_hot(ids, by_posterior.config.vocab_size) * 1e4
    embeds = by_posterior.backbone.get_input_embeddings()(ids)
    found = by_posterior.embed_audio(audio_tokens(by_posterior), by_posterior.expected_embeddings(logits))
    assert torch.allclose(found, embeds, atol=1e-6)  # prompt_scale starts at zero


def test_of_two_readings_it_is_the_mean_and_the_audio_token_comes_on_top() -> None:
    model = small_model(audio_embeddings="posterior")
    logits = torch.full((2, 3, model.config.vocab_size), -1e4)
    logits[..., 30], logits[..., 31] = 0.0, torch.tensor(3.0).log()
    first, second = model.backbone.get_input_embeddings()(torch.tensor([30, 31]))
    tokens = audio_tokens(model)
    with torch.no_grad():
        model.ctc_tap.prompt_scale.fill_(0.5)
    found = model.embed_audio(tokens, model.expected_embeddings(logits))
    assert torch.allclose(found, 0.25 * first + 0.75 * second + 0.5 * tokens, atol=1e-5)


def test_the_released_layout_has_audio_tokens_as_they_are_and_no_parameter_more(
    model: CanvasASRModel,
) -> None:
    tokens = audio_tokens(model)
    assert model.embed_audio(tokens, model.expected_embeddings(model.ctc_logits(tokens))) is tokens
    assert not [name for name in model.state_dict() if "prompt_scale" in name]


def test_decoding_reads_the_expected_embeddings(
    by_posterior: CanvasASRModel, processor: CanvasASRProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mel = torch.randn(1, by_posterior.config.audio_encoder_config.num_mel_bins, 90)
    seen: list[Tensor] = []
    encode = decoding.encode_keys
    monkeypatch.setattr(
        decoding, "encode_keys", lambda of, embeds, places: seen.append(embeds) or encode(of, embeds, places)
    )
    CanvasDecoder(by_posterior, processor)(mel, torch.tensor([90]), steps=1)
    with torch.no_grad():
        tokens, n_audio = by_posterior.audio_tokens(mel, torch.tensor([90]))
        probabilities = by_posterior.ctc_logits(tokens).softmax(-1)
        embedding = by_posterior.backbone.get_input_embeddings()
        ids = torch.arange(by_posterior.config.vocab_size)
        expected = probabilities[0] @ embedding(ids)
    assert torch.allclose(seen[0][0, 1 : 1 + int(n_audio)], expected, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(
    by_posterior: CanvasASRModel, processor: CanvasASRProcessor, tmp_path: Path
) -> None:
    with torch.no_grad():
        by_posterior.ctc_tap.prompt_scale.fill_(0.25)
    save_checkpoint(by_posterior, processor, tmp_path, whole=True, dtype=None)
    loaded = CanvasASRModel.from_pretrained(tmp_path)
    assert loaded.config.audio_embeddings == "posterior"
    assert loaded.ctc_tap.prompt_scale.item() == 0.25


def test_other_embeddings_are_refused(model: CanvasASRModel) -> None:
    with pytest.raises(ValueError, match="audio_embeddings is 'words'; choose one of projector, posterior"):
        type(model.config).from_dict({**model.config.to_dict(), "audio_embeddings": "words"})
