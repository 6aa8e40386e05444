"""What an evaluation is made of: the model's side, the modes it is asked in, the figures that come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import OptionError
from .metrics import Scores

Samples = npt.NDArray[np.float32]
Speakers = Literal["seen", "unseen", "unknown"]


class TranscriptLike(Protocol):
    """What evaluation reads of a transcript (`canvas_asr.Transcript` has it)."""

    @property
    def text(self) -> str:
        """The final text."""

    @property
    def language(self) -> str:
        """Language code, detected or given."""

    @property
    def passes(self) -> int:
        """Denoising passes used."""

    @property
    def truncated(self) -> bool:
        """Whether the text filled the canvas."""


class Recogniser(Protocol):
    """The model side (`canvas_asr.Transcriber` has it)."""

    def transcribe_arrays(
        self,
        arrays: Sequence[Samples],
        *,
        init: str,
        steps: int,
        language: str | None,
        batch_size: int,
        seed: int,
    ) -> Sequence[TranscriptLike]:
        """Transcribe 16 kHz mono clips and return one transcript for each, in order.

        Args:
            arrays: Samples, (n,) each.
            init: "noise" or "draft": what the canvas starts from.
            steps: Denoising passes; 0, only with "draft", asks for the draft as it is.
            language: Code, or None to detect it.
            batch_size: Clips a batch.
            seed: Of the canvas noise.
        """


@dataclass(frozen=True)
class EvaluationMode:
    """One way of asking the model.

    Attributes:
        name: Column name in the report.
        kind: What the canvas starts from: "draft" is the CTC draft alone, without a pass; "noise" is random
            tokens; "from_draft" is the draft, then refined.
        passes: Denoising passes; 0 for "draft", at least 1 otherwise.
        shuffled: Give each clip the audio of another one.
        language_given: Tell the model the language instead of letting it detect it.
    """

    name: str
    kind: Literal["draft", "noise", "from_draft"]
    passes: int
    shuffled: bool = False
    language_given: bool = False

    def __post_init__(self) -> None:
        """Refuse a draft with passes and a canvas without.

        Raises:
            OptionError: If ``passes`` does not fit ``kind``.
        """
        if (self.kind == "draft") != (self.passes == 0) or self.passes < 0:
            raise OptionError(
                f"mode {self.name!r}: {self.kind!r} with {self.passes} passes; only the draft has 0"
            )


DEFAULT_MODES = (
    EvaluationMode("draft", "draft", 0),
    *(EvaluationMode(f"noise-{n}", "noise", n) for n in (1, 2, 4, 8, 16)),
    *(EvaluationMode(f"from-draft-{n}", "from_draft", n) for n in (1, 2, 4)),
    EvaluationMode("noise-8-language-given", "noise", 8, language_given=True),
    EvaluationMode("shuffled-noise-8", "noise", 8, shuffled=True),
)


@dataclass(frozen=True)
class Result:
    """Figures of one mode on the clips of one set, language and kind of speaker.

    Attributes:
        testset: Name of the set.
        language: Language of its references.
        speakers: Whether the speakers are in the training data: "seen", "unseen" or "unknown".
        mode: The mode.
        scores: Error rates and repetition rate.
        language_accuracy: Share of clips whose language was detected right; None if it was given, the audio
            was shuffled, or there was no pass: the language is written on the canvas, the draft names none.
        mean_passes: Passes used, mean over clips.
        n_truncated: Clips whose text filled the canvas.
        audio_s: Seconds of audio heard.
        seconds: Wall-clock seconds from waveform to text.
    """

    testset: str
    language: str
    speakers: Speakers
    mode: EvaluationMode
    scores: Scores
    language_accuracy: float | None
    mean_passes: float
    n_truncated: int
    audio_s: float
    seconds: float

    @property
    def rtfx(self) -> float:
        """Seconds of audio per wall-clock second; 0.0 if no time was measured."""
        return self.audio_s / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "testset": self.testset,
            "language": self.language,
            "speakers": self.speakers,
            "mode": asdict(self.mode),
            "scores": self.scores.to_dict(),
            "language_accuracy": self.language_accuracy,
            "mean_passes": self.mean_passes,
            "n_truncated": self.n_truncated,
            "audio_s": self.audio_s,
            "seconds": self.seconds,
            "rtfx": self.rtfx,
        }
