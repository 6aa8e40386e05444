"""Forced alignment: against every path there is, its order, its edges, and where it finds a token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_models import small_model

from canvas_asr.alignment import Aligner, align, audio_token_s, best_path
from canvas_asr.modeling import CanvasASRModel

BLANK = 0


def posteriors(n_frames: int, n_labels: int, seed: int) -> np.ndarray:
    """Log posteriors, (T, labels), the blank first."""
    logits = np.random.default_rng(seed).normal(size=(n_frames, n_labels)) * 2
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def reading(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2], [2, 2, 2]])
def test_path_is_the_likeliest_of_all_that_read_as_the_text(ids: list[int]) -> None:
    for n_frames, seed in itertools.product((5, 6), range(8)):
        logs = posteriors(n_frames, 3, seed)
        paths = [p for p in itertools.product(range(3), repeat=n_frames) if reading(p) == ids]
        best = max(paths, key=lambda path: sum(logs[t, label] for t, label in enumerate(path)))
        found = best_path(logs[:, BLANK], logs[:, ids], ids)
        assert [0 if state % 2 == 0 else ids[state // 2] for state in found.tolist()] == list(best)


def test_spans_are_where_the_tokens_are() -> None:
    logs = np.full((9, 3), -9.0)
    for frame, label in enumerate([0, 0, 1, 1, 0, 1, 2, 2, 0]):
        logs[frame, label] = 0.0
    assert align(logs[:, 0], logs[:, [1, 1, 2]], [1, 1, 2]) == [(2, 4), (5, 6), (6, 8)]


def test_an_unlikely_text_is_aligned_in_order_too() -> None:
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(1, 4, size=12).tolist()
        logs = posteriors(40, 4, seed)
        spans = align(logs[:, BLANK], logs[:, ids], ids)
        assert len(spans) == len(ids)
        bounds = [bound for span in spans for bound in span]
        assert bounds == sorted(bounds)
        assert all(start < end for start, end in spans)
        assert 0 <= bounds[0]
        assert bounds[-1] <= 40


@pytest.mark.parametrize(
    ("n_frames", "ids"), [(3, [1, 1, 1]), (1, [1]), (1, [1, 2, 3]), (2, [1, 1]), (4, [1] * 9)]
)
def test_more_tokens_than_frames_are_crowded_in_order(n_frames: int, ids: list[int]) -> None:
    logs = posteriors(n_frames, 4, 0)
    spans = align(logs[:, BLANK], logs[:, ids], ids)
    assert len(spans) == len(ids)
    assert all(start < end for start, end in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] <= n_frames


def test_no_text_has_no_spans() -> None:
    assert align(np.zeros(4), np.zeros((4, 0)), []) == []


def test_an_audio_token_lasts_as_long_as_the_projector_says(model: CanvasASRModel) -> None:
    assert audio_token_s(model.config, 320) == pytest.approx(2 * 320 * model.config.projector_stride / 16_000)
    waveform = small_model(audio_front_end="waveform", projector_stride=1)
    assert audio_token_s(waveform.config, 640) == pytest.approx(0.04)


def test_a_clip_in_a_batch_is_aligned_as_it_is_alone(model: CanvasASRModel) -> None:
    aligner = Aligner(model, 320)
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(2, 80, 160, generator=generator)
    n_mel = torch.tensor([160, 75])
    with torch.no_grad():
        tokens, n_audio = model.audio_tokens(mel, n_mel)
        alone, _ = model.audio_tokens(mel[1:, :, :75], n_mel[1:])
    clips = aligner.clips(tokens, n_mel)
    assert [len(clip) for clip in clips] == n_audio.tolist()
    ids = [300, 301, 301, 900]
    assert aligner(ids, clips[1]) == aligner(ids, aligner.clips(alone, n_mel[1:])[0])
    assert aligner(ids, clips[0])[-1][1] <= int(n_audio[0]) * aligner.token_s


def test_logits_are_read_in_parts_without_a_difference(
    model: CanvasASRModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(30, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    aligner = Aligner(model, 320)
    whole = aligner([300, 20, 900], tokens)
    monkeypatch.setattr("canvas_asr.alignment.CHUNK_TOKENS", 7)
    assert aligner([300, 20, 900], tokens) == whole


def test_silence_put_behind_a_clip_takes_no_tokens() -> None:
    padded = small_model(pad_to_30s=True)
    mel = torch.randn(1, 80, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, n_audio = padded.audio_tokens(mel, torch.tensor([100]))
    (clip,) = Aligner(padded, 320).clips(tokens, torch.tensor([100]))
    assert len(clip) == -(-50 // padded.config.projector_stride) < int(n_audio[0])
