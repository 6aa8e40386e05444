"""What is measured of the published system: the parts of every shape, whole clips, stock ``generate``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from full_size_floor import CLIPS, MEL_PER_S, PROMPT_TEXT, Clip
from full_size_system import build_system, compile_parts, vocabulary_of, weight_bytes
from full_size_timing import MEASURING_ERRORS, Budget, Record, Sizes, Timer
from torch import Tensor
from transformers import DynamicCache, WhisperFeatureExtractor

from canvas_asr.backbone import encode_prefix
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.cpu_layers import fuse_norms
from canvas_asr.ctc import greedy_ctc
from canvas_asr.cuda_graphs import GraphedBackbone
from canvas_asr.decoding import Prefix
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import log_mel, pad_ids
from canvas_asr.sampler import CanvasReading, SamplerConfig, SamplerOutput, read_pass, sample
from canvas_asr.stock import generate_stock

MODES = ("eager", "graphs")


@dataclass
class Mode:
    """How prefix and passes are run."""

    name: str
    encode: Callable[[Tensor], tuple[Tensor, DynamicCache]]
    run_pass: Callable[..., CanvasReading]


class Bench:
    """Measures one system."""

    def __init__(
        self,
        config: CanvasASRConfig,
        sizes: Sizes,
        device: torch.device,
        budget: Budget,
        failed: Callable[[str, Exception], None],
    ) -> None:
        """Build it.

        Args:
            config: Geometry.
            sizes: What is measured.
            device: Where.
            budget: Time that is left.
            failed: Told of what failed.
        """
        self.config, self.sizes, self.device = config, sizes, device
        self.budget, self.failed = budget, failed
        self.timer = Timer(device, sizes.repeats)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model: CanvasASRModel = build_system(config, device, self.dtype)
        self.vocabulary = vocabulary_of(config)
        self.audio_id = config.vocab_size - 1
        self.measured: list[Record] = []

    def weights(self) -> Record:
        """Size of the system, and the most memory that building it took."""
        peak = self._peak_gb()
        n_distinct = sum(parameter.numel() for parameter in self.model.parameters())
        return {
            "distinct_parameters": n_distinct,
            "gb": weight_bytes(self.model) / 1e9,
            "peak_gb_while_building": peak,
            "experts_implementation": self.model.backbone.config._experts_implementation,
            "attention": self.model.backbone.config._attn_implementation,
        }

    # Parts

    def features(self) -> Record:
        """Log-mel features on the CPU, as the package makes them: seconds a clip."""
        extractor = WhisperFeatureExtractor(feature_size=self.config.audio_encoder_config.num_mel_bins)
        cpu = Timer(torch.device("cpu"), self.sizes.repeats)
        found = {}
        for audio_s in sorted({clip.audio_s for clip in CLIPS}):
            wave = np.random.default_rng(0).standard_normal(round(audio_s * 16_000)).astype(np.float32)
            found[f"{audio_s:g} s"] = cpu.median(lambda: log_mel(extractor, wave))  # noqa: B023
        return found

    def _mel(self, clip: Clip, n_batch: int) -> tuple[Tensor, Tensor]:
        n_mels, n_frames = self.config.audio_encoder_config.num_mel_bins, round(clip.audio_s * MEL_PER_S)
        mel = torch.randn(n_batch, n_mels, n_frames, generator=torch.Generator().manual_seed(n_batch))
        return mel.to(self.device), torch.full((n_batch,), n_frames, device=self.device)

    def _front(self, clip: Clip, mel: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.model.config.pad_to_30s = clip.padded
        return self.model.audio_tokens(*mel)

    def _draft(self, tokens: Tensor, n_audio: Tensor) -> list[list[int]]:
        return greedy_ctc(self.model.ctc_logits(tokens), n_audio, self.config.blank_token_id)

    def _prompt(self, n_audio: list[int]) -> tuple[Tensor, Tensor]:
        """Prompts of the right length, right-padded."""
        rows = [[2, *[self.audio_id] * n, *range(20, 19 + PROMPT_TEXT)] for n in n_audio]
        ids, n_prompt = pad_ids(rows, 0)
        return ids.to(self.device), n_prompt.to(self.device)

    def _embed(self, tokens: Tensor, n_audio: Tensor) -> tuple[Tensor, Tensor]:
        prompts, n_prompt = self._prompt(n_audio.tolist())
        return self.model.embed_prompt(prompts, tokens, n_audio, self.audio_id), n_prompt

    def _mode(self, name: str) -> Mode:
        backbone = self.model.backbone
        if name == "eager":
            return Mode(name, lambda embeds: encode_prefix(backbone, embeds), read_pass)
        graphs = GraphedBackbone(backbone, self.vocabulary, prompt_step=8)
        return Mode(name, graphs.encode_prefix, graphs.read_pass)

    def _sample(
        self, mode: Mode, prefix: DynamicCache, n_prompt: Tensor, steps: int, canvas: int
    ) -> SamplerOutput:
        return sample(
            self.model.backbone,
            prefix,
            n_prompt,
            self.vocabulary,
            SamplerConfig(steps, canvas),
            clip_keys=range(len(n_prompt)),
            run_pass=mode.run_pass,
        )

    def shape(self, name: str, clip: Clip, n_batch: int, canvases: Sequence[int], label: str) -> Record:
        """Time every part of one prompt length and batch size.

        A pass is timed through the sampler: one pass, and half of what three take more than one.
        """
        self._reset_memory()
        mode, mel = self._mode(name), self._mel(clip, n_batch)
        tokens, n_audio = self._front(clip, mel)
        record: Record = {"label": label, "mode": name, "padded": clip.padded, "batch": n_batch}
        record["front_s"] = self.timer.median(lambda: self._front(clip, mel))
        record["draft_s"] = self.timer.median(lambda: self._draft(tokens, n_audio))
        embeds, n_prompt = self._embed(tokens, n_audio)
        record["prefix_s"] = self.timer.median(lambda: mode.encode(self._embed(tokens, n_audio)[0]))
        record["peak_gb"] = self._peak_gb()
        _, prefix = mode.encode(embeds)
        record["finite"] = bool(torch.isfinite(prefix.layers[-1].values).all())
        record["canvases"] = {}
        for canvas in canvases:
            self._reset_memory()

            def run(steps: int, canvas: int = canvas) -> SamplerOutput:
                return self._sample(mode, prefix, n_prompt, steps, canvas)

            one_s, three_s = self.timer.median(lambda: run(1)), self.timer.median(lambda: run(3))
            record["canvases"][str(canvas)] = {
                "first_s": one_s,
                "next_s": (three_s - one_s) / 2,
                "peak_gb": self._peak_gb(),
                "finite": bool(torch.isfinite(run(2).confidence).all()),
            }
        return record

    def _shapes(
        self, plan: Sequence[tuple[str, Clip, int, Sequence[int]]], label: str, into: list[Record]
    ) -> None:
        for name, clip, n_batch, canvases in plan:
            what = f"{label}: {name}, {clip.name}, batch {n_batch}"
            if not self.budget.allows(what, 4 + n_batch * len(canvases) / 12):
                continue
            try:
                into.append(self.shape(name, clip, n_batch, canvases, label))
            except MEASURING_ERRORS as error:
                self.failed(what, error)
            self._free()

    def shapes(self) -> int:
        """Time all shapes, with fused norms; gives how many were timed."""
        kinds = [CLIPS[0], CLIPS[1]]  # a clip of 30 s has the shapes of a padded one
        plan = [(m, c, b, self.sizes.canvases) for c in kinds for b in self.sizes.batches for m in MODES]
        self._shapes(plan, "fused norms", self.measured)
        return len(self.measured)

    def key_shapes(self, label: str, modes: Sequence[str] = MODES) -> list[Record]:
        """Time the first canvas of the first two batch sizes, to compare a change of the code."""
        found: list[Record] = []
        plan = [(m, CLIPS[0], b, self.sizes.canvases[:1]) for b in self.sizes.batches[:2] for m in modes]
        self._shapes(plan, label, found)
        return found

    def fuse_norms(self) -> str:
        """Let every norm be one kernel from here on."""
        fuse_norms(self.model.backbone)
        return "from here on"

    def compiled(self, backend: str) -> list[Record]:
        """Time the key shapes with parts of the layers compiled; they stay so."""
        compile_parts(self.model.backbone, backend)
        return self.key_shapes(f"fused norms, parts compiled by {backend}", ("graphs",))

    # Whole clips

    def whole(self, mode: Mode, clip: Clip, mel: tuple[Tensor, Tensor], steps: int, canvas: int) -> list[Any]:
        """From features to token ids on the host."""
        tokens, n_audio = self._front(clip, mel)
        draft = self._draft(tokens, n_audio)
        if not steps:
            return draft
        embeds, n_prompt = self._embed(tokens, n_audio)
        _, prefix = mode.encode(embeds)
        ids: list[Any] = self._sample(mode, prefix, n_prompt, steps, canvas).canvas.tolist()
        return ids

    def _time_whole(self, name: str, clip: Clip, n_batch: int, steps: int, canvas: int) -> float:
        mode, mel = self._mode(name), self._mel(clip, n_batch)
        return self.timer.median(lambda: self.whole(mode, clip, mel, steps, canvas))

    def verify(self, grid: Sequence[Record]) -> list[Record]:
        """Run six cells of the grid as a whole and compare."""
        batches, canvases, passes = self.sizes.batches, self.sizes.canvases, self.sizes.passes
        eight, one = passes[-4] if len(passes) > 5 else passes[-1], passes[1]
        cells = [
            (CLIPS[0], batches[0], canvases[0], eight, "graphs"),
            (CLIPS[0], batches[0], canvases[0], one, "graphs"),
            (CLIPS[0], batches[1], canvases[0], eight, "graphs"),
            (CLIPS[0], batches[1], canvases[1], one, "graphs"),
            (CLIPS[2], batches[-1], canvases[-1], passes[-3], "eager"),
            (CLIPS[1], batches[-1], canvases[-1], passes[3], "graphs"),
        ]
        found = []
        for clip, n_batch, canvas, steps, name in cells:
            key = {"clip": clip.name, "batch": n_batch, "canvas": canvas, "passes": steps, "mode": name}
            composed = next((c["seconds"] for c in grid if all(c[k] == v for k, v in key.items())), None)
            if composed is None or not self.budget.allows(f"whole: {key}", 4 + 6 * composed):
                continue
            try:
                run_s = self._time_whole(name, clip, n_batch, steps, canvas)
            except MEASURING_ERRORS as error:
                self.failed(f"whole: {key}", error)
            else:
                found.append({**key, "composed_s": composed, "run_s": run_s, "ratio": composed / run_s})
            self._free()
        return found

    # Beside and inside

    def stock_generate(self) -> list[Record]:
        """Time ``generate`` of transformers on the same weights and prefix: its defaults, then our canvas."""
        default, ours = int(self.model.backbone.config.canvas_length), self.sizes.canvases[0]
        small, large = self.sizes.batches[0], self.sizes.batches[1]
        plan: list[tuple[int, int, int | None]] = [(small, default, None)]
        plan += [(small, ours, steps) for steps in self.sizes.stock_steps]
        plan.append((large, ours, self.sizes.stock_steps[0]))
        found = []
        for n_batch, canvas, steps in plan:
            what = f"stock generate: batch {n_batch}, canvas {canvas}, steps {steps or 'default'}"
            if not self.budget.allows(what, 5 + 0.02 * n_batch * (steps or 48)):
                continue
            try:
                found.append(self._stock(n_batch, canvas, steps))
            except MEASURING_ERRORS as error:
                self.failed(what, error)
            self._free()
        return found

    def _stock(self, n_batch: int, canvas: int, steps: int | None) -> Record:
        self._reset_memory()
        mel = self._mel(CLIPS[0], n_batch)
        tokens, n_audio = self._front(CLIPS[0], mel)
        embeds, n_prompt = self._embed(tokens, n_audio)
        hidden, cache = encode_prefix(self.model.backbone, embeds)
        prefix = Prefix(cache, n_prompt, self._prompt(n_audio.tolist())[0], hidden, None)

        def run(n_steps: int | None) -> Tensor:
            return generate_stock(self.model.backbone, prefix, canvas_length=canvas, steps=n_steps)[1]

        run(1)
        taken: list[Tensor] = []
        seconds = self.timer.once(lambda: taken.append(run(steps)))
        passes = float(taken[0].float().mean())
        return {
            "batch": n_batch,
            "canvas": canvas,
            "steps": steps or "default",
            "passes": round(passes, 2),
            "generate_s": seconds,
            "front_s": self.timer.median(lambda: self._front(CLIPS[0], mel)),
            "prefix_s": self.timer.median(lambda: encode_prefix(self.model.backbone, embeds)),
            "peak_gb": self._peak_gb(),
        }

    def profile(self) -> list[Record]:
        """Where one pass spends its time: the kernels that take most, in eager mode."""
        found, canvas = [], self.sizes.canvases[0]
        cuda = self.device.type == "cuda"
        kind = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
        for n_batch in self.sizes.batches[:2]:
            mode = self._mode("eager")
            embeds, n_prompt = self._embed(*self._front(CLIPS[0], self._mel(CLIPS[0], n_batch)))
            _, prefix = mode.encode(embeds)
            self._sample(mode, prefix, n_prompt, 2, canvas)
            with torch.profiler.profile(activities=[kind]) as profiler:
                self._sample(mode, prefix, n_prompt, 2, canvas)
                self._synchronize()
            name = "self_device_time_total" if cuda else "self_cpu_time_total"
            events = profiler.key_averages()
            timed = ((getattr(e, name) / 1e3, e.count, e.key) for e in events)
            rows = sorted(
                (row for row in timed if row[0] > 0), reverse=True
            )  # the rest are calls of the driver
            found.append(
                {
                    "batch": n_batch,
                    "canvas": canvas,
                    "passes": 2,
                    "total_ms": sum(row[0] for row in rows),
                    "n_kernels": sum(row[1] for row in rows),
                    "top": [
                        {"ms": round(ms, 3), "calls": n, "kernel": key[:120]} for ms, n, key in rows[:25]
                    ],
                }
            )
            self._free()
        return found

    # The device's memory

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak_gb(self) -> float | None:
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
