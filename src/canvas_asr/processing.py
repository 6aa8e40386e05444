"""Processor: waveforms to log-mel features, prompts with audio slots, canvases to text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin, WhisperFeatureExtractor

from .configuration import CanvasASRConfig

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def log_mel(feature_extractor: WhisperFeatureExtractor, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whisper's log-mel features of one clip on its true length.

    Each clip is taken alone: in a padded batch the transform would see the padding at the end of a clip.

    Args:
        feature_extractor: Its ``hop_length``, ``n_fft`` and ``feature_size`` count.
        samples: 16 kHz mono, (N,); fewer than ``n_fft`` samples are padded with silence.

    Returns:
        (n_mels, N // hop_length) float32.
    """
    padded = np.pad(samples, (0, max(0, feature_extractor.n_fft - len(samples)))).astype(np.float32)
    features: NDArray[np.float32] = feature_extractor._torch_extract_fbank_features(padded)
    return features


def pad_mels(mels: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Right-pad features to a batch: (B, n_mels, T_mel) float32 and valid frames (B,) int64."""
    n_mel = torch.tensor([mel.shape[1] for mel in mels])
    batch = torch.zeros(len(mels), mels[0].shape[0], int(n_mel.max()))
    for row, mel in enumerate(mels):
        batch[row, :, : mel.shape[1]] = torch.from_numpy(mel)
    return batch, n_mel


def pad_ids(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Right-pad token ids to a batch: (B, L) int64 and valid positions (B,) int64."""
    lengths = torch.tensor([len(row) for row in rows])
    batch = torch.full((len(rows), max(1, int(lengths.max()))), pad, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return batch, lengths


class CanvasASRProcessor(ProcessorMixin):
    """Features, prompts and text of one checkpoint."""

    attributes = ["feature_extractor", "tokenizer"]  # noqa: RUF012 - the parent's form
    feature_extractor_class = "WhisperFeatureExtractor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self, feature_extractor: WhisperFeatureExtractor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Join the two.

        Args:
            feature_extractor: Of the audio encoder.
            tokenizer: Of the backbone.
        """
        super().__init__(feature_extractor, tokenizer)  # type: ignore[no-untyped-call]
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    def features(self, waves: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
        """Log-mel features of 16 kHz mono clips, (B, n_mels, T_mel), and their valid frames (B,)."""
        return pad_mels([log_mel(self.feature_extractor, wave) for wave in waves])

    def token_id(self, token: str) -> int:
        """Id of a special token.

        Raises:
            ValueError: If the tokenizer has no such token.
        """
        index = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(index, int) or index == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {token!r}.")
        return index

    def prompt_ids(self, config: CanvasASRConfig, n_audio: Sequence[int]) -> list[list[int]]:
        """Prompts with one placeholder per audio token.

        Args:
            config: Its ``prompt_prefix``, ``prompt_suffix`` and ``audio_token``.
            n_audio: Audio tokens of each clip.

        Returns:
            One list of ids a clip.
        """
        prefix = self.tokenizer.encode(config.prompt_prefix, add_special_tokens=False)
        suffix = self.tokenizer.encode(config.prompt_suffix, add_special_tokens=False)
        audio = self.token_id(config.audio_token)
        return [[*prefix, *([audio] * n), *suffix] for n in n_audio]

    def language_ids(self, config: CanvasASRConfig) -> dict[str, int]:
        """Language code to the id of its tag; empty where the canvas carries no tag."""
        if config.language_tag_place == "none":
            return {}
        return {language: self.token_id(tag) for language, tag in config.language_tags.items()}

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a transcript, without tag or end token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text, leading space included; joined, they are the text.

        A letter spelt in bytes cannot be shared out: a run of byte tokens is read as one, and its last token
        has it all.
        """
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        is_byte = [bool(_BYTE_TOKEN.fullmatch(name)) for name in names]
        texts: list[str] = []
        before, start = 0, 0  # the run before, and the one that is being read
        for i in range(len(names)):
            if is_byte[i] and i + 1 < len(names) and is_byte[i + 1]:
                texts.append("")
                continue
            # Read behind its neighbour: at the start of a text a leading space is dropped.
            behind = self._decode(ids[before : i + 1])
            texts.append(behind[len(self._decode(ids[before:start])) :])
            before, start = start, i + 1
        return texts

    def _decode(self, ids: Sequence[int]) -> str:
        decoded: Any = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return str(decoded)

    def text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._decode(ids).strip()
