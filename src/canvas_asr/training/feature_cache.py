"""What the frozen audio encoder gives for each clip, on disk: computed once, read in every epoch.

    <folder>/<encoder>/<first two digits>/<clip>.safetensors     frames (T, d_audio), bfloat16

A clip is known by its file's content; an encoder by its weights, the settings of its features and whether
clips are padded to 30 s. Files are written whole or not at all, so that a run can be stopped and others can
share the folder; what is there is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from canvas_asr.encoder import encode_audio, n_encoder_frames
from canvas_asr.errors import AudioError, DataError
from canvas_asr.hub_sets import StoredClip, clip_content, clip_samples
from canvas_asr.manifest import Clip, write_text
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, log_mel, pad_mels

from .sources import duration_s

STORED = torch.bfloat16
ABOUT_NAME = "encoder.json"


class FeatureCache:
    """The encoder's frames of clips, by clip."""

    def __init__(self, folder: Path, model: CanvasASRModel, processor: CanvasASRProcessor) -> None:
        """Find the part of the folder that is this encoder's.

        Args:
            folder: Of the cache.
            model: Its audio encoder is frozen.
            processor: Its feature extractor.
        """
        self.model = model
        self.extractor = processor.feature_extractor
        about = {
            "weights": _digest_of(model.audio_encoder),
            "pad_to_30s": model.config.pad_to_30s,
            "d_audio": model.config.d_audio,
            **{key: getattr(self.extractor, key) for key in ("feature_size", "hop_length", "n_fft")},
        }
        text = json.dumps(about, sort_keys=True)
        self.folder = folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / ABOUT_NAME, text + "\n")
        self._keys: dict[tuple[str, int], str] = {}

    def fill(self, clips: Sequence[Clip], device: str, *, batch_size: int = 16) -> int:
        """Compute what is not there.

        Args:
            clips: All that will be asked for; audio that cannot be read is left for training to count.
            device: To run the encoder on.
            batch_size: Clips at a time.

        Returns:
            How many clips were computed.

        Raises:
            DataError: If the disk has no room for them.
        """
        missing = [clip for clip in clips if self._key(clip) and not self._path(clip).is_file()]
        missing = list({self._key(clip): clip for clip in missing}.values())
        self._check_room(missing)
        missing.sort(key=duration_s)
        encoder = self.model.audio_encoder.to(device).eval()  # type: ignore[arg-type]
        with (
            torch.no_grad(),
            tqdm(total=len(missing), desc="audio encoder", unit="clip", disable=None) as bar,
        ):
            for start in range(0, len(missing), batch_size):
                readable = list(self._features(missing[start : start + batch_size]))
                bar.update(batch_size)
                if not readable:
                    continue
                mel, n_mel = pad_mels([features for _, features in readable])
                frames, n_frames = encode_audio(
                    encoder, mel.to(device), n_mel.to(device), pad_to_30s=self.model.config.pad_to_30s
                )
                for (clip, _), row, n in zip(
                    readable, frames.to(STORED).cpu(), n_frames.tolist(), strict=True
                ):
                    self._write(self._path(clip), row[:n])
        return len(missing)

    def __call__(self, clip: Clip) -> NDArray[np.float32]:
        """Read a clip's frames, (d_audio, T).

        Raises:
            AudioError: If they are not there, or damaged.
        """
        if not self._key(clip):
            raise AudioError(f"{clip.audio}: could not be read when the feature cache was filled.")
        path = self._path(clip)
        try:
            frames = load_file(path)["frames"]
        except (OSError, SafetensorError, KeyError) as error:
            raise AudioError(
                f"{clip.audio}: {path} in the feature cache cannot be read; delete it."
            ) from error
        return np.ascontiguousarray(frames.float().numpy().T)

    def _features(self, clips: Sequence[Clip]) -> Iterator[tuple[Clip, NDArray[np.float32]]]:
        for clip in clips:
            try:
                yield clip, log_mel(self.extractor, clip_samples(clip))
            except AudioError:
                self._keys[_place(clip)] = ""

    def _key(self, clip: Clip) -> str:
        """Digest of the clip's content; empty where it cannot be read."""
        place = _place(clip)
        if place not in self._keys:
            try:
                self._keys[place] = hashlib.blake2b(clip_content(clip), digest_size=16).hexdigest()
            except AudioError:
                self._keys[place] = ""
        return self._keys[place]

    def _path(self, clip: Clip) -> Path:
        key = self._key(clip)
        return self.folder / key[:2] / f"{key}.safetensors"

    def _write(self, path: Path, frames: torch.Tensor) -> None:
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")  # several processes may write the same clip
        save_file({"frames": frames.contiguous()}, partial)
        partial.replace(path)

    def _check_room(self, missing: Sequence[Clip]) -> None:
        hop_s = self.extractor.hop_length / self.extractor.sampling_rate
        n_mel = torch.tensor([int(duration_s(clip) / hop_s) for clip in missing])
        config = self.model.config
        n_frames = int(n_encoder_frames(n_mel).sum())
        if config.pad_to_30s:
            n_frames = len(missing) * config.audio_encoder_config.max_source_positions
        needed, free = n_frames * config.d_audio * STORED.itemsize, shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"{self.folder}: the frames of {len(missing)} clips take {needed / 1e9:.1f} GB and "
                f"{free / 1e9:.1f} GB are free; choose another feature_cache, or leave it out."
            )


def _place(clip: Clip) -> tuple[str, int]:
    return str(clip.audio), clip.row if isinstance(clip, StoredClip) else -1


def _digest_of(module: torch.nn.Module) -> str:
    """Digest of a module's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
