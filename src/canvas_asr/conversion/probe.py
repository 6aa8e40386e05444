"""Score candidate settings of an adapter on clips whose text is known.

The settings that it was trained with give lower losses than others, and lower with a clip's own audio than
with another's. Each candidate is scored on the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import product

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers.activations import ACT2FN

from canvas_asr.audio import Samples
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, pad_ids
from canvas_asr.training.corruption import lay_out
from canvas_asr.training.losses import ctc_loss
from canvas_asr.training.objective import ObjectiveOptions, denoising_losses

from .settings import FRAMINGS, ImportSettings, unknown_tokens

N_NOISE_LEVELS = 8  # a clip's canvas is scored at so many
MIN_GAIN = 0.05  # nats a token: less between own and other audio is chance
ACTIVATIONS = ("gelu", "relu", "silu")
_OBJECTIVE = ObjectiveOptions(autoregressive_weight=0.0, self_conditioning=0.0)


@dataclass(frozen=True)
class Candidate:
    """Fields of ``CanvasASRConfig`` that are tried together.

    Attributes:
        lora_alpha: LoRA scale times the rank.
        projector_activation: Of the projector.
        prompt_prefix: Text before the audio slots.
        prompt_suffix: Text after them.
        language_tag_place: ``canvas`` or ``none``.
    """

    lora_alpha: int
    projector_activation: str
    prompt_prefix: str
    prompt_suffix: str
    language_tag_place: str

    @classmethod
    def of(cls, config: CanvasASRConfig) -> Candidate:
        """Give the settings that a model has."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats per token.

    Attributes:
        ctc: NaN where the audio is too short for the text.
        diffusion: At ``N_NOISE_LEVELS`` noise levels.
    """

    ctc: float
    diffusion: float


@dataclass(frozen=True)
class Score:
    """How well a candidate reads the clips.

    Attributes:
        candidate: The settings.
        own: Losses with each clip's own audio.
        other: Losses with another clip's audio, cut or repeated to the same length, or with noise.
    """

    candidate: Candidate
    own: Losses
    other: Losses

    @property
    def total(self) -> float:
        """Sum of the losses with own audio, by which candidates are ranked."""
        return self.own.diffusion + (0.0 if math.isnan(self.own.ctc) else self.own.ctc)

    @property
    def gain(self) -> float:
        """By how much own audio is better than other audio for the decoder, which all settings reach."""
        return self.other.diffusion - self.own.diffusion

    @property
    def listens(self) -> bool:
        """Whether own audio is better by more than chance."""
        return self.gain > MIN_GAIN


def candidates(
    settings: ImportSettings, model: CanvasASRModel, processor: CanvasASRProcessor, *, language: str | None
) -> list[Candidate]:
    """Make the grid: every setting that was not given takes a few usual values.

    Args:
        settings: As given to the import.
        model: With the imported adapter.
        processor: Of the same checkpoint.
        language: Of the clips; without it no language tag is tried.
    """
    config, rank = model.config, model.config.lora_rank
    # The last is that of twice the rank where it was divided by the rank's root (rsLoRA), at rank 16.
    alphas = (rank, 2 * rank, 4 * rank, 8 * rank) if settings.lora_alpha is None else ()
    activations = ACTIVATIONS if settings.projector_activation is None else ()
    framings: list[tuple[str, str]] = []
    if settings.prompt_prefix is None and settings.prompt_suffix is None:
        framings = [framing for framing in FRAMINGS.values() if not unknown_tokens(processor, *framing)]
    places = ["none"] if settings.language_tag_place is None else []
    tag = config.language_tags.get(language or "")
    if places and tag and not unknown_tokens(processor, tag):
        places.append("canvas")
    return [
        Candidate(alpha, activation, prefix, suffix, place)
        for alpha, activation, (prefix, suffix), place in product(
            # The model's own value is always among them.
            dict.fromkeys((*alphas, config.lora_alpha)),
            dict.fromkeys((*activations, config.projector_activation)),
            dict.fromkeys((*framings, (config.prompt_prefix, config.prompt_suffix))),
            dict.fromkeys((*places, config.language_tag_place)),
        )
    ]


@torch.no_grad()
def probe(
    model: CanvasASRModel,
    processor: CanvasASRProcessor,
    clips: Sequence[tuple[Samples, str]],
    tried: Sequence[Candidate],
    *,
    language: str | None = None,
) -> list[Score]:
    """Score candidates.

    Args:
        model: In evaluation mode; it is left as it was.
        processor: Of the same checkpoint.
        clips: Samples (16 kHz mono) and text of each; one alone is compared with noise.
        tried: The candidates.
        language: Of the clips, for their tag.

    Returns:
        A score each, the best first.

    Raises:
        OptionError: If there is no clip, a text is empty or longer than the canvas, or a tag is to be tried
            for a language that has none.
    """
    if not clips:
        raise OptionError("the probe needs a clip and its text.")
    own = [samples for samples, _ in clips]
    # As long as the own audio: CTC costs more the longer the audio is, whatever it says.
    other = [np.resize(next_, len(one)) for one, next_ in zip(own, [*own[1:], own[0]], strict=True)]
    if len(own) == 1:
        other = [_noise_like(own[0])]
    texts = [text for _, text in clips]
    before = Candidate.of(model.config)
    scores = []
    try:
        for candidate in tried:
            _apply(model, candidate)
            losses = (_mean_losses(model, processor, audio, texts, language) for audio in (own, other))
            scores.append(Score(candidate, *losses))
    finally:
        _apply(model, before)
    return sorted(scores, key=lambda score: score.total)


def table(scores: Sequence[Score]) -> str:
    """Give scores as lines of text: losses with own audio and with another's, and the settings."""
    names = {framing: name for name, framing in FRAMINGS.items()}
    lines = [
        "score    CTC   diff.  other: CTC  diff.   gain  alpha  activation  tag     prompt",
        *(
            f"{s.total:6.3f} {s.own.ctc:6.3f} {s.own.diffusion:6.3f}      {s.other.ctc:6.3f} "
            f"{s.other.diffusion:6.3f} {s.gain:+6.3f}  {s.candidate.lora_alpha:5d}  "
            f"{s.candidate.projector_activation:10}  {s.candidate.language_tag_place:6}  "
            + names.get((s.candidate.prompt_prefix, s.candidate.prompt_suffix), "as given")
            for s in scores
        ),
    ]
    return "\n".join(lines)


