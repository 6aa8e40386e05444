"""Clips as training examples: read, augmented, turned into features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import WhisperFeatureExtractor

from canvas_asr.hub_sets import clip_samples
from canvas_asr.manifest import Clip
from canvas_asr.processing import log_mel

from .mixture import Mixture

Samples = NDArray[np.float32]
Augment = Callable[[Samples, np.random.Generator], Samples]


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


class SpeechDataset(Dataset[dict[str, Any]]):
    """Examples by (epoch, place): the entry and its log-mel features (n_mels, T_mel).

    Which clip a place holds, and its augmentation, are drawn from (seed, epoch, place) alone, whichever
    worker makes it.
    """

    def __init__(
        self,
        entries: Sequence[Clip],
        feature_extractor: WhisperFeatureExtractor,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        spec_augment: SpecAugment | None = None,
        mixture: Mixture | None = None,
        features: Callable[[Clip], NDArray[np.float32]] | None = None,
    ) -> None:
        """Set up.

        Args:
            entries: Clips.
            feature_extractor: Of the audio encoder.
            seed: Of the augmentation.
            augment: Changes samples.
            spec_augment: Masks features.
            mixture: Which clips make an epoch; None: each once.
            features: Gives what is kept of a clip in place of its log-mel features, as a feature cache does.
        """
        self.entries = entries
        self.feature_extractor = feature_extractor
        self.seed = seed
        self.augment = augment
        self.spec_augment = spec_augment
        self.mixture = mixture
        self.features = features

    def __len__(self) -> int:
        """Places of one epoch."""
        return len(self.entries) if self.mixture is None else len(self.mixture)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Make one example."""
        epoch, place = index
        entry = self.entries[place if self.mixture is None else self.mixture.clip_at(epoch, place)]
        return self.example(entry, np.random.default_rng((self.seed, epoch, place)))

    def example(self, entry: Clip, rng: np.random.Generator) -> dict[str, Any]:
        """Make an example of a clip.

        Args:
            entry: The clip.
            rng: Draws its augmentation.

        Returns:
            ``entry`` and ``mel`` (n_mels, T_mel).
        """
        if self.features is None:
            samples = clip_samples(entry)
            if self.augment is not None:
                samples = self.augment(samples, rng)
            mel = log_mel(self.feature_extractor, samples)
        else:
            mel = self.features(entry)
        if self.spec_augment is not None:
            mel = self.spec_augment(mel, rng)
        return {"entry": entry, "mel": mel}
