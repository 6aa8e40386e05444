"""Rows shared out to threads: how, and that a clip gives what it gives alone, whoever computes it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_up_clips import tones

from canvas_asr import row_threads
from canvas_asr.backbone import denoise, encode_keys
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Decoded
from canvas_asr.row_threads import MAX_THREADS, RowThreads

pytestmark = pytest.mark.usefixtures("_own_torch_settings")
CLIPS = [tones(duration_s, seed) for seed, duration_s in enumerate((0.7, 1.9, 0.1, 1.2, 0.9))]


@pytest.fixture(scope="module")
def decoder(model: CanvasASRModel, processor: CanvasASRProcessor) -> CanvasDecoder:
    return CanvasDecoder(model, processor)


@torch.no_grad()
def test_every_thread_has_a_share_or_one_has_all() -> None:
    threads = RowThreads(is_on=True)
    torch.set_num_threads(2)
    assert threads.shares(5) == [slice(0, 2), slice(2, 5)]
    assert threads.shares(1) == [slice(0, 1)]
    assert threads.shares(5, torch.device("meta")) == [slice(0, 5)]
    assert RowThreads(is_on=False).shares(5) == [slice(0, 5)]
    with torch.enable_grad():
        assert threads.shares(5) == [slice(0, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        assert threads.shares(5) == [slice(0, 5)]
    for n_threads in (1, MAX_THREADS + 1):
        torch.set_num_threads(n_threads)
        assert threads.shares(5) == [slice(0, 5)]


def test_shares_run_at_once_each_in_one_thread_of_its_own() -> None:
    torch.set_num_threads(3)
    together = threading.Barrier(3, timeout=10)

    def look(item: int) -> tuple[int, int, bool]:
        together.wait()
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    assert RowThreads(is_on=True).each(look, [5, 6, 7]) == [(5, 1, False), (6, 1, False), (7, 1, False)]
    assert torch.get_num_threads() == 3
    assert in_new_thread(torch.get_num_threads) == [3]


def in_new_thread(function: Callable[..., Any], *args: Any) -> list[Any]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join()
    return found


def test_other_threads_are_left_what_they_would_have_had() -> None:
    """As in a server, where no thread but the model's is to have more than one."""
    torch.set_num_threads(5)
    in_new_thread(torch.set_num_threads, 1)
    assert torch.get_num_threads() == 5
    assert RowThreads(is_on=True).each(lambda _: torch.get_num_threads(), range(5)) == [1] * 5
    assert torch.get_num_threads() == 5
    assert in_new_thread(torch.get_num_threads) == [1]


def test_what_goes_wrong_in_a_share_goes_wrong() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        RowThreads(is_on=True).each(lambda item: 1 // item, [1, 0])


@torch.no_grad()
def test_threads_that_outlive_the_main_thread_compute_alone() -> None:
    script = """
import threading, time
import torch
from canvas_asr.row_threads import RowThreads
def work():
    threading.main_thread().join()
    torch.set_num_threads(2)
    print(RowThreads(is_on=True).each(lambda item: item * 2, [1, 2]))
threading.Thread(target=work).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[2, 4]\n"), done.stderr


def test_where_no_thread_can_begin_the_caller_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    torch.set_num_threads(4)
    before = threading.active_count()
    row_threads._pool.cache_clear()
    monkeypatch.setattr(row_threads.ThreadPoolExecutor, "submit", refuse)
    assert RowThreads(is_on=True).each(lambda item: item * 2, [1, 2]) == [2, 4]
    assert threading.active_count() == before


def test_each_pass_has_its_own_signal(decoder: CanvasDecoder) -> None:
    torch.set_num_threads(2)
    backbone = decoder.model.backbone
    embed = backbone.get_input_embeddings()
    ids = torch.arange(24).view(2, 12)
    prefix, n_prompt = encode_keys(backbone, embed(ids[:1, :5])), torch.tensor([5])
    signals = [None, embed(ids[1:])]
    expected = [denoise(backbone, ids[:1], prefix, n_prompt, soft_embeddings=signal) for signal in signals]
    assert not torch.allclose(*expected)
    inside = threading.Barrier(2, timeout=10)

    def wait(*_: Any) -> None:
        inside.wait()

    handle = backbone.model.decoder.embed_tokens.register_forward_hook(wait)
    try:
        found = decoder.threads.each(
            lambda signal: denoise(backbone, ids[:1], prefix, n_prompt, soft_embeddings=signal), signals
        )
    finally:
        handle.remove()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 3, "init": "noise"},
        {"steps": 1, "init": "draft", "word_timestamps": True},
        {"steps": 2, "init": "draft", "fusion": 0.3, "self_conditioning": "posterior", "canvas": "auto"},
        {"steps": 2, "init": "noise", "candidates": 2},
    ],
)
def test_clips_of_a_batch_give_what_they_give_alone(decoder: CanvasDecoder, options: dict[str, Any]) -> None:
    def read(clips: list[Any]) -> list[Decoded]:
        batch = decoder.open(DecodingOptions(**options))
        batch.add(*decoder.features(clips), range(len(clips)))
        while len(batch):
            batch.run_pass()
        return [decoded for _, decoded in sorted(batch.take())]

    torch.set_num_threads(1)
    alone = [read([clip])[0] for clip in CLIPS]
    torch.set_num_threads(2)
    assert len(decoder.threads.shares(len(CLIPS))) == 1  # gradients are on here
    for found, expected in zip(read(CLIPS), alone, strict=True):
        assert (found.ids, found.passes, found.language) == (
            expected.ids,
            expected.passes,
            expected.language,
        )
        assert found.confidences == pytest.approx(expected.confidences, rel=1e-3)
        assert found.spans == expected.spans
        assert found.draft == expected.draft


def test_a_gate_may_leave_a_thread_without_work(
    decoder: CanvasDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    batch = decoder.open(DecodingOptions(steps=2, init="draft", gate=0.5))
    answered = {0, 1, 3}
    certain = iter(place in answered for place in range(len(CLIPS)))
    monkeypatch.setattr(batch, "_is_answer", lambda _: next(certain))
    batch.add(*decoder.features(CLIPS), range(len(CLIPS)))
    assert sorted(batch.keys) == [2, 4]
    while len(batch):
        batch.run_pass()
    found = dict(batch.take())
    assert {place: decoded.passes for place, decoded in found.items()} == {0: 0, 1: 0, 2: 2, 3: 0, 4: 2}
    for place in (2, 4):
        single = decoder.open(DecodingOptions(steps=2, init="draft"))
        single.add(*decoder.features([CLIPS[place]]), [place])
        while len(single):
            single.run_pass()
        assert found[place].ids == single.take()[0][1].ids
