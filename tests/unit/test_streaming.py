"""Streams of clips: what is promised of them, and what is not."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hub_data import TEXTS, flac, write_fleurs, write_set
from made_up_clips import write_clips
from torch.utils.data import DataLoader

from canvas_asr.errors import DataError
from canvas_asr.manifest import Clip
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.training.batches import passed_over_by
from canvas_asr.training.selection import INFEASIBLE, ClipLimits
from canvas_asr.training.sources import DataSource
from canvas_asr.training.speech_data import SpeechDataset
from canvas_asr.training.streaming import StreamDataset


@pytest.fixture(scope="module")
def fleurs(tmp_path_factory: pytest.TempPathFactory) -> str:
    datasets.disable_progress_bars()
    return str(write_fleurs(tmp_path_factory.mktemp("fleurs"), 6))


def stream(
    processor: CanvasASRProcessor, *sources: DataSource, limits: ClipLimits | None = None, **more: Any
) -> Any:
    examples = SpeechDataset((), processor.feature_extractor)
    settings = {"seed": 1, "buffer_size": 8, "batch_size": 3, **more}
    return StreamDataset(sources, limits or ClipLimits(), examples, **settings)


def clips_of(dataset: StreamDataset, n: int, seed: int = 0) -> list[Clip]:
    return list(itertools.islice(dataset.clips(np.random.default_rng(seed)), n))


def test_every_clip_comes_again_and_again_in_an_order_of_its_seed(
    fleurs: str, processor: CanvasASRProcessor
) -> None:
    source = DataSource(set="fleurs", path=fleurs, split="train", languages=("de", "zh"))
    clips = clips_of(stream(processor, source), 60)
    counts = Counter(clip.audio.name for clip in clips)
    assert set(counts) == {f"{code}{i}.flac" for code in ("de", "zh") for i in range(6)}
    assert clips == clips_of(stream(processor, source), 60)
    assert clips != clips_of(stream(processor, source), 60, seed=1)
    assert {clip.text for clip in clips} == {TEXTS["de"], TEXTS["zh"]}
    for run in range(0, 12, 3):  # sorted within what the buffer held
        lengths = [clip.duration_s for clip in clips[run : run + 3]]
        assert lengths == sorted(lengths) or run % 4


def test_sources_are_drawn_from_by_weight(fleurs: str, processor: CanvasASRProcessor, tmp_path: Path) -> None:
    manifest = DataSource(path=str(write_clips(tmp_path, 3)), weight=3.0)
    other = DataSource(set="fleurs", path=fleurs, split="train", languages=("hi",))
    clips = clips_of(stream(processor, manifest, other), 200)
    share = sum(clip.source is None for clip in clips) / 200
    assert 0.65 < share < 0.85


def test_what_cannot_be_used_is_passed_over_and_counted(
    tmp_path: Path, processor: CanvasASRProcessor
) -> None:
    rows = [
        {"audio": {"bytes": content, "path": f"{i}.flac"}, "text": text}
        for i, (content, text) in enumerate(
            [
                (flac(0.6, 0), "a"),
                (b"no audio", "a"),
                (flac(0.6, 1), ""),
                (flac(3.0, 2), "a"),
                (flac(0.7, 3), "no"),
            ]
        )
    ]
    path = str(write_set(tmp_path, {("default", "train"): rows}))
    source = DataSource(set=path, split="train", languages=("en",))
    limits = ClipLimits(max_s=2.0, text_reason=lambda clips: [INFEASIBLE * (c.text == "no") for c in clips])
    dataset = stream(processor, source, limits=limits)
    assert {clip.audio.name for clip in clips_of(dataset, 12)} == {"0.flac"}
    reasons = ("audio that cannot be read", "no transcript", "longer than max_clip_s", INFEASIBLE)
    assert set(dataset.dropped) == {f"{source.name}: {reason}" for reason in reasons}
    told = dict(dataset.dropped)
    assert passed_over_by([dataset[(0, 0)], {"mel": 0}]).keys() == told.keys()
    assert not dataset.dropped  # told once
    with pytest.raises(DataError, match=r"none of its first 5 clips can be used \(3 longer than"):
        clips_of(stream(processor, source, limits=ClipLimits(max_s=0.1)), 1)


def test_processes_and_workers_share_the_clips(fleurs: str, processor: CanvasASRProcessor) -> None:
    source = DataSource(set="fleurs", path=fleurs, split="train", languages=("de",))
    parts = [
        {clip.audio.name for clip in clips_of(stream(processor, source, process=i, n_processes=3), 20)}
        for i in range(3)
    ]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len(set.union(*parts)) == 6
    plan = [[(0, i), (0, i + 1)] for i in range(0, 24, 2)]
    seen: list[set[str]] = [set(), set()]
    loader = DataLoader(stream(processor, source), batch_sampler=plan, num_workers=2, collate_fn=list)
    for number, batch in enumerate(loader):  # workers take turns
        assert all(example["mel"].shape[0] == 80 for example in batch)
        seen[number % 2] |= {example["entry"].audio.name for example in batch}
    assert [len(part) for part in seen] == [3, 3]
    assert not seen[0] & seen[1]
