"""The model as one of ``transformers``: Auto classes, saving, uploading, generation with a streamer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile as sf
import torch
from hub_layout import write_backbone, write_whisper
from huggingface_hub import HfApi
from made_up_clips import tones
from safetensors.torch import load_file
from small_models import TINY, small_model, small_processor
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

from canvas_asr import (
    AudioError,
    CanvasASRConfig,
    CanvasASRModel,
    CanvasASRPipeline,
    CanvasASRProcessor,
    CanvasStreamer,
    CheckpointError,
    OptionError,
    Transcriber,
    inference,
    load,
)
from canvas_asr.card import model_card
from canvas_asr.checkpoint import adapter_state, assemble
from canvas_asr.decoding import CanvasDecoder

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose frozen parts lie beside the adapter."""
    folder = tmp_path_factory.mktemp("whole")
    model = small_model()
    model.processor = small_processor()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> CanvasASRModel:
    """A model that was put together from parts by name."""
    folder = tmp_path_factory.mktemp("parts")
    parts = write_backbone(folder / "backbone"), write_whisper(folder / "whisper", num_mel_bins=128)
    model, _ = assemble(str(parts[0]), str(parts[1]), TINY, {"canvas_length": 24, "max_canvas_length": 48})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Saving and loading


def test_parts_that_lie_beside_are_written_and_read(whole: Path) -> None:
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} < files(whole)
    assert {"backbone/model.safetensors", "audio_encoder/model.safetensors"} < files(whole)
    loaded = CanvasASRModel.from_pretrained(whole)
    before = dict(small_model().named_parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in loaded.named_parameters())
    assert not loaded.training
    assert isinstance(loaded.processor, CanvasASRProcessor)


def test_of_parts_by_name_the_adapter_alone_is_written(named: CanvasASRModel, tmp_path: Path) -> None:
    named.save_pretrained(tmp_path)
    assert {path for path in files(tmp_path) if path.endswith(".safetensors")} == {"model.safetensors"}
    assert set(load_file(tmp_path / "model.safetensors")) == set(adapter_state(named))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["backbone"] == named.config.backbone
    loaded = CanvasASRModel.from_pretrained(tmp_path)
    state = adapter_state(loaded)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter_state(named).items())
    for part in ("backbone", "audio_encoder"):
        own, theirs = (dict(getattr(m, part).named_parameters()) for m in (loaded, named))
        assert all(torch.equal(parameter, theirs[name]) for name, parameter in own.items())


def test_the_auto_classes_know_the_checkpoint(whole: Path) -> None:
    assert type(AutoConfig.from_pretrained(whole)) is CanvasASRConfig
    for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
        assert type(auto.from_pretrained(whole)) is CanvasASRModel
    assert type(AutoProcessor.from_pretrained(whole)) is CanvasASRProcessor


def test_the_dtype_is_that_of_the_files_unless_one_is_given(whole: Path, tmp_path: Path) -> None:
    half = CanvasASRModel.from_pretrained(whole, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.bfloat16}
    assert {p.dtype for p in AutoModel.from_pretrained(whole, dtype=torch.float16).parameters()} == {
        torch.float16
    }
    with pytest.raises(OptionError, match="dtype is 'int8'"):
        CanvasASRModel.from_pretrained(whole, dtype="int8")


def test_a_wrong_argument_or_name_is_refused(whole: Path) -> None:
    with pytest.raises(TypeError, match="no argument 'devise_map'"):
        CanvasASRModel.from_pretrained(whole, devise_map="auto")
    with pytest.raises(OptionError, match="attn_implementation is 'flash_attention_2'"):
        CanvasASRModel.from_pretrained(whole, attn_implementation="flash_attention_2")
    with pytest.raises(CheckpointError, match=r"`hf download no/model`"):
        CanvasASRModel.from_pretrained("no/model")
    with pytest.raises(CheckpointError, match="no such model"):
        CanvasASRProcessor.from_pretrained("no-model")


def test_the_processor_is_saved_and_read_alone(whole: Path, tmp_path: Path) -> None:
    processor = CanvasASRProcessor.from_pretrained(whole)
    processor.save_pretrained(tmp_path)
    assert {"tokenizer.json", "preprocessor_config.json"} <= files(tmp_path)
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    again = CanvasASRProcessor.from_pretrained(tmp_path)
    assert again.text_ids("Good morning.") == processor.text_ids("Good morning.")
    assert again.feature_extractor.hop_length == processor.feature_extractor.hop_length == 320
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        CanvasASRProcessor.from_pretrained(tmp_path)


# The model card


