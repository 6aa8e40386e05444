"""Languages found: a probability of each, clip by clip and chunk by chunk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_clips import tones

import canvas_asr
from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.languages import LANGUAGES
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Segment, Transcript
from canvas_asr.transcriber import Transcriber

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def transcriber(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    return Transcriber(model, processor)


def test_every_language_has_a_probability(transcriber: Transcriber) -> None:
    (found,) = transcriber.transcribe_arrays([tones(1.0, 0)], steps=2)
    assert tuple(found.language_probabilities) == transcriber.languages == LANGUAGES
    assert sum(found.language_probabilities.values()) == pytest.approx(1)
    assert max(found.language_probabilities, key=found.language_probabilities.__getitem__) == found.language
    assert found.language_probabilities[found.language] == found.language_confidence
    written = json.loads(json.dumps(found.to_dict()))
    assert written["language_probabilities"] == found.language_probabilities


def test_a_language_that_is_given_is_certain_and_one_that_is_not_looked_for_unknown(
    transcriber: Transcriber,
) -> None:
    given = {language: float(language == "hi") for language in LANGUAGES}
    for options in ({"steps": 1}, {"init": "draft", "steps": 0}):
        (found,) = transcriber.transcribe_arrays([tones(1.0, 0)], language="hi", **options)
        assert (found.language, found.language_probabilities) == ("hi", given)
    (found,) = transcriber.transcribe_arrays([tones(1.0, 0)], init="draft", steps=0)
    assert (found.language, found.language_probabilities) == ("", {})


def test_results_are_hashable_and_their_probabilities_checked() -> None:
    fields = ("", "en", 0.5, (), 0.0, 1)
    found = Transcript(*fields, 1.0, 0.1, language_probabilities={"en": 0.5, "de": 0.5})
    assert hash(found) == hash(Transcript(*fields, 1.0, 0.1))
    with pytest.raises(ValueError, match=r"Transcript.language_probabilities\['de'\]"):
        Transcript(*fields, 1.0, 0.1, language_probabilities={"de": 1.5})
    with pytest.raises(ValueError, match=r"Segment.language_probabilities\['de'\]"):
        Segment(0.0, 1.0, *fields, language_probabilities={"de": -0.5})


def test_chunks_in_several_languages_get_their_own() -> None:
    """Loosely: the embedded model may mistake one or another."""
    order = ("zh", "en", "de", "zh", "hi", "en")
    asr = canvas_asr.load("tiny", device="cpu")
    clips = {language: asr.read(EXAMPLES / f"{language}.flac") for language in set(order)}
    found = asr.transcribe_arrays([clips[language] for language in order], init="draft", steps=1)
    assert sum(one.language == language for one, language in zip(found, order, strict=True)) >= 4
    assert len({one.language for one in found}) >= 3
    alone = asr.transcribe_arrays([clips["hi"]], init="draft", steps=1)[0]
    assert found[4].language_probabilities == pytest.approx(alone.language_probabilities, abs=1e-4)


def test_a_long_recording_gets_its_language_chunk_by_chunk() -> None:
    """Two languages, each for longer than a chunk may be."""
    asr = canvas_asr.load("tiny", device="cpu")
    pause = np.zeros(SAMPLE_RATE_HZ, np.float32)
    clips = {language: asr.read(EXAMPLES / f"{language}.flac") for language in ("en", "zh")}
    n_each = {language: round(14 * SAMPLE_RATE_HZ / len(clip)) for language, clip in clips.items()}
    parts = [part for language, clip in clips.items() for part in [clip, pause] * n_each[language]]
    found = asr.transcribe((np.concatenate(parts), SAMPLE_RATE_HZ), init="draft", steps=1)
    languages = [segment.language for segment in found.segments]
    assert languages[0] == "en"
    assert languages[-1] == "zh"
    for segment in found.segments:
        assert segment.language_probabilities[segment.language] == segment.language_confidence
    assert set(found.language_probabilities) == set(LANGUAGES)
    assert sum(found.language_probabilities.values()) == pytest.approx(1)
