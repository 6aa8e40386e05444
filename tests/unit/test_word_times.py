"""Words of whole transcripts: asked for and not, in batches and alone, by every way of decoding."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_clips import tones
from numpy.typing import NDArray
from small_models import TINY, small_model

import canvas_asr
from canvas_asr import OptionError, Transcriber, Transcript, Word
from canvas_asr.audio import load_audio
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

RATE_HZ = 16_000
EXAMPLES = Path(__file__).parents[2] / "examples"
EMBEDDED = pytest.mark.skipif(
    not (TINY / "model.safetensors").is_file(), reason="the embedded model has no weights yet"
)


@pytest.fixture(scope="module")
def asr(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    return Transcriber(model, processor)


@pytest.fixture(scope="module")
def clips() -> list[NDArray[np.float32]]:
    return [tones(seconds, seed) for seed, seconds in enumerate((1.3, 0.3, 2.0))]


def check(transcript: Transcript) -> None:
    """Words have all of the text, in order, inside the clip."""
    assert transcript.words is not None
    shown = " ".join(word.text for word in transcript.words)
    assert "".join(shown.split()) == "".join(transcript.text.split())
    assert all(0 <= word.start < word.end <= transcript.audio_s for word in transcript.words)
    assert all(before.end <= after.start for before, after in pairwise(transcript.words))


def without_words(transcript: Transcript) -> Transcript:
    segments = tuple(replace(segment, words=None) for segment in transcript.segments)
    return replace(transcript, words=None, segments=segments, seconds=0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 2},
        {"init": "draft", "steps": 0},
        {"init": "draft", "steps": 1, "gate": 1e-6},
        {"steps": 1, "candidates": 2},
        {"init": "draft", "steps": 1, "canvas": "auto"},
    ],
)
def test_words_are_those_of_the_text_in_a_batch_as_alone(
    asr: Transcriber, clips: list[NDArray[np.float32]], options: dict[str, Any]
) -> None:
    together = asr.transcribe_arrays(clips, word_timestamps=True, **options)
    plain = asr.transcribe_arrays(clips, **options)
    for clip, transcript, without in zip(clips, together, plain, strict=True):
        check(transcript)
        assert without.words is None
        assert without_words(transcript) == replace(without, seconds=0.0)
        alone = asr.transcribe((clip, RATE_HZ), word_timestamps=True, **options)
        assert [(w.text, w.start, w.end) for w in alone.words] == [
            (w.text, w.start, w.end) for w in transcript.words
        ]
    assert any(transcript.words for transcript in together)


def test_audio_by_spikes_and_posteriors_has_words_too(
    processor: CanvasASRProcessor, clips: list[NDArray[np.float32]]
) -> None:
    model = small_model(audio_positions="spikes", audio_embeddings="posterior")
    check(Transcriber(model, processor).transcribe((clips[0], RATE_HZ), steps=2, word_timestamps=True))


def test_no_samples_are_no_words(asr: Transcriber) -> None:
    empty = asr.transcribe((np.zeros(0, np.float32), RATE_HZ), word_timestamps=True)
    assert (empty.words, empty.text) == ((), "")
    assert asr.transcribe((np.zeros(0, np.float32), RATE_HZ)).words is None


def test_what_cannot_be_followed_is_said_before(processor: CanvasASRProcessor) -> None:
    deaf = Transcriber(small_model(has_draft=False), processor)
    with pytest.raises(OptionError, match="word_timestamps=True needs a CTC draft"):
        deaf.transcribe((np.zeros(RATE_HZ, np.float32), RATE_HZ), word_timestamps=True)
    with pytest.raises(OptionError, match="word_timestamps is 'yes'; give True or False"):
        deaf.transcribe((np.zeros(RATE_HZ, np.float32), RATE_HZ), word_timestamps="yes")


def test_words_are_checked_and_written() -> None:
    word = Word("Tag.", 0.5, 0.75, 0.9)
    assert word.to_dict() == {"text": "Tag.", "start": 0.5, "end": 0.75, "confidence": 0.9}
    transcript = Transcript("Tag.", "de", 1.0, (), 0.9, 1, 1.0, 0.1, words=[word])
    assert transcript.words == (word,)
    assert json.loads(json.dumps(transcript.to_dict()))["words"] == [word.to_dict()]
    for wrong in ((-0.1, 0.5, 0.5), (0.5, 0.4, 0.5), (0.0, 0.1, 1.1), (0.0, float("inf"), 0.5)):
        with pytest.raises(ValueError, match="Word"):
            Word("a", *wrong)


@pytest.fixture(scope="module")
def tiny() -> Transcriber:
    return canvas_asr.load("tiny", device="cpu")


@EMBEDDED
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_first_word_behind_silence_is_where_it_was(tiny: Transcriber, language: str) -> None:
    speech = load_audio(EXAMPLES / f"{language}.flac")
    behind = np.concatenate([np.zeros(10 * RATE_HZ, np.float32), speech])
    plain, late = tiny.transcribe_arrays([speech, behind], init="draft", steps=0, word_timestamps=True)
    check(plain)
    check(late)
    assert len(plain.words) > 2
    assert abs(late.words[0].start - 10 - plain.words[0].start) <= 0.3
    if language == "zh":
        assert all(sum(character.isalpha() for character in word.text) == 1 for word in plain.words)
