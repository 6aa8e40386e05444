from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_clips import tones, write_clips
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from canvas_asr.errors import AudioError
from canvas_asr.manifest import read_manifest
from canvas_asr.processing import CanvasASRProcessor, log_mel
from canvas_asr.training.speech_data import SpecAugment, SpeechDataset


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of 0.60, 0.73 ... 1.25 s."""
    return write_clips(tmp_path_factory.mktemp("clips"), 6)


# Examples


def add_noise(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return samples + 0.01 * rng.standard_normal(len(samples)).astype(np.float32)


def test_an_example_is_a_clip_and_its_features(manifest: Path, processor: CanvasASRProcessor) -> None:
    clips = read_manifest(manifest)
    dataset = SpeechDataset(clips, processor.feature_extractor)
    assert len(dataset) == 6
    example = dataset[(0, 2)]
    assert example["entry"] == clips[2]
    expected = log_mel(processor.feature_extractor, tones(0.86, 2))
    assert example["mel"].shape == (80, 43)
    np.testing.assert_allclose(example["mel"], expected, atol=0.02)  # the file has 16 bits a sample


def test_augmentation_is_drawn_from_seed_epoch_and_index(
    manifest: Path, processor: CanvasASRProcessor
) -> None:
    clips = read_manifest(manifest)[:1] * 2

    def mel(seed: int, index: tuple[int, int]) -> NDArray[np.float32]:
        dataset = SpeechDataset(
            clips, processor.feature_extractor, seed=seed, augment=add_noise, spec_augment=SpecAugment()
        )
        return dataset[index]["mel"]

    first = mel(1, (0, 0))
    np.testing.assert_array_equal(mel(1, (0, 0)), first)
    for other in (mel(2, (0, 0)), mel(1, (1, 0)), mel(1, (0, 1))):
        assert not np.array_equal(other, first)


def test_workers_make_what_the_main_process_makes(manifest: Path, processor: CanvasASRProcessor) -> None:
    dataset = SpeechDataset(
        read_manifest(manifest), processor.feature_extractor, augment=add_noise, spec_augment=SpecAugment()
    )
    batches = [[(0, 5), (0, 1)], [(1, 1), (3, 0)], [(2, 2)]]
    results = [
        [
            example
            for batch in DataLoader(dataset, batch_sampler=batches, num_workers=n, collate_fn=list)
            for example in batch
        ]
        for n in (0, 2)
    ]
    for alone, shared in zip(*results, strict=True):
        assert alone["entry"] == shared["entry"]
        np.testing.assert_array_equal(alone["mel"], shared["mel"])


def test_a_clip_that_cannot_be_read_is_named(
    manifest: Path, processor: CanvasASRProcessor, tmp_path: Path
) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"audio": "gone.wav", "text": "a", "language": "en", "duration": 1}\n')
    dataset = SpeechDataset(read_manifest(path), processor.feature_extractor)
    with pytest.raises(AudioError, match=r"gone\.wav"):
        dataset[(0, 0)]


# Masks


def test_masks_are_bands_of_the_mean() -> None:
    mel = np.arange(80 * 300, dtype=np.float32).reshape(80, 300)
    original, fill = mel.copy(), mel.mean()
    seen_time, seen_frequency = set(), set()
    for seed in range(40):
        masked = SpecAugment(1, 20, 1, 12)(mel, np.random.default_rng(seed))
        changed = masked != mel
        assert np.all(masked[changed] == fill)
        columns, rows = changed.all(axis=0), changed.all(axis=1)
        assert np.array_equal(changed, columns[None, :] | rows[:, None])
        for marks, seen in ((columns, seen_time), (rows, seen_frequency)):
            where = np.flatnonzero(marks)
            seen.add(len(where))
            assert len(where) == 0 or where[-1] - where[0] + 1 == len(where)
    np.testing.assert_array_equal(mel, original)
    assert max(seen_time) <= 20
    assert len(seen_time) > 10
    assert max(seen_frequency) <= 12
    assert len(seen_frequency) > 6


def test_short_clips_lose_a_tenth_at_most_to_a_mask() -> None:
    mel = np.random.default_rng(0).normal(size=(80, 30)).astype(np.float32)
    for seed in range(30):
        masked = SpecAugment(1, 20, 0, 0)(mel, np.random.default_rng(seed))
        assert (masked != mel).all(axis=0).sum() <= 3
    single = mel[:, :1]
    assert np.array_equal(SpecAugment(2, 20, 0, 0)(single, np.random.default_rng(0)), single)


def test_no_masks_change_nothing() -> None:
    mel = np.random.default_rng(0).normal(size=(80, 30)).astype(np.float32)
    assert np.array_equal(SpecAugment(0, 20, 0, 12)(mel, np.random.default_rng(0)), mel)
