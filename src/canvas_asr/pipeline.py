"""The speech recognition pipeline of ``transformers``, for this package's models.

    from canvas_asr import CanvasASRPipeline  # registers it
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", model="path/to/checkpoint")
    print(recognise("talk.mp3", generate_kwargs={"num_steps": 4})["text"])

Files are read by :mod:`canvas_asr.audio`: the program ffmpeg is not called.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

from transformers import Pipeline

from .audio import SAMPLE_RATE_HZ, Samples
from .errors import AudioError, OptionError
from .modeling import CanvasASRModel
from .options import StrategyOptions
from .processing import CanvasASRProcessor
from .transcriber import Transcriber

# Names of generate's arguments, and of transcribe's.
_OPTIONS = {
    "num_steps": "steps",
    "init": "init",
    "canvas_length": "canvas",
    "language": "language",
    "seed": "seed",
    **{name: name for name in StrategyOptions.__annotations__},
}


class CanvasASRPipeline(Pipeline):
    """Audio to ``{"text": ..., "language": ...}``."""

    # Nothing is loaded for it: a loaded model has its processor.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(
        self,
        model: CanvasASRModel,
        tokenizer: Any = None,
        feature_extractor: Any = None,
        processor: CanvasASRProcessor | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare for transcription.

        Args:
            model: A loaded model.
            tokenizer: Of the checkpoint; None: the one that came with the model.
            feature_extractor: Likewise.
            processor: Both together.
            kwargs: ``device``, ``batch_size`` and what else every pipeline takes; options of
                :meth:`CanvasASRModel.generate`, as for a call.

        Raises:
            OptionError: If an option is unknown, or the model has no processor and none is given.
        """
        if processor is None and tokenizer is not None and feature_extractor is not None:
            processor = CanvasASRProcessor(feature_extractor, tokenizer)
        processor = processor or model.processor
        if processor is None:
            raise OptionError("the model was not loaded with a processor; give processor=.")
        super().__init__(
            model=model,
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
            processor=processor,
            **kwargs,
        )
        self.transcriber = Transcriber(model, processor)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Transcribe.

        Args:
            inputs: A path; the bytes of a file; 16 kHz samples; ``(samples, rate)``; a dictionary with
                ``raw`` or ``array`` and ``sampling_rate``; a list, generator or dataset of them.
            args: None; a warning names those that are given.
            kwargs: ``batch_size``, ``num_workers``, and ``generate_kwargs`` with ``num_steps``, ``init``,
                ``canvas_length`` and the other options of :meth:`CanvasASRModel.generate`, which may also
                stand here themselves; ``return_timestamps="word"``.

        Returns:
            ``{"text": ..., "language": ...}``, ``language`` where the model tells it; with timestamps
            ``chunks`` too, ``{"text": ..., "timestamp": (start, end)}`` for each word; a list for a list, an
            iterator for a generator or dataset.

        Raises:
            AudioError: If a clip cannot be read or is too long.
            OptionError: If an option is unknown or out of range.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _sanitize_parameters(
        self,
        generate_kwargs: Mapping[str, Any] | None = None,
        return_timestamps: Any = None,
        chunk_length_s: float | None = None,
        stride_length_s: Any = None,
        return_language: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if return_timestamps not in (None, False, "word"):
            raise OptionError(f"return_timestamps is {return_timestamps!r}; give 'word', or leave it out.")
        if chunk_length_s or stride_length_s:
            raise OptionError("chunk_length_s: clips are not cut yet; give clips that the model can take.")
        options = {**(generate_kwargs or {}), **kwargs}
        if return_timestamps:
            options["word_timestamps"] = True
        for name in options:
            if name not in _OPTIONS:
                raise OptionError(f"{name}: no option of this pipeline; it has {', '.join(_OPTIONS)}.")
        return {}, {_OPTIONS[name]: value for name, value in options.items()}, {}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Read one clip: ``{"samples": (n,) float32}``."""
        return {"samples": self._read(input_)}

    def _read(self, source: Any) -> Samples:
        read = self.transcriber.read
        if isinstance(source, (bytes, bytearray)):
            with tempfile.NamedTemporaryFile(prefix="bytes-") as file:
                file.write(source)
                file.flush()
                return read(file.name)
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            raise AudioError(f"{source}: an address; download the file and give its path.")
        if isinstance(source, (str, os.PathLike, tuple)):
            return read(source)
        if hasattr(source, "get_all_samples"):  # torchcodec's decoder, which datasets gives
            decoded = source.get_all_samples()
            return read((decoded.data, decoded.sample_rate))
        if isinstance(source, Mapping):
            samples = source.get("raw", source.get("array"))
            if samples is None or "sampling_rate" not in source:
                raise AudioError('a dictionary needs "raw" or "array", and "sampling_rate".')
            return read((samples, source["sampling_rate"]))
        return read((source, SAMPLE_RATE_HZ))

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> Any:
        """Transcribe one clip or, where the pipeline has collated several, their list."""
        samples = input_tensors["samples"]
        clips = samples if isinstance(samples, list) else [samples]
        transcripts = self.transcriber.transcribe(
            [(clip, SAMPLE_RATE_HZ) for clip in clips], batch_size=len(clips), **options
        )
        return {"transcripts": transcripts}

    def postprocess(self, model_outputs: Any, **_: Any) -> dict[str, Any]:
        """Give the text, the language where the model tells it, and the words that were asked for."""
        transcript = model_outputs["transcripts"]
        if isinstance(transcript, list):  # a batch of one is not taken apart
            (transcript,) = transcript
        found: dict[str, Any] = {"text": transcript.text}
        if transcript.language:
            found["language"] = transcript.language
        if transcript.words is not None:
            found["chunks"] = [{"text": w.text, "timestamp": (w.start, w.end)} for w in transcript.words]
        return found
