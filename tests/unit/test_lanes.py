"""Whose turn it is: the steps of the model, counted, with batches that do nothing."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from canvas_asr.chunks import Chunk
from canvas_asr.options import DecodingOptions
from canvas_asr.recordings import Piece, Recording, Stretch
from canvas_asr.scheduling.lanes import BULK_STEP_S, Lanes
from canvas_asr.scheduling.tasks import LIVE_LEAD_S, PIECES_AHEAD, Job, Task
from canvas_asr.scheduling.turns import Turns

RATE_HZ = 16_000
SECOND = np.zeros(RATE_HZ, np.float32)
N_BULK = 5
Step = tuple[str, list[str | None]]  # what was done, and the jobs of the pieces


class Batch:
    """In the place of a ``PieceBatch``: pieces are done behind so many passes as the options say."""

    def __init__(self, options: DecodingOptions, steps: list[Step]) -> None:
        self.n_passes = options.steps or 0
        self.steps = steps
        self.left: dict[Piece, int] = {}
        self.aside: set[Piece] = set()

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def pieces(self) -> list[Piece]:
        return [piece for piece in self.left if piece not in self.aside]

    @property
    def paused(self) -> list[Piece]:
        return [piece for piece in self.left if piece in self.aside]

    def encode(self, new: Sequence[Piece], options: Any) -> list[Piece]:
        self.steps.append(("encode", [piece.recording.name for piece in new]))
        if self.n_passes:
            self.left |= dict.fromkeys(new, self.n_passes)
        return []

    def run_pass(self) -> list[Piece]:
        self.steps.append(("pass", [piece.recording.name for piece in self.pieces]))
        for piece in self.pieces:
            self.left[piece] -= 1
        self.left = {piece: n for piece, n in self.left.items() if n}
        return []

    def pause(self, pieces: Container[Piece]) -> None:
        self.aside |= {piece for piece in self.left if piece in pieces}

    def resume(self, pieces: Container[Piece]) -> None:
        self.aside -= {piece for piece in self.left if piece in pieces}

    def remove(self, pieces: Container[Piece]) -> None:
        self.left = {piece: n for piece, n in self.left.items() if piece not in pieces}


class Model:
    """Lanes of such batches, and jobs whose pieces wait when the test says so."""

    def __init__(self, max_batch: int = 8) -> None:
        self.steps: list[Step] = []
        self.tasks: list[Task] = []
        self.lanes = Lanes(lambda options: Batch(options, self.steps), max_batch)  # type: ignore[arg-type, return-value]

    def job(self, name: str, n_pieces: int = 1, *, steps: int = 4, is_bulk: bool = False) -> Task:
        task = make_task(steps=steps)
        task.is_long = task.is_bulk = is_bulk
        task.recording = Recording(0, name)
        self.tasks.append(task)
        self.give(task, n_pieces)
        return task

    def give(self, task: Task, n_pieces: int = 1) -> None:
        assert task.recording is not None
        task.waits_since = task.waits_since if task.waiting else time.monotonic()
        task.waiting += [Piece(task.recording, Chunk(0, SECOND, SECOND[:0])) for _ in range(n_pieces)]

    def run(self, n_steps: int = 1) -> None:
        for _ in range(n_steps):
            self.lanes.step(self.tasks)

    def encoded(self, name: str) -> int:
        return sum(names.count(name) for what, names in self.steps if what == "encode")


def make_task(*, steps: int = 4, is_live: bool = False) -> Task:
    return Task(
        Job(1, lambda: None),
        SECOND,
        DecodingOptions(steps=steps, init="draft"),
        lambda event: None,
        reader=SimpleNamespace(max_clip_s=12.0),  # type: ignore[arg-type]
        turns=Turns(1),
        shows_passes=False,
        wants_segments=False,
        is_live=is_live,
    )


@pytest.mark.parametrize("is_bulk", [False, True])
def test_a_chunk_of_live_audio_waits_for_one_pass_beside_a_long_upload(is_bulk: bool) -> None:
    """A bulk job's waits for longer, which shows that there is something to wait for."""
    model = Model()
    model.job("upload", 100, is_bulk=True)
    live = model.job("live", 0, is_bulk=is_bulk)
    model.run(8)
    short = [model.job(f"short {i}") for i in range(4)]
    for _ in range(30):  # one after another
        model.run()
        for task in short:
            if not task.waiting and not any(
                task in lane.owners.values() for lane in model.lanes._lanes.values()
            ):
                model.give(task)
    n_before = len(model.steps)
    model.give(live)
    model.run(20)
    after = model.steps[n_before:]
    at = next(
        (i for i, (what, names) in enumerate(after) if what == "encode" and "live" in names), len(after)
    )
    n_passes = sum(what == "pass" for what, _ in after[:at])
    assert (n_passes > 1) == is_bulk, after
    if not is_bulk:
        mine = [i for i, (what, names) in enumerate(after) if what == "pass" and "live" in names]
        assert len(mine) == 4
        assert sum(what == "encode" for what, _ in after[at + 1 : mine[-1]]) <= 3  # one a pass at most


def test_pieces_are_taken_in_the_order_they_came() -> None:
    """A stream that was opened first has no precedence over clips that wait longer than its chunk."""
    model = Model(max_batch=1)
    live = model.job("live")
    model.run()
    model.job("first")
    model.give(live)
    model.job("second")
    model.run(3 * 5)
    assert [names for what, names in model.steps if what == "encode"] == [
        ["live"],
        ["first"],
        ["live"],
        ["second"],
    ]


