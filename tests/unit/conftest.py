"""The small random model, built once for all unit tests, which must leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_models import small_model, small_processor

from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor


@pytest.fixture(scope="session")
def model() -> CanvasASRModel:
    return small_model()


@pytest.fixture
def _own_torch_settings() -> Iterator[None]:
    """The trainer sets threads and precision of the process: put them back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def processor() -> CanvasASRProcessor:
    return small_processor()
