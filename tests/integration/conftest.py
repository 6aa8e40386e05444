"""The small random model as a folder, for the commands and servers that the tests start."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import small_model, small_processor

from canvas_asr.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(small_model(), small_processor(), folder, whole=True)
    return folder