def _noise_like(samples: Samples) -> Samples:
    """Noise as long and as loud as a clip."""
    level = float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
    noise = np.random.default_rng(0).standard_normal(len(samples)) * level
    return noise.clip(-1, 1).astype(np.float32)


def _apply(model: CanvasASRModel, candidate: Candidate) -> None:
    """Give a model the settings of a candidate."""
    for name, value in asdict(candidate).items():
        setattr(model.config, name, value)
    model.projector.activation = ACT2FN[candidate.projector_activation]
    for module in model.backbone.modules():
        if isinstance(module, LoraLayer):
            for name, rank in module.r.items():
                module.scaling[name] = candidate.lora_alpha / rank


def _mean_losses(
    model: CanvasASRModel,
    processor: CanvasASRProcessor,
    audio: Sequence[Samples],
    texts: Sequence[str],
    language: str | None,
) -> Losses:
    found = [
        _losses(model, processor, samples, text, language) for samples, text in zip(audio, texts, strict=True)
    ]
    ctc, diffusion = zip(*(astuple(losses) for losses in found), strict=True)
    feasible = [value for value in ctc if not math.isnan(value)]
    return Losses(float(np.mean(feasible)) if feasible else math.nan, float(np.mean(diffusion)))


def _losses(
    model: CanvasASRModel, processor: CanvasASRProcessor, samples: Samples, text: str, language: str | None
) -> Losses:
    """Losses of one text given some audio."""
    config, device = model.config, model.projector.device
    mel, n_mel = (tensor.to(device) for tensor in processor.features([samples]))
    tokens, n_audio = model.audio_tokens(mel, n_mel)
    ids, n_ids = (tensor.to(device) for tensor in pad_ids([_text_ids(processor, text)], 0))
    blank = config.blank_token_id
    ctc, infeasible = ctc_loss(model.ctc_tap(tokens), n_audio, ids, n_ids, model.read_ctc_states, blank=blank)
    prompt_ids, n_prompt = pad_ids(processor.prompt_ids(config, n_audio.tolist()), 0)
    prompt = model.embed_prompt(
        prompt_ids.to(device), tokens, n_audio, processor.token_id(config.audio_token)
    )
    clean, n_targets = _canvas(processor, config, ids[0].tolist(), language)
    prompts, n_prompts, targets, lengths, canvases = (
        tensor.to(device).expand(N_NOISE_LEVELS, *tensor.shape[1:])
        for tensor in (prompt, n_prompt, clean[:, :n_targets], torch.tensor([n_targets]), clean)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same noise for every candidate
        denoising = denoising_losses(
            model.backbone, prompts, n_prompts, targets, lengths, canvases, _OBJECTIVE
        )
    return Losses(math.nan if bool(infeasible[0]) else float(ctc), float(denoising["diffusion"]))


def _text_ids(processor: CanvasASRProcessor, text: str) -> list[int]:
    ids = processor.text_ids(text.strip())
    if not ids:
        raise OptionError("the text of a probe is empty; give what is said in the clip.")
    return ids


def _canvas(
    processor: CanvasASRProcessor, config: CanvasASRConfig, ids: list[int], language: str | None
) -> tuple[Tensor, int]:
    """Clean canvas, (1, C) int64, and its positions up to and with the first end token."""
    tags = processor.language_ids(config)
    if tags and language not in tags:
        raise OptionError(
            f"language is {language!r}; a canvas with a language tag needs one of {', '.join(tags)}."
        )
    row = [tags[language], *ids] if tags and language else ids
    n_targets = len(row) + 1
    if n_targets > config.max_canvas_length:
        raise OptionError(
            f"the text of a probe needs {n_targets} tokens, the canvas has {config.max_canvas_length}; "
            "give a shorter clip."
        )
    length = max(n_targets, config.canvas_length)
    return lay_out([row], length, int(processor.tokenizer.eos_token_id)), n_targets
