from __future__ import annotations

import pytest
import torch
from made_up_clips import tones
from small_models import small_model
from torch import Tensor

from canvas_asr import sampler
from canvas_asr.ctc import greedy_ctc, state_certainty, surest_states
from canvas_asr.decoding import CanvasDecoder, text_vocabulary
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor

EOS, BLANK, EN, ZH = 1, 6, 7, 12
CLIPS = [tones(duration_s, seed) for seed, duration_s in enumerate((0.7, 1.9, 0.1, 1.2))]


@pytest.fixture(scope="module")
def decoder(model: CanvasASRModel, processor: CanvasASRProcessor) -> CanvasDecoder:
    return CanvasDecoder(model, processor)


@pytest.fixture(scope="module")
def features(processor: CanvasASRProcessor) -> tuple[Tensor, Tensor]:
    return processor.features(CLIPS)


# The CTC reading


def path_logits(paths: list[list[int]], n_ids: int = 4) -> Tensor:
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(paths), n_ids).float()


def test_greedy_ctc_merges_repeats_then_drops_blanks() -> None:
    paths = [
        [1, 1, 0, 1, 2, 2],
        [0, 0, 0, 0, 0, 0],
        [3, 0, 3, 3, 0, 1],
        [1, 2, 3, 1, 2, 3],
    ]
    n_states = torch.tensor([6, 6, 6, 4])
    assert greedy_ctc(path_logits(paths), n_states, 0) == [[1, 1, 2], [], [3, 3, 1], [1, 2, 3, 1]]
    assert greedy_ctc(path_logits(paths), n_states, 3) == [
        [1, 0, 1, 2],
        [0],
        [0, 0, 1],
        [1, 2, 1],
    ]


def test_a_drafts_token_is_as_sure_as_the_surest_state_merged_to_it() -> None:
    probabilities = torch.tensor(
        [[[0.1, 0.6, 0.3], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.0, 0.0, 1.0]]]
    )
    logits = probabilities.log()
    assert greedy_ctc(logits, torch.tensor([4]), 0) == [[1, 1]]
    certainty = state_certainty(logits)
    assert certainty[0].tolist() == pytest.approx([0.6, 0.8, 0.5, 0.7, 1.0])
    assert surest_states(logits.argmax(-1), certainty, torch.tensor([4]), 0) == [[1, 3]]


# What may stand in a text


def test_the_text_vocabulary_is_all_but_special_tokens(processor: CanvasASRProcessor) -> None:
    vocabulary = text_vocabulary(processor.tokenizer, 4200, [EN, ZH])
    assert (vocabulary.size, vocabulary.eos, vocabulary.tags) == (4200, EOS, (EN, ZH))
    assert vocabulary.text.shape == (4200,)
    assert not vocabulary.text[4096:].any()  # rows that the tokenizer does not know
    assert vocabulary.text[EOS]
    forbidden = set(range(4096)) - set(vocabulary.text.nonzero().flatten().tolist())
    assert forbidden == set(processor.tokenizer.all_special_ids) - {EOS}
    assert {0, 2, 4, BLANK, EN} < forbidden


# Decoding


def test_clips_in_a_batch_give_what_each_gives_alone(
    decoder: CanvasDecoder, processor: CanvasASRProcessor, features: tuple[Tensor, Tensor]
) -> None:
    for options in ({"steps": 4}, {"steps": 2, "init": "draft"}, {"steps": 0, "init": "draft"}):
        together = decoder(*features, clip_keys=range(4), **options)
        for key, clip in enumerate(CLIPS):
            (alone,) = decoder(*processor.features([clip]), clip_keys=[key], **options)
            assert alone.ids == together[key].ids
            assert alone.draft == together[key].draft
            assert alone.language == together[key].language
            assert alone.confidences == pytest.approx(together[key].confidences, rel=1e-3)


