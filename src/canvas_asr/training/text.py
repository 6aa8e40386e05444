"""Stage (b): teach the small DiffusionGemma six languages and, above all, to read its prompt.

A backbone that never used a prompt cannot listen to one. The stage ends when, from noise in 8 passes, it
repairs unseen sentences given with 10 % wrong tokens, repeats and blanks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    PreTrainedTokenizerBase,
)

from canvas_asr.backbone import build_backbone, encode_prefix
from canvas_asr.configuration import AUDIO_POSITIONS, text_config
from canvas_asr.ctc import merge_labels
from canvas_asr.decoding import text_vocabulary
from canvas_asr.errors import CheckpointError, DataError, RecipeError
from canvas_asr.languages import LANGUAGES
from canvas_asr.parts import LoadOptions, find_part, load_part
from canvas_asr.positions import prompt_positions
from canvas_asr.processing import pad_ids
from canvas_asr.sampler import read_pass, sample
from canvas_asr.strategies import SamplerConfig

from .checkpoints import load_trainable_state
from .corruption import lay_out, tagged_drafts
from .judging import Judgement, listening, named_error_rates, transcripts_of
from .objective import ObjectiveOptions, denoising_counts, denoising_losses
from .recipe import Recipe, from_mapping
from .sentences import read_sentences
from .stage import Part, Stage, row_generators
from .text_noise import Pieces
from .text_tasks import TextExample, TextTaskOptions, TextTasks, espeak_phonemes, repair_case
from .trainer import StageTrainer

WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TextOptions:
    """Settings of the stage.

    Attributes:
        tokenizer: Folder of the tokenizer.
        sentences: Folder of sentence lists.
        backbone: Fields of ``DiffusionGemmaConfig``: ``text_config`` and ``vision_config``.
        languages: Languages to learn; empty takes all six.
        tasks: Mixture of tasks.
        objective: Losses and corruption.
        max_target_tokens: Longer sentences are left out.
        canvas_choices: Canvas lengths beside the shortest that fits.
        p_long_canvas: How often a longer canvas is chosen.
        init: A ``trained.safetensors`` of an earlier run of this stage, or a backbone's folder; empty starts
            from random weights.
        n_dev: Development sentences per language at each evaluation.
        audio_positions: As in ``CanvasASRConfig``: ``spikes`` places the prompt's tokens as a model with it
            will place audio tokens. Phonemes have more spikes than their text has tokens: leave their tasks
            out.
        train_embeddings: Whether embeddings and output layer, which are one, learn too. Not where a CTC tap
            has learned to be read by them.
    """

    tokenizer: Path
    sentences: Path
    backbone: dict[str, Any]
    languages: tuple[str, ...] = ()
    tasks: TextTaskOptions = field(default_factory=TextTaskOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    max_target_tokens: int = 64
    canvas_choices: tuple[int, ...] = (64, 96, 128)
    p_long_canvas: float = 0.15
    init: str = ""
    n_dev: int = 16
    audio_positions: str = "frames"
    train_embeddings: bool = True

    def __post_init__(self) -> None:
        """Refuse positions of another name, and what needs the posteriors of audio."""
        if self.objective.draft_conditioning or self.objective.corruption.max_draft_threshold:
            raise RecipeError(
                "options.objective: draft_conditioning and corruption.max_draft_threshold go by CTC "
                "posteriors, which texts do not have; leave them to the stages that train on audio."
            )
        if self.audio_positions not in AUDIO_POSITIONS:
            raise RecipeError(
                f"options: audio_positions is {self.audio_positions!r}; choose one of "
                f"{', '.join(AUDIO_POSITIONS)}."
            )


def text_places(prompt_ids: Tensor, n_prompt: Tensor, blank: int | None) -> dict[str, Any]:
    """Positions of text prompts and canvases, by the names that :func:`denoising_losses` has for them.

    Args:
        prompt_ids: ``<bos>``, a body like a CTC reading and one token that ends it, (B, P) int64.
        n_prompt: (B,) int64.
        blank: Id of the blank, for bodies placed by their spikes; None: every token has its own position.
    """
    if blank is None:
        return {"positions": None, "canvas_start": None}
    n_body = n_prompt - 2
    places = torch.arange(prompt_ids.shape[1], device=prompt_ids.device)[None, :]
    slots = (places > 0) & (places <= n_body[:, None])
    return {"positions": prompt_positions(slots, prompt_ids[:, 1:], n_body, blank), "canvas_start": 0}


class TextModel(Stage):
    """The backbone with the two denoising losses."""

    def __init__(
        self,
        backbone: DiffusionGemmaForBlockDiffusion,
        objective: ObjectiveOptions,
        canvas_choices: Sequence[int] = (),
        p_long_canvas: float = 0.0,
        blank: int | None = None,
        tags: Sequence[int] = (),
    ) -> None:
        """Keep all; the vision tower stays as it is.

        Args:
            backbone: The backbone.
            objective: Weights of the losses.
            canvas_choices: See :class:`Stage`.
            p_long_canvas: See :class:`Stage`.
            blank: See :func:`text_places`.
            tags: Language tags; a draft gets a random one.
        """
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.canvas_choices, self.p_long_canvas = canvas_choices, p_long_canvas
        self.blank, self.tags = blank, tags
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_("vision" not in name)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Count targets and canvas positions."""
        return denoising_counts(batch, self.objective)

    def likely_cause(self, figures: Mapping[str, float]) -> str:
        """Say why the canvas does not follow the prompt."""
        return (
            "A backbone from random weights reads its prompt late, and earlier from short sentences "
            "(options.max_target_tokens) and with training.optimizer: muon; until it does, it cannot be used."
        )

    def forward(
        self,
        prompt_ids: Tensor,
        n_prompt: Tensor,
        targets: Tensor,
        n_targets: Tensor,
        canvas: Tensor,
        part: Part | None = None,
    ) -> dict[str, Tensor]:
        """See :func:`denoising_losses`; ``prompt_ids`` is (B, P) int64."""
        generators = row_generators(part, len(canvas))
        drafts = None
        if self.blank is not None and self.objective.corruption.draft > 0:  # what such a prompt reads as
            read = merge_labels(prompt_ids[:, 1:], n_prompt - 2, self.blank)
            drafts = tagged_drafts(read, self.tags, generators)
        return denoising_losses(
            self.backbone,
            self.backbone.get_input_embeddings()(prompt_ids),
            n_prompt,
            targets,
            n_targets,
            canvas,
            self.objective,
            **text_places(prompt_ids, n_prompt, self.blank),
            drafts=drafts,
            part=part,
            generators=generators,
        )


