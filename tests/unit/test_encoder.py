from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up_clips import tones
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from canvas_asr.encoder import _pad_with_silence, encode_audio, length_mask, n_encoder_frames
from canvas_asr.processing import log_mel, pad_mels

N_FRAMES = 20  # what this encoder holds: 40 mel frames


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=N_FRAMES,
    )
    encoder = WhisperEncoder(config).eval()
    for parameter in encoder.parameters():
        if parameter.ndim > 1:  # at stock's initial size, attention would hardly matter
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def test_the_second_convolution_halves_the_frames_rounding_up() -> None:
    assert n_encoder_frames(torch.tensor([1, 2, 3, 39, 40])).tolist() == [1, 1, 2, 20, 20]


def test_length_mask_marks_the_valid_positions() -> None:
    mask = length_mask(torch.tensor([2, 0, 3]), 3)
    assert mask.tolist() == [[True, True, False], [False, False, False], [True, True, True]]


@torch.no_grad()
def test_a_clip_of_full_length_gives_what_the_stock_encoder_gives(encoder: WhisperEncoder) -> None:
    mel = torch.randn(2, 8, 2 * N_FRAMES)
    stock = encoder(mel).last_hidden_state
    for pad_to_30s in (False, True):
        frames, n_frames = encode_audio(encoder, mel, torch.tensor([40, 40]), pad_to_30s=pad_to_30s)
        torch.testing.assert_close(frames, stock)
        assert n_frames.tolist() == [N_FRAMES, N_FRAMES]


@torch.no_grad()
def test_padded_to_30_s_equals_the_stock_encoder_on_padded_waves() -> None:
    """From the wave on: what stands behind a clip is what the stock extractor makes of silence."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, max_source_positions=1500
    )
    encoder, extractor = WhisperEncoder(config).eval(), WhisperFeatureExtractor()
    waves = [tones(1.0, 1), 0.001 * tones(0.6, 2), np.zeros(8000, np.float32)]
    stock_mel = extractor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    mel, n_mel = pad_mels([log_mel(extractor, wave) for wave in waves])
    padded = _pad_with_silence(mel, n_mel, 3000)
    assert padded.shape == stock_mel.shape == (3, 80, 3000)
    for row, n in enumerate(n_mel.tolist()):
        # The window at the clip's very end reaches into what follows: there the two see other samples.
        torch.testing.assert_close(padded[row, :, : n - 2], stock_mel[row, :, : n - 2], atol=1e-4, rtol=0)
        torch.testing.assert_close(padded[row, :, n + 2 :], stock_mel[row, :, n + 2 :], atol=1e-4, rtol=0)
    frames, n_frames = encode_audio(encoder, mel, n_mel, pad_to_30s=True)
    torch.testing.assert_close(frames, encoder(padded).last_hidden_state)
    assert n_frames.tolist() == [1500] * 3


@torch.no_grad()
def test_a_clip_in_a_padded_batch_gives_what_it_gives_alone(encoder: WhisperEncoder) -> None:
    mel = torch.randn(3, 8, 31)  # what stands behind a clip is anything but zero
    n_mel = torch.tensor([7, 31, 18])
    frames, n_frames = encode_audio(encoder, mel, n_mel, pad_to_30s=False)
    assert n_frames.tolist() == [4, 16, 9]
    for row, n in enumerate(n_mel.tolist()):
        alone, _ = encode_audio(encoder, mel[row : row + 1, :, :n], n_mel[row : row + 1], pad_to_30s=False)
        torch.testing.assert_close(frames[row, : n_frames[row]], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_short_clip_differs_from_the_same_clip_padded_to_30_s(encoder: WhisperEncoder) -> None:
    mel, n_mel = torch.randn(1, 8, 16), torch.tensor([16])
    true_length, _ = encode_audio(encoder, mel, n_mel, pad_to_30s=False)
    padded, _ = encode_audio(encoder, mel, n_mel, pad_to_30s=True)
    assert true_length.shape[1] == 8
    assert (true_length - padded[:, :8]).abs().max() > 0.01


@pytest.mark.parametrize("pad_to_30s", [False, True])
def test_a_clip_longer_than_the_encoder_is_refused(encoder: WhisperEncoder, pad_to_30s: bool) -> None:
    with pytest.raises(ValueError, match=r"42 mel frames .* holds \(40\)"):
        encode_audio(encoder, torch.randn(1, 8, 42), torch.tensor([42]), pad_to_30s=pad_to_30s)
