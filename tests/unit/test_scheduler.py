"""Jobs that share one model: what each gives is what it gives alone, and all get their share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scheduled_jobs import (
    CLIPS,
    LONG,
    RATE_HZ,
    Blocks,
    Recorded,
    Told,
    ask,
    check_same,
    record,
    short_transcriber,
)

from canvas_asr import Transcriber
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.recordings import Piece
from canvas_asr.scheduling.jobs import Event, Finished, PassShown, Progressed, SegmentReady
from canvas_asr.scheduling.scheduler import Scheduler


@pytest.fixture
def asr(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    return short_transcriber(model, processor)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    return record(monkeypatch)


# The same as alone


def test_jobs_of_other_languages_seeds_and_word_times_share_passes(
    asr: Transcriber, steps: type[Recorded]
) -> None:
    own: list[dict[str, Any]] = [
        {"language": "de"},
        {"seed": 5, "word_timestamps": True},
        {},
        {"language": "en", "word_timestamps": True},
    ]
    scheduler = Scheduler(asr)
    told = [ask(scheduler, clip, **given)[1] for clip, given in zip(CLIPS, own, strict=False)]
    with scheduler:
        found = [one.transcript() for one in told]
    assert max(len(pieces) for pieces in steps.passes()) == 4
    for clip, given, transcript in zip(CLIPS, own, found, strict=False):
        check_same(transcript, asr.transcribe((clip, RATE_HZ), steps=2, **given))


@pytest.mark.parametrize("source", [LONG, Blocks(LONG)], ids=["array", "stream"])
def test_long_audio_gives_what_transcribe_gives(asr: Transcriber, source: Any) -> None:
    with Scheduler(asr, max_batch=4) as scheduler:
        told = ask(scheduler, source, vad=False, wants_segments=True, word_timestamps=True)[1]
        transcript = told.transcript()
    expected = asr.transcribe((LONG, RATE_HZ), steps=2, vad=False, word_timestamps=True)
    check_same(transcript, expected)
    assert len(transcript.segments) > 3
    assert tuple(one.segment for one in told.of(SegmentReady)) == transcript.segments
    done_s = [one.done_s for one in told.of(Progressed)]
    assert done_s == sorted(set(done_s))
    assert told.of(Progressed)[-1] == Progressed(7.0, 7.0)
    assert len(done_s) > 3


def test_voice_activity_and_nothing_at_all(asr: Transcriber) -> None:
    with Scheduler(asr) as scheduler:
        silence = ask(scheduler, np.zeros(RATE_HZ, np.float32), vad=True)[1].transcript()
        nothing = ask(scheduler, np.zeros(0, np.float32))[1].transcript()
        stream = ask(scheduler, Blocks(CLIPS[0]))[1].transcript()
    assert (silence.text, silence.audio_s, silence.passes) == ("", 1.0, 0)
    assert (nothing.text, nothing.audio_s) == ("", 0.0)
    check_same(stream, asr.transcribe((CLIPS[0], RATE_HZ), steps=2))


def test_passes_are_shown_to_who_asked(asr: Transcriber) -> None:
    scheduler = Scheduler(asr)
    watching, other = ask(scheduler, CLIPS[0], shows_passes=True)[1], ask(scheduler, CLIPS[1])[1]
    long = ask(scheduler, LONG[: 2 * RATE_HZ], vad=False, steps=2, shows_passes=True)[1]
    with scheduler:
        text = watching.transcript().text
        other.transcript()
        long.transcript()
    assert [one.view.step for one in watching.of(PassShown)] == [1, 2]
    assert watching.of(PassShown)[-1].view.text == text
    assert (watching.of(PassShown)[0].start, watching.of(PassShown)[0].end) == (0.0, 0.7)
    assert not other.of(PassShown)
    assert max(one.end for one in long.of(PassShown)) == 2.0


def test_a_long_job_alone_takes_the_steps_of_transcribe(
    asr: Transcriber, steps: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same chunks in the same batches: a server with one client is no slower than the library."""
    samples = LONG[: 4 * RATE_HZ]

    def taken() -> list[tuple[str, list[int]]]:
        found = [(what, sorted(piece.chunk.start for piece in pieces)) for what, pieces in steps.steps]
        steps.steps.clear()
        return found

    with Scheduler(asr) as scheduler:
        ask(scheduler, samples, vad=False)[1].transcript()
        ours = taken()
    monkeypatch.setattr("canvas_asr.long_form.PieceBatch", Recorded)
    asr.transcribe((samples, RATE_HZ), steps=2, vad=False)
    assert ours == taken()
    assert [what for what, _ in ours[:3]] == ["encode", "pass", "pass"]
    assert len(ours[0][1]) > 3


# Rows and lanes


