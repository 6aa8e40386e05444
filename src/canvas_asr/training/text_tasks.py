"""Text tasks that teach a small backbone to read its prompt, before it ever hears anything.

    tasks = TextTasks(tokenizer, read_sentences("data/text").train, espeak_phonemes, seed=1)
    tasks.max_target_tokens = 16  # short sentences first, then longer
    for example in tasks: ...     # or torch.utils.data.DataLoader(tasks, ...)

The prompt holds, where audio tokens will stand, what a projector under CTC will one day resemble: the tokens
of a sentence with repeats, blanks and errors, or its phonemes. The target is the clean sentence. A backbone
that has not learned this ignores its prompt, and then learns to ignore audio too.

Shapes: none; every example is two lists of token ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from canvas_asr.errors import DataError, RecipeError
from canvas_asr.synthesis import chinese, espeak
from canvas_asr.synthesis.phonemes import PHONEMES, phoneme_index
from canvas_asr.synthesis.voices import voices
from canvas_asr.training.text_noise import Pieces, corrupt, ctc_like

Phonemize = Callable[[str, str], list[str]]

TASKS: Final = ("copy", "ctc", "phonemes", "mixed", "continuation", "empty")
REPAIR_ERROR_RATE: Final = 0.10
REPAIR_FRAMES_PER_TOKEN: Final = 2.0


@dataclass(frozen=True)
class TextExample:
    """One example.

    Attributes:
        prompt_ids: The whole prompt: ``<bos>``, the body, and ``<|transcribe|>`` (or ``<|continue|>``).
        target_ids: Language tag and text, without ``<eos>``; empty where the prompt holds no speech.
        language: Of the target; "" where there is none.
        task: One of ``TASKS``, or "repair".
    """

    prompt_ids: list[int]
    target_ids: list[int]
    language: str
    task: str


@dataclass(frozen=True)
class TextTaskOptions:
    """How often each task is drawn and how hard it is.

    Attributes:
        copy: Weight of clean tokens to the same tokens.
        ctc: Weight of a noisy CTC-like alignment to its text.
        phonemes: Weight of noisy phonemes to text; language and spelling are to be guessed.
        mixed: Weight of words given at random as phonemes or as text pieces.
        continuation: Weight of the first part of a sentence to the rest.
        empty: Weight of blanks and stray tokens to no text at all.
        max_error_rate: Errors per token are drawn for each example from 0 to this.
        clean_share: Share of the noisy examples without any error.
        min_frames: Least mean of audio tokens per text token, blanks included.
        max_frames: Greatest mean of audio tokens per text token.
        join_share: Share of examples of several sentences, as many as ``max_target_tokens`` leaves room for.
        short_share: Share of examples cut to one to three words of their sentence.
        stray_share: Share of the examples of ``empty`` that hold stray tokens. A backbone that reads real CTC
            readings takes one token among blanks for a word then, or for noise: it cannot do both.
    """

    copy: float = 0.10
    ctc: float = 0.40
    phonemes: float = 0.20
    mixed: float = 0.15
    continuation: float = 0.10
    empty: float = 0.05
    max_error_rate: float = 0.30
    clean_share: float = 0.15
    min_frames: float = 1.3
    max_frames: float = 3.0
    join_share: float = 0.10
    short_share: float = 0.0
    stray_share: float = 0.6

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            RecipeError: Naming the setting that is out of range.
        """
        for setting in fields(self):
            value = getattr(self, setting.name)
            shares = ("max_error_rate", "clean_share", "join_share", "short_share", "stray_share")
            if value < 0 or (setting.name in shares and value > 1):
                raise RecipeError(
                    f"text tasks: {setting.name} is {value}; it must lie in its range (see its help)"
                )
        if not sum(getattr(self, task) for task in TASKS) > 0:
            raise RecipeError("text tasks: every weight is 0; give at least one task a weight")
        if not 1 <= self.min_frames <= self.max_frames:
            raise RecipeError(
                f"text tasks: need 1 <= min_frames <= max_frames, not {self.min_frames}, {self.max_frames}"
            )


