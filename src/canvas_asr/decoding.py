"""From features and options to token ids, text and confidence: one batch, one canvas a clip."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from . import configuration  # noqa: F401 - before what needs DiffusionGemma: it says so if there is none
from .backbone import fuse_norms
from .cuda_graphs import GraphedBackbone
from .errors import OptionError
from .modeling import CanvasASRModel
from .processing import CanvasASRProcessor, pad_ids
from .sampler import SamplerConfig, SamplerOutput, Vocabulary, read_pass, sample


@dataclass(frozen=True)
class Decoded:
    """What was read from one clip.

    Attributes:
        ids: Text token ids, without tag and end token.
        confidences: Probability of each in the last pass; for the draft alone, see :func:`ctc_confidences`.
        language: Code; empty where the checkpoint's canvas carries no tag and none was given.
        language_confidence: Probability of the language among those the checkpoint knows.
        draft: Token ids of the greedy CTC reading.
        passes: Denoising passes used.
        truncated: Whether the text filled the canvas, so that some of it may be missing.
    """

    ids: list[int]
    confidences: list[float]
    language: str
    language_confidence: float
    draft: list[int]
    passes: int
    truncated: bool


@dataclass(frozen=True)
class Prefix:
    """A batch of encoded prompts, all a reading starts from.

    Attributes:
        cache: Keys and values, P places, right-padded.
        n_prompt: Valid places, (B,) int64.
        ids: Of the prompts, (B, P) int64.
        hidden: Their last hidden states, (B, P, D).
        positions: Of each place, (B, P) float32; None: 0, 1, 2, ...
    """

    cache: DynamicCache
    n_prompt: Tensor
    ids: Tensor
    hidden: Tensor
    positions: Tensor | None


def greedy_ctc(logits: Tensor, n_states: Tensor, blank: int) -> list[list[int]]:
    """Best-path CTC reading of logits (B, A, V): see :func:`merge_labels`."""
    return merge_labels(logits.argmax(-1), n_states, blank)


def merge_labels(labels: Tensor, n_states: Tensor, blank: int) -> list[list[int]]:
    """Read a CTC path: repeats merged, blanks dropped.

    Args:
        labels: Likeliest id of each state, (B, A) int64.
        n_states: Valid states, (B,) int64.
        blank: Id of the blank.

    Returns:
        Token ids of each row.
    """
    readings = []
    for row, n in zip(labels.tolist(), n_states.tolist(), strict=True):
        path = row[:n]
        readings.append([t for i, t in enumerate(path) if t != blank and (i == 0 or t != path[i - 1])])
    return readings


def ctc_confidences(logits: Tensor, n_states: Tensor, blank: int) -> list[list[float]]:
    """Probability of each token of :func:`greedy_ctc`: the highest among the states merged to it.

    Args:
        logits: (B, A, V).
        n_states: Valid states, (B,) int64.
        blank: Id of the blank.

    Returns:
        One list a row, as long as the reading.
    """
    paths = logits.argmax(-1)
    best = logits.softmax(dim=-1).gather(-1, paths[..., None])[..., 0]
    rows = []
    for path, probabilities, n in zip(paths.tolist(), best.tolist(), n_states.tolist(), strict=True):
        found: list[float] = []
        for i, (token, probability) in enumerate(zip(path[:n], probabilities[:n], strict=True)):
            if token == blank:
                continue
            if i and token == path[i - 1]:
                found[-1] = max(found[-1], probability)
            else:
                found.append(probability)
        rows.append(found)
    return rows


def text_vocabulary(
    tokenizer: PreTrainedTokenizerBase, size: int, tags: Sequence[int], mask: int | None = None
) -> Vocabulary:
    """Ids that a transcript may hold: all but the tokenizer's special ones, and the end token.

    Args:
        tokenizer: The backbone's.
        size: V of the backbone.
        tags: Ids of the language tags.
        mask: See :class:`~canvas_asr.sampler.Vocabulary`.
    """
    text = torch.zeros(size, dtype=torch.bool)
    text[: len(tokenizer)] = True
    text[list(tokenizer.all_special_ids)] = False
    if mask is not None:
        text[mask] = False
    eos = tokenizer.eos_token_id
    text[eos] = True
    return Vocabulary(size, int(eos), tuple(tags), text, mask)


class CanvasDecoder:
    """Decodes batches of features with one model."""

    def __init__(
        self, model: CanvasASRModel, processor: CanvasASRProcessor, *, cuda_graphs: bool = False
    ) -> None:
        """Look up the ids that decoding needs.

        Args:
            model: In evaluation mode.
            processor: Of the same checkpoint.
            cuda_graphs: Whether prefix and passes are recorded once a shape and replayed, with norms as one
                kernel: faster on a GPU where a few shapes recur, slower where every batch has its own.
        """
        self.model = model
        self.processor = processor
        self.config = config = model.config
        self.languages = processor.language_ids(config)
        self.audio_id = processor.token_id(config.audio_token)
        self.vocabulary = text_vocabulary(
            processor.tokenizer, config.vocab_size, tuple(self.languages.values()), config.mask_token_id
        )
        self.canvas_start = processor.canvas_start(config)
        self.graphs: GraphedBackbone | None = None
        if cuda_graphs:
            fuse_norms(model.backbone)
            self.graphs = GraphedBackbone(model.backbone, self.vocabulary)

    @torch.no_grad()
    def __call__(
        self,
        mel: Tensor,
        n_mel: Tensor,
        *,
        clip_keys: Sequence[int] | None = None,
        steps: int = 8,
        init: str = "noise",
        canvas_length: int | None = None,
        seed: int = 0,
        language: str | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
        on_draft: Callable[[list[list[int]]], None] | None = None,
        on_pass: Callable[[int, Tensor], None] | None = None,
    ) -> list[Decoded]:
        """Decode one batch.

        Args:
            mel: Log-mel features, (B, n_mels, T_mel), right-padded.
            n_mel: Valid mel frames, (B,) int64.
            clip_keys: A clip's noise is drawn from (seed, key); None: from how many mel frames it has.
            steps: Denoising passes; 0, with ``init="draft"`` only, gives the draft as it is.
            init: ``noise`` or ``draft``.
            canvas_length: Tokens of the canvas; None takes the checkpoint's.
            seed: Of the noise.
            language: Code of all clips; None finds it.
            drafts: Token ids to start from in place of the CTC reading, for ``init="draft"``.
            on_draft: Called before the first pass with the greedy CTC readings.
            on_pass: Called after each pass with its number and the canvas.

        Returns:
            One result a clip.

        Raises:
            OptionError: If an option is out of range or the language is unknown.
        """
        options = self.options(
            steps=steps, init=init, canvas_length=canvas_length, seed=seed, language=language
        )
        tag = None if language is None else self.languages.get(language)
        tokens, n_audio = self.model.audio_tokens(mel, n_mel)
        ctc = self.model.ctc_logits(tokens)
        readings = greedy_ctc(ctc, n_audio, self.config.blank_token_id)
        if on_draft is not None:
            on_draft(readings)
        if options is None:
            return self._drafts_alone(ctc, n_audio, readings, language)
        run_pass = self.graphs.read_pass if self.graphs else read_pass
        prefix = self.prefix(tokens, n_audio, ctc)
        output = sample(
            self.model.backbone,
            prefix.cache,
            prefix.n_prompt,
            self.vocabulary,
            options,
            clip_keys=n_mel.tolist() if clip_keys is None else clip_keys,
            tags=[tag] * len(mel),
            drafts=readings if drafts is None else drafts,
            on_pass=on_pass,
            run_pass=partial(run_pass, canvas_start=self.canvas_start),
        )
        return self._results(output, readings, language)

    def prefix(self, tokens: Tensor, n_audio: Tensor, ctc: Tensor) -> Prefix:
        """Encode the prompts around audio tokens (B, A, D) with CTC logits (B, A, V)."""
        rows = self.processor.prompt_ids(self.config, n_audio.tolist())
        prompts, n_prompt = (tensor.to(tokens.device) for tensor in pad_ids(rows, 0))
        encode_prefix = self.graphs.encode_prefix if self.graphs else self.model.encode_prefix
        audio = self.model.embed_audio(tokens, self.model.expected_embeddings(ctc))
        embeds = self.model.embed_prompt(prompts, audio, n_audio, self.audio_id)
        positions = self.model.prompt_positions(prompts, ctc.argmax(-1), n_audio, self.audio_id)
        hidden, cache = encode_prefix(embeds, positions)
        return Prefix(cache, n_prompt, prompts, hidden, positions)

    def _drafts_alone(
        self, ctc: Tensor, n_audio: Tensor, readings: list[list[int]], language: str | None
    ) -> list[Decoded]:
        """Greedy readings of CTC logits (B, A, V) as results of no pass."""
        confidences = ctc_confidences(ctc.float(), n_audio, self.config.blank_token_id)
        return [
            Decoded(ids, sure, language or "", float(bool(language)), ids, 0, False)
            for ids, sure in zip(readings, confidences, strict=True)
        ]

    def options(
        self, *, steps: int, init: str, canvas_length: int | None, seed: int, language: str | None
    ) -> SamplerConfig | None:
        """Check options before any audio is read.

        Returns:
            How to sample; None where the draft is asked for as it is.

        Raises:
            OptionError: If an option is out of range, no whole number where one is needed, or the language is
                unknown.
        """
        config = self.config
        length = config.canvas_length if canvas_length is None else canvas_length
        for name, value in (("steps", steps), ("canvas", length), ("seed", seed)):
            try:
                operator.index(value)
            except TypeError as error:
                raise OptionError(f"{name} is {value!r}; give a whole number.") from error
        if length > config.max_canvas_length:
            raise OptionError(
                f"canvas is {length} tokens; this model allows at most {config.max_canvas_length}."
            )
        if language is not None and self.languages and language not in tuple(self.languages):
            raise OptionError(f"language is {language!r}; this model knows {', '.join(self.languages)}.")
        # Checked like one pass: a wrong canvas or start is an error for the draft too.
        draft_only = steps == 0 and init == "draft"
        options = SamplerConfig(1 if draft_only else steps, length, init, seed)
        return None if draft_only else options

    def text_span(self, ids: list[int]) -> slice:
        """Where the text of a canvas lies: behind the language tag, before the first end token."""
        start = 1 if self.languages and ids[0] != self.vocabulary.eos else 0
        end = ids.index(self.vocabulary.eos) if self.vocabulary.eos in ids else len(ids)
        return slice(start, end)

    def _results(
        self, output: SamplerOutput, readings: list[list[int]], language: str | None
    ) -> list[Decoded]:
        """Read denoised canvases, each beside its draft."""
        return [
            self._result(ids, confidence, tags, draft, output.passes, language)
            for ids, confidence, tags, draft in zip(
                output.canvas.tolist(),
                output.confidence.tolist(),
                output.tag_probabilities.tolist(),
                readings,
                strict=True,
            )
        ]

    def _result(
        self,
        ids: list[int],
        confidence: list[float],
        tags: list[float],
        draft: list[int],
        passes: int,
        language: str | None,
    ) -> Decoded:
        span = self.text_span(ids)
        best = max(range(len(tags)), key=tags.__getitem__) if tags else -1
        found = list(self.languages)[best] if tags else language or ""
        return Decoded(
            ids=ids[span],
            confidences=confidence[span],
            language=found,
            language_confidence=tags[best] if tags else float(bool(language)),
            draft=draft,
            passes=passes,
            truncated=span.stop == len(ids),
        )
