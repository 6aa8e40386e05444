"""What a stage can use of its data, and the report of what it cannot."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from made_up_clips import write_clips
from small_models import small_model

from canvas_asr.errors import DataError
from canvas_asr.manifest import Clip
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.training.selection import (
    BEYOND_CANVAS,
    INFEASIBLE,
    LONG,
    NO_TEXT,
    SHORT,
    UNREADABLE,
    ClipLimits,
    ClipSet,
    SourceReport,
    TextFit,
    read_clips,
)
from canvas_asr.training.sources import DataSource

MANIFEST, SET = DataSource(path="m.jsonl"), DataSource(set="fleurs", split="train")


def clip(duration_s: float, text: str = "Guten Tag.", language: str = "de", name: str = "a") -> Clip:
    return Clip(Path(f"{name}.wav"), text, language, duration_s=duration_s)


def fit_of(processor: CanvasASRProcessor, *, ctc: bool = True, speed: float = 1.0, **fields: Any) -> TextFit:
    return TextFit(processor, small_model(**fields).config, ctc=ctc, max_speed=speed)


def test_lengths_and_missing_texts() -> None:
    limits = ClipLimits(0.5, 3.0)
    clips = [clip(seconds) for seconds in (0.4, 0.5, 3.0, 3.1, -1.0)]
    assert limits.reasons(clips, MANIFEST) == [SHORT, "", "", LONG, UNREADABLE]
    # Nothing is said in a manifest's clip without text; in a set's, what is said is not known.
    assert limits.reasons([clip(1.0, " ")], MANIFEST) == [""]
    assert limits.reasons([clip(1.0, " ")], SET) == [NO_TEXT]


def test_a_text_has_to_fit_the_canvas_with_its_tag_and_its_end(processor: CanvasASRProcessor) -> None:
    text = "Guten Tag. " * 20
    n = len(processor.text_ids(text))
    for n_more, expected in ((2, ""), (1, BEYOND_CANVAS)):
        fit = fit_of(processor, canvas_length=8, max_canvas_length=n + n_more)
        assert fit([clip(30.0, text)]) == [expected]
    fit = fit_of(processor, canvas_length=8, max_canvas_length=n + 1, language_tag_place="none")
    assert fit([clip(30.0, text)]) == [""]


def test_a_text_has_to_fit_the_frames_of_ctc(processor: CanvasASRProcessor) -> None:
    n = len(processor.text_ids("Guten Tag."))
    seconds = n * 2 * 0.04  # mel frames of 20 ms, of which the encoder joins two and the projector two
    enough, short = clip(seconds), clip(seconds - 0.09)
    assert fit_of(processor)([enough, short]) == ["", INFEASIBLE]
    assert fit_of(processor, ctc=False)([enough, short]) == ["", ""]
    assert fit_of(processor, speed=1.3)([enough, clip(1.3 * seconds + 0.01)]) == [INFEASIBLE, ""]
    assert fit_of(processor, pad_to_30s=True)([enough, short]) == ["", ""]
    # The same token twice needs a blank between.
    text = "!!!!"
    ids = processor.text_ids(text)
    n_blanks = sum(a == b for a, b in itertools.pairwise(ids))
    assert n_blanks > 0
    needed = (len(ids) + n_blanks) * 0.08
    found = fit_of(processor)([clip(seconds, text) for seconds in (needed, needed - 0.09)])
    assert found == ["", INFEASIBLE]


def test_what_is_left_out_is_counted_and_written(tmp_path: Path, processor: CanvasASRProcessor) -> None:
    path = str(write_clips(tmp_path, 6))
    source = DataSource(path=path, weight=2.0, language_weights={"zh": 1.5})
    limits = ClipLimits(0.7, 1.1, fit_of(processor))
    found = read_clips([source, DataSource(path=path, languages=("en",))], ClipLimits(0.5, 1.3))
    assert len(found.clips) == 7
    assert found.weights == [2.0, 2.0, 2.0, 2.0, 2.0, 3.0, 1.0]
    fewer = read_clips([source], limits)
    assert len(fewer.clips) + fewer.reports[0].dropped.total() == 6
    assert fewer.reports[0].dropped[SHORT] == 1
    assert f"{fewer.reports[0]}".endswith("left out: 1 shorter than min_clip_s, 2 longer than max_clip_s")
    fewer.write_report(tmp_path)
    (line,) = json.loads((tmp_path / "data.json").read_text())
    assert line["clips"] == 3
    assert line["left_out"] == {SHORT: 1, LONG: 2}
    assert line["languages"]["de"] == {"clips": 1, "hours": 0.0, "weight": 2.0}


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = str(write_clips(tmp_path, 6))
    with pytest.raises(DataError, match=r"no clips of 5 to 9 s in .*manifest\.jsonl \(left out: 6 shorter"):
        read_clips([DataSource(path=path)], ClipLimits(5, 9))


def test_development_clips_come_from_all_sets_and_languages() -> None:
    reports = [SourceReport(SET), SourceReport(MANIFEST)]
    clips = [clip(1.0, language=code, name=f"{code}{i}") for code in ("en", "de") for i in range(3)]
    clips += [clip(1.0, language=code, name=f"m{i}") for i, code in enumerate(("fr", "es"))]
    for report, own in zip(reports, (clips[:6], clips[6:]), strict=True):
        report.add(own, [""] * len(own))
    found = ClipSet(clips, [1.0] * 8, reports)
    assert [c.audio.stem for c in found.first(5)] == ["en0", "de0", "m0", "en1", "de1"]
    assert len(found.first(100)) == 8