def repair_case(pieces: Pieces, text: str, language: str, seed: int = 0) -> TextExample:
    """Return the fixed measurement of stage (b): a sentence with 10 % wrong tokens, repeats and blanks.

    Every tenth token (rounded up or down at random) is replaced by any other text piece, and the sequence
    stretched to about two frames a token. The same sentence and seed always give the same case.
    """
    key = hashlib.sha1(f"{seed}/{language}/{text}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:8], "big"))
    ids = pieces.encode(text)
    wrong = list(ids)
    n_wrong = int(REPAIR_ERROR_RATE * len(ids) + rng.random())
    for position in rng.choice(len(ids), n_wrong, replace=False).tolist():
        wrong[position] = pieces.stray(ids[position], rng)
    body = ctc_like(wrong, rng, pieces.blank, REPAIR_FRAMES_PER_TOKEN)
    prompt = [pieces.bos, *body, pieces.transcribe]
    return TextExample(prompt, [pieces.tag(language), *ids], language, "repair")


def espeak_phonemes(text: str, language: str) -> list[str]:
    """Phonemes of a sentence by espeak-ng, Chinese through pinyin; none for a text without a reading.

    Raises:
        DataError: If the library is missing or the language has no voice.
    """
    if language == "zh":
        try:
            text = chinese.to_pinyin(text)
        except DataError:
            return []
    symbols = espeak.text_to_phonemes(text, voices(language, "train")[0])
    return [PHONEMES[phoneme_index(symbol)] for symbol in symbols]


@dataclass(frozen=True)
class _Sentences:
    """Sentences of one language, shortest first: texts, and token ids end to end."""

    texts: list[str]
    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], pieces: Pieces) -> _Sentences:
        rows: list[list[int]] = pieces.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        lengths = np.array([len(rows[i]) for i in order])
        ids = np.array([token for i in order for token in rows[i]], np.int32)
        return cls([texts[i] for i in order], ids, np.cumsum(lengths), lengths)

    def n_within(self, n_tokens: int) -> int:
        """Count the sentences of at most so many tokens."""
        return int(np.searchsorted(self.lengths, n_tokens, side="right"))

    def __getitem__(self, index: int) -> tuple[list[int], str]:
        end = int(self.ends[index])
        ids: list[int] = self.ids[end - int(self.lengths[index]) : end].tolist()
        return ids, self.texts[index]


