"""From features and options to token ids, language and confidence.

:class:`CanvasDecoder` decodes one batch; it opens the :class:`~canvas_asr.clip_batch.ClipBatch` that clips
join and leave between passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from . import configuration  # noqa: F401 - before what needs DiffusionGemma: it says so if there is none
from .alignment import Aligner
from .audio import Samples
from .backbone import encode_keys
from .biasing import HotwordGraph
from .canvas import CanvasReading, Vocabulary, likeliest
from .canvas_batch import FinishedCanvas
from .clip_batch import ClipBatch, OnDraft
from .cpu_layers import LazySelfConditioning, fuse_norms, quicken
from .cuda_graphs import GraphedBackbone
from .errors import OptionError
from .modeling import CanvasASRModel
from .options import MAX_PROMPT_TOKENS, DecodingOptions
from .processing import CanvasASRProcessor, log_mel, pad_ids, pad_mels
from .products import quicken_linears
from .result import Decoded
from .row_threads import RowThreads
from .sampler import read_rows

# Of a model whose rows are shared out to threads, each of which reads all the weights.
MAX_SHARED_WEIGHTS = 1 << 27
_TOKENIZER = threading.Lock()  # a call may set it up anew, which fails while another is in it


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


def text_vocabulary(
    tokenizer: PreTrainedTokenizerBase, size: int, tags: Sequence[int], mask: int | None = None
) -> Vocabulary:
    """Ids that a transcript may hold: all but the tokenizer's special ones, and the end token.

    Args:
        tokenizer: The backbone's.
        size: V of the backbone.
        tags: Ids of the language tags.
        mask: See :class:`~canvas_asr.canvas.Vocabulary`.
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
        self.lock = threading.Lock()  # held for a step: the model is for one thread at a time
        self.model = model
        self.processor = processor
        self.config = config = model.config
        self.languages = processor.language_ids(config)
        self.audio_id = processor.token_id(config.audio_token)
        self.vocabulary = text_vocabulary(
            processor.tokenizer, config.vocab_size, tuple(self.languages.values()), config.mask_token_id
        )
        if config.canvas_places == "draft":
            self.vocabulary.text[config.blank_token_id] = True
        self.canvas_start = processor.canvas_start(config)
        self.aligner = Aligner(model, processor.feature_extractor.hop_length)
        self._hotwords: tuple[Any, HotwordGraph] | None = None  # the last ones that were asked for
        quicken(model.backbone)
        quicken_linears(model.audio_encoder)
        quicken_linears(model.projector)
        # What a pass is conditioned on is each thread's own in a lazy one only.
        is_lazy = isinstance(model.backbone.model.decoder.self_conditioning, LazySelfConditioning)
        is_small = sum(parameter.numel() for parameter in model.parameters()) <= MAX_SHARED_WEIGHTS
        self.threads = RowThreads(is_on=is_lazy and is_small and not cuda_graphs)
        self.graphs: GraphedBackbone | None = None
        if cuda_graphs:
            fuse_norms(model.backbone)
            self.graphs = GraphedBackbone(model.backbone, self.vocabulary)

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock, which no other process can share."""
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what another process had, with a lock of its own."""
        vars(self).update(state, lock=threading.Lock())

    def __call__(
        self,
        mel: Tensor,
        n_mel: Tensor,
        *,
        clip_keys: Sequence[int] | None = None,
        canvas_length: int | str | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
        on_draft: OnDraft | None = None,
        on_pass: Callable[[int, Tensor], None] | None = None,
        **options: Any,
    ) -> list[Decoded]:
        """Decode one batch.

        Args:
            mel: Log-mel features, (B, n_mels, T_mel), right-padded.
            n_mel: Valid mel frames, (B,) int64.
            clip_keys: A clip's noise is drawn from (seed, key); None: from how many mel frames it has.
            canvas_length: ``canvas`` of the options.
            drafts: Token ids to start from in place of the CTC reading, for ``init="draft"``.
            on_draft: Called before the first pass with the greedy CTC readings.
            on_pass: Called after each pass with its number and the canvases (B, C); those that are done stay
                as they were.
            options: See :class:`~canvas_asr.options.DecodingOptions`.

        Returns:
            One result a clip.

        Raises:
            OptionError: If an option is out of range, or the model cannot follow it.
        """
        batch = self.open(DecodingOptions(canvas=canvas_length, **options))
        batch.add(mel, n_mel, range(len(mel)), clip_keys=clip_keys, drafts=drafts, on_draft=on_draft)
        results: dict[Any, Decoded] = dict(batch.take())
        shown = None
        step = 0
        while len(batch):
            batch.run_pass()
            step += 1
            if on_pass is not None:
                last = batch.shown()
                canvas = last.canvas
                if shown is None:
                    shown = self._answers(results, len(mel), canvas)
                shown, canvas = (self._widen(part, (shown, canvas)) for part in (shown, canvas))
                shown = shown.index_copy(0, torch.tensor(last.keys, device=canvas.device), canvas)
                on_pass(step, shown)
            results.update(batch.take())
        return [results[place] for place in range(len(mel))]

    def _answers(self, results: dict[Any, Decoded], n_clips: int, like: Tensor) -> Tensor:
        """Canvases (B, C) of clips that were answered without a pass; empty where there is no answer yet."""
        canvas = like.new_full((n_clips, like.shape[1]), self.vocabulary.eos)
        for place in range(n_clips):
            if place in results:
                ids = results[place].ids[: like.shape[1]]
                canvas[place, : len(ids)] = like.new_tensor(ids)
        return canvas

    def _widen(self, canvas: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Write end tokens behind canvases (B, C) up to the length of the longest of others."""
        longest = max(other.shape[1] for other in others)
        return torch.nn.functional.pad(canvas, (0, longest - canvas.shape[1]), value=self.vocabulary.eos)

    @torch.no_grad()
    def features(self, waves: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """Give the features of 16 kHz mono clips: see :meth:`CanvasASRProcessor.features`."""
        extractor = self.processor.feature_extractor
        shares = self.threads.shares(len(waves))
        found = self.threads.each(lambda rows: [log_mel(extractor, wave) for wave in waves[rows]], shares)
        return pad_mels([mel for mels in found for mel in mels])

    def read_pass(self, *args: Any, **options: Any) -> CanvasReading:
        """Run a pass: see :func:`~canvas_asr.sampler.read_pass`."""
        if self.graphs:
            return self.graphs.read_pass(*args, **options)
        return read_rows(self.threads, *args, **options)

    def resolve(self, options: DecodingOptions) -> DecodingOptions:
        """Fill in start, passes and self-conditioning as the checkpoint says, where options leave them open.

        Raises:
            OptionError: If the other options do not go with that start.
        """
        return options.resolved(
            self.config.decoding_init, self.config.decoding_steps, self.config.decoding_self_conditioning
        )

    def open(self, options: DecodingOptions) -> ClipBatch:
        """Give an empty batch that decodes as the options say, :meth:`resolve` first.

        Raises:
            OptionError: If the model cannot follow them.
        """
        config = self.config
        options = self.resolve(options)
        if isinstance(options.canvas, int) and options.canvas > config.max_canvas_length:
            raise OptionError(
                f"canvas is {options.canvas} tokens; this model allows at most {config.max_canvas_length}."
            )
        language = options.language
        if language is not None and self.languages and language not in tuple(self.languages):
            raise OptionError(f"language is {language!r}; this model knows {', '.join(self.languages)}.")
        if options.needs_draft and not config.has_draft:
            raise OptionError(f"{options.needs_draft} needs a CTC draft, and this model has no draft head.")
        return ClipBatch(self, options)

    def hotwords(self, options: DecodingOptions) -> HotwordGraph | None:
        """Give the graph of the listed words; None where there are none.

        Raises:
            OptionError: If one cannot be written with the model's tokens.
        """
        if not options.hotwords:
            return None
        key = (options.hotwords, options.hotword_boost)
        if self._hotwords is None or self._hotwords[0] != key:
            blank = self.config.blank_token_id
            self._hotwords = key, HotwordGraph(*key, self.processor, self.vocabulary.text, blank)
        return self._hotwords[1]

    def context(self, options: DecodingOptions) -> list[int]:
        """Ids of the text that prompts hold: ``prompt``, and behind it the hotwords if all of them fit.

        Raises:
            OptionError: If the model takes none, or it is too long.
        """
        prompt = options.prompt or ""
        if self.config.prompt_context is None:
            if prompt:
                raise OptionError(
                    "prompt is given, but this model was not trained with text in its prompt; leave it out, "
                    "or list names as hotwords."
                )
            return []
        ids = self.processor.context_ids(self.config, prompt) if prompt else []
        if len(ids) > MAX_PROMPT_TOKENS:
            raise OptionError(f"prompt has {len(ids)} tokens; give at most {MAX_PROMPT_TOKENS}.")
        if options.hotwords:
            listed = f"{prompt} {', '.join(options.hotwords)}".strip()
            longer = self.processor.context_ids(self.config, listed)
            ids = longer if len(longer) <= MAX_PROMPT_TOKENS else ids
        return ids

    def prefix(self, tokens: Tensor, n_audio: Tensor, ctc: Tensor, context: Sequence[int] = ()) -> Prefix:
        """Encode the prompts around audio tokens (B, A, D) with CTC logits (B, A, V).

        Args:
            tokens: Audio tokens.
            n_audio: Valid ones of each clip, (B,) int64.
            ctc: Their CTC logits.
            context: See :meth:`context`.
        """
        prompts, n_prompt, embeds, positions = self._prompts(tokens, n_audio, ctc, context)
        encode_prefix = self.graphs.encode_prefix if self.graphs else self.model.encode_prefix
        hidden, cache = encode_prefix(embeds, positions)
        return Prefix(cache, n_prompt, prompts, hidden, positions)

    def prefix_keys(
        self, tokens: Tensor, n_audio: Tensor, ctc: Tensor, context: Sequence[int] = ()
    ) -> tuple[DynamicCache, Tensor]:
        """Encode prompts as :meth:`prefix` does, for canvases alone: cache and valid places (B,)."""
        _, n_prompt, embeds, positions = self._prompts(tokens, n_audio, ctc, context)
        if self.graphs:
            return self.graphs.encode_prefix(embeds, positions)[1], n_prompt
        return encode_keys(self.model.backbone, embeds, positions), n_prompt

    def _prompts(
        self, tokens: Tensor, n_audio: Tensor, ctc: Tensor, context: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Ids of prompts (B, P), valid places (B,), embeddings (B, P, D), positions (B, P)."""
        with _TOKENIZER:
            rows = self.processor.prompt_ids(self.config, n_audio.tolist(), context)
        prompts, n_prompt = (tensor.to(tokens.device) for tensor in pad_ids(rows, 0))
        audio = self.model.embed_audio(tokens, self.model.expected_embeddings(ctc))
        embeds = self.model.embed_prompt(prompts, audio, n_audio, self.audio_id)
        positions = self.model.prompt_positions(prompts, likeliest(ctc)[1], n_audio, self.audio_id)
        return prompts, n_prompt, embeds, positions

    def text_span(self, ids: list[int]) -> slice:
        """Where the text of a canvas lies: behind the language tag, before the first end token."""
        start = 1 if self.languages and ids[0] != self.vocabulary.eos else 0
        end = ids.index(self.vocabulary.eos) if self.vocabulary.eos in ids else len(ids)
        return slice(start, end)

    def result(self, finished: FinishedCanvas, draft: Sequence[int], language: str | None) -> Decoded:
        """Read a denoised canvas.

        Args:
            finished: The canvas.
            draft: Greedy CTC reading of its clip.
            language: Code that was given.
        """
        ids, tags = finished.canvas.tolist(), finished.tag_probabilities.tolist()
        span = self.text_span(ids)
        best = max(range(len(tags)), key=tags.__getitem__) if tags else -1
        probabilities = dict(zip(self.languages, tags, strict=True)) if tags else {}
        blank = self.config.blank_token_id  # where the draft has a token too many
        written = list(zip(ids, finished.confidence.tolist(), strict=True))[span]
        return Decoded(
            ids=[i for i, _ in written if i != blank],
            confidences=[c for i, c in written if i != blank],
            language=list(self.languages)[best] if tags else language or "",
            language_confidence=tags[best] if tags else float(bool(language)),
            draft=list(draft),
            passes=finished.passes,
            truncated=span.stop == len(ids),
            language_probabilities=probabilities,
        )
