"""Stage (c): batches, the losses together, judging."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_clips import SPEECH, tones, write_clips
from small_models import TINY, small_model, small_processor
from torch import Tensor

from canvas_asr import backbone, sampler
from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.ctc import greedy_ctc
from canvas_asr.decoding import CanvasDecoder, Decoded
from canvas_asr.manifest import read_manifest
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.training import adapter, objective
from canvas_asr.training.adapter import AdapterModel, AdapterOptions, judge
from canvas_asr.training.adapter_data import AdapterCollator
from canvas_asr.training.corruption import CorruptionOptions
from canvas_asr.training.losses import ctc_loss
from canvas_asr.training.objective import ObjectiveOptions
from canvas_asr.training.speech_data import SpeechDataset

BOS, EOS, AUDIO, TRANSCRIBE, BLANK = 2, 1, 4, 5, 6
EN, FR, ZH = 7, 9, 12
TAGS = list(range(EN, ZH + 1))


def options_of(**options: Any) -> AdapterOptions:
    return AdapterOptions(TINY, "", "", (), (), canvas_choices=(), **options)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips, of which the first says nothing."""
    return write_clips(tmp_path_factory.mktemp("clips"), 7, with_silence=True)


@pytest.fixture(scope="module")
def dataset(manifest: Path, processor: CanvasASRProcessor) -> SpeechDataset:
    return SpeechDataset(read_manifest(manifest), processor.feature_extractor)


@pytest.fixture(scope="module")
def batch(dataset: SpeechDataset, processor: CanvasASRProcessor, model: CanvasASRModel) -> dict[str, Tensor]:
    """The silent, a German and a Chinese clip."""
    collate = AdapterCollator(processor, model.config, options_of())
    return collate([dataset[(0, i)] for i in (0, 1, 5)])


# Batches


def test_prompts_have_a_slot_for_every_audio_token(batch: dict[str, Tensor], model: CanvasASRModel) -> None:
    with torch.no_grad():
        _, n_audio = model.audio_tokens(batch["mel"], batch["n_mel"])
    assert (batch["prompt_ids"] == AUDIO).sum(dim=1).tolist() == n_audio.tolist()
    assert batch["n_prompt"].tolist() == (n_audio + 2).tolist()
    for row, n in enumerate(n_audio.tolist()):
        assert batch["prompt_ids"][row, : n + 2].tolist() == [BOS, *[AUDIO] * n, TRANSCRIBE]


def test_the_canvas_has_tag_text_and_end(batch: dict[str, Tensor], processor: CanvasASRProcessor) -> None:
    texts = [[], processor.text_ids(SPEECH[1][0]), processor.text_ids(SPEECH[5][0])]
    assert batch["n_text"].tolist() == [len(ids) for ids in texts]
    expected = [[FR, EOS], [8, *texts[1], EOS], [ZH, *texts[2], EOS]]
    assert batch["n_targets"].tolist() == [len(row) for row in expected]
    for row, ids in enumerate(expected):
        assert batch["targets"][row, : len(ids)].tolist() == ids
        assert batch["canvas"][row, : len(ids)].tolist() == ids
        assert (batch["canvas"][row, len(ids) :] == EOS).all()
        assert batch["text"][row, : len(texts[row])].tolist() == texts[row]  # what CTC spells: no tag


def test_every_other_canvas_without_text_has_a_tag(
    dataset: SpeechDataset, processor: CanvasASRProcessor, model: CanvasASRModel
) -> None:
    silent = dataset[(0, 0)]
    examples = [
        {**silent, "entry": dataclasses.replace(silent["entry"], audio=Path(f"/x/{i}.wav"))}
        for i in range(200)
    ]
    batch = AdapterCollator(processor, model.config, options_of())(examples)
    assert set(batch["n_text"].tolist()) == {0}
    opening = batch["canvas"][:, 0].tolist()
    assert set(opening) == {EOS, *TAGS}
    assert 70 < opening.count(EOS) < 130
    assert (batch["canvas"][:, 1:] == EOS).all()
    assert batch["n_targets"].tolist() == [1 if token == EOS else 2 for token in opening]


def test_a_model_without_tags_gets_none(dataset: SpeechDataset, processor: CanvasASRProcessor) -> None:
    config = small_model(language_tag_place="none").config
    batch = AdapterCollator(processor, config, options_of())([dataset[(0, 5)]])
    ids = processor.text_ids(SPEECH[5][0])
    assert batch["targets"].tolist() == [[*ids, EOS]]


@torch.no_grad()
def test_padded_to_30_s_every_clip_has_the_slots_of_30_s_in_training_and_in_decoding(
    dataset: SpeechDataset, processor: CanvasASRProcessor
) -> None:
    model = small_model(pad_to_30s=True, projector_stride=8)
    batch = AdapterCollator(processor, model.config, options_of())([dataset[(0, i)] for i in (0, 5)])
    assert batch["n_prompt"].tolist() == [94 + 2] * 2  # 750 frames, eight to a token
    losses = AdapterModel(model, options_of(), AUDIO, TAGS)(**batch)
    assert losses["infeasible"] == 0
    prompts: list[list[int]] = []
    ids = processor.prompt_ids

    class Recorder(CanvasASRProcessor):
        def prompt_ids(self, config: CanvasASRConfig, n_audio: list[int], *context: Any) -> list[list[int]]:
            prompts.extend(ids(config, n_audio, *context))
            return ids(config, n_audio, *context)

    recorder = Recorder(processor.feature_extractor, processor.tokenizer)
    CanvasDecoder(model, recorder)(*processor.features([tones(0.5, 1)]), clip_keys=[0], steps=1)
    assert [len(prompt) for prompt in prompts] == [96]


