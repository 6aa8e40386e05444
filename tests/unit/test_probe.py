"""The probe: the settings that an adapter was trained with win, and one that does not listen is found out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_clips import tones
from peft.tuners.lora import LoraLayer
from small_models import small_model

from canvas_asr.conversion import ImportSettings
from canvas_asr.conversion.probe import (
    Candidate,
    Losses,
    Score,
    candidates,
    probe,
    table,
)
from canvas_asr.conversion.settings import FRAMINGS, unknown_tokens
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor, pad_ids
from canvas_asr.training.corruption import lay_out
from canvas_asr.training.losses import ctc_loss
from canvas_asr.training.objective import ObjectiveOptions, denoising_losses

CLIPS = [(tones(0.9, 1), "Guten Tag."), (tones(0.9, 2), "Buenos días.")]
PLAIN = {"projector_kind": "conv", "projector_width": 24, "projector_stride": 2, "language_tag_place": "none"}


def learn(model: CanvasASRModel, processor: CanvasASRProcessor, n_steps: int) -> None:
    """Fit the adapter to the clips, as training does."""
    torch.manual_seed(0)
    mel, n_mel = processor.features([samples for samples, _ in CLIPS])
    text, n_text = pad_ids([processor.text_ids(text) for _, text in CLIPS], 0)
    targets, n_targets = pad_ids([[*processor.text_ids(text), 1] for _, text in CLIPS], 0)
    canvas = lay_out([processor.text_ids(text) for _, text in CLIPS], model.config.canvas_length, 1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    for _ in range(n_steps):
        tokens, n_audio = model.audio_tokens(mel, n_mel)
        prompts, n_prompt = pad_ids(processor.prompt_ids(model.config, n_audio.tolist()), 0)
        prompt = model.embed_prompt(prompts, tokens, n_audio, processor.token_id("<|audio|>"))
        batch = (prompt, n_prompt, targets, n_targets, canvas)
        loss = denoising_losses(model.backbone, *batch, ObjectiveOptions(autoregressive_weight=0))["loss"]
        states = model.ctc_tap(tokens)
        loss = loss + ctc_loss(states, n_audio, text, n_text, model.read_ctc_states, blank=6)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def fitted(processor: CanvasASRProcessor) -> CanvasASRModel:
    model = small_model(**PLAIN, projector_activation="relu", lora_rank=4, lora_alpha=16)
    with torch.no_grad():
        # As drawn, positions drown the sound in the frames, the output layer can hardly prefer a token, and
        # LoRA outgrows its base, behind which a norm hides its scale.
        model.audio_encoder.conv1.weight *= 8
        model.audio_encoder.conv2.weight *= 8
        model.backbone.lm_head.weight *= 10
        for name, parameter in model.backbone.named_parameters():
            if "base_layer" in name:
                parameter *= 5
            elif "lora_B" in name:
                parameter.zero_()
    learn(model, processor, 100)
    return model


def test_the_settings_of_training_win(fitted: CanvasASRModel, processor: CanvasASRProcessor) -> None:
    true = Candidate.of(fitted.config)
    wrong = [
        replace(true, lora_alpha=4),
        replace(true, lora_alpha=64),
        replace(true, projector_activation="silu"),
        replace(true, prompt_prefix="<bos>Please write down what is said in this clip."),
    ]
    scores = probe(fitted, processor, CLIPS, [*wrong, true])
    assert scores[0].candidate == true
    assert scores[0].listens
    assert scores[0].total < scores[1].total - 0.02
    assert [score.total for score in scores] == sorted(score.total for score in scores)


def test_every_setting_reaches_the_losses_that_it_can(
    fitted: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    true = Candidate.of(fitted.config)
    changed = {
        "alpha": replace(true, lora_alpha=64),
        "activation": replace(true, projector_activation="silu"),
        "prompt": replace(true, prompt_prefix="<bos><|transcribe|>", prompt_suffix=""),
        "tag": replace(true, language_tag_place="canvas"),
    }
    scores = probe(fitted, processor, CLIPS, [true, *changed.values()], language="de")
    own = {score.candidate: score.own for score in scores}
    for name, candidate in changed.items():
        assert own[candidate].diffusion != own[true].diffusion
        assert (own[candidate].ctc != own[true].ctc) == (name == "activation")


def test_the_model_is_left_as_it_was(fitted: CanvasASRModel, processor: CanvasASRProcessor) -> None:
    before = Candidate.of(fitted.config)
    state = torch.random.get_rng_state()
    tried = replace(before, lora_alpha=64, projector_activation="silu", prompt_prefix="<bos>x")
    first = probe(fitted, processor, CLIPS[:1], [tried])
    assert Candidate.of(fitted.config) == before
    assert isinstance(fitted.projector.activation, torch.nn.ReLU)
    scales = {m.scaling["default"] for m in fitted.backbone.modules() if isinstance(m, LoraLayer)}
    assert scales == {4.0}
    assert torch.equal(state, torch.random.get_rng_state())
    assert probe(fitted, processor, CLIPS[:1], [tried]) == first
    with pytest.raises(OptionError):
        probe(fitted, processor, [(CLIPS[0][0], "")], [tried])
    assert Candidate.of(fitted.config) == before


def test_an_adapter_that_hears_nothing_is_found_out(processor: CanvasASRProcessor) -> None:
    deaf = small_model(**PLAIN)
    torch.nn.init.zeros_(deaf.projector.out.weight)
    (score,) = probe(deaf, processor, CLIPS, [Candidate.of(deaf.config)])
    assert score.gain == pytest.approx(0, abs=1e-4)
    assert not score.listens


def test_an_untrained_adapter_does_not_listen_whatever_the_lengths(processor: CanvasASRProcessor) -> None:
    model = small_model(**PLAIN)
    clips = [(tones(0.6, 1), "Guten Tag, mein Freund."), (tones(1.5, 2), "Ja.")]
    (score,) = probe(model, processor, clips, [Candidate.of(model.config)])
    assert not score.listens
    assert score.own.ctc == pytest.approx(score.other.ctc, abs=0.3)


def test_audio_too_short_for_its_text_counts_no_ctc(
    fitted: CanvasASRModel, processor: CanvasASRProcessor
) -> None:
    (score,) = probe(fitted, processor, [(tones(0.05, 1), "Guten Tag.")], [Candidate.of(fitted.config)])
    assert np.isnan(score.own.ctc)
    assert score.total == score.own.diffusion
    assert np.isfinite(score.gain)


@pytest.mark.parametrize(
    ("clips", "language", "message"),
    [
        ([], None, "needs a clip and its text"),
        ([(CLIPS[0][0], "  ")], None, "the text of a probe is empty"),
        ([(CLIPS[0][0], "Tag " * 90)], None, "needs [0-9]+ tokens, the canvas has 64"),
        (CLIPS, "tlh", "language is 'tlh'; a canvas with a language tag needs one of en"),
    ],
)
def test_a_probe_that_cannot_be_scored_is_refused(
    clips: list[tuple[np.ndarray, str]],
    language: str | None,
    message: str,
    fitted: CanvasASRModel,
    processor: CanvasASRProcessor,
) -> None:
    place = "none" if language is None else "canvas"
    tried = [replace(Candidate.of(fitted.config), language_tag_place=place)]
    with pytest.raises(OptionError, match=message):
        probe(fitted, processor, clips, tried, language=language)


def test_the_grid_varies_what_is_not_given(fitted: CanvasASRModel, processor: CanvasASRProcessor) -> None:
    own = Candidate.of(fitted.config)
    every = candidates(ImportSettings(), fitted, processor, language="de")
    # Of the framings the tokenizer knows one, "bare", beside the model's own.
    assert not unknown_tokens(processor, *FRAMINGS["bare"])
    assert unknown_tokens(processor, *FRAMINGS["turn"]) == ["<|turn>", "<turn|>", "<|turn>"]
    assert len(every) == len(set(every)) == 4 * 3 * 2 * 2
    assert own in every
    assert {c.lora_alpha for c in every} == {4, 8, 16, 32}
    given = ImportSettings(
        lora_alpha=16,
        projector_activation="relu",
        prompt_prefix="<bos>",
        prompt_suffix="<|transcribe|>",
        language_tag_place="none",
    )
    assert candidates(given, fitted, processor, language="de") == [own]
    assert len(candidates(ImportSettings(), fitted, processor, language=None)) == 4 * 3 * 2


def test_the_table_shows_losses_and_settings() -> None:
    named = Candidate(32, "gelu", *FRAMINGS["bare"], "none")
    lines = table(
        [
            Score(named, Losses(1.25, 2.5), Losses(4.0, 3.0)),
            Score(replace(named, prompt_prefix="x"), Losses(float("nan"), 2.0), Losses(9.0, 3.0)),
        ]
    ).splitlines()
    assert lines[1].split() == "3.750 1.250 2.500 4.000 3.000 +0.500 32 gelu none bare".split()
    assert lines[2].split() == "2.000 nan 2.000 9.000 3.000 +1.000 32 gelu none as given".split()
