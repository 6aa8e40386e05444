"""Loading a model: where it is looked for, device and type, and that it stays quiet."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_clips import tones
from small_models import TINY, small_model, small_processor
from transformers.utils import logging

from canvas_asr import CheckpointError, OptionError, Transcriber, load
from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(small_model(), small_processor(), path, whole=True)
    return path


def test_a_loaded_model_gives_what_the_saved_one_gave(
    model: CanvasASRModel, processor: CanvasASRProcessor, folder: Path
) -> None:
    asr, loaded = Transcriber(model, processor), load(folder)
    assert not loaded.model.training
    parameters = chain(loaded.model.parameters(), loaded.model.buffers())
    assert {p.dtype for p in parameters if p.is_floating_point()} == {torch.float32}
    if not torch.cuda.is_available():
        assert loaded.device.type == "cpu"
        sources = [(tones(seconds, 0), RATE_HZ) for seconds in (0.4, 1.3, 2.0)]
        for one, other in zip(
            loaded.transcribe(sources, steps=3), asr.transcribe(sources, steps=3), strict=True
        ):
            assert [token.id for token in one.tokens] == [token.id for token in other.tokens]
            assert (one.text, one.language, one.draft) == (other.text, other.language, other.draft)
            assert one.confidence == pytest.approx(other.confidence, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_type_may_be_given_by_name(folder: Path, dtype: Any) -> None:
    loaded = load(str(folder), device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.transcribe((tones(0.5, 0), RATE_HZ), steps=2).passes == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; choose one of float32, bfloat16, float16"),
        ({"dtype": torch.float64}, r"dtype is 'torch\.float64'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which is not usable here; use 'cpu'"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(folder, **options)


def test_an_unknown_model_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^large-v9: no such model; give 'tiny' .* or the folder"):
        load("large-v9")
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"weights\.pt: is a file, not a folder"):
        load(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(tmp_path)


def test_loading_says_nothing_and_changes_no_setting(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    assert logging.is_progress_bar_enabled()
    load(folder)
    with pytest.raises(CheckpointError):
        load(folder / "backbone")
    assert capfd.readouterr() == ("", "")
    assert (torch.get_num_threads(), logging.get_verbosity()) == (threads, verbosity)
    assert logging.is_progress_bar_enabled()


@pytest.mark.skipif(
    not (TINY / "model.safetensors").is_file(), reason="the embedded model has no weights yet"
)
def test_the_embedded_model_is_the_default() -> None:
    assert load().languages == load("tiny").languages != ()
