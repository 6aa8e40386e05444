"""One sentence to one utterance, in a voice, rate and pitch drawn at random.

Synthesizer("train").say("guten Morgen", "de", np.random.default_rng(0))
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.typing import NDArray

from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.errors import DataError, OptionError
from canvas_asr.synthesis import chinese, espeak, recorded
from canvas_asr.synthesis.augment import AugmentationConfig, Augmenter, non_speech
from canvas_asr.synthesis.speech import Speech
from canvas_asr.synthesis.voices import SPLITS, voices

RATE_WPM = (130, 210)
PITCH = (25, 75)  # espeak-ng's scale, 0 to 99
PITCH_RANGE = (30, 70)
STRETCH = (0.85, 1.25)  # of flite and festival
RESAMPLING = 0.08
NON_SPEECH_S = (0.5, 6.0)


@dataclass(frozen=True)
class Utterance:
    """One synthetic clip.

    Attributes:
        samples: float32, mono, 16 kHz, in [-1, 1], (N,).
        text: What is said, as written; empty for a clip without speech.
        language: One of en, de, fr, es, hi, zh.
        voice: Voice that said it, such as ``en-us+f3`` or ``flite:slt``; "none" for a clip without speech.
        phonemes: (symbol, start in seconds) in order of time, "" is silence.
        words: (place of its first character in `spoken_text`, start, end in seconds) of every word whose time
            the engine tells (espeak-ng's voices only), in order.
    """

    samples: NDArray[np.float32]
    text: str
    language: str
    voice: str
    phonemes: list[tuple[str, float]]
    words: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


def spoken_text(text: str, language: str) -> str:
    """What espeak-ng is given for a written sentence (pinyin for Chinese)."""
    return chinese.to_pinyin(text) if language == "zh" else text


class Synthesizer:
    """Says sentences in randomly drawn voices of one split.

    Args:
        split: "train", "test" (held-out speakers) or "test-accent" (held-out accents too).
        seed: Seeds the generator used when `say` is not given one.
        recorded_share: Share of sentences said by voices made from recordings (flite, festival), where the
            language has them in this split; the others are espeak-ng's.
        augmentation: Changes every clip (phoneme times follow); None leaves clips clean.

    Raises:
        DataError: If the split is unknown.
        OptionError: If the share is not in [0, 1].
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        recorded_share: float = 0.0,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        if split not in SPLITS:
            raise DataError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        if not 0 <= recorded_share <= 1:
            raise OptionError(f"recorded_share must lie in [0, 1], not {recorded_share}")
        self.split = split
        self.recorded_share = recorded_share
        self._augmenter = None if augmentation is None else Augmenter(augmentation)
        self._rng = np.random.default_rng(seed)

    def say(self, text: str, language: str, rng: np.random.Generator | None = None) -> Utterance:
        """Say a sentence in a voice, rate, pitch and playback speed drawn from ``rng``.

        An empty text gives a clip without speech: silence, noise or music.

        Raises:
            DataError: If the language has no voice in this split, the engine is missing, the text cannot be
                read, or nothing in it is spoken.
        """
        rng = self._rng if rng is None else rng
        choices = voices(language, self.split)
        if text == "":
            n = round(float(rng.uniform(*NON_SPEECH_S)) * SAMPLE_RATE_HZ)
            return Utterance(non_speech(n, rng), "", language, "none", [("", 0.0)])
        speech: Speech | None = None
        voice = ""
        people = recorded.voices(language, self.split)
        if self.recorded_share > 0 and people and rng.random() < self.recorded_share:
            voice = people[int(rng.integers(len(people)))]
            speech = _say_recorded(text, voice, float(rng.uniform(*STRETCH)))
        if speech is None:
            voice = choices[int(rng.integers(len(choices)))]
            rate, pitch, pitch_range = (
                int(rng.integers(a, b + 1)) for a, b in (RATE_WPM, PITCH, PITCH_RANGE)
            )
            speech = espeak.say(spoken_text(text, language), voice, rate, pitch, pitch_range)
        if not any(symbol for _, symbol in speech.phonemes):
            raise DataError(f"nothing in {text!r} is spoken in {language!r}; leave the sentence out")
        rate_hz = speech.sample_rate_hz * float(rng.uniform(1 - RESAMPLING, 1 + RESAMPLING))
        samples = soxr.resample(
            speech.samples.astype(np.float32) / 32768.0, rate_hz, SAMPLE_RATE_HZ, quality="MQ"
        )
        samples = np.clip(samples, -1.0, 1.0)
        speed, offset_s = 1.0, 0.0
        if self._augmenter is not None:
            samples, speed, offset_s = self._augmenter.apply(samples, rng)

        def time(sample: int) -> float:
            return offset_s + sample / rate_hz / speed

        phonemes = [(symbol, time(start)) for start, symbol in speech.phonemes]
        words = [(place, time(start), time(end)) for place, start, end in speech.words]
        return Utterance(samples, text, language, voice, phonemes, words)


def _say_recorded(text: str, voice: str, stretch: float) -> Speech | None:
    """A recorded voice's reading, or None where it cannot read what espeak-ng can (Hindi with digits)."""
    try:
        return recorded.say(text, voice, stretch)
    except recorded.UnreadableError:
        return None