def test_drafts_hold_no_upload_back() -> None:
    """However many there are: the upload keeps its rows, and every second encoding is its own."""
    model = Model()
    upload = model.job("upload", 2000, is_bulk=True)
    model.run(10)
    drafts = model.job("draft", 0, steps=0)
    n_before = len(model.steps)
    for _ in range(200):
        if not drafts.waiting:
            model.give(drafts)
        model.run()
    after = model.steps[n_before:]
    passes = [names for what, names in after if what == "pass"]
    assert all("draft" not in names for names in passes)
    assert min(len(names) for names in passes) >= 4
    ours, theirs = (
        sum(name in names for what, names in after if what == "encode") for name in ("upload", "draft")
    )
    assert ours >= 20
    assert theirs >= ours
    assert upload.waiting
    # Where rows wait, for one encoding at most; where there are none, a draft and the upload come in turn.
    assert all(first != second for first, second in pairwise(after) if first[0] == "encode")
    assert "encode encode encode" not in " ".join(what for what, _ in after)


def test_a_draft_needs_no_row() -> None:
    model = Model(max_batch=2)
    for i in range(4):
        model.job(f"short {i}", steps=50)
    model.run(5)
    model.job("draft", steps=0)
    model.run(2)
    assert model.encoded("draft") == 1


def test_behind_a_cancel_a_row_waits_for_one_encoding() -> None:
    model = Model()
    model.job("running")
    model.run(2)
    cancelled = model.job("cancelled")
    model.run()
    model.tasks.remove(cancelled)
    model.lanes.remove(cancelled)
    model.job("next")
    model.run(2)
    assert model.steps == [
        ("encode", ["running"]),
        ("pass", ["running"]),
        ("encode", ["cancelled"]),
        ("pass", ["running"]),
        ("encode", ["next"]),
    ]


def test_a_row_goes_before_those_that_need_no_pass() -> None:
    """Even if it has had none yet, and drafts never end."""
    model = Model()
    model.job("clip")
    drafts = model.job("draft", 100, steps=0)
    model.run(4)
    assert model.steps[:2] == [("encode", ["clip"]), ("pass", ["clip"])]
    assert drafts.waiting


def test_nothing_is_left_behind_a_clear() -> None:
    model = Model(max_batch=2)
    model.job("lost", 2)
    model.run()
    model.lanes.clear()
    model.tasks.clear()
    model.job("a")
    model.run(2)
    model.job("b")
    model.run(2)
    assert model.steps[1:] == [("encode", ["a"]), ("pass", ["a"]), ("encode", ["b"]), ("pass", ["a", "b"])]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_upload_goes_on_under_a_flood_of_clips(steps: int) -> None:
    model = Model()
    model.job("upload", 100, is_bulk=True)
    flood = [model.job(f"clip {i}", steps=steps) for i in range(10)]
    for _ in range(300):
        for task in flood:
            if not task.waiting:
                model.give(task)
        model.run()
    assert model.encoded("upload") >= 10


def slow_model() -> Model:
    """A step of bulk jobs has time for five pieces; all that wait would be a step of short ones."""
    model = Model()
    model.lanes._encoding.learn(0.9 * BULK_STEP_S, N_BULK)  # seconds of audio, of which a piece is one
    return model


def test_a_long_job_alone_is_begun_with_as_by_the_library() -> None:
    """Its pieces wait for each other as long as it is being read, and go together."""
    model = slow_model()
    upload = model.job("upload", 3, is_bulk=True)
    assert upload.recording is not None
    model.run(3)
    assert model.lanes.waits(model.tasks)
    assert model.steps == []
    model.give(upload, 4)
    upload.recording.end()
    assert not model.lanes.waits(model.tasks)
    model.run(5)
    assert model.steps == [("encode", ["upload"] * 7)] + [("pass", ["upload"] * 7)] * 4


def test_a_long_job_waits_for_some_pieces_and_no_more_and_works_in_small_steps() -> None:
    """It may be an hour: who comes now does not wait for a step of all of them."""
    model = slow_model()
    upload = model.job("upload", PIECES_AHEAD - 1, is_bulk=True)
    model.run()
    assert model.steps == []
    model.give(upload)
    model.run(2)
    assert model.steps == [("encode", ["upload"] * N_BULK), ("encode", ["upload"] * (PIECES_AHEAD - N_BULK))]


@pytest.mark.parametrize("other", ["job", "segments", "live", "begun", "endless"])
def test_pieces_do_not_wait_for_each_other_where_somebody_waits_for_them(other: str) -> None:
    model = slow_model()
    upload = model.job("upload", 2, is_bulk=True)
    if other == "job":
        model.job("empty", 0)
    upload.wants_segments = other == "segments"
    upload.is_live = other == "live"
    upload.has_begun = other == "begun"
    upload.is_long = other != "endless"
    assert not model.lanes.waits(model.tasks)
    model.run()
    assert model.steps == [("encode", ["upload"] * 2)]


def test_long_jobs_beside_each_other_work_in_small_steps() -> None:
    model = slow_model()
    for name in ("one", "other"):
        task = model.job(name, 4, is_bulk=True)
        assert task.recording is not None
        task.recording.end()
    model.run()
    assert model.steps == [("encode", ["one", "other", "one", "other", "one"])]


def test_live_audio_is_bulk_where_it_comes_faster_than_speech() -> None:
    task = make_task(is_live=True)
    task._began = time.monotonic() - 60.0
    at_pace, too_fast = (
        Stretch([], round((60.0 + lead_s) * RATE_HZ), 0.0) for lead_s in (0.0, LIVE_LEAD_S + 60.0)
    )
    assert task._is_at_pace(at_pace)
    assert not task._is_at_pace(too_fast)
    task.is_live = False
    assert not task._is_at_pace(at_pace)