def test_a_result_is_deterministic_under_its_seed(
    decoder: CanvasDecoder, features: tuple[Tensor, Tensor]
) -> None:
    first, again = (decoder(*features, clip_keys=range(4), steps=3, seed=5) for _ in range(2))
    assert first == again
    assert first != decoder(*features, clip_keys=range(4), steps=3, seed=6)


def test_no_special_token_is_ever_in_a_text(
    decoder: CanvasDecoder, processor: CanvasASRProcessor, features: tuple[Tensor, Tensor]
) -> None:
    special = set(processor.tokenizer.all_special_ids)
    found: set[int] = set()
    for seed in range(5):
        for result in decoder(*features, clip_keys=range(4), steps=2, seed=seed):
            found.update(result.ids)
    assert len(found) > 100
    assert not special & found


def test_steps_canvas_and_passes(decoder: CanvasDecoder, features: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    results = decoder(
        *features,
        clip_keys=range(4),
        steps=3,
        canvas_length=11,
        on_pass=lambda step, canvas: seen.append((step, tuple(canvas.shape))),
    )
    assert seen == [(1, (4, 11)), (2, (4, 11)), (3, (4, 11))]
    assert [result.passes for result in results] == [3] * 4
    seen.clear()
    decoder(
        *features, clip_keys=range(4), steps=1, on_pass=lambda step, canvas: seen.append(tuple(canvas.shape))
    )
    assert seen == [(4, 32)]  # the checkpoint's own


def test_the_draft_alone_takes_no_pass(decoder: CanvasDecoder, features: tuple[Tensor, Tensor]) -> None:
    seen: list[int] = []
    options = {"steps": 0, "init": "draft", "on_pass": lambda step, _: seen.append(step)}
    for result in decoder(*features, clip_keys=range(4), **options):
        assert result.ids == result.draft
        assert len(result.confidences) == len(result.ids)
        assert all(0 < p <= 1 for p in result.confidences)
        assert (result.passes, result.language, result.language_confidence) == (0, "", 0.0)
        assert not result.truncated
    (named,) = decoder(features[0][:1], features[1][:1], clip_keys=[0], language="de", **options)
    assert (named.language, named.language_confidence) == ("de", 1.0)
    assert not seen


def test_the_draft_is_the_greedy_reading_of_the_tap(
    model: CanvasASRModel, decoder: CanvasDecoder, features: tuple[Tensor, Tensor]
) -> None:
    with torch.no_grad():
        tokens, n_audio = model.audio_tokens(*features)
        drafts = greedy_ctc(model.ctc_logits(tokens), n_audio, BLANK)
    results = decoder(*features, clip_keys=range(4), steps=1)
    assert [result.draft for result in results] == drafts
    assert any(drafts)


class Script:
    """Answers every pass of the sampler with the same canvas, surely."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[Tensor] = []
        self.ids: list[int] = []
        monkeypatch.setattr(sampler, "denoise", self._denoise)
        monkeypatch.setattr(sampler, "output_logits", lambda _backbone, logits: logits)
        monkeypatch.setattr(sampler, "expected_embedding", lambda _backbone, p: p.clone())

    def _denoise(self, backbone: object, canvas: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.shown.append(canvas.clone())
        ids = torch.tensor(self.ids + [EOS] * (canvas.shape[1] - len(self.ids)))
        return 20.0 * torch.nn.functional.one_hot(ids[: canvas.shape[1]], 4096).float()[None].repeat(
            len(canvas), 1, 1
        )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def one(decoder: CanvasDecoder, processor: CanvasASRProcessor, **options: object):
    return decoder(*processor.features(CLIPS[:1]), clip_keys=[0], canvas_length=8, **options)[0]


def test_text_lies_between_the_tag_and_the_first_end_token(
    decoder: CanvasDecoder, processor: CanvasASRProcessor, script: Script
) -> None:
    script.ids = [ZH, 500, 501, EOS, 502]
    result = one(decoder, processor, steps=2)
    assert (result.ids, result.language, result.truncated) == ([500, 501], "zh", False)
    assert result.language_confidence == pytest.approx(1, abs=1e-4)
    assert result.confidences == pytest.approx([1, 1], abs=1e-4)


def test_a_silent_clip_has_no_text(
    decoder: CanvasDecoder, processor: CanvasASRProcessor, script: Script
) -> None:
    script.ids = [EOS, 500]
    result = one(decoder, processor, steps=2)
    assert (result.ids, result.confidences, result.truncated) == ([], [], False)


def test_a_text_that_fills_the_canvas_is_said_to_be_truncated(
    decoder: CanvasDecoder, processor: CanvasASRProcessor, script: Script
) -> None:
    script.ids = [EN, *range(500, 507)]
    assert one(decoder, processor, steps=1).truncated
    script.ids = [EN, *range(500, 506), EOS]
    result = one(decoder, processor, steps=1)
    assert (len(result.ids), result.truncated) == (6, False)


def test_a_given_language_is_pinned(
    decoder: CanvasDecoder, processor: CanvasASRProcessor, script: Script
) -> None:
    script.ids = [ZH, 500]
    result = one(decoder, processor, steps=3, language="en")
    assert [int(canvas[0, 0]) for canvas in script.shown] == [EN] * 3
    assert (result.language, result.language_confidence, result.ids) == ("en", 1.0, [500])


def test_drafts_of_the_callers_own_are_started_from(
    decoder: CanvasDecoder, processor: CanvasASRProcessor, script: Script
) -> None:
    script.ids = [EN, 500]
    result = one(decoder, processor, steps=1, init="draft", drafts=[[900, 901]])
    assert script.shown[0][0, 1:].tolist() == [900, 901, *[EOS] * 5]
    assert result.draft != [900, 901]  # what was heard, not what was given


def test_a_checkpoint_without_tags(processor: CanvasASRProcessor, script: Script) -> None:
    decoder = CanvasDecoder(small_model(language_tag_place="none"), processor)
    script.ids = [500, 501]
    result = one(decoder, processor, steps=1)
    assert (result.ids, result.language, result.language_confidence) == ([500, 501], "", 0.0)
    named = one(decoder, processor, steps=1, language="en")
    assert (named.ids, named.language, named.language_confidence) == ([500, 501], "en", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"steps": -1, "init": "draft"}, "steps is -1"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number"),
        ({"steps": "8"}, "steps is '8'; give a whole number"),
        ({"canvas_length": 65}, "canvas is 65 tokens; this model allows at most 64"),
        ({"canvas_length": 1}, "canvas is 1 tokens"),
        ({"steps": 0, "init": "draft", "canvas_length": 999}, "canvas is 999 tokens"),
        ({"init": "mask"}, "init is 'mask'"),
        ({"language": "it"}, "language is 'it'; this model knows en, de, fr, es, hi, zh"),
        ({"language": ""}, "language is ''"),
        ({"steps": 0, "init": "draft", "language": "it"}, "language is 'it'"),
        ({"seed": None}, "seed is None; give a whole number"),
    ],
)
def test_a_bad_option_is_named(
    decoder: CanvasDecoder, features: tuple[Tensor, Tensor], options: dict, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        decoder(*features, clip_keys=range(4), **options)


def test_with_recorded_passes_the_tokens_are_the_same(
    processor: CanvasASRProcessor, features: tuple[Tensor, Tensor]
) -> None:
    """On a CPU nothing is recorded, but the same fixed inputs, padding and fused norms are used."""
    plain = CanvasDecoder(small_model(), processor)
    recorded = CanvasDecoder(small_model(), processor, cuda_graphs=True)
    assert plain.graphs is None
    for init, steps in (("noise", 3), ("draft", 1)):
        expected, found = (
            decoder(*features, clip_keys=range(len(features[1])), steps=steps, init=init, canvas_length=16)
            for decoder in (plain, recorded)
        )
        assert [one.ids for one in found] == [one.ids for one in expected]
        assert any(one.ids for one in expected)
