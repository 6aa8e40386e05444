"""From features and options to token ids, text and confidence.

:class:`CanvasDecoder` decodes one batch, one canvas a clip; :class:`ClipBatch` is a batch that clips join and
leave between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from . import configuration  # noqa: F401 - before what needs DiffusionGemma: it says so if there is none
from .backbone import fuse_norms, select_cache
from .canvas import Vocabulary
from .canvas_batch import CanvasBatch, FinishedCanvas
from .canvas_rows import CanvasRow
from .ctc import Draft
from .cuda_graphs import GraphedBackbone
from .drafts import DraftReader
from .errors import OptionError
from .modeling import CanvasASRModel
from .options import AUTO, DecodingOptions
from .processing import CanvasASRProcessor, pad_ids
from .result import Decoded
from .sampler import read_pass
from .strategies import sampler_config
from .strategies.candidates import least_risk
from .strategies.starts import fit_canvas

OnDraft = Callable[[list[list[int]]], None]


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
                keys, _, canvas = batch.shown()
                if shown is None:
                    shown = self._answers(results, len(mel), canvas)
                shown = shown.index_copy(0, torch.tensor(keys, device=canvas.device), canvas)
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

    def open(self, options: DecodingOptions) -> ClipBatch:
        """Give an empty batch that decodes as the options say.

        Raises:
            OptionError: If the model cannot follow them.
        """
        config = self.config
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
        return Decoded(
            ids=ids[span],
            confidences=finished.confidence.tolist()[span],
            language=list(self.languages)[best] if tags else language or "",
            language_confidence=tags[best] if tags else float(bool(language)),
            draft=list(draft),
            passes=finished.passes,
            truncated=span.stop == len(ids),
        )


@dataclass
class _Clip:
    """A clip on its way: its draft, and its candidates that are done."""

    draft: Sequence[int]
    candidates: dict[int, Decoded] = field(default_factory=dict)


class ClipBatch:
    """Clips being decoded; :meth:`CanvasDecoder.open` makes one.

    Between passes clips may be added, and those that are done be taken out. What a clip gives does not depend
    on the others.
    """

    def __init__(self, decoder: CanvasDecoder, options: DecodingOptions) -> None:
        """Start without clips.

        Args:
            decoder: Its model, and how its prompts are encoded.
            options: Checked against the model.
        """
        self.decoder = decoder
        self.options = options
        graphs = decoder.graphs
        length = options.canvas if isinstance(options.canvas, int) else decoder.config.canvas_length
        self._length = None if options.canvas == AUTO else length
        # For the draft alone the number of passes plays no part.
        self._config = sampler_config(replace(options, steps=max(1, options.steps)), length)
        run_pass = graphs.read_pass if graphs else read_pass
        self._reader = DraftReader(
            decoder.model.backbone, decoder.vocabulary, decoder.config.blank_token_id, options
        )
        self._canvases = CanvasBatch(
            decoder.model.backbone,
            decoder.vocabulary,
            self._config,
            partial(run_pass, canvas_start=decoder.canvas_start),
            compact=graphs is None,
        )
        self._clips: dict[Any, _Clip] = {}
        self._finished: list[tuple[Any, Decoded]] = []

    def __len__(self) -> int:
        """Count the clips that need further passes."""
        return len(self._clips)

    @torch.no_grad()
    def add(
        self,
        mel: Tensor,
        n_mel: Tensor,
        keys: Sequence[Any],
        *,
        clip_keys: Sequence[int] | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
        on_draft: OnDraft | None = None,
    ) -> None:
        """Encode clips, to be denoised from the next pass on; those that need no pass are done at once.

        Args:
            mel: Log-mel features, (B, n_mels, T_mel), right-padded.
            n_mel: Valid mel frames, (B,) int64.
            keys: What each result comes back with.
            clip_keys: See :meth:`CanvasDecoder.__call__`, as for what follows.
            drafts: Token ids in place of the CTC reading.
            on_draft: Called with the greedy CTC readings.

        Raises:
            OptionError: If a draft is needed and missing.
        """
        decoder, model = self.decoder, self.decoder.model
        tokens, n_audio = model.audio_tokens(mel, n_mel)
        ctc = model.ctc_logits(tokens)
        heard = self._reader.read(ctc, n_audio) if decoder.config.has_draft else [Draft(())] * len(mel)
        if on_draft is not None:
            on_draft([list(draft.ids) for draft in heard])
        left = []
        for i, draft in enumerate(heard):
            if self._is_answer(draft):
                self._finished.append((keys[i], self._answer(draft)))
            else:
                left.append(i)
        if not left:
            return
        if len(left) < len(heard):
            tokens, n_audio, ctc = tokens[left], n_audio[left], ctc[left]
        if decoder.graphs:
            self._canvases.own_prefix()  # recorded, it is overwritten by the next
        prefix = decoder.prefix(tokens, n_audio, ctc)
        noise_keys = n_mel.tolist() if clip_keys is None else clip_keys
        rows = []
        for i in left:
            start = heard[i] if drafts is None else self._reader.given(drafts[i])
            rows += self._rows(keys[i], noise_keys[i], start)
            self._clips[keys[i]] = _Clip(heard[i].ids)
        cache, n_prompt, n_each = prefix.cache, prefix.n_prompt, self.options.candidates
        if n_each > 1:
            index = torch.arange(len(left)).repeat_interleave(n_each)
            cache, n_prompt = select_cache(cache, index), n_prompt[index]
        self._canvases.add(cache, n_prompt, rows)

    def _is_answer(self, draft: Draft) -> bool:
        gate = self.options.gate
        return self.options.draft_alone or (gate is not None and draft.certainty >= gate)

    def _answer(self, draft: Draft) -> Decoded:
        """A draft as a result of no pass."""
        language = self.options.language or ""
        ids = list(draft.ids)
        return Decoded(ids, list(draft.confidences), language, float(bool(language)), ids, 0, False)

    def _rows(self, key: Any, noise_key: int, draft: Draft) -> list[CanvasRow]:
        """The canvases of a clip, one a candidate."""
        decoder, options = self.decoder, self.options
        tag = None if options.language is None else decoder.languages.get(options.language)
        length = self._length
        if length is None:
            needed = self._config.start.n_places(len(draft.ids), tagged=bool(decoder.languages))
            length = fit_canvas(needed, decoder.config.max_canvas_length)
        return [
            CanvasRow((key, j), noise_key, options.seed + j, length, tag, draft)
            for j in range(options.candidates)
        ]

    def run_pass(self) -> None:
        """Run one pass on every clip that is not done."""
        self._canvases.run_pass()
        for finished in self._canvases.take():
            key, candidate = finished.key
            clip = self._clips[key]
            clip.candidates[candidate] = self.decoder.result(finished, clip.draft, self.options.language)
            if len(clip.candidates) == self.options.candidates:
                del self._clips[key]
                self._finished.append((key, self._choose(clip)))

    def _choose(self, clip: _Clip) -> Decoded:
        """The candidate of minimum Bayes risk."""
        candidates = [clip.candidates[j] for j in range(self.options.candidates)]
        if len(candidates) == 1:
            return candidates[0]
        if self.options.risk == "tokens":
            return candidates[least_risk([one.ids for one in candidates])]
        texts = [self.decoder.processor.text(one.ids) for one in candidates]
        units = [text.split() if self.options.risk == "words" else text for text in texts]
        return candidates[least_risk(units)]

    def shown(self) -> tuple[list[Any], list[int], Tensor]:
        """What the last pass made of the clips it was for: their keys, passes so far, and canvases (B, C).

        Of several candidates the first is shown.
        """
        keys, steps, canvas = self._canvases.shown()
        first = [i for i, (_, candidate) in enumerate(keys) if candidate == 0]
        if len(first) < len(keys):
            canvas = canvas[first]
        return [keys[i][0] for i in first], [steps[i] for i in first], canvas

    def take(self) -> list[tuple[Any, Decoded]]:
        """Give the clips that are done since the last call with their results, and forget them."""
        finished, self._finished = self._finished, []
        return finished
