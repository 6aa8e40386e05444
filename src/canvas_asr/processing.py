"""Processor: waveforms to log-mel features, prompts with audio slots, canvases to text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    WhisperFeatureExtractor,
)

from .audio import load_audio
from .configuration import CONTEXT_PLACE, WAVEFORM_FRAME, CanvasASRConfig, load_configuration
from .errors import AudioError, CheckpointError
from .hub import CONFIG_NAME, UNREADABLE, HubAccess, cannot_load, model_folder, quietly
from .parts import Part

TOKENIZER_NAME = "tokenizer.json"
FEATURES_NAME = "preprocessor_config.json"

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
    with torch.autocast("cpu", enabled=False):  # numpy has no bfloat16
        features: NDArray[np.float32] = feature_extractor._torch_extract_fbank_features(padded)
    return features


class WaveformFeatureExtractor(WhisperFeatureExtractor):
    """Frames of the waveform in place of log-mel features: (640, T), 40 ms each, nothing computed."""

    def __init__(self, **kwargs: Any) -> None:
        """Set up.

        Args:
            kwargs: As for its parent, whose mel filters are not used.
        """
        kwargs.update(feature_size=80, hop_length=WAVEFORM_FRAME, n_fft=WAVEFORM_FRAME)
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.feature_size = WAVEFORM_FRAME

    def _torch_extract_fbank_features(
        self, waveform: NDArray[np.float32], device: str = "cpu"
    ) -> NDArray[np.float32]:
        """Cut samples (N,) into frames, (640, N // 640)."""
        n_frames = len(waveform) // WAVEFORM_FRAME
        return np.ascontiguousarray(waveform[: n_frames * WAVEFORM_FRAME].reshape(n_frames, WAVEFORM_FRAME).T)


def load_feature_extractor(
    source: str | Path, config: CanvasASRConfig, **access: Any
) -> WhisperFeatureExtractor:
    """Load the features of an audio encoder; of a waveform, none need be stored.

    Args:
        source: Folder or hub name.
        config: Of the model.
        access: To the hub, as ``from_pretrained`` takes it.
    """
    if config.reads_waveform:
        return WaveformFeatureExtractor()
    extractor: WhisperFeatureExtractor = WhisperFeatureExtractor.from_pretrained(str(source), **access)
    return extractor


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

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | None = None,
        **_: Any,
    ) -> CanvasASRProcessor:
        """Load the processor of a checkpoint.

        Args:
            pretrained_model_name_or_path: ``tiny``, a folder, or a name of the hub.
            revision: Branch, tag or commit on the hub.
            token: Of an account on the hub.
            local_files_only: Make no connection.
            cache_dir: Of the hub's files.
            _: What the Auto classes add.

        Raises:
            CheckpointError: If there is no such checkpoint, or one of its files is missing or unusable.
        """
        folder = model_folder(
            pretrained_model_name_or_path, HubAccess(revision, token, local_files_only, cache_dir)
        )
        return load_processor(folder, load_configuration(folder))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write tokenizer and feature extractor, each to the files that a checkpoint has them in.

        Args:
            save_directory: Folder, made if need be.
            push_to_hub: Upload them too; ``repo_id`` and what else ``push_to_hub`` takes come as ``kwargs``.
            kwargs: See there.
        """
        self.tokenizer.save_pretrained(save_directory)
        self.feature_extractor.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    def __call__(
        self, audio: Any, sampling_rate: int | None = None, return_tensors: str = "pt"
    ) -> BatchFeature:
        """Turn audio into what ``generate`` takes.

        Args:
            audio: A path, an array, ``(array, rate)``, or a list of them.
            sampling_rate: Of bare arrays, in Hz; they are resampled to 16 kHz if need be.
            return_tensors: ``pt``.

        Returns:
            ``input_features`` (B, n_mels, T_mel) and ``attention_mask`` (B, T_mel), 1 where valid.

        Raises:
            AudioError: If a clip cannot be read or has no samples.
            ValueError: If other tensors than PyTorch's are asked for.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; this processor makes 'pt' only.")
        waves = []
        for place, source in enumerate(audio if isinstance(audio, list) else [audio]):
            is_bare = not isinstance(source, (str, os.PathLike, tuple))
            waves.append(load_audio(source, sampling_rate if is_bare else None))
            if not len(waves[-1]):
                raise AudioError(f"clip {place} has no samples.")
        mel, n_mel = self.features(waves)
        mask = torch.arange(mel.shape[-1])[None, :] < n_mel[:, None]
        return BatchFeature({"input_features": mel, "attention_mask": mask.long()})

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

    def prompt_ids(
        self, config: CanvasASRConfig, n_audio: Sequence[int], context: Sequence[int] = ()
    ) -> list[list[int]]:
        """Prompts with one placeholder per audio token.

        Args:
            config: Its ``prompt_prefix``, ``prompt_suffix`` and ``audio_token``.
            n_audio: Audio tokens of each clip.
            context: What :meth:`context_ids` gives, between prefix and audio.

        Returns:
            One list of ids a clip.
        """
        prefix = self.tokenizer.encode(config.prompt_prefix, add_special_tokens=False)
        suffix = self.tokenizer.encode(config.prompt_suffix, add_special_tokens=False)
        audio = self.token_id(config.audio_token)
        return [[*prefix, *context, *([audio] * n), *suffix] for n in n_audio]

    def context_ids(self, config: CanvasASRConfig, text: str) -> list[int]:
        """Token ids of a text to go by; what looks like a special token in it is taken as letters.

        Args:
            config: Its ``prompt_context``, which frames the text.
            text: Names, or the sentence before.

        Raises:
            ValueError: If the checkpoint takes no such text.
        """
        if config.prompt_context is None:
            raise ValueError(
                "prompt_context is None: this checkpoint was not trained with text in its prompt."
            )
        before, behind = config.prompt_context.split(CONTEXT_PLACE)
        encode = self.tokenizer.encode
        own: list[int] = encode(text, add_special_tokens=False, split_special_tokens=True)
        framed = (encode(part, add_special_tokens=False) if part else [] for part in (before, behind))
        return [*next(framed), *own, *next(framed)]

    def canvas_start(self, config: CanvasASRConfig) -> int | None:
        """Position of the first canvas token; None: behind the prompt.

        Args:
            config: Its ``audio_positions``, ``prompt_prefix`` and language tags. With ``spikes``, the first
                text token of the canvas stands where the first spike does, a language tag one before.
        """
        if config.audio_positions == "frames":
            return None
        n_before = len(self.tokenizer.encode(config.prompt_prefix, add_special_tokens=False))
        return n_before - bool(self.language_ids(config))

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
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and not self.tokenizer.clean_up_tokenization_spaces:
            # What decode() comes to, in a fifth of its time: it first looks at every id's type, twice.
            return str(backend.decode(list(ids), skip_special_tokens=True))
        decoded: Any = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return str(decoded)

    def text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._decode(ids).strip()