@torch.no_grad()
@pytest.mark.parametrize("embeddings", ["projector", "posterior"])
def test_prompts_and_positions_by_spikes_are_the_same_in_training_and_in_decoding(
    batch: dict[str, Tensor],
    processor: CanvasASRProcessor,
    monkeypatch: pytest.MonkeyPatch,
    embeddings: str,
) -> None:
    model = small_model(audio_positions="spikes", audio_embeddings=embeddings)
    found: list[tuple[str, Any]] = []
    encode, denoise = backbone.encode_prefix, backbone.denoise

    def record_prefix(of: Any, embeds: Tensor, positions: Tensor | None = None, *cache: Any) -> Any:
        found.append(("prefix", (embeds, positions)))
        return encode(of, embeds, positions, *cache)

    def record_pass(*arguments: Any, **options: Any) -> Tensor:
        found.append(("canvas", options["canvas_start"]))
        return denoise(*arguments, **options)

    for module in (objective, backbone):
        monkeypatch.setattr(module, "encode_prefix", record_prefix)
    for module in (objective, sampler):
        monkeypatch.setattr(module, "denoise", record_pass)
    options = options_of(objective=ObjectiveOptions(autoregressive_weight=0, self_conditioning=0))
    start = processor.canvas_start(model.config)
    AdapterModel(model, options, AUDIO, TAGS, start)(**batch)
    trained, found[:] = found[:], []
    decoder = CanvasDecoder(model, processor)
    decoder.threads.is_on = False  # the whole batch at once, as in training
    decoder(batch["mel"], batch["n_mel"], clip_keys=range(3), steps=1)
    assert [name for name, _ in trained] == [name for name, _ in found] == ["prefix", "canvas"]
    (embeds, positions), (decoded, at) = trained[0][1], found[0][1]
    assert torch.allclose(embeds, decoded, atol=1e-6)
    assert torch.equal(positions, at)
    assert trained[1][1] == found[1][1] == 0
    assert bool((positions % 1 != 0).any())  # they are not the places


