"""Which clips a stage can use: limits of length, and what they leave out, counted by reason and reported."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.encoder import n_audio_tokens
from canvas_asr.errors import AudioError, DataError
from canvas_asr.hub_sets import clip_samples
from canvas_asr.languages import LANGUAGES
from canvas_asr.manifest import Clip, write_text
from canvas_asr.processing import CanvasASRProcessor, pad_ids

from .losses import min_ctc_frames
from .mixture import Mixture
from .sources import DataSource, duration_s, read_source

REPORT_NAME = "data.json"
_TOKENISED_AT_ONCE = 4096

UNREADABLE = "audio that cannot be read"
NO_TEXT = "no transcript"
SHORT = "shorter than min_clip_s"
LONG = "longer than max_clip_s"
BEYOND_CANVAS = "text longer than the canvas"
INFEASIBLE = "more tokens than CTC frames"


@dataclass(frozen=True)
class ClipLimits:
    """What a stage can use.

    Attributes:
        min_s: Shortest clip, seconds.
        max_s: Longest.
        text_reason: Says why texts do not fit: one reason a clip, empty where it does. None: all do.
    """

    min_s: float = 0.1
    max_s: float = 30.0
    text_reason: Callable[[Sequence[Clip]], list[str]] | None = None

    def reasons(self, clips: Sequence[Clip], source: DataSource) -> list[str]:
        """Say of every clip of a source why it is left out; empty where it is kept."""
        reasons = [self._length_reason(duration_s(clip)) for clip in clips]
        if source.set:  # in a manifest, an empty text says that nothing is said
            reasons = [
                reason if clip.text.strip() else NO_TEXT for clip, reason in zip(clips, reasons, strict=True)
            ]
        kept = [i for i, reason in enumerate(reasons) if not reason]
        if self.text_reason is not None:
            for i, reason in zip(kept, self.text_reason([clips[i] for i in kept]), strict=True):
                reasons[i] = reason
        return reasons

    def _length_reason(self, seconds: float) -> str:
        if seconds < 0:
            return UNREADABLE
        return SHORT if seconds < self.min_s else LONG if seconds > self.max_s else ""


class TextFit:
    """Whether a clip's text fits the canvas, and can be spelt in its CTC frames."""

    def __init__(
        self, processor: CanvasASRProcessor, config: CanvasASRConfig, *, ctc: bool, max_speed: float = 1.0
    ) -> None:
        """Keep what counts tokens and frames.

        Args:
            processor: Of the model.
            config: Canvas and projector.
            ctc: Whether a CTC loss has to spell the text.
            max_speed: How much faster clips may be played in training.
        """
        self.tokenizer = processor.tokenizer
        self.extractor = processor.feature_extractor
        self.config = config
        self.ctc = ctc
        self.max_speed = max_speed
        # Beside the text, a canvas has its tag, where there are any, and an end token.
        self.n_free = config.max_canvas_length - 1 - bool(processor.language_ids(config))

    def __call__(self, clips: Sequence[Clip]) -> list[str]:
        """Give one reason a clip, empty where it fits."""
        reasons: list[str] = []
        for start in range(0, len(clips), _TOKENISED_AT_ONCE):
            reasons += self._reasons(clips[start : start + _TOKENISED_AT_ONCE])
        return reasons

    def _reasons(self, clips: Sequence[Clip]) -> list[str]:
        rows = self.tokenizer([clip.text for clip in clips], add_special_tokens=False)["input_ids"]
        ids, n_ids = pad_ids(rows, 0)
        samples = (
            np.array([duration_s(clip) for clip in clips]) / self.max_speed * self.extractor.sampling_rate
        )
        n_mel = np.maximum(samples, self.extractor.n_fft).astype(np.int64) // self.extractor.hop_length
        n_frames = n_audio_tokens(self.config, torch.from_numpy(n_mel))
        infeasible = (min_ctc_frames(ids, n_ids) > n_frames) & self.ctc
        return [
            BEYOND_CANVAS if n > self.n_free else INFEASIBLE if bad else ""
            for n, bad in zip(n_ids.tolist(), infeasible.tolist(), strict=True)
        ]


