"""Make the model known to the Auto classes and pipelines of ``transformers``.

``pipeline("automatic-speech-recognition", model=...)`` builds whatever class is registered for the task,
whatever the model; here a class is registered that looks at the model first.
"""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration import CanvasASRConfig
from .hub import MODEL_TYPE, quietly
from .processing import CanvasASRProcessor

TASK = "automatic-speech-recognition"


def register(model_class: type) -> None:
    """Register configuration, model and processor, and the pipeline of the task.

    Args:
        model_class: The model.
    """
    AutoConfig.register(MODEL_TYPE, CanvasASRConfig, exist_ok=True)
    AutoProcessor.register(CanvasASRConfig, CanvasASRProcessor, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForSpeechSeq2Seq):
        auto_class.register(CanvasASRConfig, model_class, exist_ok=True)
    known = PIPELINE_REGISTRY.supported_tasks[TASK]
    with quietly():  # it warns that the task is registered already
        PIPELINE_REGISTRY.register_pipeline(
            TASK, _chooser(known["impl"]), known["pt"], known.get("default"), known.get("type")
        )


def _chooser(stock: Any) -> type:
    """Make the class that stands for a task: it builds our pipeline for our models, the stock one for others.

    Args:
        stock: The class that is registered, or its dotted name in newer versions.
    """
    if isinstance(stock, str):
        module, _, name = stock.rpartition(".")
        stock = getattr(importlib.import_module(module), name)
    base: Any = stock

    class SpeechRecognition(base):  # type: ignore[misc]
        """A subclass, so that ``pipeline`` loads for other models what it always did."""

        def __new__(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(model.config, "model_type", None) != MODEL_TYPE:
                return base(model, *args, **kwargs)
            from .pipeline import CanvasASRPipeline

            return CanvasASRPipeline(model, *args, **kwargs)

    return SpeechRecognition
