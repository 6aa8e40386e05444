"""Counting what a pass repairs and breaks, with decoders whose answers are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from canvas_asr.evaluation import repair
from canvas_asr.manifest import Clip

TEXTS = ["abcdefghij" * 10, "klmnopqrst" * 10]


class ScriptedDecoder:
    """Answers every draft with what ``answer`` makes of truth and draft; its own say an x for every a."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        text = torch.ones(300, dtype=torch.bool)
        self.vocabulary = SimpleNamespace(text=text, eos=1)
        self.processor = SimpleNamespace(
            text_ids=lambda text: [ord(c) for c in text], features=lambda waves: (None, None)
        )

    def __call__(self, mel: Any, n_mel: Any, *, drafts: Any = None, **options: Any) -> list[Any]:
        assert options["init"] == "draft"
        truths = [[ord(c) for c in text] for text in TEXTS]
        if options["steps"] == 0:
            return [SimpleNamespace(ids=[ord(c) for c in text.replace("a", "x")]) for text in TEXTS]
        return [
            SimpleNamespace(ids=self.answer(truth, draft))
            for truth, draft in zip(truths, drafts, strict=True)
        ]


def counts(monkeypatch: pytest.MonkeyPatch, answer: Any, kind: str = "reference") -> repair.RepairCounts:
    monkeypatch.setattr(repair, "load_audio", lambda path: np.zeros(100, np.float32))
    clips = [Clip(Path("a.wav"), text, "en") for text in ["", *TEXTS]]
    return repair.count_repairs(ScriptedDecoder(answer), clips, kind=kind)  # type: ignore[arg-type]


def test_a_perfect_pass_repairs_all_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counts(monkeypatch, lambda truth, draft: truth)
    assert found.n_wrong + found.n_right == 200
    assert 10 < found.n_wrong < 60  # 15 % of 200 tokens
    assert (found.repaired, found.broken) == (1.0, 0.0)


def test_a_pass_that_changes_nothing_repairs_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counts(monkeypatch, lambda truth, draft: draft)
    assert (found.n_repaired, found.n_broken) == (0, 0)


def test_a_shifted_text_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counts(monkeypatch, lambda truth, draft: [2, *truth])
    assert found.broken == 1.0
    assert found.repaired == 0.0


def test_of_its_own_drafts_a_shifted_token_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counts(monkeypatch, lambda truth, draft: [2, *truth[:51], *truth[52:]], "own")
    assert found.repaired > 0.9
    assert found.n_broken + (found.n_wrong - found.n_repaired) == 2  # the one that each text has lost


def test_of_its_own_drafts_what_they_had_right_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, share in ((lambda truth, draft: truth, 1.0), (lambda truth, draft: draft, 0.0)):
        found = counts(monkeypatch, answer, "own")
        assert found.n_wrong + found.n_right == 200 - 10  # every a was wrong before
        assert 10 < found.n_wrong < 60
        assert (found.repaired, found.broken) == (share, 0.0)


def test_missing_tokens_count_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counts(monkeypatch, lambda truth, draft: [])
    assert (found.repaired, found.broken) == (0.0, 1.0)


def test_a_folder_without_the_synthetic_set_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repair.main(["tiny", "--testsets", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "manifest.jsonl" in error
    assert not (tmp_path / "out.json").exists()
