"""Other recognisers in the same harness, and hypotheses made elsewhere: see `systems`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import SAMPLE_RATE_HZ
from ..errors import CheckpointError, DataError
from .modes import Samples
from .systems import Reading, Request

_HYPOTHESIS_KEYS = ("hypothesis", "pred_text", "text")


def _timed(read: Callable[[], Reading]) -> Reading:
    """Read one clip, and note its own time: systems that take clips one by one need not share it."""
    started = time.perf_counter()
    found = read()
    return replace(found, seconds=time.perf_counter() - started)


class Pipeline:
    """A speech recognition pipeline of `transformers`: Whisper, wav2vec 2.0 and others."""

    max_audio_s: float | None = None

    def __init__(self, name: str, device: str | None) -> None:
        """Load it.

        Args:
            name: On the hub, or a folder.
            device: Of PyTorch; None takes the GPU if there is one.

        Raises:
            CheckpointError: If it cannot be had or is no recogniser.
        """
        from transformers import pipeline

        from ..loading import find_device

        try:
            self.run: Any = pipeline("automatic-speech-recognition", model=name, device=find_device(device))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"pipeline:{name}: cannot be loaded ({' '.join(str(error).split())}); give a speech "
                "recognition model of transformers by its name on the hub, or a folder that holds one."
            ) from error
        self.name = name
        config = getattr(self.run.model, "generation_config", None)
        self.names_languages = bool(getattr(config, "is_multilingual", False))
        self.generates = bool(self.run.model.can_generate())
        extractor: Any = self.run.feature_extractor
        is_whisper = self.run.type == "seq2seq_whisper"
        self.n_at_once: int | None = extractor.n_samples if is_whisper else None
        """Samples that Whisper takes at once; longer clips it cuts by its time stamps."""

    def read(self, request: Request) -> list[Reading]:
        """Decode in batches of similar length; the language is named to models of many.

        Raises:
            DataError: If the pipeline cannot decode so.
        """
        setting = request.setting
        arguments: dict[str, Any] = dict(setting.options)
        if arguments and not self.generates:
            raise DataError(f"setting {setting.name!r}: this pipeline decodes by CTC and has no such options")
        if setting.language_given and self.names_languages:
            arguments["language"] = request.language
        clips = [utterance.samples for utterance in request.utterances]
        short = sorted(
            (i for i in range(len(clips)) if self._is_short(clips[i])), key=lambda i: len(clips[i])
        )
        long = [[i] for i in range(len(clips)) if not self._is_short(clips[i])]
        readings = [Reading("")] * len(clips)
        for places in filter(None, [short, *long]):
            started = time.perf_counter()
            texts = self._texts([clips[i] for i in places], request, arguments)
            seconds = (time.perf_counter() - started) / len(places)
            for place, text in zip(places, texts, strict=True):
                readings[place] = Reading(" ".join(text.split()), seconds=seconds)
        return readings

    def _is_short(self, samples: Samples) -> bool:
        return self.n_at_once is None or len(samples) <= self.n_at_once

    def _texts(self, clips: Sequence[Samples], request: Request, arguments: dict[str, Any]) -> list[str]:
        """Texts of clips that are all short, or of a single long one."""
        given: dict[str, Any] = {"generate_kwargs": arguments} if arguments else {}
        if not all(map(self._is_short, clips)):
            given["return_timestamps"] = True
        # Copies: the pipeline takes the dict apart.
        items = [{"raw": samples, "sampling_rate": SAMPLE_RATE_HZ} for samples in clips]
        try:
            return [one["text"] for one in self.run(items, batch_size=request.batch_size, **given)]
        except (ValueError, TypeError) as error:
            raise DataError(
                f"pipeline:{self.name}, setting {request.setting.name!r}: cannot decode a clip of "
                f"{request.testset} ({' '.join(str(error).split())})"
            ) from error


class FasterWhisper:
    """A Whisper model in faster-whisper."""

    max_audio_s: float | None = None

    def __init__(self, name: str, device: str | None) -> None:
        """Load it.

        Args:
            name: Such as ``small`` or ``large-v3``, or a folder of its format.
            device: ``cpu`` or ``cuda``; None lets it choose.

        Raises:
            CheckpointError: If it or the model cannot be had.
        """
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise CheckpointError(
                f"faster-whisper:{name}: needs faster-whisper; install it with: pip install faster-whisper"
            ) from error
        try:
            self.model: Any = WhisperModel(name, device=device or "auto")
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"faster-whisper:{name}: cannot be loaded ({error})") from error

    def read(self, request: Request) -> list[Reading]:
        """Decode clip by clip."""
        options: dict[str, Any] = dict(request.setting.options)
        asked = request.language if request.setting.language_given else None

        def read(samples: Samples) -> Reading:
            segments, information = self.model.transcribe(samples, language=asked, **options)
            text = " ".join("".join(segment.text for segment in segments).split())
            return Reading(text, str(information.language))

        return [_timed(partial(read, utterance.samples)) for utterance in request.utterances]


class PocketSphinx:
    """CMU PocketSphinx with the English model of its wheel: hidden Markov models and trigrams."""

    max_audio_s: float | None = None

    def __init__(self) -> None:
        """Load it.

        Raises:
            CheckpointError: If it is not installed.
        """
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise CheckpointError(
                "pocketsphinx: is not installed; install it with: pip install pocketsphinx"
            ) from error
        self.decoder: Any = Decoder(samprate=SAMPLE_RATE_HZ, loglevel="FATAL")

    def read(self, request: Request) -> list[Reading]:
        """Decode clip by clip."""
        return [_timed(partial(self._read, utterance.samples)) for utterance in request.utterances]

    def _read(self, samples: Samples) -> Reading:
        if not len(samples):
            return Reading("")
        # Its estimate of the channel adapts from clip to clip: each starts afresh, whatever came before.
        self.decoder.reinit_feat()
        self.decoder.start_utt()
        pcm = (np.clip(samples, -1.0, 1.0) * 32767).astype("<i2")
        self.decoder.process_raw(pcm.tobytes(), no_search=False, full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return Reading("" if found is None else str(found.hypstr))


class HypothesisFile:
    """Hypotheses from a file: a text a line, or JSON lines with ``hypothesis``, ``pred_text`` or ``text``."""

    max_audio_s: float | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read it.

        Raises:
            DataError: If it cannot be read, or a line of a ``.jsonl`` or ``.json`` file has no hypothesis.
        """
        self.path = Path(path)
        try:
            content = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"file:{path}: cannot be read as UTF-8 text ({error})") from error
        lines = content.removesuffix("\n").split("\n") if content else []
        if self.path.suffix in (".jsonl", ".json"):
            lines = [self._hypothesis(line, number) for number, line in enumerate(lines, start=1)]
        self.texts = lines

    def _hypothesis(self, line: str, number: int) -> str:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self.path}:{number}: is not JSON ({error})") from error
        for key in _HYPOTHESIS_KEYS:
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                return str(entry[key])
        raise DataError(f"{self.path}:{number}: has no {' or '.join(_HYPOTHESIS_KEYS)}")

    def check(self, testset: str, n_clips: int) -> None:
        """Compare its length with that of a set.

        Raises:
            DataError: If they differ.
        """
        if len(self.texts) != n_clips:
            raise DataError(
                f"{self.path}: has {len(self.texts)} hypotheses for the {n_clips} clips of {testset}; give "
                "one for each clip, in the order of the set"
            )

    def read(self, request: Request) -> list[Reading]:
        """Look them up."""
        return [Reading(self.texts[utterance.place]) for utterance in request.utterances]
