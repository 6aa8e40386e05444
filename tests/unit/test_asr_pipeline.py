"""``pipeline("automatic-speech-recognition")``: ours for our models, the stock one for all others."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hub_layout import write_whisper
from made_up_clips import tones
from small_models import small_model, small_processor
from transformers import (
    AutoFeatureExtractor,
    AutomaticSpeechRecognitionPipeline,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperForConditionalGeneration,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from canvas_asr import AudioError, CanvasASRPipeline, OptionError, Transcriber, load_audio
from canvas_asr.options import DecodingOptions
from canvas_asr.pipeline import _OPTIONS

TASK = "automatic-speech-recognition"
RATE_HZ = 16_000
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model()
    model.processor = small_processor()
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def recognise(folder: Path) -> Any:
    return pipeline(TASK, model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def asr(recognise: Any) -> Transcriber:
    return Transcriber(recognise.model, recognise.processor)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.wav") for i in range(3)]
    for seed, path in enumerate(paths):
        sf.write(path, tones(0.4 + 0.3 * seed, seed), RATE_HZ, subtype="FLOAT")
    return paths


def test_every_option_of_decoding_is_one_of_the_pipeline(
    recognise: Any, asr: Transcriber, files: list[str]
) -> None:
    theirs = {"num_steps": 2, "init": "draft", "canvas_length": "auto", "fusion": 0.5, "seed": 4}
    ours = {"steps": 2, "init": "draft", "canvas": "auto", "fusion": 0.5, "seed": 4}
    assert recognise(files[0], generate_kwargs=theirs)["text"] == asr.transcribe(files[0], **ours).text
    options = set(_OPTIONS.values())
    assert options == {field.name for field in fields(DecodingOptions)}
    with pytest.raises(OptionError, match="fusoin: no option of this pipeline; it has num_steps, init"):
        recognise(files[0], fusoin=1)


def test_a_folder_gets_our_pipeline(recognise: Any) -> None:
    assert type(recognise) is CanvasASRPipeline
    assert recognise.task == TASK
    assert "CanvasASRPipeline" in repr(recognise)


def test_a_model_gets_our_pipeline(asr: Transcriber, files: list[str]) -> None:
    processor = asr.processor
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    by_parts = pipeline(TASK, model=asr.model, device="cpu", **parts)
    alone = pipeline(TASK, model=asr.model, device="cpu", pipeline_class=CanvasASRPipeline)
    assert type(by_parts) is type(alone) is CanvasASRPipeline
    assert by_parts(files[0], num_steps=1) == alone(files[0], num_steps=1)


def test_files_arrays_bytes_and_dictionaries_give_the_same(
    recognise: Any, asr: Transcriber, files: list[str]
) -> None:
    transcript = asr.transcribe(files[0], steps=2)
    expected = {"text": transcript.text, "language": transcript.language}
    samples, _ = sf.read(files[0], dtype="float32")
    given = {"raw": samples, "sampling_rate": RATE_HZ}
    for source in (
        files[0],
        Path(files[0]),
        Path(files[0]).read_bytes(),
        samples,
        (samples, RATE_HZ),
        given,
        {"array": samples, "sampling_rate": RATE_HZ, "path": None},
    ):
        assert recognise(source, generate_kwargs={"num_steps": 2}) == expected
    assert set(given) == {"raw", "sampling_rate"}  # the stock one empties it


def test_other_rates_are_resampled(recognise: Any) -> None:
    samples = np.repeat(tones(0.5, 1), 2)
    assert recognise.preprocess({"raw": samples, "sampling_rate": 2 * RATE_HZ})["source"].shape == (8000,)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lists_and_generators_keep_their_order(
    recognise: Any, asr: Transcriber, files: list[str], batch_size: int
) -> None:
    expected = [t.text for t in asr.transcribe(list(files), steps=2)]
    found = recognise(files, batch_size=batch_size, num_steps=2)
    assert [one["text"] for one in found] == expected
    streamed = recognise((path for path in files), batch_size=batch_size, num_steps=2)
    assert [one["text"] for one in streamed] == expected
    assert recognise([]) == []


def test_options_may_be_given_once_for_all_calls(asr: Transcriber, files: list[str]) -> None:
    german = CanvasASRPipeline(asr.model, device="cpu", generate_kwargs={"language": "de"}, num_steps=1)
    assert german(files[0]) == {"text": asr.transcribe(files[0], "de", 1).text, "language": "de"}
    assert german(files[0], generate_kwargs={"language": "fr"})["language"] == "fr"


def test_words_are_chunks_with_times(asr: Transcriber, recognise: Any, files: list[str]) -> None:
    expected = asr.transcribe(files[0], steps=1, word_timestamps=True)
    assert expected.words
    found = recognise(files[0], num_steps=1, return_timestamps="word")
    assert found["text"] == expected.text
    assert found["chunks"] == [{"text": w.text, "timestamp": (w.start, w.end)} for w in expected.words]
    assert "chunks" not in recognise(files[0], num_steps=1)


@pytest.fixture
def long_file(recognise: Any, asr: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Is longer than the model takes: two sentences with a pause between them."""
    for transcriber in (recognise.transcriber, asr):
        monkeypatch.setattr(transcriber, "max_audio_s", 3.0)
    sentence = load_audio(EXAMPLES / "en.flac")
    pause = np.zeros(2 * RATE_HZ, np.float32)
    path = tmp_path / "long.wav"
    sf.write(path, np.concatenate([sentence, pause, sentence]), RATE_HZ, subtype="FLOAT")
    return str(path)


