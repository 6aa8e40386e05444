"""Settings of stage (c), the adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas_asr.errors import RecipeError
from canvas_asr.synthesis.augment import AugmentationConfig

from .objective import ObjectiveOptions
from .speech_data import SpecAugment

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class AdapterOptions:
    """Settings of the stage.

    Attributes:
        tokenizer: Folder or hub name of the backbone's tokenizer.
        backbone: Folder or hub name of the frozen backbone.
        audio_encoder: Folder or hub name of the frozen audio encoder, its feature extractor beside it.
        train: Data to train on, each a ``DataSource``.
        dev: Data to judge by, likewise.
        model: Fields of ``CanvasASRConfig``.
        dtype: Precision of the frozen parts, ``float32`` or ``bfloat16``; the adapter is float32.
        objective: Diffusion and autoregressive losses, corruption.
        ctc_weight: Weight of the CTC loss; 0 switches it off.
        canvas_choices: Canvas lengths beside the shortest that fits.
        p_long_canvas: How often a longer canvas is chosen.
        init: A ``trained.safetensors`` of an earlier run of this stage, or folder or hub name of a checkpoint
            whose adapter to start from; empty starts anew. What it does not hold keeps its own start, so that
            joint fine-tuning can follow adapter training.
        min_clip_s: Shorter clips are left out.
        max_clip_s: Longer clips are left out.
        n_dev: Development clips decoded at each evaluation.
        streaming: Read sets of the hub as they arrive, without a copy on disk. Order and mixture are then
            only roughly those of the weights, and a resumed run does not go on at the clip where it stopped.
        shuffle_buffer: Clips of a stream that are held and drawn from.
        feature_cache: Folder for the frozen encoder's output, computed once; empty computes it every time.
        spec_augment: Masks on the features; with a feature cache, masks of time on the encoder's frames.
        augment: Whether training clips get noise, rooms, colour, gain and speed.
        augmentation: How strongly.
        train_adapter: Whether projector, CTC tap and LoRA learn; without them what reads the prompt can.
        train_embeddings: Whether embeddings and output layer, which are one, learn with the backbone; not
            where a CTC tap that reads through them is to be kept as it is.
        train_audio_encoder: Joint fine-tuning (d): the audio encoder learns too.
        train_backbone: Joint fine-tuning (d): the backbone learns too, its experts' routers apart.
        base_lr_scale: Learning rate of audio encoder and backbone relative to the adapter's.
        whole_checkpoint: Whether backbone and audio encoder are written beside the adapter; null: where they
            come from folders, or were trained.
    """

    tokenizer: Path
    backbone: str
    audio_encoder: str
    train: tuple[Any, ...]
    dev: tuple[Any, ...]
    model: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    ctc_weight: float = 1.0
    canvas_choices: tuple[int, ...] = (64, 96, 128)
    p_long_canvas: float = 0.15
    init: str = ""
    min_clip_s: float = 0.2
    max_clip_s: float = 12.0
    n_dev: int = 120
    streaming: bool = False
    shuffle_buffer: int = 2000
    feature_cache: str = ""
    spec_augment: SpecAugment = field(default_factory=SpecAugment)
    augment: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    train_adapter: bool = True
    train_embeddings: bool = True
    train_audio_encoder: bool = False
    train_backbone: bool = False
    base_lr_scale: float = 1.0
    whole_checkpoint: bool | None = None

    @property
    def changes_draft(self) -> bool:
        """Whether anything learns that the CTC tap reads through."""
        return (
            self.train_adapter or self.train_audio_encoder or (self.train_backbone and self.train_embeddings)
        )

    def __post_init__(self) -> None:
        """Refuse values that no run can use, and settings that contradict each other."""
        # A rate of zero: what is not to learn is not trained at all.
        if not 0 < self.base_lr_scale < math.inf:
            raise RecipeError(f"options: base_lr_scale is {self.base_lr_scale}; it must be above 0.")
        if self.dtype not in DTYPES:
            raise RecipeError(f"options.dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}.")
        if self.dtype != "float32" and (self.train_audio_encoder or self.train_backbone):
            raise RecipeError(f"options.dtype is {self.dtype}: what is trained needs float32.")
        if not (self.train_adapter or self.train_audio_encoder or self.train_backbone):
            raise RecipeError(
                "options: train_adapter is false, and nothing else is trained; train something."
            )
        own, noise = self.model.get("mask_token_id"), self.objective.corruption.mask_id
        if own != noise:
            raise RecipeError(
                f"options.model.mask_token_id is {own} and options.objective.corruption.mask_id is {noise}; "
                "a canvas is decoded with the noise that it was trained with: give both the same id, or none."
            )
        if self.shuffle_buffer < 1:
            raise RecipeError(f"options.shuffle_buffer is {self.shuffle_buffer}; it must be at least 1.")
        if not self.feature_cache:
            return
        because = (
            (self.train_audio_encoder, "train_audio_encoder: what it gives changes at every step"),
            (self.augment, "augment: every epoch hears another waveform, and the cache keeps one"),
            (self.streaming, "streaming: a stream has no clips to come back to"),
            (
                self.model.get("audio_front_end") == "waveform",
                "audio_front_end: waveform: no encoder is run",
            ),
        )
        for wanted, reason in because:
            if wanted:
                raise RecipeError(f"options.feature_cache does not go with {reason}; leave one of them out.")