def test_the_card_names_parts_and_licences() -> None:
    config = small_model().config
    config.backbone, config.audio_encoder = "some/backbone", "some/encoder"
    card = model_card(config)
    head = card.split("---")[1]
    assert "license: apache-2.0" in head
    assert "- some/backbone\n- some/encoder" in head
    assert "| adapter | this repository | Apache-2.0 |" in card
    for name in ("some/backbone", "some/encoder"):
        assert f"its own: see [its page](https://huggingface.co/{name})" in card
    config.backbone, config.audio_encoder = "backbone", "/home/me/encoder"
    card = model_card(config)
    assert "license: other" in card.split("---")[1]
    assert "/home/me" not in card


def test_a_card_that_is_there_stays(named: CanvasASRModel, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    named.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("by_saving", [False, True])
def test_an_upload_is_the_saved_folder(
    named: CanvasASRModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_saving: bool
) -> None:
    uploaded: dict[str, Any] = {}

    def upload_folder(self: HfApi, folder_path: Path, **options: Any) -> Any:
        uploaded.update(options, files=files(Path(folder_path)), token=self.token)
        return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", lambda _, name, **__: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "file_exists", lambda *_, **__: False)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    if by_saving:
        named.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/speech", token="t")
    else:
        assert named.push_to_hub("me/speech", token="t", commit_message="First") == "https://hub/commit/1"
        assert uploaded["commit_message"] == "First"
    assert (uploaded["repo_id"], uploaded["token"]) == ("me/speech", "t")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= uploaded["files"]
    assert not any(path.startswith("backbone") for path in uploaded["files"])


# Features and generation


def test_the_processor_reads_files_arrays_and_lists(processor: CanvasASRProcessor, tmp_path: Path) -> None:
    clips = [tones(0.5, 1), tones(1.1, 2)]
    sf.write(tmp_path / "a.wav", clips[0], RATE_HZ, subtype="FLOAT")
    batch = processor([str(tmp_path / "a.wav"), (clips[1], RATE_HZ)])
    mel, n_mel = processor.features(clips)
    assert torch.equal(batch["input_features"], mel)
    assert batch["attention_mask"].sum(dim=1).tolist() == n_mel.tolist()
    assert torch.equal(processor(clips[0], sampling_rate=RATE_HZ)["input_features"][0], mel[0, :, :25])
    with pytest.raises(AudioError, match="clip 1 has no samples"):
        processor([clips[0], clips[0][:0]], sampling_rate=RATE_HZ)
    with pytest.raises(ValueError, match="'np'"):
        processor(clips[0], RATE_HZ, return_tensors="np")


class Record(CanvasStreamer):
    """Keep what a streamer is given and what it would print."""

    def __init__(self, processor: CanvasASRProcessor) -> None:
        super().__init__(processor)
        self.values: list[torch.Tensor] = []
        self.texts: list[tuple[int, int, str]] = []
        self.n_ends = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value)
        super().put(value)

    def end(self) -> None:
        self.n_ends += 1
        super().end()

    def on_text(self, text: str, step: int, row: int) -> None:
        self.texts.append((step, row, text))