class CanvasCollator:
    """Prompts and targets to padded tensors and the shortest canvas that holds them."""

    def __init__(self, eos: int, pad: int) -> None:
        """Keep the end and padding ids."""
        self.eos = eos
        self.pad = pad

    def canvases(self, target_ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Targets with their end token, (B, U) and (B,), and clean canvases (B, C)."""
        rows = [[*ids, self.eos] for ids in target_ids]
        targets, n_targets = pad_ids(rows, self.pad)
        length = -(-targets.shape[1] // 8) * 8
        return {"targets": targets, "n_targets": n_targets, "canvas": lay_out(rows, length, self.eos)}

    def __call__(self, examples: list[TextExample]) -> dict[str, Tensor]:
        """Collate one batch of text examples."""
        prompt_ids, n_prompt = pad_ids([example.prompt_ids for example in examples], self.pad)
        return {
            "prompt_ids": prompt_ids,
            "n_prompt": n_prompt,
            **self.canvases([example.target_ids for example in examples]),
        }


class TextDataset(Dataset[TextExample]):
    """Text examples by (epoch, index), drawn from (seed, epoch, index) alone."""

    def __init__(self, sentences: Sequence[tuple[str, str]], tasks: TextTasks, seed: int) -> None:
        """Keep (text, language) pairs and the tasks."""
        self.sentences = sentences
        self.tasks = tasks
        self.seed = seed

    def __len__(self) -> int:
        """Sentences of one epoch."""
        return len(self.sentences)

    def __getitem__(self, index: tuple[int, int]) -> TextExample:
        """Make one example."""
        text, language = self.sentences[index[1]]
        return self.tasks.make(text, language, np.random.default_rng((self.seed, *index)))


def balanced(lists: Mapping[str, Sequence[str]], languages: Sequence[str]) -> list[tuple[str, str]]:
    """Give every language as many lines as the longest list has, shorter lists repeated."""
    most = max(len(lists[language]) for language in languages)
    return [
        (lists[language][i % len(lists[language])], language) for i in range(most) for language in languages
    ]


def judge(
    backbone: DiffusionGemmaForBlockDiffusion,
    tokenizer: PreTrainedTokenizerBase,
    dev: Mapping[str, Sequence[str]],
    *,
    steps: int = 8,
    canvas_length: int = 64,
    spikes: bool = False,
    mask: int | None = None,
) -> Judgement:
    """Repair unseen sentences from noise: the stage's milestone.

    Args:
        backbone: The backbone.
        tokenizer: Its tokenizer.
        dev: Sentences by language.
        steps: Passes.
        canvas_length: Canvas in tokens.
        spikes: Whether prompts are placed by their spikes.
        mask: Id that canvases are masked with; None: random ids.

    Returns:
        ``wer_xx`` (``cer_zh``, ``cer_hi``) by language over raw text, and what :func:`listening` gives, with
        the prompt of the next sentence for the audio of the next clip; and the readings.
    """
    readings: dict[str, list[tuple[str, str]]] = defaultdict(list)
    pieces = Pieces(tokenizer)
    size = text_config(backbone.config).vocab_size
    vocabulary = text_vocabulary(tokenizer, size, [pieces.tag(code) for code in LANGUAGES], mask)
    for language, texts in dev.items():
        prompts = [repair_case(pieces, text, language).prompt_ids for text in texts]
        ids, n_prompt = (tensor.to(backbone.device) for tensor in pad_ids(prompts, 0))
        places = text_places(ids, n_prompt, pieces.blank if spikes else None)
        _, prefix = encode_prefix(backbone, backbone.get_input_embeddings()(ids), places["positions"])
        output = sample(
            backbone,
            prefix,
            n_prompt,
            vocabulary,
            SamplerConfig(steps=steps, canvas_length=canvas_length),
            clip_keys=range(len(texts)),
            run_pass=partial(read_pass, canvas_start=places["canvas_start"]),
        )
        for text, row in zip(texts, output.canvas.tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            reading = str(tokenizer.decode(row[:end], skip_special_tokens=True))
            readings[language].append((text, reading.strip()))
    return Judgement({**named_error_rates(readings), **listening(readings)}, transcripts_of(readings))


def _fitting(
    lists: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase, options: TextOptions, split: str
) -> dict[str, list[str]]:
    """Leave out sentences longer than ``max_target_tokens``; refuse a language that has none left."""
    kept = {}
    for code, texts in lists.items():
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        kept[code] = [
            text for text, ids in zip(texts, rows, strict=True) if len(ids) < options.max_target_tokens
        ]
        if not kept[code]:
            raise DataError(
                f"{options.sentences}: the {split} split of {code} is empty ({len(texts)} sentences, none "
                f"within max_target_tokens {options.max_target_tokens}); give longer lists: about one "
                "sentence in a hundred is held out for development."
            )
    return kept


def _backbone(options: TextOptions) -> DiffusionGemmaForBlockDiffusion:
    """Build the backbone, with the weights of the folder that ``init`` names if it names one.

    Raises:
        CheckpointError: If there is no backbone, or one of another geometry than the recipe's.
    """
    backbone = build_backbone(DiffusionGemmaConfig(**options.backbone))
    if options.init and not options.init.endswith(WEIGHTS_SUFFIX):
        found = load_part(DiffusionGemmaForBlockDiffusion, find_part(options.init, None), LoadOptions())
        try:
            backbone.load_state_dict(found.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"{options.init}: not of the geometry of options.backbone; give that which it was made with."
            ) from error
    return backbone


def run(recipe: Recipe) -> None:
    """Train the stage and write ``backbone/`` to the output folder.

    Args:
        recipe: With ``stage: text``.

    Raises:
        RecipeError: If an option is unknown, missing or mistyped.
        DataError: If the sentence lists are missing, or one has nothing to train on or to judge by.
    """
    options = from_mapping(TextOptions, recipe.options, "options")
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    languages = options.languages or LANGUAGES
    lists = read_sentences(options.sentences, languages)
    kept = _fitting(lists.train, tokenizer, options, "training")
    held_out = _fitting(lists.dev, tokenizer, options, "development")
    torch.manual_seed(recipe.training.seed)
    spikes, pieces = options.audio_positions == "spikes", Pieces(tokenizer)
    model = TextModel(
        _backbone(options),
        options.objective,
        options.canvas_choices,
        options.p_long_canvas,
        pieces.blank if spikes else None,
        [pieces.tag(code) for code in LANGUAGES],
    )
    if options.init.endswith(WEIGHTS_SUFFIX):
        load_trainable_state(model, Path(options.init))
    if not options.train_embeddings:  # after what an earlier run made of them was read
        model.backbone.get_input_embeddings().requires_grad_(False)
    tasks = TextTasks(tokenizer, kept, espeak_phonemes, options.tasks, recipe.training.seed)
    train = balanced(kept, languages)
    dev = {code: texts[: options.n_dev] for code, texts in held_out.items()}

    def evaluate() -> Judgement:
        mask = options.objective.corruption.mask_id
        once, found = (
            judge(model.backbone, tokenizer, dev, steps=n, spikes=spikes, mask=mask) for n in (1, 8)
        )
        figures = {**found.figures, **{f"{k}_1pass": v for k, v in once.figures.items()}}
        return Judgement(figures, found.transcripts)

    trainer = StageTrainer(
        model,
        TextDataset(train, tasks, recipe.training.seed),
        [float(len(text.encode())) for text, _ in train],
        CanvasCollator(int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)),
        recipe.training,
        recipe.output_dir,
        evaluate,
    )
    if trainer.run():
        model.backbone.save_pretrained(recipe.output_dir / "backbone")
