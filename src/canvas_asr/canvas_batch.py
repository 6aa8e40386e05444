"""A batch of canvases that rows join and leave between passes: continuous batching.

Noise is drawn per canvas from (seed, noise key), positions and passes are counted per canvas, so a canvas
gives the same tokens whatever else is in the batch and whenever it joined.

Letters: B canvases, C longest canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from .backbone import join_caches, select_cache
from .canvas import CanvasReading, PassResult, Vocabulary, place_tags, text_places
from .canvas_rows import CanvasRow, Rows, lay_rows
from .encoder import length_mask
from .strategies import SamplerConfig
from .strategies.fusion import Spikes


@dataclass(frozen=True)
class FinishedCanvas:
    """A canvas that takes no further pass.

    Attributes:
        key: As it was given.
        canvas: Tokens, (length,) int64, on the CPU.
        confidence: Probability of each in the last pass, (length,) float32, on the CPU.
        tag_probabilities: Of ``Vocabulary.tags`` in the last pass, (n_tags,) float32, on the CPU.
        passes: Passes it took.
    """

    key: Any
    canvas: Tensor
    confidence: Tensor
    tag_probabilities: Tensor
    passes: int


@dataclass(frozen=True)
class LastPass:
    """What the last pass made of the canvases it was for.

    Attributes:
        keys: Of the canvases, B.
        lengths: Tokens of each.
        steps: Passes that each has taken.
        goes_on: Whether a further pass of it follows.
        before: What the pass read, (B, C) int64.
        canvas: What it predicts, the end token behind the canvas's length, (B, C) int64.
        confidence: Probability of each token, (B, C) float32.
        kept: Places whose prediction the next pass reads, (B, C) bool; None where no pass follows.
    """

    keys: list[Any]
    lengths: list[int]
    steps: list[int]
    goes_on: list[bool]
    before: Tensor
    canvas: Tensor
    confidence: Tensor
    kept: Tensor | None

    def select(self, rows: list[int]) -> LastPass:
        """Give the chosen rows."""
        if rows == list(range(len(self.keys))):
            return self
        return LastPass(
            keys=[self.keys[i] for i in rows],
            lengths=[self.lengths[i] for i in rows],
            steps=[self.steps[i] for i in rows],
            goes_on=[self.goes_on[i] for i in rows],
            before=self.before[rows],
            canvas=self.canvas[rows],
            confidence=self.confidence[rows],
            kept=None if self.kept is None else self.kept[rows],
        )


@dataclass(frozen=True)
class _Held:
    """Canvases with all that a batch knows of them; of one that is paused, or of those that join.

    Attributes:
        rows: Their tensors.
        prefix: Cache of their prompts.
        keys: Of each.
        lengths: Tokens of each.
        steps: Passes that each has taken.
    """

    rows: Rows
    prefix: DynamicCache
    keys: list[Any]
    lengths: list[int]
    steps: list[int]


class CanvasBatch:
    """Denoises canvases, each as many times as it needs.

    ::

        batch.add(prefix, n_prompt, rows)
        while len(batch):
            batch.run_pass()
            for finished in batch.take(): ...
            # here further rows may be added
    """

    def __init__(
        self,
        backbone: DiffusionGemmaForBlockDiffusion,
        vocabulary: Vocabulary,
        config: SamplerConfig,
        run_pass: Callable[..., CanvasReading],
        *,
        compact: bool = True,
    ) -> None:
        """Start without rows.

        Args:
            backbone: The backbone.
            vocabulary: Allowed ids.
            config: Strategies and number of passes, for all rows; seed and length are each row's own.
            run_pass: What runs a pass, with the arguments of :func:`~canvas_asr.sampler.read_pass`: itself,
                or a recording of it.
            compact: Whether rows that are done are cut out at once. If not, they stay until others take their
                place, so that the shape of a pass, which may be recorded, stays the same.
        """
        self.backbone = backbone
        self.vocabulary = vocabulary
        self.config = config
        self.compact = compact
        self._run = run_pass
        self._rows: Rows | None = None
        self._prefix: Any = None
        self._keys: list[Any] = []  # of the rows; for those that are done too
        self._lengths: list[int] = []
        self._steps: list[int] = []
        self._active: list[bool] = []
        self._paused: dict[Any, _Held] = {}
        self._ran: list[int] = []  # rows of the last pass that were active
        self._last: LastPass | None = None
        self._finished: list[tuple[list[Any], list[int], list[int], Tensor, Tensor, Tensor]] = []
        self._tag_ids = torch.tensor(vocabulary.tags, dtype=torch.long)

    def __len__(self) -> int:
        """Count the canvases that the next pass is for."""
        return sum(self._active)

    def own_prefix(self) -> None:
        """Copy the prefix, before what it was read from is overwritten."""
        if self._rows is not None:
            self._prefix = select_cache(self._prefix, torch.arange(len(self._keys)))

    @torch.no_grad()
    def add(self, prefix: DynamicCache, n_prompt: Tensor, rows: Sequence[CanvasRow]) -> None:
        """Take in canvases, to be denoised from the next pass on.

        Args:
            prefix: Cache of their prompts, right-padded; it is read, not written.
            n_prompt: Valid prompt positions, (B,) int64.
            rows: The canvases, B of them, at least one.
        """
        if self.vocabulary.text.device != n_prompt.device:
            self.vocabulary = replace(self.vocabulary, text=self.vocabulary.text.to(n_prompt.device))
            self._tag_ids = self._tag_ids.to(n_prompt.device)
        new = lay_rows(self.backbone, self.vocabulary, self.config, n_prompt, rows)
        keys, lengths = [row.key for row in rows], [row.length for row in rows]
        self._join(_Held(new, prefix, keys, lengths, [0] * len(rows)))

    def _join(self, held: _Held) -> None:
        """Put canvases behind those in the batch, in the place of as many that are done."""
        rows, prefix = held.rows, held.prefix
        if self._rows is not None:
            done = [i for i, is_active in enumerate(self._active) if not is_active]
            self._keep(self._places() + done[: max(0, len(done) - len(held.keys))])
            rows = self._rows.join(rows)
            prefix = join_caches([self._prefix, prefix])
        self._rows, self._prefix = rows, prefix
        self._keys += held.keys
        self._lengths += held.lengths
        self._steps += held.steps
        self._active += [True] * len(held.keys)

    def _places(self) -> list[int]:
        """Rows of the canvases that are not done."""
        return [i for i, is_active in enumerate(self._active) if is_active]

    def pause(self, keys: Container[Any]) -> None:
        """Set canvases aside as they are; no pass is for them until they are resumed."""
        chosen = [i for i in self._places() if self._keys[i] in keys]
        for i in chosen:
            index = torch.tensor([i])
            self._paused[self._keys[i]] = _Held(
                self._rows.select(index),  # type: ignore[union-attr]  # there are rows
                select_cache(self._prefix, index),
                [self._keys[i]],
                [self._lengths[i]],
                [self._steps[i]],
            )
        self._leave(chosen)

    def resume(self, keys: Container[Any]) -> None:
        """Take canvases in again that were paused, to go on where they were."""
        for key in [key for key in self._paused if key in keys]:
            self._join(self._paused.pop(key))

    def remove(self, keys: Container[Any]) -> None:
        """Forget canvases that are not done."""
        for key in [key for key in self._paused if key in keys]:
            del self._paused[key]
        self._leave([i for i in self._places() if self._keys[i] in keys])

    def _leave(self, rows: list[int]) -> None:
        """Take rows out of further passes."""
        for i in rows:
            self._active[i] = False
        if rows and (self.compact or not any(self._active)):
            self._keep(self._places())

    @torch.no_grad()
    def run_pass(self) -> None:
        """Run one pass on every canvas. Nothing waits for the device, unless a stop rule has to be asked.

        Raises:
            RuntimeError: If there is no canvas.
        """
        rows = self._rows
        if rows is None:
            raise RuntimeError("there is no canvas to denoise; add some first.")
        length = rows.canvas.shape[1]
        self._steps = [step + 1 for step in self._steps]
        last = [step >= self.config.steps for step in self._steps]
        fuses = rows.spike_tokens.shape[1] > 0
        reading = self._run(
            self.backbone,
            rows.canvas,
            self._prefix,
            rows.n_prompt,
            self.vocabulary,
            rows.soft,
            wants_soft=not all(last),
            wants_entropy=self.config.wants_entropy,
            n_canvas=rows.n_canvas if any(n != length for n in self._lengths) else None,
            evidence=Spikes(rows.spike_tokens, rows.spike_weights).at(rows.spike) if fuses else None,
        )
        seen, tags = self._see(rows, reading)
        self._ran = self._places()
        self._lay_aside(seen, tags, self._find_done(seen, last))
        stays = seen.in_text.logical_not() | self.config.acceptance.keep(seen) if len(self) else None
        self._last = LastPass(
            keys=list(self._keys),
            lengths=list(self._lengths),
            steps=list(self._steps),
            goes_on=list(self._active),
            before=rows.canvas,
            canvas=seen.canvas,
            confidence=seen.confidence,
            kept=stays,
        )
        if stays is not None:
            self._rows = self._renoise(rows, seen, stays, reading.soft)
            if self.compact and not all(self._active):
                self._keep(self._places())
        else:
            self._keep([])

    def _see(self, rows: Rows, reading: CanvasReading) -> tuple[PassResult, Tensor]:
        """Put tags in place and find the text; the result, and the tags' probabilities (B, n_tags)."""
        vocabulary = self.vocabulary
        canvas, confidence, tags = place_tags(reading, self._tag_ids, vocabulary, rows.given)
        canvas = torch.where(length_mask(rows.n_canvas, canvas.shape[1]), canvas, vocabulary.eos)
        in_text = text_places(canvas, rows.n_canvas, vocabulary, rows.given)
        streak = rows.streak
        if self.config.stops:
            changed = (canvas != rows.before) & in_text
            changed[:, : len(vocabulary.tags[:1])] = False  # the text is compared, not its tag
            streak = torch.where(changed.any(dim=1), 0, streak + 1)
        seen = PassResult(
            canvas, confidence, reading.entropy, in_text, rows.step + 1, self.config.steps, streak
        )
        return seen, tags

    def _renoise(self, rows: Rows, seen: PassResult, stays: Tensor, soft: Tensor | None) -> Rows:
        """Make the canvases of the next pass: noise where nothing stays, (B, C) bool."""
        n_batch, length = seen.canvas.shape
        # Rows that are done, but not yet replaced, may be past their noise.
        index = rows.step.clamp(max=self.config.steps - 2)[:, None, None]
        noise = rows.noise.gather(1, index.expand(n_batch, 1, length))[:, 0]
        canvas = torch.where(stays, seen.canvas, noise)
        spike = rows.spike
        if rows.spike_tokens.shape[1]:
            first = len(self.vocabulary.tags[:1])
            spike = Spikes(rows.spike_tokens, rows.spike_weights).align(seen.canvas, seen.in_text, first)
        return replace(
            rows,
            canvas=canvas,
            step=seen.step,
            before=seen.canvas,
            streak=seen.streak,
            spike=spike,
            soft=soft,
        )

    def _find_done(self, seen: PassResult, last: Sequence[bool]) -> list[int]:
        """Rows whose last pass this was."""
        done = list(last)
        if self.config.stops and not all(last):
            stopped = torch.stack([rule.done(seen) for rule in self.config.stops]).any(dim=0)
            done = [a or b for a, b in zip(done, stopped.tolist(), strict=True)]
        return [i for i, is_done in enumerate(done) if is_done and self._active[i]]

    def _lay_aside(self, seen: PassResult, tags: Tensor, done: list[int]) -> None:
        """Keep the results of the canvases that are done."""
        if not done:
            return
        some = len(done) < len(seen.canvas)
        kept = [tensor[done] if some else tensor for tensor in (seen.canvas, seen.confidence, tags)]
        self._finished.append(
            (
                [self._keys[i] for i in done],
                [self._steps[i] for i in done],
                [self._lengths[i] for i in done],
                kept[0],
                kept[1],
                kept[2],
            )
        )
        for i in done:
            self._active[i] = False

    def _keep(self, rows: list[int]) -> None:
        """Keep the chosen rows only."""
        everything = rows == list(range(len(self._keys)))
        lists: tuple[list[Any], ...] = (self._keys, self._lengths, self._steps, self._active)
        for kept in lists:
            kept[:] = [kept[i] for i in rows]
        if not rows:
            self._rows = self._prefix = None
        elif not everything and self._rows is not None:
            # On the host: the layers of a cache may be on several devices.
            index = torch.tensor(rows)
            self._rows = self._rows.select(index)
            self._prefix = select_cache(self._prefix, index)

    def shown(self) -> LastPass:
        """What the last pass made of the canvases it was for.

        Raises:
            RuntimeError: If there was no pass yet.
        """
        if self._last is None:
            raise RuntimeError("no pass was run yet.")
        return self._last.select(self._ran)

    def take(self) -> list[FinishedCanvas]:
        """Give the canvases that are done since the last call, and forget them."""
        finished, self._finished = self._finished, []
        return [
            FinishedCanvas(key, canvas[:length], confidence[:length], tags, passes)
            for keys, steps, lengths, *tensors in finished
            for key, passes, length, canvas, confidence, tags in zip(
                keys, steps, lengths, *(tensor.cpu() for tensor in tensors), strict=True
            )
        ]
