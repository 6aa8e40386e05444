from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up_clips import SPEECH, tones
from small_models import AUDIO_ENCODER, BACKBONE
from transformers import WhisperFeatureExtractor

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.processing import CanvasASRProcessor, log_mel, pad_ids, pad_mels

CONFIG = CanvasASRConfig(backbone_config=BACKBONE, audio_encoder_config=AUDIO_ENCODER)
BOS, AUDIO, TRANSCRIBE = 2, 4, 5


@pytest.mark.parametrize("hop_length", [160, 320])
def test_features_equal_the_stock_extractor_on_the_true_length(hop_length: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=80, hop_length=hop_length)
    wave = tones(0.73, 1)
    stock = extractor(wave, sampling_rate=16_000, padding=False, return_tensors="np").input_features[0]
    ours = log_mel(extractor, wave)
    assert ours.dtype == np.float32
    assert ours.shape == (80, len(wave) // hop_length)
    np.testing.assert_allclose(ours, stock, atol=1e-5)


def test_a_clip_shorter_than_the_window_is_padded_with_silence(processor: CanvasASRProcessor) -> None:
    wave = tones(0.01, 1)  # 160 samples, a window has 400
    alone = log_mel(processor.feature_extractor, wave)
    padded = log_mel(processor.feature_extractor, np.concatenate([wave, np.zeros(240, np.float32)]))
    assert alone.shape == (80, 1)
    np.testing.assert_array_equal(alone, padded)


def test_features_of_a_clip_do_not_depend_on_its_batch(processor: CanvasASRProcessor) -> None:
    waves = [tones(0.5, 1), tones(1.1, 2)]
    mel, n_mel = processor.features(waves)
    assert n_mel.tolist() == [25, 55]
    assert mel.shape == (2, 80, 55)
    assert torch.equal(mel[0, :, :25], processor.features(waves[:1])[0][0])
    assert not mel[0, :, 25:].any()


def test_pad_mels_pads_at_the_right() -> None:
    mel, n_mel = pad_mels([np.full((2, 1), 3.0, np.float32), np.full((2, 3), 5.0, np.float32)])
    assert mel.tolist() == [[[3, 0, 0], [3, 0, 0]], [[5, 5, 5], [5, 5, 5]]]
    assert n_mel.tolist() == [1, 3]


def test_pad_ids_pads_at_the_right_and_leaves_room_for_nothing() -> None:
    ids, lengths = pad_ids([[5], [], [6, 7]], 9)
    assert ids.tolist() == [[5, 9], [9, 9], [6, 7]]
    assert lengths.tolist() == [1, 0, 2]
    empty, lengths = pad_ids([[], []], 9)
    assert empty.tolist() == [[9], [9]]
    assert lengths.tolist() == [0, 0]


def test_a_prompt_has_one_slot_per_audio_token(processor: CanvasASRProcessor) -> None:
    assert processor.prompt_ids(CONFIG, [3, 1]) == [
        [BOS, AUDIO, AUDIO, AUDIO, TRANSCRIBE],
        [BOS, AUDIO, TRANSCRIBE],
    ]


def test_the_prompt_around_the_slots_is_configuration(processor: CanvasASRProcessor) -> None:
    config = CanvasASRConfig(
        backbone_config=BACKBONE,
        audio_encoder_config=AUDIO_ENCODER,
        prompt_prefix="<bos><|continue|>",
        prompt_suffix="",
        audio_token="<|blank|>",
    )
    assert processor.prompt_ids(config, [2]) == [[2, 13, 6, 6]]


def test_an_unknown_special_token_is_named(processor: CanvasASRProcessor) -> None:
    assert processor.token_id("<|blank|>") == 6
    with pytest.raises(ValueError, match=r"no token '<\|video\|>'"):
        processor.token_id("<|video|>")


def test_language_tags_by_code(processor: CanvasASRProcessor) -> None:
    assert processor.language_ids(CONFIG) == {"en": 7, "de": 8, "fr": 9, "es": 10, "hi": 11, "zh": 12}
    without = CanvasASRConfig(
        backbone_config=BACKBONE, audio_encoder_config=AUDIO_ENCODER, language_tag_place="none"
    )
    assert processor.language_ids(without) == {}


@pytest.mark.parametrize(("text", "language", "_"), SPEECH)
def test_text_in_six_languages_comes_back_without_its_special_tokens(
    processor: CanvasASRProcessor, text: str, language: str, _: str
) -> None:
    ids = processor.text_ids(text)
    tag = processor.language_ids(CONFIG)[language]
    assert not set(ids) & set(processor.tokenizer.all_special_ids)
    assert processor.text([tag, *ids, 1, 1, 0]) == text
    assert processor.text([tag, 1, 1]) == ""