def test_ctc_alone_runs_no_backbone(batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(objective=ObjectiveOptions(diffusion_weight=0, autoregressive_weight=0))
    monkeypatch.delattr(adapter, "denoising_losses")
    outputs = AdapterModel(small_model(), options, AUDIO, TAGS)(**batch)
    assert set(outputs) == {"loss", "ctc", "infeasible"}
    assert outputs["loss"].item() == outputs["ctc"].item() > 0


def test_no_gradient_of_the_denoising_losses_goes_through_what_a_prompt_expects(
    batch: dict[str, Tensor],
) -> None:
    model = small_model(audio_embeddings="posterior")
    AdapterModel(model, options_of(ctc_weight=0.0), AUDIO, TAGS)(**batch)["loss"].backward()
    assert model.ctc_tap.scale.grad is None
    assert float(model.ctc_tap.prompt_scale.grad.abs()) > 0


# The losses


def losses_of(
    model: CanvasASRModel, batch: dict[str, Tensor], seed: int = 0, **options: Any
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return AdapterModel(model, options_of(**options), AUDIO, TAGS)(**batch)


@torch.no_grad()
def test_the_loss_is_ctc_and_the_two_denoising_losses(
    model: CanvasASRModel, batch: dict[str, Tensor]
) -> None:
    objective = ObjectiveOptions(diffusion_weight=0.5, autoregressive_weight=0.25)
    outputs = losses_of(model, batch, ctc_weight=2.0, objective=objective)
    tokens, n_audio = model.audio_tokens(batch["mel"], batch["n_mel"])
    ctc, infeasible = ctc_loss(
        model.ctc_tap(tokens), n_audio, batch["text"], batch["n_text"], model.read_ctc_states, blank=BLANK
    )
    torch.testing.assert_close(outputs["ctc"], ctc)
    assert outputs["infeasible"] == infeasible.float().mean()
    expected = 2.0 * ctc + 0.5 * outputs["diffusion"] + 0.25 * outputs["autoregressive"]
    torch.testing.assert_close(outputs["loss"], expected)
    without = losses_of(model, batch, ctc_weight=0.0, objective=objective)
    assert "ctc" not in without
    torch.testing.assert_close(without["loss"], expected - 2.0 * ctc)


def test_gradients_reach_the_adapter_and_nothing_else(batch: dict[str, Tensor]) -> None:
    model = small_model()
    losses_of(model, batch)["loss"].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert all(name.startswith(("projector.", "ctc_tap.")) or "lora_" in name for name in reached)
    parts = (
        "projector.hidden",
        "projector.out",
        "ctc_tap.scale",
        "decoder.layers.0",
        "language_model.layers.0",
    )
    for part in parts:
        assert any(part in name for name in reached), part


def test_without_ctc_its_tap_learns_nothing(batch: dict[str, Tensor]) -> None:
    model = small_model()
    losses_of(model, batch, ctc_weight=0.0)["loss"].backward()
    assert model.ctc_tap.scale.grad is None
    assert model.projector.out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("part", ["audio_encoder", "backbone"])
def test_joint_fine_tuning_trains_the_part_named(batch: dict[str, Tensor], part: str) -> None:
    model = small_model()
    outputs = losses_of(model, batch, **{f"train_{part}": True})
    outputs["loss"].backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    others = {n for n in trained if not (n.startswith(("projector.", "ctc_tap.")) or "lora_" in n)}
    assert others
    assert all(name.startswith(part) for name in others)
    assert not any("vision" in name or ".router." in name for name in others)
    gradients = [p.grad for n, p in model.named_parameters() if n in others]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


@torch.no_grad()
def test_drafts_are_the_ctc_reading_behind_a_random_tag(
    model: CanvasASRModel, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[int]]] = []
    losses = adapter.denoising_losses

    def spy(*args: Any, drafts: list[list[int]], **kwargs: Any) -> dict[str, Tensor]:
        seen.append(drafts)
        return losses(*args, drafts=drafts, **kwargs)

    monkeypatch.setattr(adapter, "denoising_losses", spy)
    tokens, n_audio = model.audio_tokens(batch["mel"], batch["n_mel"])
    readings = greedy_ctc(model.ctc_logits(tokens), n_audio, BLANK)
    objective = ObjectiveOptions(corruption=CorruptionOptions(uniform=0.0, draft=1.0))
    for seed in range(20):
        losses_of(model, batch, seed, objective=objective)
    for drafts in seen:
        assert [draft[1:] for draft in drafts] == readings
    assert {draft[0] for drafts in seen for draft in drafts} == set(TAGS)


# Judging


class ScriptedDecoder:
    """Right in 8 passes from noise, without the last word in 1, and deaf in the draft."""

    def __init__(self, dataset: SpeechDataset, model: CanvasASRModel) -> None:
        self.model = model
        self.processor = small_processor()
        self.by_length = {dataset[(0, i)]["mel"].shape[1]: entry for i, entry in enumerate(dataset.entries)}
        self.calls: list[tuple[int, str]] = []

    def __call__(
        self, mel: Tensor, n_mel: Tensor, *, clip_keys: range, steps: int = 8, init: str = "noise"
    ) -> list[Decoded]:
        assert len(clip_keys) == len(mel)
        self.calls.append((steps, init))
        results = []
        for n in n_mel.tolist():
            entry = self.by_length[n]
            text = {(0, "draft"): "", (1, "noise"): entry.text.rpartition(" ")[0]}.get(
                (steps, init), entry.text
            )
            language = "de" if entry.language == "en" else entry.language
            results.append(Decoded(self.processor.text_ids(text), [], language, 1.0, [], steps, False))
        return results


def test_error_rates_by_mode_language_and_shuffled_audio(manifest: Path, model: CanvasASRModel) -> None:
    clips = [clip for clip in read_manifest(manifest) if clip.text]
    dataset = SpeechDataset(clips, small_processor().feature_extractor)
    decoder = ScriptedDecoder(dataset, model)
    figures, transcripts = judge(decoder, dataset)  # type: ignore[arg-type]
    assert decoder.calls == [(0, "draft"), (1, "noise"), (8, "noise"), (1, "draft")]
    assert figures["noise8"] == figures["draft1"] == 0
    assert figures["draft"] == 1
    # Words: en 1 of 4, de 1 of 2, fr 1 of 4, es 1 of 4. Characters: hi " है।" of 20, zh all.
    characters = len(" है।") / len(SPEECH[4][0])
    assert figures["noise1"] == pytest.approx((0.25 + 0.5 + 0.25 + 0.25 + characters + 1) / 6)
    assert {name: rate for name, rate in figures.items() if name.startswith("noise8_")} == {
        f"noise8_{code}": 0 for code in ("de", "en", "es", "fr", "hi", "zh")
    }
    assert figures["shuffled"] > 0.8
    assert figures["gap"] == figures["shuffled"]
    assert figures["language_accuracy"] == pytest.approx(5 / 6)
    assert {(read["language"], read["reference"]) for read in transcripts} == {c[1::-1] for c in SPEECH}
    for read in transcripts:
        assert read["hypothesis"] == read["draft1"] == read["reference"]
        assert read["draft"] == ""
        assert read["noise1"] == read["reference"].rpartition(" ")[0]


def test_clips_without_speech_can_be_judged(manifest: Path, model: CanvasASRModel) -> None:
    dataset = SpeechDataset(read_manifest(manifest), small_processor().feature_extractor)
    figures, _ = judge(ScriptedDecoder(dataset, model), dataset)  # type: ignore[arg-type]
    assert figures["noise8"] == 0
