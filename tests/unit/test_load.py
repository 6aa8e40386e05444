"""Loading a model: where it is looked for, device and type, and that it stays quiet."""

from __future__ import annotations

import logging as python_logging
import socket
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_layout import put_in_cache, write_backbone, write_whisper
from made_up_clips import tones
from small_models import TINY, small_model, small_processor
from transformers.utils import logging

from canvas_asr import CheckpointError, OptionError, Transcriber, load
from canvas_asr.checkpoint import adapter_state, assemble, save_checkpoint
from canvas_asr.conversion import ImportSettings
from canvas_asr.conversion.convert import convert
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.options import DecodingOptions
from canvas_asr.parts import OtherParts
from canvas_asr.processing import CanvasASRProcessor

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(small_model(), small_processor(), path, whole=True)
    return path


def test_a_loaded_model_gives_what_the_saved_one_gave(
    model: CanvasASRModel, processor: CanvasASRProcessor, folder: Path
) -> None:
    asr, loaded = Transcriber(model, processor), load(folder)
    assert not loaded.model.training
    parameters = chain(loaded.model.parameters(), loaded.model.buffers())
    assert {p.dtype for p in parameters if p.is_floating_point()} == {torch.float32}
    if not torch.cuda.is_available():
        assert loaded.device.type == "cpu"
        sources = [(tones(seconds, 0), RATE_HZ) for seconds in (0.4, 1.3, 2.0)]
        for one, other in zip(
            loaded.transcribe(sources, steps=3), asr.transcribe(sources, steps=3), strict=True
        ):
            assert [token.id for token in one.tokens] == [token.id for token in other.tokens]
            assert (one.text, one.language, one.draft) == (other.text, other.language, other.draft)
            assert one.confidence == pytest.approx(other.confidence, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_type_may_be_given_by_name(folder: Path, dtype: Any) -> None:
    loaded = load(str(folder), device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.transcribe((tones(0.5, 0), RATE_HZ), steps=2).passes == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; choose one of float32, bfloat16, float16"),
        ({"dtype": torch.float64}, r"dtype is 'torch\.float64'"),
        ({"device_map": "abacus"}, "device_map is 'abacus', which is not usable here; use 'cpu'"),
        ({"device_map": {"model": "cpu", "lm_head": 99}}, "device_map is '99', which is not usable here"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which is not usable here; use 'cpu'"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map are both given"),
        ({"device": "cpu", "cuda_graphs": True}, "cuda_graphs: needs .* one CUDA GPU, and it is on cpu"),
        ({"device_map": {"": "cpu"}, "cuda_graphs": True}, "cuda_graphs: .* it is on cpu; leave it out"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(folder, **options)


def test_an_unknown_model_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^large-v9: no such model; give 'tiny' .* the folder .* hub"):
        load("large-v9")
    (tmp_path / "weights.txt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"weights\.txt: is a file, not a folder"):
        load(tmp_path / "weights.txt")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(tmp_path)


def test_loading_says_nothing_and_changes_no_setting(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    assert logging.is_progress_bar_enabled()
    load(folder)
    with pytest.raises(CheckpointError):
        load(folder / "backbone")
    assert capfd.readouterr() == ("", "")
    assert (torch.get_num_threads(), logging.get_verbosity()) == (threads, verbosity)
    assert logging.is_progress_bar_enabled()


def test_recorded_passes_are_an_option_of_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the device's check taken for passed: the same code runs on a CPU, only not recorded."""
    plain = load(folder, device="cpu")
    assert plain.decoder.graphs is None
    asked: list[Any] = []
    monkeypatch.setattr("canvas_asr.transcriber.check_one_gpu", asked.append)
    recorded = load(folder, device="cpu", cuda_graphs=True)
    assert recorded.decoder.graphs is not None
    assert asked == [[torch.device("cpu")], {torch.device("cpu")}]
    assert same_transcript(recorded, plain.model)


@pytest.mark.gpu
def test_recorded_passes_transcribe_the_same_on_a_gpu(folder: Path) -> None:
    clip = (tones(1.2, 0), RATE_HZ)
    plain, recorded = (load(folder, device="cuda", dtype="float32", cuda_graphs=on) for on in (False, True))
    assert recorded.transcribe(clip, steps=3).text == plain.transcribe(clip, steps=3).text


@pytest.mark.skipif(
    not (TINY / "model.safetensors").is_file(), reason="the embedded model has no weights yet"
)
def test_the_embedded_model_is_the_default() -> None:
    assert load().languages == load("tiny").languages != ()


# By names of the hub, from its cache

BACKBONE, ENCODER, ADAPTER = "someone/backbone", "someone/whisper-large-v3", "someone/speech"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Frozen parts as they lie on the hub; the audio encoder has the features of Whisper large-v3."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        BACKBONE: write_backbone(folder / "backbone"),
        ENCODER: write_whisper(folder / "whisper", num_mel_bins=128, d_model=40, encoder_layers=2),
    }


@pytest.fixture(scope="module")
def trained(parts: dict[str, Path]) -> CanvasASRModel:
    """A model with an adapter of its own on them."""
    fields = {"projector_width": 24, "canvas_length": 24, "max_canvas_length": 48, "pad_to_30s": True}
    model, _ = assemble(str(parts[BACKBONE]), str(parts[ENCODER]), parts[BACKBONE], fields)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.config.backbone, model.config.audio_encoder = BACKBONE, ENCODER
    return model.eval()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same_transcript(one: Transcriber, model: CanvasASRModel) -> bool:
    clip = (tones(0.6, 1), RATE_HZ)
    other = Transcriber(model, one.processor)
    return [t.id for t in one.transcribe(clip, steps=2).tokens] == [
        t.id for t in other.transcribe(clip, steps=2).tokens
    ]


def test_a_name_of_the_hub_brings_its_parts(
    trained: CanvasASRModel, parts: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path / "adapter")
    put_in_cache(cache, ADAPTER, tmp_path / "adapter", revision="v2")
    with pytest.raises(CheckpointError, match=rf"^{ADAPTER}: .* `hf download {ADAPTER}` "):
        load(ADAPTER, device="cpu")
    with pytest.raises(CheckpointError, match=rf"^{BACKBONE}: .* `hf download {BACKBONE}` "):
        load(ADAPTER, device="cpu", revision="v2")
    put_in_cache(cache, BACKBONE, parts[BACKBONE])
    with pytest.raises(CheckpointError, match=rf"^{ENCODER}: .* `hf download {ENCODER}` "):
        load(ADAPTER, device="cpu", revision="v2")
    encoder = put_in_cache(cache, ENCODER, parts[ENCODER])
    loaded = load(ADAPTER, device="cpu", revision="v2", local_files_only=True)
    assert same_transcript(loaded, trained)
    assert loaded.processor.feature_extractor.feature_size == 128
    (encoder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"^{ENCODER}: "):
        load(ADAPTER, device="cpu", revision="v2")


def test_with_local_files_only_no_address_is_looked_up(
    trained: CanvasASRModel,
    parts: dict[str, Path],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the environment's HF_HUB_OFFLINE, under which the other tests run."""
    looked_up = []

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        looked_up.append(host)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if find_spec("huggingface_hub.utils._detect_agent"):  # as in a new process, which has asked nothing yet
        monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None)
        monkeypatch.setattr("huggingface_hub.constants.AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    trained.save_pretrained(tmp_path / "adapter")
    put_in_cache(cache, ADAPTER, tmp_path / "adapter")
    (tmp_path / "released").mkdir()
    torch.save(adapter_state(trained), tmp_path / "released" / "adapter.pt")
    put_in_cache(cache, "someone/released", tmp_path / "released")
    for name in (BACKBONE, ENCODER):
        put_in_cache(cache, name, parts[name])
    assert same_transcript(load(ADAPTER, device="cpu", local_files_only=True), trained)
    load("someone/released", device="cpu", local_files_only=True, backbone=BACKBONE, audio_encoder=ENCODER)
    with pytest.raises(CheckpointError, match=r"`hf download no/model` "):
        load("no/model", local_files_only=True)
    assert looked_up == []
    with pytest.raises(CheckpointError, match=r"`hf download no/model` "):
        load("no/model")  # which does try
    assert "huggingface.co" in looked_up


def test_parts_may_be_replaced_by_others(
    trained: CanvasASRModel, parts: dict[str, Path], tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path)
    loaded = load(tmp_path, device="cpu", backbone=parts[BACKBONE], audio_encoder=str(parts[ENCODER]))
    assert same_transcript(loaded, trained)
    assert loaded.model.config.backbone == str(parts[BACKBONE])
    other = write_backbone(tmp_path / "wider", hidden_size=48)
    with pytest.raises(CheckpointError, match="wider: its hidden_size is 48, and the adapter is for"):
        load(tmp_path, device="cpu", backbone=other, audio_encoder=parts[ENCODER])
    with pytest.raises(CheckpointError, match="nowhere: no such folder, and no owner/name"):
        load(tmp_path, device="cpu", backbone="nowhere")


def test_parts_have_revisions_of_their_own(
    trained: CanvasASRModel, parts: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    put_in_cache(cache, BACKBONE, parts[BACKBONE], revision="v3")
    put_in_cache(cache, ENCODER, parts[ENCODER])
    trained.save_pretrained(tmp_path / "named")
    with pytest.raises(CheckpointError, match=rf"^{BACKBONE}: .* `hf download {BACKBONE}` "):
        load(tmp_path / "named", device="cpu")
    loaded = load(tmp_path / "named", device="cpu", backbone_revision="v3")
    assert same_transcript(loaded, trained)
    torch.save(adapter_state(trained), tmp_path / "adapter.pt")
    settings = ImportSettings(prompt_prefix="<bos>", prompt_suffix="", blank_token_id=6, canvas_length=24)
    others = OtherParts(BACKBONE, ENCODER, backbone_revision="v3")
    convert(tmp_path / "adapter.pt", tmp_path / "converted", settings, others=others)
    of_file = load(tmp_path / "adapter.pt", device="cpu", **vars(others))
    for asr in (loaded, of_file, load(tmp_path / "converted", device="cpu")):
        assert (asr.model.config.backbone, asr.model.config.backbone_revision) == (BACKBONE, "v3")
        assert asr.model.config.audio_encoder_revision is None


@pytest.mark.parametrize("by_folder", [False, True])
def test_a_released_file_is_put_on_the_parts_given(
    trained: CanvasASRModel,
    parts: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    by_folder: bool,
) -> None:
    torch.save(adapter_state(trained), tmp_path / "adapter.pt")
    source = tmp_path if by_folder else tmp_path / "adapter.pt"
    with caplog.at_level(python_logging.INFO, "canvas_asr"):
        loaded = load(source, device="cpu", backbone=parts[BACKBONE], audio_encoder=parts[ENCODER])
    state = adapter_state(loaded.model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter_state(trained).items())
    assert loaded.model.config.projector_width == 24
    by_itself = loaded.decoder.resolve(DecodingOptions())
    assert (by_itself.init, by_itself.steps) == ("noise", 8)  # as its authors decode
    assert loaded.transcribe((tones(0.5, 0), RATE_HZ), steps=1).passes == 1
    report, guesses, prompt = (
        record.getMessage() for record in caplog.records if record.name == "canvas_asr.loading"
    )
    assert "projector" in report
    assert guesses.startswith("adapter.pt does not say ")
    assert "lora_alpha" in guesses
    assert "that is guessed names <|turn>, <|audio>, <audio|>, <turn|>, which the tokenizer of" in prompt
    assert "--prompt-prefix" in prompt


def test_a_released_file_names_the_published_parts(
    trained: CanvasASRModel, parts: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    torch.save(adapter_state(trained), tmp_path / "adapter.pt")
    with pytest.raises(CheckpointError, match=r"`hf download google/diffusiongemma-26B-A4B-it` "):
        load(tmp_path / "adapter.pt", device="cpu")
    with pytest.raises(CheckpointError, match=r"`hf download openai/whisper-small` "):
        load(tmp_path / "adapter.pt", device="cpu", backbone=parts[BACKBONE])


def test_a_backbone_without_its_tokenizer_is_one_error(
    trained: CanvasASRModel, parts: dict[str, Path], tmp_path: Path
) -> None:
    torch.save(adapter_state(trained), tmp_path / "adapter.pt")
    backbone = write_backbone(tmp_path / "backbone")
    for path in backbone.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"backbone: cannot be loaded \(") as raised:
        load(tmp_path / "adapter.pt", device="cpu", backbone=backbone, audio_encoder=parts[ENCODER])
    assert "\n" not in str(raised.value)


def test_the_file_of_a_checkpoint_is_loaded_by_its_folder(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: is part of a checkpoint; give its folder"
    ):
        load(folder / "model.safetensors")


def test_the_gpu_is_measured_before_anything_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvas_asr.transcriber.find_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    with pytest.raises(
        CheckpointError, match=r"backbone: needs 0\.0 GB on cuda in bfloat16, and 0\.0 GB are"
    ):
        load(folder)
