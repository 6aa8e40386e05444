"""Clips being decoded: a batch that they join and leave between passes.

Letters: B clips, C longest canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from . import configuration  # noqa: F401 - before what needs DiffusionGemma: it says so if there is none
from .backbone import join_caches, select_cache
from .canvas_batch import CanvasBatch, LastPass
from .canvas_rows import CanvasRow
from .ctc import Draft
from .drafts import DraftReader
from .options import AUTO, DecodingOptions
from .result import Decoded
from .strategies import sampler_config
from .strategies.candidates import least_risk
from .strategies.starts import fit_canvas

if TYPE_CHECKING:
    from .decoding import CanvasDecoder

OnDraft = Callable[[list[list[int]]], None]


def shared_options(options: DecodingOptions) -> DecodingOptions:
    """Give what the clips of a batch have in common: all but language, seed and times of words."""
    return replace(options, language=None, seed=0, word_timestamps=False)


@dataclass
class _Clip:
    """A clip on its way.

    Attributes:
        options: Its own.
        mel: Its features, (n_mels, T_mel).
        noise_key: See :class:`~canvas_asr.canvas_rows.CanvasRow`.
        heard: Its greedy CTC reading.
        start: What its canvases start from.
        length: Tokens of its canvases.
        sound: Its audio tokens, (T, D), which its text is aligned to; None: not asked for.
        passes: Taken on shorter canvases, which its text has filled.
        candidates: Those that are done.
    """

    options: DecodingOptions
    mel: Tensor
    noise_key: int
    heard: Sequence[int]
    start: Draft
    length: int
    sound: Tensor | None
    passes: int = 0
    candidates: dict[int, Decoded] = field(default_factory=dict)


@dataclass(frozen=True)
class _Heard:
    """Clips of a share, B of them, encoded.

    Attributes:
        tokens: Audio tokens, (B, A, D).
        n_audio: Valid ones of each, (B,) int64.
        ctc: CTC logits, bent towards hotwords, (B, A, V).
        n_mel: Valid mel frames of each, (B,) int64.
        drafts: Of each.
    """

    tokens: Tensor
    n_audio: Tensor
    ctc: Tensor
    n_mel: Tensor
    drafts: Sequence[Draft]

    def select(self, clips: Sequence[int]) -> _Heard:
        """Give the chosen clips."""
        index = list(clips)
        tokens, n_audio, ctc, n_mel = (
            part[index] for part in (self.tokens, self.n_audio, self.ctc, self.n_mel)
        )
        return _Heard(tokens, n_audio, ctc, n_mel, [self.drafts[i] for i in index])


def _kept(shares: Sequence[_Heard], places: Sequence[int]) -> list[_Heard]:
    """Give the clips at these places of all shares, in as many shares; none is left empty."""
    kept, first = [], 0
    for share in shares:
        n = len(share.drafts)
        own = [place - first for place in places if first <= place < first + n]
        first += n
        if own:
            kept.append(share if len(own) == n else share.select(own))
    return kept


class ClipBatch:
    """Clips being decoded; :meth:`CanvasDecoder.open` makes one.

    Between passes clips may be added, set aside or removed, and those that are done be taken out. What a clip
    gives does not depend on the others.
    """

    def __init__(self, decoder: CanvasDecoder, options: DecodingOptions) -> None:
        """Start without clips.

        Args:
            decoder: Its model, and how its prompts are encoded.
            options: Resolved and checked against the model.
        """
        self.decoder = decoder
        self.options = options
        length = options.canvas if isinstance(options.canvas, int) else decoder.config.canvas_length
        self._length = None if options.canvas == AUTO else length
        self._config = sampler_config(options, length)
        self._reader = DraftReader(
            decoder.model.backbone,
            decoder.vocabulary,
            decoder.config.blank_token_id,
            options,
        )
        self._hotwords = decoder.hotwords(options)
        self._context = decoder.context(options)
        start = decoder.canvas_start
        self._canvases = CanvasBatch(
            decoder.model.backbone,
            decoder.vocabulary,
            self._config,
            partial(decoder.read_pass, canvas_start=None if start is None else start + len(self._context)),
            compact=decoder.graphs is None,
        )
        self._clips: dict[Any, _Clip] = {}
        self._paused: set[Any] = set()
        # Of each clip at the last pass: passes before its present canvases, and the language it was given.
        self._passes: dict[Any, tuple[int, str]] = {}
        self._finished: list[tuple[Any, Decoded]] = []

    def __len__(self) -> int:
        """Count the clips that the next pass is for."""
        return len(self._clips) - len(self._paused)

    @property
    def keys(self) -> list[Any]:
        """Keys of the clips that the next pass is for."""
        return [key for key in self._clips if key not in self._paused]

    @property
    def paused(self) -> list[Any]:
        """Keys of the clips that are set aside."""
        return [key for key in self._clips if key in self._paused]

    def pause(self, keys: Container[Any]) -> None:
        """Set clips aside as they are; no pass is for them until they are resumed."""
        chosen = {key for key in self.keys if key in keys}
        self._canvases.pause(self._canvas_keys(chosen))
        self._paused |= chosen

    @torch.no_grad()
    def resume(self, keys: Container[Any]) -> None:
        """Let clips that are set aside go on where they were."""
        chosen = {key for key in self._paused if key in keys}
        self._canvases.resume(self._canvas_keys(chosen))
        self._paused -= chosen

    def remove(self, keys: Container[Any]) -> None:
        """Forget clips, whether they are done or not; their rows are free for others."""
        chosen = {key for key in self._clips if key in keys}
        self._canvases.remove(self._canvas_keys(chosen))
        self._clips = {key: clip for key, clip in self._clips.items() if key not in chosen}
        self._paused -= chosen
        self._finished = [(key, decoded) for key, decoded in self._finished if key not in keys]

    def _canvas_keys(self, keys: set[Any]) -> set[tuple[Any, int]]:
        return {(key, j) for key in keys for j in range(self.options.candidates)}

    @torch.no_grad()
    def add(
        self,
        mel: Tensor,
        n_mel: Tensor,
        keys: Sequence[Any],
        *,
        options: Sequence[DecodingOptions] | None = None,
        clip_keys: Sequence[int] | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
        on_draft: OnDraft | None = None,
    ) -> None:
        """Encode clips, to be denoised from the next pass on; those that need no pass are done at once.

        Args:
            mel: Log-mel features, (B, n_mels, T_mel), right-padded.
            n_mel: Valid mel frames, (B,) int64.
            keys: What each result comes back with.
            options: Of each clip, resolved and checked, with the :func:`shared_options` of the batch; None:
                those of the batch.
            clip_keys: See :meth:`CanvasDecoder.__call__`, as for what follows.
            drafts: Token ids in place of the CTC reading.
            on_draft: Called with the greedy CTC readings.

        Raises:
            OptionError: If a draft is needed and missing.
            ValueError: If the options of a clip are those of another batch.
        """
        own = self._own(options, len(keys))
        threads = self.decoder.threads
        shared = threads.shares(len(mel), mel.device)
        shares = threads.each(lambda rows: self._hear(mel[rows], n_mel[rows]), shared)
        heard = [draft for share in shares for draft in share.drafts]
        if on_draft is not None:
            on_draft([list(draft.ids) for draft in heard])
        lengths = n_mel.tolist()
        sounds: list[Tensor | None] = [None] * len(mel)
        if any(one.word_timestamps for one in own):
            clips = self.decoder.aligner.clips
            found = [sound for share in shares for sound in clips(share.tokens, share.n_mel)]
            sounds = [sound if one.word_timestamps else None for sound, one in zip(found, own, strict=True)]
        left = []
        for i, draft in enumerate(heard):
            if self._is_answer(draft):
                self._finish(keys[i], self._answer(draft, own[i].language or ""), sounds[i])
                continue
            start = draft if drafts is None else self._reader.given(drafts[i])
            noise_key = lengths[i] if clip_keys is None else clip_keys[i]
            own_mel, length = mel[i, :, : lengths[i]], self._fit(start)
            self._clips[keys[i]] = _Clip(own[i], own_mel, noise_key, draft.ids, start, length, sounds[i])
            left.append(i)
        if left:
            self._lay([keys[i] for i in left], _kept(shares, left))

    def _hear(self, mel: Tensor, n_mel: Tensor) -> _Heard:
        """Encode clips, (B, n_mels, T_mel) with (B,) valid frames, and read their drafts."""
        decoder = self.decoder
        longest = int(n_mel.max()) if mel.is_cpu else mel.shape[-1]  # a GPU would be waited for
        tokens, n_audio = decoder.model.audio_tokens(mel[..., :longest], n_mel)
        ctc = decoder.model.ctc_logits(tokens)
        words = None if self._hotwords is None else self._hotwords.bend(ctc, n_audio)
        drafts = [Draft(())] * len(mel)
        if decoder.config.has_draft:
            drafts = self._reader.read(ctc, n_audio, words)
        return _Heard(tokens, n_audio, ctc, n_mel, drafts)

    def _own(self, options: Sequence[DecodingOptions] | None, n_clips: int) -> Sequence[DecodingOptions]:
        """The options of each clip.

        Raises:
            ValueError: If they are those of another batch.
        """
        if options is None:
            return [self.options] * n_clips
        options = [self.decoder.resolve(one) for one in options]
        shared = shared_options(self.options)
        if any(shared_options(one) != shared for one in options):
            raise ValueError("clips of one batch differ in language, seed and word_timestamps only.")
        return options

    def _lay(self, keys: Sequence[Any], shares: Sequence[_Heard]) -> None:
        """Encode the prompts of clips, in order, and lay their canvases."""
        decoder, n_each = self.decoder, self.options.candidates
        if decoder.graphs:
            self._canvases.own_prefix()  # recorded, it is overwritten by the next
        prefixes = decoder.threads.each(
            lambda heard: decoder.prefix_keys(heard.tokens, heard.n_audio, heard.ctc, self._context), shares
        )
        cache, n_prompt = prefixes[0]
        if len(prefixes) > 1:
            cache = join_caches([cache for cache, _ in prefixes])
            n_prompt = torch.cat([n_prompt for _, n_prompt in prefixes])
        if n_each > 1:
            index = torch.arange(len(keys)).repeat_interleave(n_each)
            cache, n_prompt = select_cache(cache, index), n_prompt[index]
        self._canvases.add(cache, n_prompt, [row for key in keys for row in self._rows(key)])

    def _lengthen(self, keys: Sequence[Any]) -> None:
        """Start clips anew on canvases of twice the length, the longest at most."""
        for clip in (self._clips[key] for key in keys):
            clip.length = fit_canvas(2 * clip.length, self.decoder.config.max_canvas_length)
        mels = [self._clips[key].mel for key in keys]
        mel = pad_sequence([mel.mT for mel in mels], batch_first=True).mT
        n_mel = torch.tensor([mel.shape[1] for mel in mels], device=mel.device)
        self._lay(keys, [self._hear(mel, n_mel)])

    def _is_answer(self, draft: Draft) -> bool:
        gate = self.options.gate
        return self.options.draft_alone or (gate is not None and draft.certainty >= gate)

    def _answer(self, draft: Draft, language: str) -> Decoded:
        """A draft as a result of no pass."""
        ids = list(draft.ids)
        sure = {code: float(code == language) for code in self.decoder.languages} if language else {}
        return Decoded(
            ids,
            list(draft.confidences),
            language,
            float(bool(language)),
            ids,
            0,
            False,
            language_probabilities=sure,
        )

    def _fit(self, draft: Draft) -> int:
        """Length of a clip's canvases."""
        if self._length is not None:
            return self._length
        needed = self._config.start.n_places(len(draft.ids), tagged=bool(self.decoder.languages))
        return fit_canvas(needed, self.decoder.config.max_canvas_length)

    def _rows(self, key: Any) -> list[CanvasRow]:
        """The canvases of a clip, one a candidate."""
        clip = self._clips[key]
        options = clip.options
        tag = None if options.language is None else self.decoder.languages.get(options.language)
        return [
            CanvasRow((key, j), clip.noise_key, options.seed + j, clip.length, tag, clip.start)
            for j in range(options.candidates)
        ]

    @torch.no_grad()
    def run_pass(self) -> None:
        """Run one pass on every clip that is not done.

        With ``canvas="auto"`` a clip whose text has filled its canvas starts anew on a longer one.
        """
        self._passes = {key: (clip.passes, clip.options.language or "") for key, clip in self._clips.items()}
        self._canvases.run_pass()
        filled = []
        for finished in self._canvases.take():
            key, candidate = finished.key
            clip = self._clips[key]
            clip.candidates[candidate] = self.decoder.result(finished, clip.heard, clip.options.language)
            if len(clip.candidates) < self.options.candidates:
                continue
            chosen = self._choose(clip)
            clip.passes += chosen.passes
            clip.candidates.clear()
            truncated = chosen.truncated or self._is_cut(clip)
            if truncated and self._length is None and clip.length < self.decoder.config.max_canvas_length:
                filled.append(key)
            else:
                del self._clips[key]
                self._finish(key, replace(chosen, passes=clip.passes, truncated=truncated), clip.sound)
        if filled:
            self._lengthen(filled)

    def _finish(self, key: Any, decoded: Decoded, sound: Tensor | None) -> None:
        """Keep a result, aligned to its audio tokens where times are asked for."""
        if sound is not None:
            decoded = replace(decoded, spans=self.decoder.aligner(decoded.ids, sound))
        self._finished.append((key, decoded))

    def _is_cut(self, clip: _Clip) -> bool:
        """Whether a canvas that starts from the draft is too short for it and an end token."""
        n_tags = int(bool(self.decoder.languages))
        return self.options.init != "noise" and n_tags + len(clip.start.ids) >= clip.length

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

    def shown(self) -> LastPass:
        """What the last pass made of the clips it was for, all their passes counted.

        Of several candidates the first is shown.
        """
        last = self._canvases.shown()
        last = last.select([i for i, (_, candidate) in enumerate(last.keys) if candidate == 0])
        keys = [key for key, _ in last.keys]
        steps = [self._passes[key][0] + step for key, step in zip(keys, last.steps, strict=True)]
        return replace(last, keys=keys, steps=steps)

    def given_language(self, key: Any) -> str:
        """Code that a clip of the last pass was given; empty if none."""
        return self._passes[key][1]

    def take(self) -> list[tuple[Any, Decoded]]:
        """Give the clips that are done since the last call with their results, and forget them."""
        finished, self._finished = self._finished, []
        return finished
