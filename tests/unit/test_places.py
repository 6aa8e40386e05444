"""Canvases in the places of their drafts: what is learnt, and what such a checkpoint decodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from made_up_clips import write_clips
from small_models import TINY, small_model
from torch import Tensor

from canvas_asr.canvas_batch import FinishedCanvas
from canvas_asr.ctc import greedy_ctc, merged_runs
from canvas_asr.decoding import CanvasDecoder
from canvas_asr.errors import RecipeError
from canvas_asr.manifest import read_manifest
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.training import adapter, objective
from canvas_asr.training.adapter import AdapterModel, AdapterOptions
from canvas_asr.training.adapter_data import AdapterCollator
from canvas_asr.training.corruption import CorruptionOptions
from canvas_asr.training.objective import ObjectiveOptions
from canvas_asr.training.places import canvases_in_places, in_places_of
from canvas_asr.training.speech_data import SpeechDataset

EOS, AUDIO, BLANK, EN = 1, 4, 6, 7
TAGS = list(range(EN, 13))
TOKENS = some.lists(some.integers(20, 25), max_size=12)


@pytest.mark.parametrize(
    ("draft", "text", "expected"),
    [
        ([20, 21, 22], [20, 21, 22], [20, 21, 22]),
        ([20, 30, 22], [20, 21, 22], [20, 21, 22]),
        ([20, 30, 21, 22], [20, 21, 22], [20, BLANK, 21, 22]),
        ([20, 22, 23], [20, 21, 22, 23], [20, 22, 23]),
        ([20, 30, 21], [], [BLANK, BLANK, BLANK]),
        ([], [20, 21], []),
    ],
)
def test_a_text_takes_the_places_of_its_draft(draft: list[int], text: list[int], expected: list[int]) -> None:
    assert in_places_of(draft, text, BLANK) == expected


@given(TOKENS, TOKENS)
def test_every_place_is_kept_and_no_token_moves_before_another(draft: list[int], text: list[int]) -> None:
    placed = in_places_of(draft, text, BLANK)
    assert len(placed) == len(draft)
    left = iter(text)
    assert all(token in left for token in placed if token != BLANK)  # in the order of the text
    assert all(new == old for new, old in zip(placed, draft, strict=True)) or draft != text


def test_canvases_keep_their_tag_and_grow_where_a_draft_is_longer() -> None:
    canvas = torch.tensor([[EN, 20, 21, EOS], [EN, EOS, EOS, EOS], [EN, 20, EOS, EOS]])
    text, n_text = torch.tensor([[20, 21], [0, 0], [20, 0]]), torch.tensor([2, 0, 1])
    drafts = [[30, 21], [30, 31], [30, *[20] * 7]]
    made, n_places = canvases_in_places(canvas, torch.tensor([4, 2, 3]), text, n_text, drafts, BLANK)
    assert made.shape == (3, 16)
    assert n_places.tolist() == [4, 2, 10]
    assert made[0, :4].tolist() == [EN, 20, 21, EOS]
    assert made[1, :2].tolist() == [EN, EOS]  # it says nothing, whatever its draft says
    assert made[2, :10].sort().values.tolist() == sorted([EN, 20, *[BLANK] * 7, EOS])
    assert bool((made[2, 9:] == EOS).all())


@pytest.fixture(scope="module")
def in_places() -> CanvasASRModel:
    return small_model(audio_positions="spikes", audio_embeddings="posterior", canvas_places="draft")


@pytest.fixture(scope="module")
def batch(
    tmp_path_factory: pytest.TempPathFactory, processor: CanvasASRProcessor, in_places: CanvasASRModel
) -> dict[str, Tensor]:
    clips = read_manifest(write_clips(tmp_path_factory.mktemp("clips"), 3))
    dataset = SpeechDataset(clips, processor.feature_extractor)
    return AdapterCollator(processor, in_places.config, options_of())([dataset[(0, i)] for i in (0, 1, 2)])


def options_of(**options: Any) -> AdapterOptions:
    return AdapterOptions(TINY, "", "", (), (), canvas_choices=(), **options)


def test_it_learns_canvases_as_long_as_the_readings(
    in_places: CanvasASRModel, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def record(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        seen.update(canvas=arguments[5], targets=arguments[3], **options)
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(adapter, "denoising_losses", record)
    AdapterModel(in_places, options_of(), AUDIO, TAGS)(**batch)
    tokens, n_audio = in_places.audio_tokens(batch["mel"], batch["n_mel"])
    readings = greedy_ctc(in_places.ctc_logits(tokens), n_audio, BLANK)
    assert seen["n_canvas"].tolist() == [len(reading) + 2 for reading in readings]  # tag and end token
    for row, reading in enumerate(readings):
        ids = batch["text"][row, : batch["n_text"][row]].tolist()
        assert seen["canvas"][row, 1 : len(reading) + 1].tolist() == in_places_of(reading, ids, BLANK)
    assert torch.equal(seen["targets"], batch["targets"])  # the autoregressive loss keeps the transcript


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_canvases_from_drafts_see_what_ctc_expects_at_each_token(
    in_places: CanvasASRModel, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    seen: list[Tensor | None] = []
    denoise = objective.denoise

    def record(*arguments: Any, soft_embeddings: Tensor | None = None, **options: Any) -> Tensor:
        seen.append(soft_embeddings)
        return denoise(*arguments, soft_embeddings=soft_embeddings, **options)

    monkeypatch.setattr(objective, "denoise", record)
    corruption = CorruptionOptions(uniform=0, draft=1)
    options = options_of(
        objective=ObjectiveOptions(self_conditioning=0, draft_conditioning=share, corruption=corruption)
    )
    heard = torch.arange(in_places.config.vocab_size) >= 20  # neither tags nor blank, say
    AdapterModel(in_places, options, AUDIO, TAGS, heard=heard)(**batch)
    (soft,) = seen
    if not share:
        assert soft is None
        return
    assert soft is not None
    tokens, n_audio = in_places.audio_tokens(batch["mel"], batch["n_mel"])
    logits = in_places.ctc_logits(tokens)
    embed = in_places.backbone.get_input_embeddings()
    for row, n in enumerate(n_audio.tolist()):
        probabilities = logits[row, :n].softmax(-1)
        sure, path = probabilities.max(-1)
        spikes = [max(run, key=sure.tolist().__getitem__) for run in merged_runs(path.tolist(), BLANK)]
        mean = embed(torch.tensor(TAGS)).mean(0)
        shown = probabilities[spikes] * heard
        shown = shown / shown.sum(-1, keepdim=True)
        expected = [mean, *(shown @ embed(torch.arange(len(heard))))]
        torch.testing.assert_close(soft[row, : len(expected)], torch.stack(expected), atol=1e-5, rtol=1e-5)
        assert bool((soft[row, len(expected) :] == embed(torch.tensor(1))).all())


@torch.no_grad()
def test_drafts_lose_what_ctc_is_unsure_of(
    in_places: CanvasASRModel, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def record(*_: Any, **options: Any) -> dict[str, Tensor]:
        seen.update(options)
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(adapter, "denoising_losses", record)
    corruption = CorruptionOptions(uniform=0, draft=1, max_draft_threshold=1.0)
    AdapterModel(in_places, options_of(objective=ObjectiveOptions(corruption=corruption)), AUDIO, TAGS)(
        **batch
    )
    tokens, n_audio = in_places.audio_tokens(batch["mel"], batch["n_mel"])
    readings = greedy_ctc(in_places.ctc_logits(tokens), n_audio, BLANK)
    drafts = [draft[1:] for draft in seen["drafts"]]
    assert list(map(len, drafts)) == list(map(len, readings))
    assert drafts != readings  # no random model is sure
    # What is learnt stands in the places of the whole reading.
    assert seen["n_canvas"].tolist() == [len(reading) + 2 for reading in readings]


def test_only_what_reads_the_prompt_learns_without_adapter_and_embeddings(
    batch: dict[str, Tensor],
) -> None:
    model = small_model(lora_rank=0, audio_embeddings="posterior", canvas_places="draft")
    options = options_of(ctc_weight=0.0, train_adapter=False, train_backbone=True, train_embeddings=False)
    AdapterModel(model, options, AUDIO, TAGS)(**batch)["loss"].backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learns
    assert all(name.startswith("backbone.") and "embed_tokens" not in name for name in learns)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, True),
        ({"train_adapter": False, "train_backbone": True}, True),
        ({"train_adapter": False, "train_backbone": True, "train_embeddings": False}, False),
        ({"train_adapter": False, "train_audio_encoder": True}, True),
    ],
)
def test_what_the_tap_reads_through_is_known(options: dict[str, bool], changes: bool) -> None:
    assert options_of(**options).changes_draft is changes


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="train_adapter is false, and nothing else is trained"):
        options_of(train_adapter=False)


def test_the_objective_weighs_the_places_of_the_canvas(
    in_places: CanvasASRModel, batch: dict[str, Tensor]
) -> None:
    objective = ObjectiveOptions(autoregressive_weight=0)
    torch.manual_seed(0)
    found = AdapterModel(in_places, options_of(ctc_weight=0.0, objective=objective), AUDIO, TAGS)(**batch)
    assert torch.isfinite(found["loss"])
    assert found["loss"].item() == found["diffusion"].item() > 0


@pytest.mark.parametrize("places", ["draft", "transcript"])
def test_a_blank_on_a_canvas_writes_nothing(processor: CanvasASRProcessor, places: str) -> None:
    decoder = CanvasDecoder(small_model(canvas_places=places), processor)
    assert bool(decoder.vocabulary.text[BLANK]) == (places == "draft")
    canvas = torch.tensor([EN, 20, BLANK, 21, EOS, EOS])
    finished = FinishedCanvas(0, canvas, torch.tensor([1.0, 0.5, 0.9, 0.75, 1.0, 1.0]), torch.ones(6) / 6, 1)
    decoded = decoder.result(finished, [20, 30, 21], None)
    assert decoded.ids == [20, 21]
    assert decoded.confidences == [0.5, 0.75]
    assert not decoded.truncated


def test_other_places_are_refused() -> None:
    with pytest.raises(ValueError, match="canvas_places is 'words'; choose one of transcript, draft"):
        small_model(canvas_places="words")
