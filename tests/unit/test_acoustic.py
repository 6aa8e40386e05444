"""Stage (a): its model by hand, and a run of a few steps over sine waves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_clips import SPEECH, write_clips
from small_models import AUDIO_ENCODER, TINY
from torch import nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from canvas_asr.errors import CheckpointError, DataError, RecipeError
from canvas_asr.manifest import read_manifest
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.synthesis.phonemes import PHONEMES, frame_labels
from canvas_asr.training import acoustic
from canvas_asr.training.acoustic import IGNORED, AcousticCollator, AcousticModel, AcousticOptions, judge, run
from canvas_asr.training.losses import ctc_loss
from canvas_asr.training.recipe import Recipe, TrainingOptions
from canvas_asr.training.speech_data import SpeechDataset

FRAME_S = 0.04


def model_of(**options: Any) -> AcousticModel:
    torch.manual_seed(0)
    settings = AcousticOptions(TINY, (), (), AUDIO_ENCODER, **options)
    return AcousticModel(WhisperConfig(**AUDIO_ENCODER), 4096, settings).eval()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), 6)


@pytest.fixture(scope="module")
def dataset(manifest: Path, processor: CanvasASRProcessor) -> SpeechDataset:
    return SpeechDataset(read_manifest(manifest), processor.feature_extractor)


@pytest.fixture(scope="module")
def collate(processor: CanvasASRProcessor) -> AcousticCollator:
    return AcousticCollator(processor.tokenizer, FRAME_S)


# Batches


def test_frames_are_labelled_with_the_phoneme_that_sounds(
    dataset: SpeechDataset, collate: AcousticCollator
) -> None:
    batch = collate([dataset[(0, i)] for i in (0, 3)])
    assert batch["mel"].shape == (2, 80, 49)  # 0.99 s
    assert batch["n_mel"].tolist() == [30, 49]
    assert batch["labels"].shape == (2, 25)
    # Phonemes of the first clip start at 0.05 s and last 0.08 s; a frame lasts 0.04 s.
    index = {symbol: i for i, symbol in enumerate(PHONEMES)}
    spelt = [index[s] if s in index else None for s in SPEECH[0][2]]
    labels = batch["labels"][0]
    assert labels[0] == index[""]
    assert labels[1] == labels[2] == spelt[0] == index["ɡ"]
    assert labels[3] == labels[4] == spelt[1]
    assert (labels[15:] == IGNORED).all()
    entry = dataset.entries[3]
    assert batch["labels"][1].tolist() == frame_labels(entry.phonemes, 25, FRAME_S).tolist()


def test_recorded_clips_have_no_frame_labels_and_all_have_text(
    dataset: SpeechDataset, collate: AcousticCollator, processor: CanvasASRProcessor
) -> None:
    recorded = dataset[(0, 1)]
    recorded["entry"] = type(recorded["entry"])(recorded["entry"].audio, "Guten Tag.", "de")
    batch = collate([recorded, dataset[(0, 0)]])
    assert (batch["labels"][0] == IGNORED).all()
    assert (batch["labels"][1] != IGNORED).any()
    ids = [processor.text_ids(text) for text in ("Guten Tag.", SPEECH[0][0])]
    assert batch["n_targets"].tolist() == [len(row) for row in ids]
    for row, expected in enumerate(ids):
        assert batch["targets"][row, : len(expected)].tolist() == expected


# The model


def test_pieces_are_read_from_stacked_frames() -> None:
    model = model_of(stride=2)
    frames = torch.randn(2, 5, 32)
    states, n_states = model.piece_states(frames, torch.tensor([5, 2]))
    assert n_states.tolist() == [3, 1]
    assert states.shape == (2, 3, 64)
    torch.testing.assert_close(states[0, 0], nn.functional.layer_norm(frames[0, :2].flatten(), (64,)))
    half = torch.cat([frames[0, 4], torch.zeros(32)])
    torch.testing.assert_close(states[0, 2], nn.functional.layer_norm(half, (64,)))


@torch.no_grad()
def test_losses_are_those_of_the_two_heads(dataset: SpeechDataset, collate: AcousticCollator) -> None:
    batch = collate([dataset[(0, i)] for i in (0, 3, 5)])
    model = model_of(frame_weight=0.5, ctc_weight=2.0)
    outputs = model(**batch)
    frames, n_frames = acoustic.encode_audio(model.encoder, batch["mel"], batch["n_mel"], pad_to_30s=False)
    logits = model.phoneme_head(frames)
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED
    )
    torch.testing.assert_close(outputs["frame_loss"], expected)
    known = batch["labels"] != IGNORED
    right = logits.argmax(-1)[known] == batch["labels"][known]
    torch.testing.assert_close(outputs["frame_accuracy"], right.float().mean())
    states, n_states = model.piece_states(frames, n_frames)
    ctc, infeasible = ctc_loss(
        states, n_states, batch["targets"], batch["n_targets"], model.piece_head, blank=6
    )
    torch.testing.assert_close(outputs["ctc"], ctc)
    assert outputs["infeasible"] == infeasible.float().mean()
    torch.testing.assert_close(outputs["loss"], 0.5 * expected + 2.0 * ctc)


@torch.no_grad()
def test_a_loss_of_weight_zero_is_left_out(dataset: SpeechDataset, collate: AcousticCollator) -> None:
    batch = collate([dataset[(0, i)] for i in (0, 3)])
    assert set(model_of(ctc_weight=0.0)(**batch)) == {"loss", "frame_loss", "frame_accuracy"}
    assert set(model_of(frame_weight=0.0, ctc_weight=1.0)(**batch)) == {"loss", "ctc", "infeasible"}


def test_a_batch_without_labels_gives_a_loss_of_zero_that_can_be_trained_on(
    dataset: SpeechDataset, collate: AcousticCollator
) -> None:
    batch = collate([dataset[(0, i)] for i in (0, 3)])
    batch["labels"].fill_(IGNORED)
    model = model_of(ctc_weight=0.0)
    outputs = model(**batch)
    assert set(outputs) == {"loss"}
    assert outputs["loss"] == 0
    outputs["loss"].backward()
    gradients = [p.grad for p in model.encoder.parameters() if p.grad is not None]
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients)


# Judging


@torch.no_grad()
def test_error_rates_are_by_language(
    dataset: SpeechDataset, collate: AcousticCollator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading that is right but for one letter of the English sentence."""

    def read(logits: torch.Tensor, n_states: torch.Tensor, blank: int) -> list[list[int]]:
        texts = [entry.text for entry in dataset.entries]  # already sorted by length
        texts[0] = texts[0].replace("friend", "fiend")
        return [collate.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    monkeypatch.setattr(acoustic, "greedy_ctc", read)
    figures, transcripts = judge(model_of(ctc_weight=1.0), dataset, collate)
    english = SPEECH[0][0]
    assert {
        "language": "en",
        "reference": english,
        "hypothesis": english.replace("friend", "fiend"),
    } in transcripts
    assert len(transcripts) == len(dataset)
    assert 0 <= figures.pop("frame_accuracy") < 0.2
    assert figures.pop("shuffled") > 0.8
    assert figures.pop("gap") > 0.8
    assert figures == {
        "cer_de": 0.0,
        "cer_en": pytest.approx(1 / len(SPEECH[0][0])),
        "cer_es": 0.0,
        "cer_fr": 0.0,
        "cer_hi": 0.0,
        "cer_zh": 0.0,
        "repetition": 0.0,
    }


# A run


def recipe_of(folder: Path, manifest: Path, *, n_steps: int = 4, **options: Any) -> Recipe:
    settings: dict[str, Any] = {
        "tokenizer": str(TINY),
        "train": [{"path": str(manifest)}],
        "dev": [{"path": str(manifest)}],
        "encoder": AUDIO_ENCODER,
        "n_dev": 3,
        **options,
    }
    training = TrainingOptions(
        n_steps, 3, 0.01, warmup_steps=1, eval_steps=n_steps, save_steps=2, log_steps=1, n_workers=0
    )
    return Recipe("acoustic", folder, training, settings)


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("acoustic")
    run(recipe_of(folder, manifest, ctc_weight=0.5, augment=True))
    return folder


def test_a_run_leaves_an_encoder_its_features_and_a_log(trained: Path) -> None:
    encoder, report = WhisperEncoder.from_pretrained(trained / "audio_encoder", output_loading_info=True)
    assert not report["missing_keys"]
    assert encoder.config.d_model == 32
    untrained = model_of().encoder
    assert not torch.equal(encoder.conv1.weight, untrained.conv1.weight)
    extractor = WhisperFeatureExtractor.from_pretrained(trained)
    assert (extractor.hop_length, extractor.n_fft, extractor.feature_size) == (320, 400, 80)
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {"frame_loss", "frame_accuracy", "ctc", "infeasible"} <= set(steps[0])
    (judged,) = [line for line in lines if "eval_frame_accuracy" in line]
    assert judged["step"] == 4
    assert {"eval_cer_en", "eval_cer_de", "eval_cer_fr", "eval_gap", "eval_repetition"} <= set(judged)


def test_a_run_can_start_from_an_earlier_one(trained: Path, manifest: Path, tmp_path: Path) -> None:
    init = str(trained / "trained.safetensors")
    run(recipe_of(tmp_path, manifest, n_steps=1, init=init, ctc_weight=0.5))
    # The first step of a warm-up has learning rate 0: what comes out is what was put in.
    before, after = (
        WhisperEncoder.from_pretrained(folder / "audio_encoder") for folder in (trained, tmp_path)
    )
    assert torch.equal(before.conv1.weight, after.conv1.weight)
    assert torch.equal(before.layers[0].fc1.weight, after.layers[0].fc1.weight)


def test_bad_settings_are_named(trained: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="options: unknown key 'strides'"):
        run(recipe_of(tmp_path, manifest, strides=2))
    with pytest.raises(RecipeError, match=r"options\.train\[0\]: unknown key 'file'"):
        run(recipe_of(tmp_path, manifest, train=[{"file": "x"}]))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        run(recipe_of(tmp_path, manifest, train=[{"path": str(tmp_path / "none.jsonl")}]))
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        run(recipe_of(tmp_path, manifest, init=str(tmp_path / "none.safetensors")))
    with pytest.raises(RecipeError, match="frame_weight and ctc_weight are both 0"):
        run(recipe_of(tmp_path, manifest, frame_weight=0.0, ctc_weight=0.0))
    narrow = {**AUDIO_ENCODER, "d_model": 16}
    with pytest.raises(CheckpointError, match="does not fit"):
        run(recipe_of(tmp_path, manifest, encoder=narrow, init=str(trained / "trained.safetensors")))


def test_clips_without_phonemes_need_ctc(manifest: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["audio"] = str(manifest.parent / record["audio"])
        del record["phonemes"]
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    with pytest.raises(DataError, match="no clip has phonemes, and ctc_weight is 0"):
        run(recipe_of(tmp_path, recorded, ctc_weight=0.0))
