"""Recordings of any length: nothing lost or doubled at seams, in order, in bounded memory, with progress.

Most tests put a stand-in in the place of the model: see ``one_sentence``.
"""

from __future__ import annotations

import tracemalloc
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from made_up_clips import tones
from one_sentence import RATE_HZ, LoudEnough, Samples, StandIn, check_progress, place

from canvas_asr import AudioError, OptionError, Transcriber, Transcript, load_audio
from canvas_asr.long_form import max_chunk_samples
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.vad import SileroDetector

EXAMPLES = Path(__file__).parents[2] / "examples"
CHUNK_S = 4.0  # what a canvas of 32 tokens is expected to hold


@pytest.fixture(scope="module")
def sentence() -> Samples:
    """A sentence without silence around it, 2 to 3 s."""
    samples = load_audio(EXAMPLES / "en.flac")
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    return samples[loud[0] : loud[-1] + 1]


@pytest.fixture
def asr(model: CanvasASRModel, processor: CanvasASRProcessor, monkeypatch: pytest.MonkeyPatch) -> Transcriber:
    """Takes clips of 5 s."""
    transcriber = Transcriber(model, processor)
    transcriber.max_audio_s = 5.0
    return transcriber


@pytest.fixture
def stand_in(asr: Transcriber, sentence: Samples, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    batch = StandIn(asr, sentence, lambda piece: "en")
    monkeypatch.setattr(asr.decoder, "open", lambda options: batch)
    monkeypatch.setattr("canvas_asr.recordings.SileroDetector", LoudEnough)
    nothing = torch.zeros(1)
    monkeypatch.setattr(asr.processor, "features", lambda waves: (nothing, nothing), raising=False)
    return batch


# Nothing is lost, nothing is doubled


def test_a_sentence_said_40_times_in_5_minutes_is_found_40_times(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvas_asr.recordings.SileroDetector", SileroDetector)
    rng = np.random.default_rng(1)
    pauses_s = rng.choice([0.15, 0.4, 0.7, 1.5, 6.0], 40, p=[0.1, 0.2, 0.2, 0.2, 0.3])
    length_s = len(sentence) / RATE_HZ
    starts_s = list(1.0 + np.cumsum(pauses_s + length_s) - length_s)
    sf.write(tmp_path / "a.flac", place(sentence, starts_s, 300.0), RATE_HZ)
    transcript = asr.transcribe(tmp_path / "a.flac", word_timestamps=True)
    assert transcript.audio_s == 300.0
    assert transcript.text.split() == ["Bread."] * 40
    found_s = [word.start for word in transcript.words or ()]
    assert found_s == pytest.approx(starts_s, abs=1e-3)
    assert all(piece.chunk.audio_s <= CHUNK_S for pieces in stand_in.joined for piece in pieces)
    ends = [0.0, *(segment.end for segment in transcript.segments)]
    for before, segment in zip(ends, transcript.segments, strict=False):
        assert before <= segment.start < segment.end <= 300.0
        assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words or ())
    assert transcript.words == tuple(word for segment in transcript.segments for word in segment.words or ())


def test_silence_gives_no_text(asr: Transcriber, stand_in: StandIn, sentence: Samples) -> None:
    transcript = asr.transcribe((place(sentence, [], 60.0), RATE_HZ))
    assert (transcript.text, transcript.segments, transcript.tokens) == ("", (), ())
    assert (transcript.audio_s, transcript.passes, stand_in.joined) == (60.0, 0, [])


def test_without_voice_activity_all_is_read(asr: Transcriber, stand_in: StandIn, sentence: Samples) -> None:
    transcript = asr.transcribe((place(sentence, [3.0, 9.5], 20.5), RATE_HZ), vad=False)
    pieces = sorted((piece for new in stand_in.joined for piece in new), key=lambda one: one.chunk.start)
    assert [piece.chunk.start for piece in pieces] == [0, *(piece.chunk.end for piece in pieces[:-1])]
    assert pieces[-1].chunk.end == 20.5 * RATE_HZ
    assert transcript.text == "Bread. Bread."


def test_a_text_that_fills_its_canvas_is_split_and_read_again(
    asr: Transcriber, stand_in: StandIn, sentence: Samples
) -> None:
    stand_in.longest_s = 1.2
    recording = place(sentence, [1.0, 5.0, 9.0], 13.0)
    transcript = asr.transcribe((recording, RATE_HZ), vad=False)
    read = [piece.chunk for new in stand_in.joined for piece in new if piece.chunk.audio_s <= 1.2]
    read.sort(key=lambda chunk: chunk.start)
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in read]), recording)
    assert len(read) > 10
    assert not transcript.truncated


