"""Stage (a): pretrain the small Whisper encoder, frame-wise on phonemes and by CTC on word pieces.

CTC from random weights is slow to start; the synthesiser knows where every phoneme lies, and a frame-wise
cross-entropy on that starts at once. Both heads are thrown away afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from canvas_asr.ctc import greedy_ctc
from canvas_asr.encoder import encode_audio, length_mask
from canvas_asr.errors import DataError, RecipeError
from canvas_asr.languages import LANGUAGES
from canvas_asr.manifest import Clip
from canvas_asr.processing import pad_ids, pad_mels
from canvas_asr.synthesis.augment import AugmentationConfig, Augmenter
from canvas_asr.synthesis.phonemes import PHONEMES, frame_labels

from .checkpoints import load_trainable_state
from .judging import Judgement, listening, named_error_rates, transcripts_of
from .losses import ctc_loss, states_per_chunk
from .recipe import Recipe, from_mapping
from .selection import ClipLimits, check_readable, read_clips
from .sources import parse_sources
from .speech_data import SpecAugment, SpeechDataset
from .stage import Part, Stage, share_of
from .trainer import StageTrainer

IGNORED = -100


@dataclass(frozen=True)
class AcousticOptions:
    """Settings of the stage.

    Attributes:
        tokenizer: Folder of the tokenizer whose pieces CTC spells.
        train: Data to train on, each a ``DataSource``.
        dev: Data to judge by, likewise.
        encoder: ``WhisperConfig`` fields of the audio encoder.
        hop_length: Samples between mel frames (320 is 20 ms).
        n_fft: Samples of an analysis window.
        stride: Encoder frames per CTC frame.
        frame_weight: Weight of the frame-wise loss.
        ctc_weight: Weight of the CTC loss; 0 leaves it out.
        blank_token_id: The CTC blank.
        init: A ``trained.safetensors`` of an earlier run of this stage; empty starts from random weights.
        max_clip_s: Longer clips are left out.
        n_dev: Development clips decoded at each evaluation.
        spec_augment: Masks on the features.
        augment: Whether training clips get noise, rooms, colour and gain.
        augmentation: How strongly.
    """

    tokenizer: Path
    train: tuple[Any, ...]
    dev: tuple[Any, ...]
    encoder: dict[str, Any]
    hop_length: int = 320
    n_fft: int = 400
    stride: int = 2
    frame_weight: float = 1.0
    ctc_weight: float = 0.0
    blank_token_id: int = 6
    init: str = ""
    max_clip_s: float = 12.0
    n_dev: int = 180
    spec_augment: SpecAugment = field(default_factory=SpecAugment)
    augment: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        """Refuse to train without a loss."""
        if not (self.frame_weight or self.ctc_weight):
            raise RecipeError("options: frame_weight and ctc_weight are both 0; give one a weight.")


class AcousticModel(Stage):
    """Audio encoder with a phoneme head on its frames and a piece head on stacked frames."""

    def __init__(self, config: WhisperConfig, vocab_size: int, options: AcousticOptions) -> None:
        """Build.

        Args:
            config: Geometry of the encoder.
            vocab_size: Pieces of the tokenizer.
            options: ``stride``, weights and blank.
        """
        super().__init__()
        self.options = options
        self.encoder = WhisperEncoder(config)
        self.phoneme_head = nn.Linear(config.d_model, len(PHONEMES))
        self.piece_norm = nn.LayerNorm(config.d_model * options.stride)
        self.piece_head = nn.Linear(config.d_model * options.stride, vocab_size)

    def piece_states(self, frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Stack encoder frames (B, T, d) to CTC frames (B, T / stride, stride * d), and count them."""
        stride = self.options.stride
        frames = frames * length_mask(n_frames, frames.shape[1])[..., None]
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % stride))
        stacked = frames.reshape(frames.shape[0], -1, frames.shape[2] * stride)
        return self.piece_norm(stacked), (n_frames + stride - 1) // stride

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Count frames with a label, and clips."""
        return {"frames": float((batch["labels"] != IGNORED).sum()), "clips": float(len(batch["n_mel"]))}

    def likely_cause(self, figures: Mapping[str, float]) -> str:
        """Say why the readings of CTC do not follow the audio."""
        return (
            "CTC from random weights starts late: train frame-wise first (frame_weight, phonemes in the "
            "manifest), then longer, and check that the texts belong to their clips."
        )

    def forward(
        self,
        mel: Tensor,
        n_mel: Tensor,
        labels: Tensor,
        targets: Tensor,
        n_targets: Tensor,
        part: Part | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            mel: (B, n_mels, T_mel).
            n_mel: (B,) int64.
            labels: Phoneme of each encoder frame, (B, T) int64; -100 where not known.
            targets: Pieces, (B, U) int64.
            n_targets: (B,) int64.
            part: What the batch is of its step; None: all.

        Returns:
            ``loss``, and ``frame_loss``, ``frame_accuracy``, ``ctc``, ``infeasible`` where computed.
        """
        frames, n_frames = encode_audio(self.encoder, mel, n_mel, pad_to_30s=False)
        # The sum of no frames: a zero with a gradient, for batches that have no loss of their own.
        outputs: dict[str, Tensor] = {"loss": frames[:, :0].sum(dtype=torch.float32)}
        known = labels != IGNORED
        # All parts of a step have the same figures: where another part has labels, this one has zeros.
        any_known = bool(known.any()) if part is None else "frames" in part.shares
        if self.options.frame_weight and any_known:
            logits = self.phoneme_head(frames[known]).float()
            share = share_of(part, "frames") / max(1, len(logits))
            frame_loss = nn.functional.cross_entropy(logits, labels[known], reduction="sum")
            outputs["frame_loss"] = frame_loss * share
            outputs["frame_accuracy"] = (logits.argmax(-1) == labels[known]).float().sum() * share
            outputs["loss"] = outputs["loss"] + self.options.frame_weight * outputs["frame_loss"]
        if self.options.ctc_weight:
            states, n_states = self.piece_states(frames, n_frames)
            ctc, infeasible = ctc_loss(
                states,
                n_states,
                targets,
                n_targets,
                self.piece_head,
                blank=self.options.blank_token_id,
                chunk=states_per_chunk(self.piece_head.out_features),
            )
            outputs["ctc"] = ctc * share_of(part, "clips")
            outputs["infeasible"] = infeasible.float().mean() * share_of(part, "clips")
            outputs["loss"] = outputs["loss"] + self.options.ctc_weight * outputs["ctc"]
        return outputs


