"""Synthetic speech without end, made while training in the workers of a data loader.

speech = SyntheticSpeech({"de": ["guten Morgen"]}, recorded_share=0.3, non_speech_share=0.05)
loader = DataLoader(speech, batch_size=32, num_workers=2, collate_fn=list)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from canvas_asr.errors import DataError, OptionError
from canvas_asr.synthesis.augment import AugmentationConfig
from canvas_asr.synthesis.synthesizer import Synthesizer, Utterance
from canvas_asr.synthesis.voices import ACCENTS

_MAX_REDRAWS = 100


class SyntheticSpeech(IterableDataset[Utterance]):
    """Utterances of sentences drawn at random, languages in equal numbers.

    What is said, and by which voice, depends for utterance i on (seed, i) alone. Worker w of W makes i = w,
    w + W, w + 2 W ..., so the samples too are repeated by the same seed and number of workers (`espeak`
    says why not by the seed alone). ``start`` continues a stream after so many utterances.

    Args:
        sentences: Sentences of each language, in any order.
        split: Voices of "train", "test" or "test-accent".
        seed: Seed of everything.
        recorded_share: Share of voices made from recordings, where a language has them.
        non_speech_share: Share of clips without speech, whose text is empty; their language is drawn too.
        augmentation: Changes every clip; None leaves clips clean.
        max_duration_s: Longer utterances are drawn again.
        n: Length of the stream over all workers; None never ends.
        start: First i.

    Raises:
        DataError: If a language has no voice or no sentence.
        OptionError: If an option is out of range.
    """

    def __init__(
        self,
        sentences: Mapping[str, Sequence[str]],
        *,
        split: str = "train",
        seed: int = 0,
        recorded_share: float = 0.0,
        non_speech_share: float = 0.0,
        augmentation: AugmentationConfig | None = None,
        max_duration_s: float = 30.0,
        n: int | None = None,
        start: int = 0,
    ) -> None:
        if not sentences or any(language not in ACCENTS or not s for language, s in sentences.items()):
            raise DataError(
                f"sentences are needed for some of {', '.join(ACCENTS)}, not {', '.join(sentences)}"
            )
        if not 0 <= non_speech_share < 1:
            raise OptionError(f"non_speech_share must lie in [0, 1), not {non_speech_share}")
        if not max_duration_s > 0:
            raise OptionError(f"max_duration_s must be above 0, not {max_duration_s}")
        self._sentences = {language: sentences[language] for language in sorted(sentences)}
        self._languages = tuple(self._sentences)
        self._seed = seed
        self._non_speech_share = non_speech_share
        self._max_duration_s = max_duration_s
        self._n = n
        self._start = start
        self._synthesizer = Synthesizer(split, recorded_share=recorded_share, augmentation=augmentation)

    def utterance(self, i: int) -> Utterance:
        """Utterance i of the stream.

        Raises:
            DataError: If an engine is missing, or no sentence drawn could be said within ``max_duration_s``.
        """
        rng = np.random.default_rng((self._seed, i))
        language = self._languages[int(rng.integers(len(self._languages)))]
        is_speech = rng.random() >= self._non_speech_share
        error: DataError | None = None
        for _ in range(_MAX_REDRAWS):
            choices = self._sentences[language]
            text = choices[int(rng.integers(len(choices)))] if is_speech else ""
            try:
                utterance = self._synthesizer.say(text, language, rng)
            except DataError as reason:
                error = reason
                continue
            if utterance.duration_s <= self._max_duration_s:
                return utterance
        reason_text = error or f"all are longer than {self._max_duration_s:g} s"
        raise DataError(
            f"{_MAX_REDRAWS} sentences of {language!r} in a row could not be used: {reason_text}"
        ) from error

    def __iter__(self) -> Iterator[Utterance]:
        worker = get_worker_info()
        i, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while self._n is None or i < self._n:
            yield self.utterance(self._start + i)
            i += step