def test_generate_gives_what_the_decoder_reads_and_shows_each_pass(
    model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    batch = processor([(tones(0.5, 1), RATE_HZ), (tones(1.1, 2), RATE_HZ)])
    streamer = Record(processor)
    ids = model.generate(**batch, num_steps=3, seed=5, processor=processor, streamer=streamer)
    passes: list[torch.Tensor] = []
    n_mel = batch["attention_mask"].sum(dim=1)
    decoded = CanvasDecoder(model, processor)(
        batch["input_features"],
        n_mel,
        steps=3,
        seed=5,
        on_pass=lambda _, canvas: passes.append(canvas.clone()),
    )
    assert ids.dtype == torch.long
    assert ids.shape == (2, max(1, *(len(one.ids) for one in decoded)))
    for row, one in zip(ids.tolist(), decoded, strict=True):
        assert row == [*one.ids, *[0] * (len(row) - len(one.ids))]
    assert len(streamer.values) == 4
    for row, one in zip(streamer.values[0].tolist(), decoded, strict=True):
        assert row == [*one.draft, *[1] * (len(row) - len(one.draft))]
    assert all(torch.equal(a, b) for a, b in zip(streamer.values[1:], passes, strict=True))
    assert [(step, row) for step, row, _ in streamer.texts] == [(s, r) for s in range(4) for r in range(2)]
    assert [text for step, _, text in streamer.texts if step == 3] == [
        processor.text(one.ids) for one in decoded
    ]
    assert (streamer.n_ends, streamer.n_seen) == (1, 0)


def test_a_clip_and_a_seed_give_the_same_text_by_every_interface(whole: Path) -> None:
    clips = [tones(0.5, 1), tones(1.1, 2)]
    asr = load(whole, device="cpu")
    expected = [t.text for t in asr.transcribe([(clip, RATE_HZ) for clip in clips], steps=3, seed=7)]
    assert expected != [t.text for t in asr.transcribe([(clip, RATE_HZ) for clip in clips], steps=3, seed=8)]
    model, processor = AutoModel.from_pretrained(whole), AutoProcessor.from_pretrained(whole)
    ids = model.generate(**processor(clips, sampling_rate=RATE_HZ), num_steps=3, seed=7)
    assert [processor.text(row) for row in ids.tolist()] == expected
    batch = processor(clips, sampling_rate=RATE_HZ)
    fused = model.generate(**batch, num_steps=2, init="draft-slots", canvas_length="auto", fusion=1)
    options = {"steps": 2, "init": "draft-slots", "canvas": "auto", "fusion": 1}
    assert [processor.text(row) for row in fused.tolist()] == [
        t.text for t in asr.transcribe([(clip, RATE_HZ) for clip in clips], **options)
    ]
    recognise = pipeline("automatic-speech-recognition", model=str(whole), device="cpu")
    assert [one["text"] for one in recognise(clips, num_steps=3, seed=7, batch_size=2)] == expected


def test_every_interface_decodes_as_the_checkpoint_says_unless_told(processor: CanvasASRProcessor) -> None:
    model = small_model(decoding_init="draft", decoding_steps=2)
    clip = (tones(1.1, 2), RATE_HZ)
    asr = Transcriber(model, processor)
    by_itself, noise = asr.transcribe(clip), asr.transcribe(clip, init="noise", steps=2)
    assert by_itself.passes == 2
    assert by_itself.tokens == asr.transcribe(clip, init="draft", steps=2).tokens != noise.tokens
    ids = model.generate(**processor([clip]), processor=processor)
    assert processor.text(ids[0].tolist()) == by_itself.text
    recognise = CanvasASRPipeline(model=model, processor=processor, device="cpu")
    assert recognise(clip)["text"] == by_itself.text
    shown = Transcriber(small_model(decoding_self_conditioning="posterior"), processor)
    conditioned = asr.transcribe(clip, init="draft", self_conditioning="posterior")
    assert shown.transcribe(clip, init="draft").tokens == conditioned.tokens
    assert conditioned.tokens != asr.transcribe(clip, init="draft").tokens
    # A number of passes alone is the released system's sampler, as in its authors' interface.
    assert asr.transcribe(clip, steps=2).tokens == noise.tokens
    alike = inference.transcribe(
        clip[0], model, processor.tokenizer, processor.feature_extractor, max_steps=2
    )
    assert alike == noise.text


def test_a_clip_is_generated_alike_alone_and_in_a_batch(
    model: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    clips = [(tones(0.5, 1), RATE_HZ), (tones(1.1, 2), RATE_HZ)]
    together = model.generate(**processor(clips), num_steps=2, processor=processor)
    alone = model.generate(processor(clips[:1])["input_features"], num_steps=2, processor=processor)
    assert (
        processor.batch_decode(together, skip_special_tokens=True)[0]
        == processor.batch_decode(alone, skip_special_tokens=True)[0]
    )


def test_the_draft_is_shown_where_no_pass_is_asked_for(
    model: CanvasASRModel, processor: CanvasASRProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = processor((tones(1.5, 3), RATE_HZ))
    streamer = CanvasStreamer(processor.tokenizer)
    ids = model.generate(**batch, num_steps=0, init="draft", processor=processor, streamer=streamer)
    text = processor.text(ids[0].tolist())
    assert capsys.readouterr().out == f"0  draft   {text}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "steps is 0"),
        ({"language": "tlh"}, "language is 'tlh'"),
        ({"canvas_length": 999}, "canvas is 999 tokens"),
        ({"input_features": torch.zeros(1, 128, 20)}, r"shape \(1, 128, 20\); this model takes \(B, 80, T\)"),
        ({"processor": None}, "not loaded with a processor"),
    ],
)
def test_a_wrong_option_of_generate_is_named(
    model: CanvasASRModel, processor: CanvasASRProcessor, options: dict[str, Any], message: str
) -> None:
    given = {"input_features": torch.zeros(1, 80, 20), "processor": processor, **options}
    with pytest.raises(OptionError, match=message):
        model.generate(**given)
