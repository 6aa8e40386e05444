"""The speech recognition pipeline of ``transformers``, for this package's models.

    from canvas_asr import CanvasASRPipeline  # registers it
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", model="path/to/checkpoint")
    print(recognise("talk.mp3", generate_kwargs={"num_steps": 4})["text"])

What it gives is what :meth:`Transcriber.transcribe` gives, of audio of any length. Files are read by
:mod:`canvas_asr.audio`: the program ffmpeg is not called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from transformers import Pipeline

from .audio import SAMPLE_RATE_HZ, Samples, decode_audio, load_audio
from .errors import AudioError, OptionError
from .modeling import CanvasASRModel
from .options import StrategyOptions
from .processing import CanvasASRProcessor
from .result import Segment, Word
from .transcriber import Transcriber

CHUNKS_TOGETHER = 8  # of a long recording, where no batch_size is given

# Names of generate's arguments, and of transcribe's.
_OPTIONS = {
    "num_steps": "steps",
    "init": "init",
    "canvas_length": "canvas",
    "language": "language",
    "seed": "seed",
    **{name: name for name in StrategyOptions.__annotations__},
}


logger = logging.getLogger(__name__)


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

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Transcribe.

        Args:
            inputs: A path; the bytes of a file; 16 kHz samples; ``(samples, rate)``; a dictionary with
                ``raw`` or ``array`` and ``sampling_rate``; a list, generator or dataset of them.
            args: None; a warning names those that are given.
            batch_size: Clips, or chunks of long recordings, that are transcribed together; None: one clip at
                a time, but several chunks of a recording.
            kwargs: ``num_workers``, and ``generate_kwargs`` with ``num_steps``, ``init``, ``canvas_length``
                and the other options of :meth:`CanvasASRModel.generate`, which may also stand here
                themselves; ``return_timestamps``: True for segments, ``"word"`` for words.
                ``chunk_length_s`` and ``stride_length_s`` change nothing, and a warning says so: longer
                audio is cut at silences.

        Returns:
            ``{"text": ..., "language": ...}``, ``language`` where the model tells it; with timestamps
            ``chunks`` too, ``{"text": ..., "timestamp": (start, end)}`` for each segment or word; a list for
            a list, an iterator for a generator or dataset.

        Raises:
            AudioError: If a clip cannot be read.
            CheckpointError: If audio is long, and the model of voice activity detection missing.
            OptionError: If an option is unknown or out of range.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        together = self._batch_size if batch_size is None else batch_size
        return super().__call__(  # type: ignore[no-untyped-call]
            inputs, *args, batch_size=batch_size, chunks_together=together, **kwargs
        )

    def _sanitize_parameters(
        self,
        generate_kwargs: Mapping[str, Any] | None = None,
        return_timestamps: Any = None,
        chunk_length_s: float | None = None,
        stride_length_s: Any = None,
        return_language: bool | None = None,
        chunks_together: int | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if return_timestamps not in (None, False, True, "word"):
            raise OptionError(
                f"return_timestamps is {return_timestamps!r}; give True, 'word', or leave it out."
            )
        if chunk_length_s or stride_length_s:
            logger.warning("chunk_length_s has no effect on this model: long audio is cut at silences.")
        options = {**(generate_kwargs or {}), **kwargs}
        if return_timestamps == "word":
            options["word_timestamps"] = True
        for name in options:
            if name not in _OPTIONS:
                raise OptionError(f"{name}: no option of this pipeline; it has {', '.join(_OPTIONS)}.")
        decoding = {_OPTIONS[name]: value for name, value in options.items()}
        if chunks_together is not None:
            decoding["batch_size"] = chunks_together
        return {}, decoding, {} if return_timestamps is None else {"return_timestamps": return_timestamps}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Read one clip: ``{"source": (n,) float32}``, or leave a path to be read as it is transcribed."""
        return {"source": _read(input_)}

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> Any:
        """Transcribe one clip or, where the pipeline has collated several, their list."""
        given = input_tensors["source"]
        sources = given if isinstance(given, list) else [given]
        clips = [one if isinstance(one, str) else (one, SAMPLE_RATE_HZ) for one in sources]
        options = {"batch_size": CHUNKS_TOGETHER} | options
        return {"transcripts": self.transcriber.transcribe(clips, **options)}

    def postprocess(self, model_outputs: Any, return_timestamps: Any = None, **_: Any) -> dict[str, Any]:
        """Give the text, the language where the model tells it, and the times that were asked for."""
        transcript = model_outputs["transcripts"]
        if isinstance(transcript, list):  # a batch of one is not taken apart
            (transcript,) = transcript
        found: dict[str, Any] = {"text": transcript.text}
        if transcript.language:
            found["language"] = transcript.language
        if return_timestamps:
            timed = transcript.words or () if return_timestamps == "word" else transcript.segments
            found["chunks"] = [_chunk(one) for one in timed]
        return found


def _read(source: Any) -> str | Samples:
    """Give samples, or the path of a file."""
    if isinstance(source, (bytes, bytearray)):
        return decode_audio(bytes(source), "the bytes")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise AudioError(f"{source}: an address; download the file and give its path.")
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, tuple):
        return load_audio(source)
    if hasattr(source, "get_all_samples"):  # torchcodec's decoder, which datasets gives
        decoded = source.get_all_samples()
        return load_audio((decoded.data, decoded.sample_rate))
    if isinstance(source, Mapping):
        samples = source.get("raw", source.get("array"))
        if samples is None or "sampling_rate" not in source:
            raise AudioError('a dictionary needs "raw" or "array", and "sampling_rate".')
        return load_audio((samples, source["sampling_rate"]))
    return load_audio((source, SAMPLE_RATE_HZ))


def _chunk(one: Segment | Word) -> dict[str, Any]:
    return {"text": one.text, "timestamp": (one.start, one.end)}