@dataclass
class SourceReport:
    """What became of a source.

    Attributes:
        source: The source.
        clips: Those kept, by language.
        seconds: Their length, by language.
        dropped: Those left out, by reason.
    """

    source: DataSource
    clips: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, clips: Sequence[Clip], reasons: Sequence[str]) -> list[Clip]:
        """Count clips and give those that are kept."""
        kept = [clip for clip, reason in zip(clips, reasons, strict=True) if not reason]
        self.dropped.update(reason for reason in reasons if reason)
        for clip in kept:
            self.clips[clip.language] += 1
            self.seconds[clip.language] += duration_s(clip)
        return kept

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        weights = {code: self.source.language_weights.get(code, 1.0) for code in self.clips}
        return {
            "source": self.source.name,
            "licence": self.source.licence,
            "clips": sum(self.clips.values()),
            "hours": round(sum(self.seconds.values()) / 3600, 3),
            "languages": {
                code: {
                    "clips": self.clips[code],
                    "hours": round(self.seconds[code] / 3600, 3),
                    "weight": self.source.weight * weights[code],
                }
                for code in LANGUAGES
                if code in self.clips
            },
            "left_out": dict(self.dropped),
        }

    def __str__(self) -> str:
        """One line: hours by language, and what was left out."""
        line = self.to_dict()
        by_language = ", ".join(
            f"{code} {figures['hours']:.2f} h × {figures['weight']:g}"
            for code, figures in line["languages"].items()
        )
        left_out = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items())
        return f"{line['source']}: {line['clips']} clips ({by_language}); left out: {left_out or 'none'}"


@dataclass(frozen=True)
class ClipSet:
    """The clips of all sources.

    Attributes:
        clips: In a fixed order.
        weights: How often an epoch has each.
        reports: One a source.
    """

    clips: list[Clip]
    weights: list[float]
    reports: list[SourceReport]

    def mixture(self, seed: int) -> Mixture:
        """Lay out epochs."""
        return Mixture([duration_s(clip) for clip in self.clips], self.weights, seed)

    def first(self, n: int) -> list[Clip]:
        """Give ``n`` clips or all, taken from the sources and their languages in turn."""
        queues: dict[tuple[int, str], list[Clip]] = {}
        place = 0
        for number, report in enumerate(self.reports):
            own = self.clips[place : place + sum(report.clips.values())]
            place += len(own)
            for clip in own:
                # The clips of a manifest stay in its order: what it holds is its author's choice.
                queues.setdefault((number, clip.language if report.source.set else ""), []).append(clip)
        depth = max(map(len, queues.values()), default=0)
        return [queue[i] for i in range(depth) for queue in queues.values() if i < len(queue)][:n]

    def write_report(self, folder: Path) -> None:
        """Write ``data.json``: clips, hours, licences and what was left out, by source."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [report.to_dict() for report in self.reports]
        write_text(folder / REPORT_NAME, json.dumps(lines, ensure_ascii=False, indent=1) + "\n")


def read_clips(sources: Sequence[DataSource], limits: ClipLimits) -> ClipSet:
    """Read all sources and leave out what cannot be used.

    Args:
        sources: Of a recipe.
        limits: What can.

    Raises:
        DataError: If a source cannot be read, or nothing is left.
    """
    kept: list[Clip] = []
    weights: list[float] = []
    reports = [SourceReport(source) for source in sources]
    for report in reports:
        clips = read_source(report.source)
        own = report.add(clips, limits.reasons(clips, report.source))
        kept += own
        weights += [report.source.weight_of(clip) for clip in own]
    if not kept:
        dropped = sum((report.dropped for report in reports), Counter[str]())
        counts = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "none at all"
        names = ", ".join(source.name for source in sources)
        raise DataError(f"no clips of {limits.min_s} to {limits.max_s} s in {names} (left out: {counts}).")
    return ClipSet(kept, weights, reports)


def check_readable(clips: Sequence[Clip]) -> None:
    """Decode the clips to judge by once, so that none of them fails at the first evaluation.

    Raises:
        DataError: If some cannot be read, naming the first.
    """
    errors = []
    for clip in clips:
        try:
            clip_samples(clip)
        except AudioError as error:
            errors.append(str(error))
    if errors:
        raise DataError(
            f"{len(errors)} of the {len(clips)} clips to judge by cannot be read: {errors[0]} "
            "Mend them or take them out of options.dev."
        )
