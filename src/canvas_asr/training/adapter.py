"""Stage (c): train the adapter, everything else frozen, with the three losses.

CTC through the frozen output layer grounds the audio tokens; the diffusion and autoregressive losses then
find something to attend to. Judged by transcripts: each evaluation decodes, also with another clip's audio.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from canvas_asr.checkpoint import ADAPTER_NAME, adapter_parameters, assemble, load_adapter
from canvas_asr.configuration import CanvasASRConfig, load_configuration
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.errors import CheckpointError, RecipeError
from canvas_asr.hub import model_folder
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, pad_mels

from .adapter_data import AdapterCollator, Sources, read_data
from .adapter_options import AdapterOptions
from .checkpoints import load_trainable_state
from .corruption import forget_unsure, tagged_drafts
from .judging import Judgement, error_rates, listening, transcripts_of
from .losses import ctc_loss, states_per_chunk
from .objective import denoising_counts, denoising_losses
from .outcome import leave_checkpoint
from .places import canvases_in_places
from .readings import read_tokens, tagged_signals
from .recipe import Recipe, from_mapping
from .speech_data import SpeechDataset
from .stage import Part, Stage, row_generators, share_of
from .trainer import StageTrainer

RELEASED = ("frames", "projector", "transcript")  # positions, embeddings, places: no reading enters them
DRAFT_READS = 0.7  # error rate of a draft that has begun to follow the audio
# What the meaning of an adapter's tensors depends on, beside their shapes.
GEOMETRY = (
    "audio_front_end",
    "audio_positions",
    "audio_embeddings",
    "d_audio",
    "hidden_size",
    "vocab_size",
    "projector_kind",
    "projector_width",
    "projector_stride",
    "projector_activation",
    "projector_layers",
    "blank_token_id",
)
LORA_GEOMETRY = ("lora_rank", "lora_alpha")


class AdapterModel(Stage):
    """The model with its three losses."""

    def __init__(
        self,
        model: CanvasASRModel,
        options: AdapterOptions,
        audio_id: int,
        tags: Sequence[int],
        canvas_start: int | None = None,
        heard: Tensor | None = None,
    ) -> None:
        """Keep the model.

        Args:
            model: With frozen parts loaded.
            options: Weights of the losses.
            audio_id: Placeholder of the prompt.
            tags: Language tags; a draft gets a random one.
            canvas_start: Position of the first canvas token; None: behind the prompt.
            heard: Ids that decoding lets the CTC tap say, (V,) bool; None: all.
        """
        super().__init__()
        self.model = model
        self.options = options
        self.audio_id = audio_id
        self.tags = list(tags)
        self.canvas_start = canvas_start
        self.heard = torch.ones(model.config.vocab_size, dtype=torch.bool) if heard is None else heard
        self.canvas_choices, self.p_long_canvas = options.canvas_choices, options.p_long_canvas
        model.audio_encoder.requires_grad_(options.train_audio_encoder)
        model.audio_encoder.embed_positions.requires_grad_(False)  # sinusoids, as in Whisper
        if options.train_backbone:
            for name, parameter in model.backbone.named_parameters():
                parameter.requires_grad_("vision" not in name and ".router." not in name)
            if not options.train_embeddings:
                model.backbone.get_input_embeddings().requires_grad_(False)
        if not options.train_adapter:
            for parameter in adapter_parameters(model).values():
                parameter.requires_grad_(False)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Count clips, targets and canvas positions.

        Those of the transcript's canvas: what a canvas in the places of its draft has is not known before the
        model runs, so that parts of such a step are weighted by its transcripts.
        """
        return {"clips": float(len(batch["n_mel"])), **denoising_counts(batch, self.options.objective)}

    def likely_cause(self, figures: Mapping[str, float]) -> str:
        """Say why the canvas does not follow the audio, by whether the draft does."""
        draft = figures["draft"]
        if not self.options.ctc_weight:
            return (
                "The CTC loss is off (options.ctc_weight is 0): without it the projector stays noise, which "
                "attention learns to ignore. Give it a weight, 1.0 to begin with."
            )
        if draft < DRAFT_READS:
            return (
                f"The draft does follow the audio ({draft:.0%} errors), so the backbone does not read its "
                "prompt, or not yet: one made here has to repair prompts first (stage text); with a "
                "pretrained one, train on and look at options.model.lora_rank and the two denoising losses."
            )
        return (
            f"The draft itself is still noise ({draft:.0%} errors), so there is nothing to listen to yet: "
            "train on, look at the CTC loss, and check that texts belong to their clips and that few are "
            "infeasible."
        )

    def forward(
        self,
        mel: Tensor,
        n_mel: Tensor,
        prompt_ids: Tensor,
        n_prompt: Tensor,
        targets: Tensor,
        n_targets: Tensor,
        canvas: Tensor,
        text: Tensor,
        n_text: Tensor,
        part: Part | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            mel: (B, n_mels, T_mel).
            n_mel: (B,) int64.
            prompt_ids: Prompt with audio slots, (B, P) int64.
            n_prompt: (B,) int64.
            targets: Canvas up to its first end token, (B, U) int64.
            n_targets: (B,) int64.
            canvas: Clean canvas, (B, C) int64.
            text: Text without tag and end token, (B, U') int64: what CTC spells.
            n_text: (B,) int64.
            part: What the batch is of its step; None: all.

        Returns:
            ``loss`` and its parts ``ctc``, ``infeasible``, and what :func:`denoising_losses` gives.
        """
        tokens, n_audio = self.model.audio_tokens(mel, n_mel)
        outputs, loss = {}, tokens.new_zeros((), dtype=torch.float32)
        if self.options.ctc_weight:
            ctc, infeasible = self._ctc(tokens, n_audio, text, n_text)
            outputs["ctc"] = ctc * share_of(part, "clips")
            outputs["infeasible"] = infeasible.float().mean() * share_of(part, "clips")
            loss = loss + self.options.ctc_weight * outputs["ctc"]
        objective = self.options.objective
        if not (objective.diffusion_weight or objective.autoregressive_weight):  # CTC alone
            return {**outputs, "loss": loss}
        generators = row_generators(part, len(canvas))
        prompt, places, readings = self._prompt(prompt_ids, tokens, n_audio, generators)
        if self.model.config.canvas_places == "draft":
            canvas, places["n_canvas"] = canvases_in_places(
                canvas, n_targets, text, n_text, readings, self.model.config.blank_token_id
            )
        denoising = denoising_losses(
            self.model.backbone,
            prompt,
            n_prompt,
            targets,
            n_targets,
            canvas,
            objective,
            **places,
            canvas_start=self.canvas_start,
            part=part,
            generators=generators,
        )
        return {**outputs, **denoising, "loss": loss + denoising["loss"]}

    def _ctc(self, tokens: Tensor, n_audio: Tensor, text: Tensor, n_text: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`ctc_loss`."""
        return ctc_loss(
            self.model.ctc_tap(tokens),
            n_audio,
            text,
            n_text,
            self.model.read_ctc_states,
            blank=self.model.config.blank_token_id,
            chunk=states_per_chunk(self.model.config.vocab_size),
        )

    def _prompt(
        self, prompt_ids: Tensor, tokens: Tensor, n_audio: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, dict[str, Any], list[list[int]]]:
        """Prompts (B, P, D), keywords of :func:`denoising_losses` on their places, CTC readings if used."""
        config, objective = self.model.config, self.options.objective
        wants_drafts = objective.corruption.draft > 0
        wants_signals = wants_drafts and objective.draft_conditioning > 0
        forgets = wants_drafts and objective.corruption.max_draft_threshold > 0
        released = (config.audio_positions, config.audio_embeddings, config.canvas_places) == RELEASED
        if released and not wants_drafts:
            audio = self.model.embed_audio(tokens, None)
            return self.model.embed_prompt(prompt_ids, audio, n_audio, self.audio_id), {}, []
        asks = wants_signals or forgets
        heard = read_tokens(self.model, tokens, n_audio, heard=self.heard if asks else None)
        audio = self.model.embed_audio(tokens, heard.expected)
        prompt = self.model.embed_prompt(prompt_ids, audio, n_audio, self.audio_id)
        places: dict[str, Any] = {
            "positions": self.model.prompt_positions(prompt_ids, heard.labels, n_audio, self.audio_id)
        }
        readings: list[list[int]] = []
        if wants_drafts or config.canvas_places == "draft":
            readings = heard.drafts()
        if wants_drafts:
            laid = readings
            if forgets:
                options, vocab_size = objective.corruption, config.vocab_size
                laid = forget_unsure(readings, heard.confidences, options, vocab_size, generators)
            places["drafts"] = tagged_drafts(laid, self.tags, generators)
        if wants_signals:
            places["draft_signals"] = tagged_signals(self.model.backbone, heard.signals, self.tags)
        return prompt, places, readings


def judge(decoder: CanvasDecoder, dataset: SpeechDataset) -> Judgement:
    """Error rates of the draft, of 1 and 8 passes from noise, of 1 from the draft, and with shuffled audio.

    Args:
        decoder: Of the model.
        dataset: Development clips.

    Returns:
        Mean over languages of WER (CER for hi, zh) by mode, the same by language for 8 passes, repetition
        rate, language detection accuracy, and the gap between shuffled and true audio; and the readings of 8
        passes beside those of the other modes.
    """
    modes = {
        "draft": {"steps": 0, "init": "draft"},
        "noise1": {"steps": 1},
        "noise8": {"steps": 8},
        "draft1": {"steps": 1, "init": "draft"},
    }
    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {name: defaultdict(list) for name in modes}
    n_right = 0
    order = np.argsort([entry.duration_s or 0.0 for entry in dataset.entries])
    for start in range(0, len(order), 16):
        examples = [dataset[(0, int(i))] for i in order[start : start + 16]]
        entries = [example["entry"] for example in examples]
        mel, n_mel = (tensor.to(decoder.model.device) for tensor in pad_mels([e["mel"] for e in examples]))
        for name, mode in modes.items():
            results = decoder(mel, n_mel, clip_keys=range(len(entries)), **mode)  # type: ignore[arg-type]
            texts = [decoder.processor.text(result.ids) for result in results]
            for entry, text in zip(entries, texts, strict=True):
                pairs[name][entry.language].append((entry.text, text))
            if name == "noise8":
                n_right += sum(e.language == r.language for e, r in zip(entries, results, strict=True))
    rates = {name: error_rates(by) for name, by in pairs.items()}
    figures = {name: float(np.mean(list(by.values()))) for name, by in rates.items()}
    figures.update({f"noise8_{code}": rate for code, rate in sorted(rates["noise8"].items())})
    figures.update(listening(pairs["noise8"]))
    figures["language_accuracy"] = n_right / len(dataset)
    return Judgement(figures, transcripts_of(pairs.pop("noise8"), **pairs))


def _is_base(name: str) -> bool:
    return name.startswith(("model.audio_encoder.", "model.backbone.")) and "lora_" not in name


def _assemble(options: AdapterOptions) -> tuple[CanvasASRModel, CanvasASRProcessor]:
    """Join the frozen parts, with errors that name the recipe's key."""
    # The configuration itself keeps keys that it does not know.
    own = {key.name for key in fields(CanvasASRConfig)} - {key.name for key in fields(PreTrainedConfig)}
    parts = {"backbone", "audio_encoder", "backbone_config", "audio_encoder_config"}
    if unknown := sorted(set(options.model) - (own - parts)):
        raise RecipeError(
            f"options.model: unknown key {unknown[0]!r}; known: {', '.join(sorted(own - parts))}."
        )
    try:
        return assemble(
            options.backbone,
            options.audio_encoder,
            options.tokenizer,
            options.model,
            dtype=getattr(torch, options.dtype),
        )
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(f"options.model: {error}") from error


def _warm_start(module: AdapterModel, init: str) -> None:
    """Start from an earlier run, or from the adapter of a checkpoint of the same geometry, LoRA or none.

    Raises:
        CheckpointError: If it cannot be read, or is of another geometry, naming what differs.
    """
    path = Path(init)
    if path.suffix == ".safetensors":
        load_trainable_state(module, path, partial=True)
        return
    folder = model_folder(init)
    theirs, own = load_configuration(folder), module.model.config
    for key in (*GEOMETRY, *(LORA_GEOMETRY if theirs.lora_rank else ())):
        if getattr(theirs, key) != getattr(own, key):
            raise CheckpointError(
                f"{folder}: its {key} is {getattr(theirs, key)!r}, and {getattr(own, key)!r} in this recipe; "
                "a warm start needs the same geometry: change options.model or options.init."
            )
    load_adapter(module.model, folder / ADAPTER_NAME, theirs)


def run(recipe: Recipe) -> None:
    """Train the stage, and leave a checkpoint with its card in ``checkpoint/`` of the output folder.

    Args:
        recipe: With ``stage: adapter``.

    Raises:
        RecipeError: If an option is unknown, missing or mistyped, or contradicts another.
        DataError: If a source of data cannot be read or holds nothing.
        CheckpointError: If a frozen part cannot be loaded, or a warm start does not fit.
    """
    options = from_mapping(AdapterOptions, recipe.options, "options")
    sources = Sources.of(options)
    torch.manual_seed(recipe.training.seed)
    model, processor = _assemble(options)
    config = model.config
    decoder = CanvasDecoder(model, processor)
    module = AdapterModel(
        model,
        options,
        processor.token_id(config.audio_token),
        list(processor.language_ids(config).values()),
        processor.canvas_start(config),
        decoder.vocabulary.heard,
    )
    if options.init:
        _warm_start(module, options.init)
    data = read_data(recipe, options, sources, model, processor)

    def evaluate() -> Judgement:
        # Where frozen parts are in bfloat16 and the adapter is not, each product needs a precision for both.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            return judge(decoder, data.dev)

    trainer = StageTrainer(
        module,
        data.train,
        data.lengths_s,
        AdapterCollator(processor, config, options),
        recipe.training,
        recipe.output_dir,
        evaluate,
        lr_scale_of=lambda name: options.base_lr_scale if _is_base(name) else 1.0,
    )
    if trainer.run():
        if not options.ctc_weight and options.changes_draft:
            config.has_draft = False  # what the tap spells no longer follows the audio
        whole = options.whole_checkpoint
        if whole is None:
            trained = options.train_audio_encoder or options.train_backbone
            whole = trained or Path(options.backbone).is_dir() or Path(options.audio_encoder).is_dir()
        leave_checkpoint(recipe, model, processor, whole=whole)
