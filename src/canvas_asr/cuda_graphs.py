"""Prefix and passes as CUDA graphs: recorded once a shape, then replayed.

A pass of the 26B backbone is some four thousand small kernels; launching them one by one takes longer than
one clip's arithmetic. Replaying a recording launches them all at once. Prompts are padded to a few lengths,
so that few shapes are recorded; as every mask is explicit, the padding changes nothing.

On other devices the same code runs without recording, so that tests see what a GPU does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from .backbone import crop_cache, encode_prefix, keys_values
from .canvas import CanvasReading, Evidence, Vocabulary
from .sampler import read_pass

Output = TypeVar("Output")


class Recording(Generic[Output]):
    """A function of tensors at fixed addresses, recorded as a CUDA graph."""

    def __init__(self, function: Callable[[], Output], device: torch.device, pool: Any) -> None:
        """Warm up and record.

        Args:
            function: Reads its inputs from tensors that stay where they are, and never waits for the device.
            device: Where it runs; on anything but CUDA nothing is recorded.
            pool: Graph memory pool to share, from ``torch.cuda.graph_pool_handle()``.

        Raises:
            RuntimeError: If the function does something that cannot be recorded.
        """
        self.function = function
        self.output: Output | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        # Libraries make their workspaces and choose kernels in the first calls, off the recording stream.
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                function()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self.output = function()
        self._graph = graph

    def replay(self) -> Output:
        """Run on what the inputs hold now; the next call overwrites what this one returns."""
        if self._graph is None or self.output is None:
            return self.function()
        self._graph.replay()
        return self.output


@dataclass
class _Canvas:
    """Fixed inputs of one canvas length and its passes, by what they read and are given."""

    canvas: Tensor
    soft: Tensor
    n_canvas: Tensor
    evidence: Evidence | None = None
    passes: dict[tuple[bool, bool, bool], Recording[CanvasReading]] = field(default_factory=dict)

    def fill(
        self, canvas: Tensor, soft: Tensor | None, n_canvas: Tensor | None, evidence: Evidence | None
    ) -> None:
        """Copy what a pass is given to where its recording reads it."""
        self.canvas.copy_(canvas)
        if soft is None:
            self.soft.zero_()
        else:
            self.soft.copy_(soft)
        if n_canvas is None:
            self.n_canvas.fill_(canvas.shape[1])
        else:
            self.n_canvas.copy_(n_canvas)
        if evidence is None:
            return
        if self.evidence is None:
            self.evidence = Evidence(torch.empty_like(evidence.tokens), torch.empty_like(evidence.weights))
        self.evidence.tokens.copy_(evidence.tokens)
        self.evidence.weights.copy_(evidence.weights)


@dataclass
class _Shape:
    """Fixed inputs and recordings of one batch size and prompt length."""

    pool: Any
    embeds: Tensor | None = None
    positions: Tensor | None = None
    encode: Recording[tuple[Tensor, DynamicCache]] | None = None
    cache: DynamicCache | None = None
    held: DynamicCache | None = None  # what the cache was copied from
    n_prompt: Tensor | None = None
    canvases: dict[int, _Canvas] = field(default_factory=dict)


class GraphedBackbone:
    """Stands in for :func:`~canvas_asr.backbone.encode_prefix` and :func:`~canvas_asr.sampler.read_pass`.

    What a call returns is overwritten by the next call of the same shape.
    """

    def __init__(
        self,
        backbone: DiffusionGemmaForBlockDiffusion,
        vocabulary: Vocabulary,
        *,
        prompt_step: int = 32,
        max_shapes: int = 4,
    ) -> None:
        """Record nothing yet.

        Args:
            backbone: In evaluation mode, on one device; its tensors stay where they are.
            vocabulary: Allowed ids of every pass.
            prompt_step: Prompts are padded to a multiple of this length.
            max_shapes: Batch sizes and prompt lengths kept; the one used longest ago makes room.
        """
        self.backbone = backbone
        self.device = backbone.lm_head.weight.device
        self.vocabulary = replace(vocabulary, text=vocabulary.text.to(self.device))
        self.prompt_step = prompt_step
        self.max_shapes = max_shapes
        self._shapes: OrderedDict[tuple[int, int], _Shape] = OrderedDict()

    def _shape(self, n_batch: int, length: int) -> _Shape:
        key = (n_batch, length)
        if key not in self._shapes:
            while len(self._shapes) >= self.max_shapes:
                self._shapes.popitem(last=False)
            cuda = self.device.type == "cuda"
            self._shapes[key] = _Shape(torch.cuda.graph_pool_handle() if cuda else None)
        self._shapes.move_to_end(key)
        return self._shapes[key]

    @torch.no_grad()
    def encode_prefix(self, embeds: Tensor, positions: Tensor | None = None) -> tuple[Tensor, DynamicCache]:
        """See :func:`canvas_asr.backbone.encode_prefix`; the cache has padding behind the prompts."""
        n_batch, length, width = embeds.shape
        padded = -(-length // self.prompt_step) * self.prompt_step
        shape = self._shape(n_batch, padded)
        if shape.embeds is None:
            shape.embeds = embeds.new_zeros(n_batch, padded, width)
            shape.positions = torch.arange(padded, device=embeds.device).float().repeat(n_batch, 1)
        fixed, places = shape.embeds, shape.positions
        if positions is not None and places is not None:
            places[:, :length] = positions
        fixed[:, :length] = embeds
        fixed[:, length:] = 0
        if shape.encode is None:
            shape.encode = Recording(
                lambda: encode_prefix(self.backbone, fixed, places), self.device, shape.pool
            )
        states, cache = shape.encode.replay()
        shape.held = None  # the same cache, with something else in it
        return states[:, :length], cache

    @torch.no_grad()
    def read_pass(
        self,
        backbone: DiffusionGemmaForBlockDiffusion,
        canvas: Tensor,
        prefix: DynamicCache,
        n_prompt: Tensor,
        vocabulary: Vocabulary,
        soft: Tensor | None,
        *,
        wants_soft: bool,
        wants_entropy: bool = False,
        n_canvas: Tensor | None = None,
        evidence: Evidence | None = None,
        canvas_start: int | None = None,
    ) -> CanvasReading:
        """See :func:`canvas_asr.sampler.read_pass`; a model's ``canvas_start`` is always the same.

        Raises:
            ValueError: If backbone or vocabulary are not those that were recorded.
        """
        ours = self.vocabulary
        if backbone is not self.backbone or (vocabulary.tags, vocabulary.eos) != (ours.tags, ours.eos):
            raise ValueError("passes were recorded for another backbone or vocabulary.")
        n_batch, length = canvas.shape
        shape = self._shape(n_batch, keys_values(prefix)[0][0].shape[-2])
        cache = self._hold(shape, prefix)
        if shape.n_prompt is None:
            shape.n_prompt = torch.empty_like(n_prompt)
        valid = shape.n_prompt.copy_(n_prompt)
        if length not in shape.canvases:
            weight = backbone.lm_head.weight
            signal = weight.new_zeros(n_batch, length, weight.shape[1])
            shape.canvases[length] = _Canvas(torch.empty_like(canvas), signal, torch.empty_like(n_prompt))
        inputs = shape.canvases[length]
        inputs.fill(canvas, soft, n_canvas, evidence)
        kind = (wants_soft, wants_entropy, evidence is not None)
        if kind not in inputs.passes:
            inputs.passes[kind] = Recording(
                lambda: read_pass(
                    backbone,
                    inputs.canvas,
                    cache,
                    valid,
                    ours,
                    inputs.soft,
                    wants_soft=wants_soft,
                    wants_entropy=wants_entropy,
                    n_canvas=inputs.n_canvas,
                    evidence=inputs.evidence if kind[2] else None,
                    canvas_start=canvas_start,
                ),
                self.device,
                shape.pool,
            )
        return inputs.passes[kind].replay()

    def _hold(self, shape: _Shape, prefix: DynamicCache) -> DynamicCache:
        """Give the cache that the passes of a shape read, at fixed addresses, with what ``prefix`` holds."""
        if shape.cache is None:
            recorded = None if shape.encode is None else shape.encode.output
            own = recorded is not None and recorded[1] is prefix
            length = keys_values(prefix)[0][0].shape[-2]
            shape.cache = prefix if own else crop_cache(prefix, length)
        if prefix is shape.cache:
            shape.held = None
        elif prefix is not shape.held:
            for ours, theirs in zip(keys_values(shape.cache), keys_values(prefix), strict=True):
                ours[0].copy_(theirs[0])
                ours[1].copy_(theirs[1])
            shape.held = prefix
        return shape.cache
