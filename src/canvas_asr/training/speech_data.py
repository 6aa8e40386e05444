"""Clips of manifests as training examples: read, augmented, turned into features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import WhisperFeatureExtractor

from canvas_asr.audio import load_audio
from canvas_asr.errors import DataError
from canvas_asr.manifest import Clip, read_manifest
from canvas_asr.processing import log_mel

Augment = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]


@dataclass(frozen=True)
class SpecAugment:
    """Time and frequency masks on log-mel features (Park et al. 2019, arXiv 1904.08779).

    Attributes:
        n_time: Time masks per clip.
        max_time: Longest time mask in mel frames, and at most a tenth of the clip.
        n_frequency: Frequency masks per clip.
        max_frequency: Widest frequency mask in mel bins.
    """

    n_time: int = 2
    max_time: int = 20
    n_frequency: int = 2
    max_frequency: int = 12

    def __call__(self, mel: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Mask a copy of (n_mels, T_mel) features with their mean."""
        mel = mel.copy()
        fill = mel.mean()
        for _ in range(self.n_time):
            width = int(rng.integers(0, min(self.max_time, mel.shape[1] // 10) + 1))
            start = int(rng.integers(0, mel.shape[1] - width + 1))
            mel[:, start : start + width] = fill
        for _ in range(self.n_frequency):
            width = int(rng.integers(0, self.max_frequency + 1))
            start = int(rng.integers(0, mel.shape[0] - width + 1))
            mel[start : start + width] = fill
        return mel


@dataclass(frozen=True)
class ManifestSource:
    """A manifest and how often its clips are drawn.

    Attributes:
        path: The manifest.
        repeat: How many times each clip occurs in an epoch; a fraction takes that share of the clips.
        split: Only clips of this split; empty takes all.
    """

    path: Path
    repeat: float = 1.0
    split: str = ""


def read_sources(sources: Sequence[ManifestSource], *, min_s: float = 0.1, max_s: float = 30.0) -> list[Clip]:
    """Read the entries of several manifests, repeated as asked.

    Args:
        sources: The manifests.
        min_s: Shorter clips are left out.
        max_s: Longer clips are left out.

    Returns:
        Entries in a fixed order.

    Raises:
        DataError: If nothing is left.
    """
    entries: list[Clip] = []
    for source in sources:
        own = [
            entry
            for entry in read_manifest(source.path)
            if source.split in ("", entry.split) and min_s <= _duration_s(entry, source.path) <= max_s
        ]
        whole, part = divmod(source.repeat, 1.0)
        order = np.random.default_rng(0).permutation(len(own))[: round(part * len(own))]
        entries += own * int(whole) + [own[i] for i in order]
    if not entries:
        names = ", ".join(str(source.path) for source in sources)
        raise DataError(f"no clips of {min_s} to {max_s} s in {names or 'an empty list of manifests'}.")
    return entries


def _duration_s(clip: Clip, manifest: Path) -> float:
    if clip.duration_s is None:
        raise DataError(
            f"{manifest}: key 'duration' is missing for {clip.audio}; training sorts clips by it."
        )
    return clip.duration_s


class SpeechDataset(Dataset[dict[str, Any]]):
    """Examples by (epoch, index): the entry and its log-mel features (n_mels, T_mel).

    Augmentation is drawn from (seed, epoch, index) alone, whichever worker makes it.
    """

    def __init__(
        self,
        entries: Sequence[Clip],
        feature_extractor: WhisperFeatureExtractor,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        spec_augment: SpecAugment | None = None,
    ) -> None:
        """Set up.

        Args:
            entries: Clips.
            feature_extractor: Of the audio encoder.
            seed: Of the augmentation.
            augment: Changes samples, not their length.
            spec_augment: Masks features.
        """
        self.entries = entries
        self.feature_extractor = feature_extractor
        self.seed = seed
        self.augment = augment
        self.spec_augment = spec_augment

    def __len__(self) -> int:
        """Clips of one epoch."""
        return len(self.entries)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Make one example."""
        epoch, i = index
        entry = self.entries[i]
        rng = np.random.default_rng((self.seed, epoch, i))
        samples = load_audio(entry.audio)
        if self.augment is not None:
            samples = self.augment(samples, rng)
        mel = log_mel(self.feature_extractor, samples)
        if self.spec_augment is not None:
            mel = self.spec_augment(mel, rng)
        return {"entry": entry, "mel": mel}