class AcousticCollator:
    """Examples to keyword arguments of :class:`AcousticModel`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, frame_s: float) -> None:
        """Keep the tokenizer and the length of an encoder frame in seconds."""
        self.tokenizer = tokenizer
        self.frame_s = frame_s

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate one batch."""
        mel, n_mel = pad_mels([example["mel"] for example in examples])
        labels = torch.full((len(examples), (mel.shape[-1] + 1) // 2), IGNORED, dtype=torch.long)
        for row, example in enumerate(examples):
            entry: Clip = example["entry"]
            if entry.phonemes is not None:
                n = (example["mel"].shape[1] + 1) // 2
                labels[row, :n] = torch.from_numpy(frame_labels(entry.phonemes, n, self.frame_s))
        ids = [self.tokenizer.encode(e["entry"].text, add_special_tokens=False) for e in examples]
        targets, n_targets = pad_ids(ids, 0)
        return {"mel": mel, "n_mel": n_mel, "labels": labels, "targets": targets, "n_targets": n_targets}


def judge(model: AcousticModel, dataset: SpeechDataset, collate: AcousticCollator) -> Judgement:
    """Frame accuracy and, where CTC is trained, the CER of its greedy reading by language."""
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    accuracies = []
    device = next(model.parameters()).device
    order = np.argsort([entry.duration_s or 0.0 for entry in dataset.entries])
    for start in range(0, len(order), 16):
        examples = [dataset[(0, int(i))] for i in order[start : start + 16]]
        batch = {name: tensor.to(device) for name, tensor in collate(examples).items()}
        outputs = model(**batch)
        if "frame_accuracy" in outputs:
            accuracies.append(float(outputs["frame_accuracy"]))
        if model.options.ctc_weight:
            frames, n_frames = encode_audio(model.encoder, batch["mel"], batch["n_mel"], pad_to_30s=False)
            states, n_states = model.piece_states(frames, n_frames)
            readings = greedy_ctc(model.piece_head(states), n_states, model.options.blank_token_id)
            for example, ids in zip(examples, readings, strict=True):
                entry = example["entry"]
                reading = str(collate.tokenizer.decode(ids, skip_special_tokens=True))
                pairs[entry.language].append((entry.text, reading))
    figures = {"frame_accuracy": float(np.mean(accuracies))} if accuracies else {}
    if pairs:
        # By characters in every language: long before a word is right, its letters tell what was learnt.
        figures.update({**named_error_rates(pairs, LANGUAGES), **listening(pairs, LANGUAGES)})
    return Judgement(figures, transcripts_of(pairs))


def run(recipe: Recipe) -> None:
    """Train the stage and write ``audio_encoder/`` and ``preprocessor_config.json`` to the output folder.

    Args:
        recipe: With ``stage: acoustic``.

    Raises:
        RecipeError: If an option is unknown, missing or mistyped, or no loss has a weight.
        DataError: If a manifest cannot be read or holds nothing that the losses can use.
    """
    options = from_mapping(AcousticOptions, recipe.options, "options")
    sources = [parse_sources(getattr(options, key), f"options.{key}") for key in ("train", "dev")]
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    extractor = WhisperFeatureExtractor(
        feature_size=int(options.encoder.get("num_mel_bins", 80)),
        hop_length=options.hop_length,
        n_fft=options.n_fft,
    )
    torch.manual_seed(recipe.training.seed)
    config = WhisperConfig(**options.encoder)
    model = AcousticModel(config, len(tokenizer), options)
    if options.init:
        load_trainable_state(model, Path(options.init))
    train, dev = (read_clips(entries, ClipLimits(max_s=options.max_clip_s)) for entries in sources)
    if not options.ctc_weight and all(entry.phonemes is None for entry in train.clips):
        raise DataError(
            "options.train: no clip has phonemes, and ctc_weight is 0, so there is nothing to learn; "
            "give a ctc_weight or a manifest with phonemes."
        )
    collate = AcousticCollator(tokenizer, 2 * options.hop_length / extractor.sampling_rate)
    mixture = train.mixture(recipe.training.seed)
    dataset = SpeechDataset(
        train.clips,
        extractor,
        seed=recipe.training.seed,
        augment=Augmenter(options.augmentation) if options.augment else None,
        spec_augment=options.spec_augment,
        mixture=mixture,
    )
    dev_clips = dev.first(options.n_dev)
    check_readable(dev_clips)
    dev_set = SpeechDataset(dev_clips, extractor)
    trainer = StageTrainer(
        model,
        dataset,
        mixture.lengths_s,
        collate,
        recipe.training,
        recipe.output_dir,
        lambda: judge(model, dev_set, collate),
    )
    if trainer.run():
        model.encoder.save_pretrained(recipe.output_dir / "audio_encoder")
        extractor.save_pretrained(recipe.output_dir)
