"""The data of stage (c): read, what cannot be used left out before the first step; and its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.encoder import n_audio_tokens
from canvas_asr.errors import RecipeError
from canvas_asr.manifest import Clip
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, pad_ids, pad_mels
from canvas_asr.synthesis.augment import Augmenter

from .adapter_options import AdapterOptions
from .callbacks import say
from .feature_cache import FeatureCache
from .processes import process_state
from .recipe import Recipe
from .selection import ClipLimits, ClipSet, TextFit, check_readable, read_clips
from .sources import DataSource, parse_sources
from .speech_data import SpecAugment, SpeechDataset
from .streaming import StreamDataset
from .text import CanvasCollator


@dataclass(frozen=True)
class Sources:
    """What a recipe names, checked before anything is loaded.

    Attributes:
        train: To train on.
        dev: To judge by.
    """

    train: Sequence[DataSource]
    dev: Sequence[DataSource]

    @classmethod
    def of(cls, options: AdapterOptions) -> Sources:
        """Read the entries of a recipe.

        Raises:
            RecipeError: If one has an unknown, missing or impossible key.
        """
        return cls(*(parse_sources(getattr(options, key), f"options.{key}") for key in ("train", "dev")))


@dataclass(frozen=True)
class AdapterData:
    """What the stage trains on and is judged by.

    Attributes:
        train: Examples by (epoch, place).
        lengths_s: Length of the clip in each place, as batches are sorted by.
        dev: Development examples.
    """

    train: Dataset[Any]
    lengths_s: Sequence[float]
    dev: SpeechDataset


def read_data(
    recipe: Recipe,
    options: AdapterOptions,
    sources: Sources,
    model: CanvasASRModel,
    processor: CanvasASRProcessor,
) -> AdapterData:
    """Read the data, report what is left out, and fill the feature cache where one is asked for.

    Args:
        recipe: Seed, batch size and output folder, where ``data.json`` is written.
        options: Of the stage.
        sources: Of the recipe.
        model: With its frozen parts; with a feature cache, it takes frames from then on.
        processor: Of the model.

    Raises:
        RecipeError: If clips may be longer than the audio encoder holds.
        DataError: If a source cannot be read, or nothing is left of it.
    """
    _check_length(options, model, processor)
    max_speed = options.augmentation.speed[1] if options.augment else 1.0
    fit = TextFit(processor, model.config, ctc=options.ctc_weight > 0, max_speed=max(1.0, max_speed))
    limits = ClipLimits(options.min_clip_s, options.max_clip_s, fit)
    state = process_state()
    with state.main_process_first():  # the others find what it has fetched and measured
        # Judged by as they are: a clip that is hard to train on counts in an evaluation all the same.
        dev = read_clips(sources.dev, ClipLimits(options.min_clip_s, options.max_clip_s))
        train = None if options.streaming else read_clips(sources.train, limits)
    dev_clips = dev.first(options.n_dev)
    check_readable(dev_clips)
    if train is None:
        say("streamed: what cannot be used is passed over as it comes, and counted at every evaluation.")
        return _streamed(recipe, options, sources, limits, processor, dev_clips)
    _report(train, recipe.output_dir, state)
    features, spec_augment = None, options.spec_augment
    if options.feature_cache:
        with state.main_process_first():  # it writes what the others' folder has to say about itself
            cache = FeatureCache(Path(options.feature_cache), model, processor)
        own = [*train.clips, *dev_clips][state.process_index :: state.num_processes]
        n_made = cache.fill(own, str(state.device))
        state.wait_for_everyone()
        say(f"feature cache {cache.folder}: {n_made} of {len(own)} clips computed by this process.")
        features, model.takes_frames = cache, True
        # An encoder frame is two mel frames; its components are no frequencies.
        spec_augment = SpecAugment(spec_augment.n_time, spec_augment.max_time // 2, 0, 0)
    mixture = train.mixture(recipe.training.seed)
    dataset = SpeechDataset(
        train.clips,
        processor.feature_extractor,
        seed=recipe.training.seed,
        augment=Augmenter(options.augmentation) if options.augment else None,
        spec_augment=spec_augment,
        mixture=mixture,
        features=features,
    )
    dev_set = SpeechDataset(dev_clips, processor.feature_extractor, features=features)
    return AdapterData(dataset, mixture.lengths_s, dev_set)


def _streamed(
    recipe: Recipe,
    options: AdapterOptions,
    sources: Sources,
    limits: ClipLimits,
    processor: CanvasASRProcessor,
    dev_clips: Sequence[Any],
) -> AdapterData:
    training, state = recipe.training, process_state()
    extractor = processor.feature_extractor
    examples = SpeechDataset(
        (),
        extractor,
        augment=Augmenter(options.augmentation) if options.augment else None,
        spec_augment=options.spec_augment,
    )
    dataset = StreamDataset(
        sources.train,
        limits,
        examples,
        seed=training.seed,
        buffer_size=options.shuffle_buffer,
        batch_size=max(1, training.batch_size // (state.num_processes * training.accumulation_steps)),
        process=state.process_index,
        n_processes=state.num_processes,
    )
    # A stream has no epochs: one as long as the run.
    lengths_s = [1.0] * (training.max_steps * training.batch_size)
    return AdapterData(dataset, lengths_s, SpeechDataset(dev_clips, extractor))


def _report(train: ClipSet, folder: Path, state: PartialState) -> None:
    for report in train.reports:
        say(f"training data: {report}")
    if state.is_main_process:
        train.write_report(folder)


def _check_length(options: AdapterOptions, model: CanvasASRModel, processor: CanvasASRProcessor) -> None:
    """Refuse clips longer than the audio encoder holds."""
    if model.config.reads_waveform:
        return
    hop_s = processor.feature_extractor.hop_length / processor.feature_extractor.sampling_rate
    longest_s = 2 * model.config.audio_encoder_config.max_source_positions * hop_s
    if options.max_clip_s > longest_s:
        raise RecipeError(
            f"options.max_clip_s is {options.max_clip_s:g}; this audio encoder holds {longest_s:g} s at most."
        )


class AdapterCollator:
    """Examples to keyword arguments of ``AdapterModel``.

    A clip without speech has an empty canvas, or, every other one, a language tag and nothing behind it: that
    is what it has to write when the language is given.
    """

    def __init__(
        self, processor: CanvasASRProcessor, config: CanvasASRConfig, options: AdapterOptions
    ) -> None:
        """Keep what prompts and canvases need."""
        self.processor = processor
        self.config = config
        tokenizer = processor.tokenizer
        self.pad = int(tokenizer.pad_token_id)
        self.tags = processor.language_ids(config)
        self.are_frames = bool(options.feature_cache)
        self.canvases = CanvasCollator(int(tokenizer.eos_token_id), self.pad)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate one batch."""
        mel, n_mel = pad_mels([example["mel"] for example in examples])
        n_audio = n_audio_tokens(self.config, n_mel, are_frames=self.are_frames)
        prompt_ids, n_prompt = pad_ids(self.processor.prompt_ids(self.config, n_audio.tolist()), self.pad)
        entries: list[Clip] = [example["entry"] for example in examples]
        texts = [self.processor.text_ids(entry.text) for entry in entries]
        text, n_text = pad_ids(texts, self.pad)
        tagged = [self._with_tag(entry, ids) for entry, ids in zip(entries, texts, strict=True)]
        return {
            "mel": mel,
            "n_mel": n_mel,
            "prompt_ids": prompt_ids,
            "n_prompt": n_prompt,
            "text": text,
            "n_text": n_text,
            **self.canvases.canvases(tagged),
        }

    def _with_tag(self, entry: Clip, ids: list[int]) -> list[int]:
        if ids or not self.tags:
            return [self.tags[entry.language], *ids] if entry.language in self.tags else ids
        tagged, place = divmod(crc32(Path(entry.audio).name.encode()), len(self.tags))
        return [list(self.tags.values())[place]] if tagged % 2 else []