def test_what_cannot_be_split_stays_marked(asr: Transcriber, stand_in: StandIn, sentence: Samples) -> None:
    stand_in.longest_s = 0.0
    assert asr.transcribe((place(sentence, [1.0], 8.0), RATE_HZ)).truncated


def test_a_corrupt_middle_is_a_gap_and_the_rest_is_read(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "a.flac"
    sf.write(path, place(sentence, [2.0, 18.0, 27.0], 32.0), RATE_HZ)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2  # by bytes, of which silence has few: in the second sentence
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    transcript = asr.transcribe(path, word_timestamps=True)
    assert [word.start for word in transcript.words or ()] == pytest.approx([2.0, 27.0], abs=1e-3)
    assert 17.5 < transcript.gaps[0].start < transcript.gaps[-1].end < 21.5
    assert transcript.audio_s == 32.0


# Files and lists


def test_files_share_batches_and_come_back_in_order(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, tmp_path: Path
) -> None:
    counts = [1, 6, 0, 3, 1]
    paths = [tmp_path / f"{i}.wav" for i in range(len(counts))]
    for path, n in zip(paths, counts, strict=True):
        seconds = 4.0 if n == 1 else 5.5 + 4.5 * n
        sf.write(path, place(sentence, [1.0 + 4.5 * i for i in range(n)], seconds), RATE_HZ)
    paths.insert(2, tmp_path / "missing.wav")
    told: list[tuple[float, float]] = []
    found = list(asr.transcribe_files(paths, batch_size=4, on_progress=lambda *now: told.append(now)))
    assert isinstance(found.pop(2), AudioError)
    assert [len(one.text.split()) for one in found] == counts  # type: ignore[union-attr]
    assert [one.file for one in found] == [str(tmp_path / f"{i}.wav") for i in range(len(counts))]  # type: ignore[union-attr]
    assert stand_in.most_held <= 4
    assert any(len({piece.recording for piece in new}) > 1 for new in stand_in.joined)
    check_progress(told, sum(one.audio_s for one in found))  # type: ignore[union-attr]


def test_a_list_of_short_and_long(asr: Transcriber, stand_in: StandIn, sentence: Samples) -> None:
    clips = [place(sentence, [1.0], 4.0), place(sentence, [1.0, 6.0], 12.0), place(sentence, [0.5], 3.5)]
    told: list[tuple[float, float]] = []
    found = asr.transcribe(
        [(clip, RATE_HZ) for clip in clips], on_progress=lambda *now: told.append(now), batch_size=2
    )
    assert [one.text for one in found] == ["Bread.", "Bread. Bread.", "Bread."]
    assert [one.audio_s for one in found] == [4.0, 12.0, 3.5]
    check_progress(told, 19.5)


def test_progress_of_a_file_of_unknown_number(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, place(sentence, [1.0, 9.0, 90.0], 120.0), RATE_HZ)
    told: list[tuple[float, float]] = []
    list(asr.transcribe_files(iter([path, path]), on_progress=lambda *now: told.append(now)))
    check_progress(told, 240.0)
    told.clear()
    asr.transcribe(tmp_path / "a.wav", on_progress=lambda *now: told.append(now), batch_size=1)
    check_progress(told, 120.0)
    assert sum(20 < now < 80 for now, _ in told) > 5  # silence counts as it is read


# Streaming


def test_segments_come_while_the_file_is_read(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, place(sentence, [1.0 + 4.5 * i for i in range(12)], 60.0), RATE_HZ)
    told: list[tuple[float, float]] = []
    segments = asr.stream_file(path, on_progress=lambda *now: told.append(now))
    first = next(segments)
    assert len(stand_in.joined) == 1  # one piece alone
    assert max(now for now, _ in told) < 10
    rest = list(segments)
    assert [first, *rest] == list(asr.transcribe(path).segments)
    check_progress(told, 60.0)


def test_memory_does_not_grow_with_the_file(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = place(sentence, [1.0 + 5 * i for i in range(11)], 60.0)

    class Endless:
        """In the place of a file of some minutes."""

        def __init__(self, path: str) -> None:
            self.duration_s, self.gaps = 60.0 * int(path), []

        def __iter__(self) -> Iterator[Samples]:
            for _ in range(int(self.duration_s / 60)):
                yield minute.copy()

    monkeypatch.setattr("canvas_asr.recording_reader.AudioStream", Endless)
    monkeypatch.setattr("canvas_asr.recording_reader.is_longer", lambda path, n_samples: True)
    monkeypatch.setattr(stand_in, "joined", deque(maxlen=1))  # which would keep the samples
    monkeypatch.setattr("canvas_asr.recordings.BLOCKS_AHEAD", 8)
    peaks = []
    for minutes in (2, 6):
        tracemalloc.start()
        assert sum(1 for _ in asr.stream_file(str(minutes))) == 11 * minutes
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2e6 < 40e6


def test_a_bad_file_is_refused_when_streaming_starts(asr: Transcriber, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        asr.stream_file(tmp_path / "none.wav")
    with pytest.raises(OptionError, match="steps is 0"):
        asr.stream_file(tmp_path / "none.wav", steps=0)


# Short clips


def test_a_short_clip_is_one_segment_and_what_it_was(asr: Transcriber) -> None:
    clip = tones(1.3, 0)
    transcript = asr.transcribe((clip, RATE_HZ), steps=2)
    (segment,) = transcript.segments
    assert (segment.start, segment.end, segment.text) == (0.0, transcript.audio_s, transcript.text)
    assert (segment.tokens, segment.language) == (transcript.tokens, transcript.language)
    batch = asr.decoder.open(DecodingOptions(steps=2))
    batch.add(*asr.processor.features([clip]), [0])
    while len(batch):
        batch.run_pass()
    ((_, decoded),) = batch.take()
    assert [token.id for token in transcript.tokens] == decoded.ids


def test_voice_activity_may_be_asked_for_in_a_short_clip(asr: Transcriber, sentence: Samples) -> None:
    assert asr.transcribe((tones(1.3, 0), RATE_HZ), steps=1).tokens
    assert not asr.transcribe((np.zeros(RATE_HZ, np.float32), RATE_HZ), steps=1, vad=True).tokens
    clip = place(sentence, [0.9], 4.5)
    segments = asr.transcribe((clip, RATE_HZ), steps=1, vad=True).segments
    assert 0.3 < segments[0].start < 0.9 < segments[-1].end < 4.5
    with pytest.raises(OptionError, match="vad is 'yes'"):
        asr.transcribe((clip, RATE_HZ), vad="yes")  # type: ignore[call-overload]


def test_callbacks_have_the_place_of_the_recording(asr: Transcriber, sentence: Samples) -> None:
    clips = [(tones(0.5, 0), RATE_HZ), (place(sentence, [1.0, 5.5], 9.0), RATE_HZ)]
    places, views = set(), set()
    asr.transcribe(
        clips,
        steps=2,
        on_pass=lambda place, step, text: places.add((place, step)),
        on_canvas=lambda view: views.add((view.place, view.step)),
    )
    assert places == views == {(0, 1), (0, 2), (1, 1), (1, 2)}


# Chunks and languages


def test_the_language_is_found_chunk_by_chunk(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "_language", lambda piece: "de" if 3 < piece.chunk.start_s < 8 else "zh")
    transcript = asr.transcribe((place(sentence, [0.5, 5.0, 9.5, 14.0], 20.0), RATE_HZ))
    assert [segment.language for segment in transcript.segments] == ["zh", "de", "zh", "zh"]
    assert transcript.language == "zh"
    assert transcript.text == "Bread. Bread. Bread.Bread."


def test_chunks_are_no_longer_than_canvas_model_and_half_a_minute(asr: Transcriber) -> None:
    def longest_s(max_audio_s: float, **options: Any) -> float:
        return max_chunk_samples(asr.decoder, DecodingOptions(**options), max_audio_s) / RATE_HZ

    assert longest_s(30.0) == CHUNK_S
    assert longest_s(30.0, canvas="auto", init="draft") == 2 * CHUNK_S
    assert longest_s(30.0, canvas=16) == CHUNK_S / 2
    assert longest_s(1.5) == 1.5
    assert longest_s(40.0, init="draft", steps=0) == 30.0


def test_the_same_from_one_batch_size_to_another(asr: Transcriber, sentence: Samples) -> None:
    recording = place(sentence, [0.5, 4.0, 7.0], 10.0)
    one, eight = (
        asr.transcribe((recording, RATE_HZ), steps=2, batch_size=batch_size) for batch_size in (1, 8)
    )
    assert isinstance(one, Transcript)
    assert [s.text for s in one.segments] == [s.text for s in eight.segments]
    assert one.tokens
    assert [token.id for token in one.tokens] == [token.id for token in eight.tokens]


def test_results_do_not_wait_for_what_was_not_asked_for(
    asr: Transcriber, stand_in: StandIn, sentence: Samples, tmp_path: Path
) -> None:
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    sf.write(short, place(sentence, [1.0], 4.0), RATE_HZ)
    sf.write(long, place(sentence, [1.0 + 5 * i for i in range(30)], 160.0), RATE_HZ)
    results = asr.transcribe_files([short, long], batch_size=2)
    assert next(results).text == "Bread."  # type: ignore[union-attr]
    assert len(stand_in.joined) < 10
    assert isinstance(next(results), Transcript)
