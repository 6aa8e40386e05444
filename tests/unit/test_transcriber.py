"""What a transcriber makes of files, arrays and lists, with random weights."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from made_up_clips import tones
from numpy.typing import NDArray
from small_models import small_model, small_processor

from canvas_asr import AudioError, OptionError, Transcriber
from canvas_asr.evaluation.modes import Recogniser
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

RATE_HZ = 16_000
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def asr(model: CanvasASRModel, processor: CanvasASRProcessor) -> Transcriber:
    return Transcriber(model, processor)


@pytest.fixture(scope="module")
def clips() -> list[Samples]:
    return [tones(seconds, seed) for seed, seconds in enumerate((1.3, 0.4, 2.0, 0.9, 0.41))]


def contents(transcripts: Any) -> list[Any]:
    """Transcripts without the time they took and the file they came from."""
    return [replace(transcript, seconds=0.0, file=None) for transcript in transcripts]


# What comes back


def test_a_clip_has_text_tokens_language_and_cost(asr: Transcriber, clips: list[Samples]) -> None:
    transcript = asr.transcribe((clips[0], RATE_HZ), steps=3)
    assert transcript.text == "".join(token.text for token in transcript.tokens).strip()
    assert transcript.tokens
    assert transcript.confidence == pytest.approx(np.mean([t.confidence for t in transcript.tokens]))
    assert transcript.language in asr.languages
    assert 0 < transcript.language_confidence < 1
    assert transcript.passes == 3
    assert transcript.audio_s == pytest.approx(1.3)
    assert transcript.seconds > 0
    assert transcript.draft is not None
    assert transcript.file is None


def test_a_file_gives_what_its_samples_give(asr: Transcriber, clips: list[Samples], tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    sf.write(path, clips[0], RATE_HZ, subtype="FLOAT")
    by_path, by_name = asr.transcribe(path, steps=2), asr.transcribe(str(path), steps=2)
    by_rate = asr.transcribe(clips[0], steps=2, sample_rate_hz=RATE_HZ)
    assert by_path.file == by_name.file == str(path)
    assert contents([by_path, by_name]) == contents([by_rate]) * 2


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_neither_batch_nor_place_changes_a_transcript(
    asr: Transcriber, clips: list[Samples], batch_size: int
) -> None:
    alone = [asr.transcribe((clip, RATE_HZ), steps=4) for clip in clips]
    sources = [(clip, RATE_HZ) for clip in clips]
    together = asr.transcribe(sources, steps=4, batch_size=batch_size)
    backwards = asr.transcribe(sources[::-1], steps=4, batch_size=batch_size)[::-1]
    for other in (together, backwards):
        assert [t.text for t in other] == [t.text for t in alone]
        assert [[x.id for x in t.tokens] for t in other] == [[x.id for x in t.tokens] for t in alone]
        assert [t.draft for t in other] == [t.draft for t in alone]
        assert [t.audio_s for t in other] == [t.audio_s for t in alone]


def test_batches_hold_clips_of_similar_length(
    asr: Transcriber, clips: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []

    def spy(waves: list[Samples]) -> Any:
        batches.append([len(wave) / RATE_HZ for wave in waves])
        return CanvasASRProcessor.features(asr.processor, waves)

    monkeypatch.setattr(asr.decoder, "features", spy)
    asr.transcribe([(clip, RATE_HZ) for clip in clips], steps=1, batch_size=2)
    assert batches == [pytest.approx([0.4, 0.41]), pytest.approx([0.9, 1.3]), pytest.approx([2.0])]


def test_the_seed_decides_the_noise(asr: Transcriber, clips: list[Samples]) -> None:
    first, again, other = (asr.transcribe((clips[0], RATE_HZ), steps=2, seed=seed) for seed in (1, 1, 2))
    assert contents([first]) == contents([again])
    assert first.tokens != other.tokens
    assert first.draft == other.draft


def test_a_copy_for_another_process_transcribes_the_same(asr: Transcriber, clips: list[Samples]) -> None:
    copy = pickle.loads(pickle.dumps(asr))
    assert contents([copy.transcribe((clips[0], RATE_HZ))]) == contents([asr.transcribe((clips[0], RATE_HZ))])


def test_threads_that_share_a_transcriber_get_the_same_texts(asr: Transcriber, clips: list[Samples]) -> None:
    """Without a lock some of them are wrong, in silence."""
    alone = contents([asr.transcribe((clip, RATE_HZ)) for clip in clips])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(lambda clip: asr.transcribe((clip, RATE_HZ)), clips * 6))
    finally:
        sys.setswitchinterval(interval)
    assert contents(found) == alone * 6


def test_a_given_language_is_kept(asr: Transcriber, clips: list[Samples]) -> None:
    for language in asr.languages:
        transcript = asr.transcribe((clips[0], RATE_HZ), language, steps=1)
        assert (transcript.language, transcript.language_confidence) == (language, 1.0)


def test_the_time_of_a_batch_is_shared_evenly(asr: Transcriber, clips: list[Samples]) -> None:
    shares = [t.seconds for t in asr.transcribe([(clip, RATE_HZ) for clip in clips], steps=1)]
    assert len(set(shares)) == 1
    assert shares[0] > 0


def test_zero_samples_are_an_empty_transcript_without_running_the_model(
    asr: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr.model, "audio_tokens", None)
    silent = asr.transcribe((np.zeros(0, np.float32), 44_100))
    assert (silent.text, silent.tokens, silent.passes, silent.audio_s) == ("", (), 0, 0.0)
    assert (silent.language, silent.language_confidence, silent.truncated) == ("", 0.0, False)
    assert asr.transcribe((np.zeros(0, np.float32), 44_100), "de").language == "de"


def test_zero_samples_keep_their_place_in_a_list(asr: Transcriber, clips: list[Samples]) -> None:
    sources = [(clips[0], RATE_HZ), (np.zeros(0, np.float32), RATE_HZ), (clips[1], RATE_HZ)]
    assert [t.audio_s for t in asr.transcribe(sources, steps=1)] == pytest.approx([1.3, 0.0, 0.4])
    assert asr.transcribe([]) == []


def test_the_callback_sees_every_pass_of_every_clip(asr: Transcriber, clips: list[Samples]) -> None:
    seen: dict[int, list[tuple[int, str]]] = {}
    transcripts = asr.transcribe(
        [(clip, RATE_HZ) for clip in clips],
        steps=3,
        batch_size=2,
        on_pass=lambda place, step, text: seen.setdefault(place, []).append((step, text)),
    )
    assert sorted(seen) == list(range(len(clips)))
    for place, passes in seen.items():
        assert [step for step, _ in passes] == [1, 2, 3]
        assert passes[-1][1] == transcripts[place].text


# The draft


def test_no_pass_from_the_draft_is_the_draft(asr: Transcriber, clips: list[Samples]) -> None:
    transcript = asr.transcribe((clips[2], RATE_HZ), init="draft", steps=0)
    assert transcript.text == transcript.draft != ""
    assert transcript.passes == 0
    assert all(0 < token.confidence < 1 for token in transcript.tokens)
    assert transcript.text == "".join(token.text for token in transcript.tokens).strip()


def test_a_pass_from_the_draft_needs_no_noise(asr: Transcriber, clips: list[Samples]) -> None:
    first, other = (asr.transcribe((clips[0], RATE_HZ), "en", 1, init="draft", seed=seed) for seed in (1, 2))
    assert first.tokens == other.tokens
    assert first.passes == 1


# A text that fills its canvas


def test_a_text_without_end_is_truncated(
    asr: Transcriber, clips: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = asr.decoder.vocabulary.text.clone()
    text[asr.decoder.vocabulary.eos] = False
    monkeypatch.setattr(asr.decoder, "vocabulary", replace(asr.decoder.vocabulary, text=text))
    transcript = asr.transcribe((clips[0], RATE_HZ), steps=2, canvas=12)
    assert transcript.truncated
    assert len(transcript.tokens) == 11  # and the language tag


def test_a_canvas_of_end_tokens_is_no_speech(
    asr: Transcriber, clips: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = torch.zeros_like(asr.decoder.vocabulary.text)
    text[asr.decoder.vocabulary.eos] = True
    monkeypatch.setattr(asr.decoder, "vocabulary", replace(asr.decoder.vocabulary, text=text))
    transcript = asr.transcribe((clips[0], RATE_HZ), steps=2)
    assert (transcript.text, transcript.tokens, transcript.confidence) == ("", (), 0.0)
    assert not transcript.truncated


# Limits and options


@pytest.fixture(scope="module")
def short_asr() -> Transcriber:
    return Transcriber(small_model(max_audio_s=1.0), small_processor())


def test_a_clip_of_the_limit_is_read_at_once_and_a_longer_one_is_not(short_asr: Transcriber) -> None:
    assert short_asr.transcribe((tones(1.0, 0), RATE_HZ), steps=1).audio_s == 1.0
    exact = np.zeros(11_025, np.float32)
    assert short_asr.transcribe((exact, 11_025), steps=1).audio_s == pytest.approx(1.0, abs=1e-3)
    assert len(short_asr.read((tones(1.0, 0), RATE_HZ))) == RATE_HZ
    with pytest.raises(
        AudioError, match=r"the array: 1\.2 s of audio, and this model takes at most 1 s at once"
    ):
        short_asr.read((tones(1.2, 0), RATE_HZ))


def test_no_clip_is_longer_than_the_audio_encoder() -> None:
    asr = Transcriber(small_model(max_audio_s=600.0), small_processor())
    assert asr.max_audio_s == 30.0
    assert asr.transcribe((np.zeros(30 * RATE_HZ, np.float32), RATE_HZ), steps=1).audio_s == 30.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -1, "init": "draft"}, "steps is -1"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number"),
        ({"steps": "8"}, "steps is '8'; give a whole number"),
        ({"language": "tlh"}, "language is 'tlh'; this model knows "),
        ({"language": ""}, "language is ''"),
        ({"language": ["de"]}, r"language is \['de'\]"),
        ({"init": "guess"}, "init is 'guess'; choose one of noise, draft"),
        ({"init": "guess", "steps": 0}, "init is 'guess'|steps is 0"),
        ({"canvas": 65}, "canvas is 65 tokens; this model allows at most 64"),
        ({"canvas": 1}, "canvas is 1 tokens"),
        ({"canvas": 1, "init": "draft", "steps": 0}, "canvas is 1 tokens"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
    ],
)
def test_a_wrong_option_is_named_before_audio_is_read(
    asr: Transcriber, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        asr.transcribe("no/such/file.wav", **options)
    with pytest.raises(OptionError, match=message):
        asr.transcribe_files(["no/such/file.wav"], **options)


def test_a_bad_item_of_a_list_is_named(asr: Transcriber, clips: list[Samples]) -> None:
    with pytest.raises(AudioError, match=r"^item 1 of the list: the array: sample 7 is NaN"):
        asr.transcribe([(clips[0], RATE_HZ), (np.where(np.arange(99) == 7, np.nan, 0.0), RATE_HZ)])
    with pytest.raises(AudioError, match="item 0 of the list: an array does not say its sample rate"):
        asr.transcribe([clips[0]])
    with pytest.raises(AudioError, match=r"^no/such/file\.wav: no such file"):
        asr.transcribe([(clips[0], RATE_HZ), "no/such/file.wav"])


# Files as they come


def test_files_that_cannot_be_read_leave_the_others_alone(
    asr: Transcriber, clips: list[Samples], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.wav" for i in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        sf.write(path, clip, RATE_HZ, subtype="FLOAT")
    paths[1].write_bytes(b"")
    paths[4].unlink()
    found = list(asr.transcribe_files(paths, steps=2, batch_size=2))
    assert [isinstance(one, AudioError) for one in found] == [False, True, False, False, True]
    assert "1.wav: the file is empty" in str(found[1])
    assert "4.wav: no such file" in str(found[4])
    good = [0, 2, 3]
    assert [found[i].file for i in good] == [str(paths[i]) for i in good]  # type: ignore[union-attr]
    alone = [asr.transcribe(paths[i], steps=2) for i in good]
    assert [t.text for t in alone] == [found[i].text for i in good]  # type: ignore[union-attr]


def test_files_are_read_a_batch_at_a_time(asr: Transcriber, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    sf.write(path, tones(0.3, 0), RATE_HZ)
    n_taken = 0

    def paths() -> Iterator[Path]:
        nonlocal n_taken
        for _ in range(10):
            n_taken += 1
            yield path

    results = asr.transcribe_files(paths(), steps=1, batch_size=2)
    assert n_taken == 0
    next(results)
    assert n_taken == 2
    assert len(list(results)) == 9


# Evaluation's side


def test_arrays_are_what_evaluation_asks_for(asr: Transcriber, clips: list[Samples]) -> None:
    recogniser: Recogniser = asr
    read = recogniser.transcribe_arrays(clips, init="noise", steps=2, language=None, batch_size=3, seed=4)
    alone = [asr.transcribe((clip, RATE_HZ), steps=2, seed=4) for clip in clips]
    assert [t.text for t in read] == [t.text for t in alone]
    drafts = recogniser.transcribe_arrays(clips, init="draft", steps=0, language=None, batch_size=3, seed=4)
    assert [t.text for t in drafts] == [t.draft for t in alone]


# The text of tokens


@pytest.mark.parametrize(
    "text",
    [
        "The cat's hat, again.",
        "Größe ça señor",
        "यह एक अच्छा दिन है।",
        "我们今天去学校。",
        "a 🦜 flew to ꙮ and Ж!",
        "🦜🦜",
        "ꙮ",
        "",
    ],
)
def test_the_texts_of_tokens_join_to_the_text(processor: CanvasASRProcessor, text: str) -> None:
    ids = processor.text_ids(text)
    pieces = processor.token_texts(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_letter_break_nothing(processor: CanvasASRProcessor) -> None:
    parrot = processor.tokenizer.convert_tokens_to_ids(["<0xF0>", "<0x9F>", "<0xA6>", "<0x9C>"])
    hat = processor.text_ids("a hat")
    for ids in (parrot[:2], [*hat, *parrot[:3], *hat], [*parrot, *parrot[2:], *hat], [*hat, *parrot[1:]]):
        pieces = processor.token_texts(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == processor.tokenizer.decode(ids)


def test_random_tokens_join_to_their_text(processor: CanvasASRProcessor) -> None:
    rng = np.random.default_rng(0)
    special = set(processor.tokenizer.all_special_ids)
    for _ in range(50):
        ids = [int(i) for i in rng.integers(0, len(processor.tokenizer), 30) if int(i) not in special]
        assert "".join(processor.token_texts(ids)) == processor.tokenizer.decode(ids)
