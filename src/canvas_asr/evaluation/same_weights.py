"""Other ways of decoding the same weights, beside the canvas: token by token, and stock ``generate``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..autoregressive import AutoregressiveDecoder
from ..errors import OptionError
from ..result import Decoded
from ..stock import generate_stock
from ..transcriber import Transcriber
from .systems import Reading, Request, whole_number


class SameWeights(ABC):
    """A model of this package, decoded in batches of similar length as `Transcriber` does."""

    def __init__(self, transcriber: Transcriber) -> None:
        """Decode with the model of ``transcriber``."""
        self.transcriber = transcriber
        self.max_audio_s: float | None = transcriber.max_audio_s

    @torch.no_grad()  # all of it: the adapter may be trained, and a graph would cost the baseline time
    def read(self, request: Request) -> list[Reading]:
        """Decode; the time of a batch is shared by its clips."""
        processor, device = self.transcriber.processor, self.transcriber.device
        is_text = self.transcriber.decoder.vocabulary.text
        clips = [utterance.samples for utterance in request.utterances]
        readings = [Reading("")] * len(clips)
        by_length = sorted(range(len(clips)), key=lambda i: len(clips[i]))
        for start in range(0, len(clips), request.batch_size):
            places = by_length[start : start + request.batch_size]
            started = time.perf_counter()
            mel, n_mel = processor.features([clips[i] for i in places])
            found = self.decode(mel.to(device), n_mel.to(device), request)
            texts = [processor.text([i for i in one.ids if is_text[i]]) for one in found]
            seconds = (time.perf_counter() - started) / len(places)
            for place, one, text in zip(places, found, texts, strict=True):
                readings[place] = Reading(text, one.language, one.passes, one.truncated, seconds)
        return readings

    @abstractmethod
    def decode(self, mel: Tensor, n_mel: Tensor, request: Request) -> Sequence[Decoded]:
        """Decode features (B, n_mels, T_mel) with (B,) valid frames.

        Raises:
            OptionError: If an option is out of range.
        """


class Autoregressive(SameWeights):
    """The causal side alone, token by token; ``passes`` are tokens. Option: ``max_tokens``."""

    def __init__(self, transcriber: Transcriber) -> None:
        """Decode with the model of ``transcriber``."""
        super().__init__(transcriber)
        self.decoder = AutoregressiveDecoder(transcriber.model, transcriber.processor)

    def decode(self, mel: Tensor, n_mel: Tensor, request: Request) -> list[Decoded]:
        """See the base class."""
        language = request.language if request.setting.language_given else None
        options = _whole_numbers(request)
        return self.decoder(mel, n_mel, language=language, max_tokens=options.get("max_tokens"))


class StockGenerate(SameWeights):
    """``generate`` of `transformers` from the same prompt: its own defaults, or ``steps`` and ``canvas``."""

    def decode(self, mel: Tensor, n_mel: Tensor, request: Request) -> list[Decoded]:
        """See the base class."""
        decoder, model = self.transcriber.decoder, self.transcriber.model
        options = _whole_numbers(request)
        if request.setting.language_given:
            raise OptionError(f"setting {request.setting.name!r}: stock generate is not told the language")
        tokens, n_audio = model.audio_tokens(mel, n_mel)
        canvas, steps = generate_stock(
            model.backbone,
            decoder.prefix(tokens, n_audio, model.ctc_logits(tokens)),
            canvas_start=decoder.canvas_start,
            canvas_length=options.get("canvas"),
            steps=options.get("steps"),
            seed=request.seed,
        )
        codes = {tag: code for code, tag in decoder.languages.items()}
        results = []
        for ids, n_steps in zip(canvas.tolist(), steps.tolist(), strict=True):
            span, language = decoder.text_span(ids), codes.get(ids[0], "")
            # No step tells how sure it is of a token that is on the canvas: there are no confidences.
            results.append(Decoded(ids[span], [], language, 0.0, [], n_steps, span.stop == len(ids)))
        return results


def _whole_numbers(request: Request) -> dict[str, int]:
    """Options of a setting, which must be whole numbers of at least 1."""
    setting = request.setting
    return {name: whole_number(setting.name, name, value) for name, value in setting.options}