def test_long_audio_has_the_transcript_that_transcribe_gives(
    recognise: Any, asr: Transcriber, long_file: str, files: list[str]
) -> None:
    expected = asr.transcribe(long_file, steps=1)
    assert len(expected.segments) > 2
    assert {segment.end - segment.start < 3.1 for segment in expected.segments} == {True}
    samples, _ = sf.read(long_file, dtype="float32")
    chunks = [{"text": s.text, "timestamp": (s.start, s.end)} for s in expected.segments]
    for source in (long_file, samples, Path(long_file).read_bytes()):
        found = recognise(source, num_steps=1, return_timestamps=True, batch_size=2)
        assert (found["text"], found["chunks"]) == (expected.text, chunks)
    found = recognise(long_file, num_steps=1, return_timestamps="word")["chunks"]
    words = asr.transcribe(long_file, steps=1, word_timestamps=True).words or ()
    assert [one["timestamp"] for one in found] == [(word.start, word.end) for word in words]
    short = asr.transcribe(files[0], steps=1).text
    for mixed in ([files[0], long_file], (path for path in (files[0], long_file))):
        assert [one["text"] for one in recognise(mixed, num_steps=1, batch_size=2)] == [short, expected.text]


@pytest.mark.parametrize(("given", "together"), [({}, 8), ({"batch_size": 3}, 3), ({"batch_size": 1}, 1)])
def test_chunks_share_batches(
    recognise: Any, files: list[str], monkeypatch: pytest.MonkeyPatch, given: dict[str, int], together: int
) -> None:
    asked: list[int] = []
    transcribe = recognise.transcriber.transcribe

    def listen(*args: Any, batch_size: int, **options: Any) -> Any:
        asked.append(batch_size)
        return transcribe(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(recognise.transcriber, "transcribe", listen)
    recognise(files[0], num_steps=1, **given)
    assert asked == [together]


def test_a_chunk_length_changes_nothing_and_that_is_said(
    recognise: Any, files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = recognise(files[0], num_steps=1, chunk_length_s=30, stride_length_s=5)
    assert found == recognise(files[0], num_steps=1)
    assert "chunk_length_s has no effect" in caplog.text


def test_the_program_ffmpeg_is_not_called(
    recognise: Any, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", None)
    assert recognise(files[0], num_steps=1)["text"] is not None


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("no/such.wav", {}, AudioError, "no such file"),
        ("https://example.org/a.wav", {}, AudioError, "download the file"),
        ({"raw": np.zeros(9)}, {}, AudioError, '"sampling_rate"'),
        ({"sampling_rate": RATE_HZ}, {}, AudioError, '"raw" or "array"'),
        (b"no audio", {}, AudioError, "the bytes: "),
        (np.zeros(1600, np.float32), {"num_beams": 5}, OptionError, "num_beams: no option of this pipeline"),
        (np.zeros(1600, np.float32), {"generate_kwargs": {"task": "translate"}}, OptionError, "task: no opt"),
        (
            np.zeros(1600, np.float32),
            {"return_timestamps": "char"},
            OptionError,
            "return_timestamps is 'char'",
        ),
        (np.zeros(1600, np.float32), {"language": "tlh"}, OptionError, "language is 'tlh'"),
    ],
)
def test_what_cannot_be_done_is_one_error(
    recognise: Any, source: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recognise(source, **options)


# Other models


def wav2vec2() -> PreTrainedModel:
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8,),
            conv_stride=(320,),
            conv_kernel=(400,),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )


def test_other_models_have_the_stock_pipeline(tmp_path: Path, files: list[str]) -> None:
    whisper = write_whisper(tmp_path / "whisper", vocab_size=4096)
    small_processor().tokenizer.save_pretrained(whisper)
    by_folder = pipeline(TASK, model=str(whisper), device="cpu")
    assert type(by_folder) is AutomaticSpeechRecognitionPipeline
    assert type(by_folder.model) is WhisperForConditionalGeneration
    extractor = AutoFeatureExtractor.from_pretrained(whisper)
    ctc = pipeline(
        TASK,
        model=wav2vec2(),
        tokenizer=small_processor().tokenizer,
        feature_extractor=extractor,
        device="cpu",
        chunk_length_s=5,
    )
    assert type(ctc) is AutomaticSpeechRecognitionPipeline
    assert (ctc.type, ctc._preprocess_params) == ("ctc", {"chunk_length_s": 5})
    with pytest.raises(Exception, match="Impossible to guess which tokenizer"):
        pipeline(TASK, model=wav2vec2())


def test_the_task_keeps_its_defaults() -> None:
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    stock = AutomaticSpeechRecognitionPipeline
    assert task["default"]["model"][0] == "facebook/wav2vec2-base-960h"
    assert task["type"] == "multimodal"
    for flag in ("tokenizer", "feature_extractor", "processor", "image_processor"):
        assert getattr(task["impl"], f"_load_{flag}") is getattr(stock, f"_load_{flag}")