class TextTasks(IterableDataset[TextExample]):
    """An endless stream of text tasks, languages in equal parts.

    Example ``i`` depends on the seed, ``i`` and ``max_target_tokens`` alone; data-loader workers share the
    numbers out among themselves. A resumed run passes ``start`` to go on where it stopped.

    Args:
        tokenizer: Made by ``train_tokenizer``.
        sentences: Cleaned training sentences by language.
        phonemize: Gives the IPA symbols of (text, language), as ``espeak_phonemes`` does; with None, the
            tasks that need it are left out.
        options: Weights and noise.
        seed: Of everything drawn.
        start: Number of the first example.

    Raises:
        DataError: If a language has no sentence or no tag, or the tokenizer lacks a special token.
        RecipeError: If no task is left without ``phonemize``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sentences: Mapping[str, Sequence[str]],
        phonemize: Phonemize | None,
        options: TextTaskOptions | None = None,
        seed: int = 0,
        start: int = 0,
    ) -> None:
        self.pieces = Pieces(tokenizer)
        self.options = options or TextTaskOptions()
        self.seed, self.start = seed, start
        self._phonemize = phonemize
        self._languages = tuple(sentences)
        if empty := [language for language, texts in sentences.items() if not texts]:
            raise DataError(f"no sentences for {', '.join(empty)}; leave the language out or give it some")
        if not sentences:
            raise DataError("no sentences in any language")
        self._sentences = {
            language: _Sentences.of(texts, self.pieces) for language, texts in sentences.items()
        }
        self._tags = {language: self.pieces.tag(language) for language in sentences}
        self._tasks = [t for t in TASKS if phonemize is not None or t not in ("phonemes", "mixed")]
        weights = np.array([getattr(self.options, task) for task in self._tasks])
        if weights.sum() == 0:
            raise RecipeError("text tasks: only tasks from phonemes have weight, and no phonemizer was given")
        self._bounds = np.cumsum(weights / weights.sum())
        self._word_phonemes: dict[tuple[str, str], list[int]] = {}
        # Shared memory: a curriculum set in the training process reaches workers that already run.
        longest = max(int(store.lengths[-1]) for store in self._sentences.values())
        self._max_target_tokens = torch.tensor([longest + 1])
        self._max_target_tokens.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def max_target_tokens(self) -> int:
        """Longest target drawn, language tag included; longer than any sentence leaves room to join some."""
        return int(self._max_target_tokens)

    @max_target_tokens.setter
    def max_target_tokens(self, value: int) -> None:
        for language, store in self._sentences.items():
            if store.n_within(value - 1) == 0:
                shortest = int(store.lengths[0]) + 1
                raise RecipeError(f"max_target_tokens {value}: the shortest {language} target has {shortest}")
        self._max_target_tokens[0] = value

    def __iter__(self) -> Iterator[TextExample]:
        worker = get_worker_info()
        index = self.start + (worker.id if worker else 0)
        while True:
            yield self.example(index)
            index += worker.num_workers if worker else 1

    def example(self, index: int) -> TextExample:
        """Return one example of the stream by its number."""
        rng = np.random.default_rng([self.seed, index])
        language = self._languages[rng.integers(len(self._languages))]
        ids, text = self._draw(language, rng)
        return self._make(ids, text, language, rng, self._draw_task(rng))

    def make(
        self, text: str, language: str, rng: np.random.Generator, task: str | None = None
    ) -> TextExample:
        """Make an example of a given sentence, by a task that is drawn or given.

        A task that a sentence cannot serve becomes another: no phonemes (a character without a reading) gives
        ``ctc``, a single word to continue gives ``copy``.

        Raises:
            RecipeError: If the task is unknown or needs a phonemizer that was not given.
            DataError: If the text is empty or the language has no tag.
        """
        ids = self.pieces.encode(text)
        if not ids:
            raise DataError("a text task needs a text that is not empty")
        if task is not None and task not in self._tasks:
            raise RecipeError(f"text task {task!r} is not one of {', '.join(self._tasks)}")
        return self._make(ids, text, language, rng, task or self._draw_task(rng))

    def _draw_task(self, rng: np.random.Generator) -> str:
        return self._tasks[
            min(int(np.searchsorted(self._bounds, rng.random(), "right")), len(self._tasks) - 1)
        ]

    def _draw(self, language: str, rng: np.random.Generator) -> tuple[list[int], str]:
        """Draw a sentence, or several joined, within ``max_target_tokens``."""
        store = self._sentences[language]
        room = self.max_target_tokens - 1
        ids, text = store[int(rng.integers(store.n_within(room)))]
        if rng.random() < self.options.join_share:
            while n := store.n_within(room - len(ids)):
                more, more_text = store[int(rng.integers(n))]
                # A first word has its "▁" already: these are the pieces of the joined text.
                ids, text = ids + more, text + ("" if language == "zh" else " ") + more_text
                if rng.random() < 0.3:
                    break
        return ids, text

    def _make(
        self, ids: list[int], text: str, language: str, rng: np.random.Generator, task: str
    ) -> TextExample:
        pieces = self.pieces
        body: list[int] = []
        if self.options.short_share and rng.random() < self.options.short_share:
            ids = self._some_words(ids, language, rng)
            text = str(pieces.tokenizer.decode(ids)).strip()
        if task == "empty":
            body = self._no_speech(len(ids), rng)
            return TextExample([pieces.bos, *body, pieces.transcribe], [], "", task)
        target, end = ids, pieces.transcribe
        if task == "continuation":
            groups = pieces.words(ids, language)
            if len(groups) > 1:
                cut = sum(map(len, groups[: int(rng.integers(1, len(groups)))]))
                body, target, end = ids[:cut], ids[cut:], pieces.continuation
            else:
                task = "copy"
        elif task == "phonemes":
            body = self._phonemes(text, language)
            task = task if body else "ctc"
        elif task == "mixed":
            body = self._mixed(ids, language, rng)
        if task in ("copy", "ctc"):
            body = ids
        if task in ("ctc", "phonemes", "mixed"):
            body = self._noisy(body, rng)
        return TextExample([pieces.bos, *body, end], [pieces.tag(language), *target], language, task)

    def _noisy(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """Give tokens errors and the look of a CTC alignment."""
        options = self.options
        rate = options.max_error_rate * rng.random() if rng.random() >= options.clean_share else 0.0
        # Phonemes are about as many as frames: a token of text has two, so they get half the room each.
        share = sum(token in self.pieces.is_phoneme for token in ids) / len(ids)
        frames = rng.uniform(options.min_frames, options.max_frames) * (1 - 0.5 * share)
        return ctc_like(corrupt(ids, rate, self.pieces, rng), rng, self.pieces.blank, max(1.0, frames))

    def _phonemes(self, text: str, language: str) -> list[int]:
        if self._phonemize is None:
            return []
        return [self.pieces.phoneme(symbol) for symbol in self._phonemize(text, language)]

    def _mixed(self, ids: list[int], language: str, rng: np.random.Generator) -> list[int]:
        """Replace words by their phonemes, a share of them that differs from sentence to sentence."""
        words = self.pieces.words(ids, language)
        spoken = rng.random(len(words)) < rng.uniform(0.2, 0.8)
        body: list[int] = []
        for word, as_phonemes in zip(words, spoken.tolist(), strict=True):
            if not as_phonemes:
                body += word
                continue
            key = (language, self.pieces.spell(word))
            if (phonemes := self._word_phonemes.get(key)) is None:
                phonemes = self._word_phonemes[key] = self._phonemes(key[1], language)
            body += phonemes or word  # a dash or a character without a reading stays as it is
        return body

    def _some_words(self, ids: list[int], language: str, rng: np.random.Generator) -> list[int]:
        """Cut out one to three words that stand together."""
        words = self.pieces.words(ids, language)
        first = int(rng.integers(len(words)))
        return [token for word in words[first : first + int(rng.integers(1, 4))] for token in word]

    def _no_speech(self, n_tokens: int, rng: np.random.Generator) -> list[int]:
        """Blanks with few or no stray pieces or phonemes, as many as ``n_tokens`` of speech would give."""
        most = max(8, round(self.options.max_frames * n_tokens))
        body = np.full(int(rng.integers(3, most)), self.pieces.blank)
        if rng.random() < self.options.stray_share:
            stray = np.flatnonzero(rng.random(len(body)) < rng.uniform(0, 0.1))
            pool = self.pieces.phoneme_ids if rng.random() < 0.3 else self.pieces.text_ids
            body[stray] = pool[rng.integers(len(pool), size=len(stray))]
        ids: list[int] = body.tolist()
        return ids