def load_tokenizer(
    source: str | Path, config: CanvasASRConfig, *, own_config: Any = None, **access: Any
) -> PreTrainedTokenizerBase:
    """Load a tokenizer whose ids the backbone has.

    Args:
        source: Folder or hub name.
        config: Of the model.
        own_config: Of the model whose tokenizer it is; None: ``config``.
        access: To the hub, as ``from_pretrained`` takes it.

    Raises:
        ValueError: If it has more tokens than the backbone, or none that ends a text.
    """
    with quietly():
        # Given a configuration, transformers does not guess at one from config.json.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source), config=own_config or config, **access
        )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the backbone {config.vocab_size}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer names no eos_token, which ends a text")
    return tokenizer


def load_processor(folder: Path, config: CanvasASRConfig) -> CanvasASRProcessor:
    """Load tokenizer and feature extractor of a checkpoint folder.

    Args:
        folder: Of the checkpoint.
        config: Its configuration.

    Raises:
        CheckpointError: Naming the file that is missing or unusable.
    """
    paths = folder / TOKENIZER_NAME, folder / FEATURES_NAME
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; the checkpoint is not whole, fetch it again.")
    path = paths[0]
    try:
        tokenizer = load_tokenizer(folder, config)
        path = paths[1]
        processor = CanvasASRProcessor(load_feature_extractor(folder, config), tokenizer)
        path = folder / CONFIG_NAME
        check_tokens(processor, config)
    except UNREADABLE as error:
        raise cannot_load(path, error) from error
    return processor


def processor_of_parts(
    backbone: Part, encoder: Part, config: CanvasASRConfig, access: HubAccess
) -> CanvasASRProcessor:
    """Join the backbone's tokenizer and the audio encoder's feature extractor, for an adapter without either.

    Args:
        backbone: Where the backbone lies.
        encoder: Where the audio encoder lies.
        config: Of the model.
        access: To the hub.

    Raises:
        CheckpointError: If one cannot be had, or the tokenizer lacks a token that the configuration names.
    """
    part = backbone
    try:
        with access.kept():
            tokenizer = load_tokenizer(
                part.source, config, own_config=config.backbone_config, **access.options(part.revision)
            )
            part = encoder
            extractor = load_feature_extractor(part.source, config, **access.options(part.revision))
        part = backbone
        processor = CanvasASRProcessor(extractor, tokenizer)
        check_tokens(processor, config)
    except UNREADABLE as error:
        raise cannot_load(part.source, error, part.revision) from error
    return processor


def check_tokens(processor: CanvasASRProcessor, config: CanvasASRConfig) -> None:
    """Look up every token that a configuration names.

    Raises:
        ValueError: If the tokenizer lacks one.
    """
    processor.prompt_ids(config, [1])
    processor.language_ids(config)
