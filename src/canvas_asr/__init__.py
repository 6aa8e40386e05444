"""canvas-asr: speech recognition that writes a whole transcript on a canvas and refines it in a few passes.

    import canvas_asr
    asr = canvas_asr.load("tiny")
    print(asr.transcribe("speech.wav"))

Names are imported when first used (PEP 562), so ``import canvas_asr`` loads neither torch nor numpy. The
first of those that concern a model (``load`` or ``CanvasASRModel``, say) registers it with ``transformers``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audio import load_audio
    from .canvas_view import CanvasView
    from .configuration import CanvasASRConfig
    from .errors import AudioError, CanvasASRError, CheckpointError, DataError, OptionError, RecipeError
    from .generation import CanvasStreamer
    from .modeling import CanvasASRModel
    from .pipeline import CanvasASRPipeline
    from .processing import CanvasASRProcessor
    from .result import Gap, Segment, Token, Transcript, Word
    from .speakers import Turn, join_speakers, read_rttm
    from .transcriber import Transcriber, load

__version__ = "0.1.0"

__all__ = [
    "AudioError",
    "CanvasASRConfig",
    "CanvasASRError",
    "CanvasASRModel",
    "CanvasASRPipeline",
    "CanvasASRProcessor",
    "CanvasStreamer",
    "CanvasView",
    "CheckpointError",
    "DataError",
    "Gap",
    "OptionError",
    "RecipeError",
    "Segment",
    "Token",
    "Transcriber",
    "Transcript",
    "Turn",
    "Word",
    "__version__",
    "join_speakers",
    "load",
    "load_audio",
    "read_rttm",
]

_HOME_OF = {
    "AudioError": "errors",
    "CanvasASRConfig": "configuration",
    "CanvasASRError": "errors",
    "CanvasASRModel": "modeling",
    "CanvasASRPipeline": "pipeline",
    "CanvasASRProcessor": "processing",
    "CanvasStreamer": "generation",
    "CanvasView": "canvas_view",
    "CheckpointError": "errors",
    "DataError": "errors",
    "OptionError": "errors",
    "RecipeError": "errors",
    "Gap": "result",
    "Segment": "result",
    "Token": "result",
    "Transcriber": "transcriber",
    "Transcript": "result",
    "Turn": "speakers",
    "Word": "result",
    "join_speakers": "speakers",
    "load": "transcriber",
    "load_audio": "audio",
    "read_rttm": "speakers",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use.

    Raises:
        AttributeError: If the package has no such public name.
    """
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME_OF[name] in ("configuration", "processing"):
        importlib.import_module(".modeling", __name__)  # registers them with transformers
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