def test_a_row_that_is_done_makes_room_for_one_that_waits(asr: Transcriber, steps: type[Recorded]) -> None:
    scheduler = Scheduler(asr, max_batch=2)
    told = [ask(scheduler, clip, steps=1 + i % 2, canvas=16)[1] for i, clip in enumerate(CLIPS)]
    with scheduler:
        assert scheduler.close(60)
    for i, one in enumerate(told):
        check_same(one.transcript(), asr.transcribe((CLIPS[i], RATE_HZ), steps=1 + i % 2, canvas=16))
    sizes = [len(pieces) for pieces in steps.passes()]
    stats = scheduler.stats
    assert max(sizes) <= 2
    assert (stats.passes, stats.row_passes, stats.full_passes) == (len(sizes), sum(sizes), sizes.count(2))
    assert (stats.queued, stats.working, stats.rows) == (0, 0, 0)
    assert stats.audio_s == pytest.approx(sum(len(clip) for clip in CLIPS) / RATE_HZ)


def test_other_options_take_turns(asr: Transcriber, steps: type[Recorded]) -> None:
    scheduler = Scheduler(asr)
    told = [ask(scheduler, CLIPS[i], steps=4 + i // 2)[1] for i in range(4)]
    with scheduler:
        places = [one.transcript().audio_s for one in told]
        assert not scheduler._lanes.has_rows
    assert places == [0.7, 1.1, 0.3, 0.9]
    kinds = [round(pieces[0].chunk.audio_s, 1) in (0.7, 1.1) for pieces in steps.passes()]
    assert all(len(pieces) == 2 for pieces in steps.passes())
    both = kinds[kinds.index(not kinds[0]) : 8]  # from where both have begun to where one ends
    assert all(first != second for first, second in pairwise(both))


def test_a_short_job_does_not_wait_for_long_ones(asr: Transcriber, steps: type[Recorded]) -> None:
    """By counting, as the clock is not to be trusted here: its own passes, and few rows beside it."""
    scheduler = Scheduler(asr)
    short: list[Told] = []
    asked_at: list[int] = []

    def ask_once(what: str, pieces: list[Piece]) -> None:
        if what == "pass" and len(pieces) >= 4 and not short:
            asked_at.append(len(steps.steps))  # behind the pass that begins now
            short.append(ask(scheduler, CLIPS[0], steps=3)[1])

    steps.before = staticmethod(ask_once)  # type: ignore[assignment]
    long = [ask(scheduler, LONG, steps=3, vad=False)[1] for _ in range(2)]
    with scheduler:
        found = [one.transcript() for one in long]
    check_same(short[0].transcript(), asr.transcribe((CLIPS[0], RATE_HZ), steps=3))
    for transcript in found:  # set aside, and gone on with
        check_same(transcript, asr.transcribe((LONG, RATE_HZ), steps=3, vad=False))
    after = steps.steps[asked_at[0] :]
    mine = [i for i, (_, pieces) in enumerate(after) if any(one.chunk.audio_s == 0.7 for one in pieces)]
    until = after[: mine[-1] + 1]
    passes = [pieces for what, pieces in until if what == "pass"]
    # Its reading may take as long as a step or two; from then on every pass is its own.
    assert [len(pieces) for pieces in passes][-3:] == [2, 2, 2]
    assert sum(what == "encode" and len(pieces) > 1 for what, pieces in after[mine[0] : mine[-1]]) == 0
    assert len(mine) == 4
    assert mine[-1] - mine[0] <= 5
    assert max(len(pieces) for pieces in steps.passes()) == 8


def test_live_audio_goes_like_short_jobs_beside_a_long_upload(
    asr: Transcriber, steps: type[Recorded]
) -> None:
    """Longer than a clip, it shares passes with the upload's one row and with clips."""
    scheduler = Scheduler(asr)
    upload = ask(scheduler, np.tile(LONG, 3), steps=4, vad=False, seed=1)[0]

    class Chain(Told):
        """Asks for the next as soon as one is done."""

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Finished) and not live.has_ended.is_set():
                scheduler.submit(CLIPS[2], DecodingOptions(steps=4), Chain())

    live = ask(scheduler, Blocks(LONG), steps=4, vad=False, is_live=True)[1]
    assert scheduler.n_live == 1
    for _ in range(2):
        scheduler.submit(CLIPS[2], DecodingOptions(steps=4), Chain())
    with scheduler:
        found = live.transcript()
        upload.cancel()
        assert scheduler.close(60)
    check_same(found, asr.transcribe((LONG, RATE_HZ), steps=4, vad=False))
    kinds = [{one.recording.audio_s for one in pieces} for pieces in steps.passes()]
    clip_s, upload_s = len(CLIPS[2]) / RATE_HZ, 3 * len(LONG) / RATE_HZ
    assert any({clip_s, upload_s} < kind for kind in kinds)
    assert scheduler.n_live == 0


def test_long_jobs_go_on_beside_short_ones(asr: Transcriber, steps: type[Recorded]) -> None:
    scheduler = Scheduler(asr, max_batch=2)
    n_asked = [0]

    class Chain(Told):
        """Asks for the next as soon as one is done."""

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Finished) and not long.has_ended.is_set() and n_asked[0] < 200:
                n_asked[0] += 1
                scheduler.submit(CLIPS[2], DecodingOptions(steps=1), Chain())

    long = ask(scheduler, LONG[: 3 * RATE_HZ], steps=1, vad=False)[1]
    for _ in range(3):
        scheduler.submit(CLIPS[2], DecodingOptions(steps=1), Chain())
    with scheduler:
        long.transcript()
    assert 3 < n_asked[0] < 200
