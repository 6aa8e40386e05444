"""The small random model, built once for all unit tests, which must leave it as it is."""

from __future__ import annotations

import pytest
from small_models import small_model, small_processor

from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor


@pytest.fixture(scope="session")
def model() -> CanvasASRModel:
    return small_model()


@pytest.fixture(scope="session")
def processor() -> CanvasASRProcessor:
    return small_processor()
