"""The sampler with scripted logits, so that what it keeps and re-noises is known; then with a model."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from canvas_asr import sampler as module
from canvas_asr.backbone import encode_prefix, select_cache
from canvas_asr.canvas import Vocabulary, likeliest
from canvas_asr.errors import OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import pad_ids
from canvas_asr.sampler import SamplerConfig, SamplerOutput, sample

V, C, EOS = 20, 6, 1
EN, DE = 2, 3
A, B, X = 10, 11, 12
FORBIDDEN = (0, EN, DE, 4)


def vocabulary(tags: tuple[int, ...] = (EN, DE)) -> Vocabulary:
    text = torch.ones(V, dtype=torch.bool)
    text[list(FORBIDDEN)] = False
    return Vocabulary(V, EOS, tags, text)


def draws(seed: int, key: int, n: int, length: int = C) -> list[Tensor]:
    """The rows of noise that a clip is given, in order."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + key) & ((1 << 63) - 1))
    return [torch.randint(V, (length,), generator=generator) for _ in range(n)]


def logits_for(predictions: list[tuple[int, float]]) -> Tensor:
    """Logits that predict a token with a probability at every position, (1, C, V)."""
    rows = []
    for token, probability in predictions:
        probabilities = torch.full((V,), (1 - probability) / (V - len(FORBIDDEN) - 1))
        probabilities[list(FORBIDDEN)] = 1e-9
        probabilities[token] = probability
        rows.append(probabilities.log())
    return torch.stack(rows)[None]


class Script:
    """Stands for the backbone: answers every pass with the next logits and notes what it was shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[Tensor] = []
        self.canvases: list[Tensor] = []
        self.signals: list[Tensor | None] = []
        monkeypatch.setattr(module, "denoise", self._denoise)
        monkeypatch.setattr(module, "output_logits", lambda _backbone, hidden: hidden)
        monkeypatch.setattr(module, "expected_embedding", lambda _backbone, p: p + 1)

    def _denoise(
        self, backbone: object, canvas: Tensor, prefix: object, n_prompt: Tensor, **kwargs: Tensor
    ) -> Tensor:
        self.canvases.append(canvas.clone())
        self.signals.append(kwargs["soft_embeddings"])
        return self.answers[min(len(self.canvases), len(self.answers)) - 1].repeat(len(canvas), 1, 1)

    def run(
        self, config: SamplerConfig, n_clips: int = 1, known: tuple[int, ...] = (EN, DE), **options: object
    ) -> SamplerOutput:
        return sample(
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            torch.full((n_clips,), 3),
            vocabulary(known),
            config,
            clip_keys=range(n_clips),
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


# tag, a, b, end, tail, tail: the tail is the surest of all
SPOKEN = [(EN, 0.9), (A, 0.5), (B, 0.8), (EOS, 0.7), (EOS, 0.99), (EOS, 0.99)]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"steps": -3}, "steps is -3"),
        ({"canvas_length": 1}, "canvas is 1 tokens; give at least 2"),
        ({"init": "mask"}, "init is 'mask'; choose one of noise, draft"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SamplerConfig(**options)


# The first canvas


def test_a_draft_that_is_missing_is_asked_for(script: Script) -> None:
    with pytest.raises(OptionError, match="needs CTC drafts"):
        script.run(SamplerConfig(steps=1, canvas_length=C, init="draft"))


# What a pass keeps


def test_half_way_the_surer_half_of_the_text_is_kept(script: Script) -> None:
    script.answers = [logits_for(SPOKEN)]
    output = script.run(SamplerConfig(steps=2, canvas_length=C, seed=5))
    first, second = draws(5, 0, 2)
    assert script.canvases[0][0].tolist() == first.tolist()
    # Two of the four places before the tail: tag and b; the tail stays, though it counts for nothing.
    assert script.canvases[1][0].tolist() == [EN, int(second[1]), B, int(second[3]), EOS, EOS]
    assert output.canvas[0].tolist() == [EN, A, B, EOS, EOS, EOS]
    assert output.passes == (2,)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_the_share_kept_grows_with_every_pass_and_the_order_is_that_of_confidence(
    script: Script, steps: int
) -> None:
    script.answers = [logits_for(SPOKEN)]
    script.run(SamplerConfig(steps=steps, canvas_length=C))
    assert len(script.canvases) == steps
    noise = draws(0, 0, steps)
    by_confidence = [0, 2, 3, 1]
    for step in range(1, steps):
        n_kept = -(-4 * step // steps)
        kept = by_confidence[:n_kept]
        expected = [SPOKEN[i][0] if i in kept or i > 3 else int(noise[step][i]) for i in range(C)]
        assert script.canvases[step][0].tolist() == expected


def test_a_canvas_without_an_end_token_is_text_throughout(script: Script) -> None:
    predictions = [(EN, 0.9), (A, 0.3), (A, 0.4), (A, 0.5), (A, 0.6), (A, 0.7)]
    script.answers = [logits_for(predictions)]
    script.run(SamplerConfig(steps=2, canvas_length=C))
    noise = draws(0, 0, 2)[1]
    assert script.canvases[1][0].tolist() == [EN, int(noise[1]), int(noise[2]), int(noise[3]), A, A]


def test_text_can_still_grow_behind_an_end_that_moves(script: Script) -> None:
    longer = [(EN, 0.9), (A, 0.9), (B, 0.9), (X, 0.9), (X, 0.9), (EOS, 0.9)]
    script.answers = [logits_for(SPOKEN), logits_for(longer)]
    output = script.run(SamplerConfig(steps=2, canvas_length=C))
    assert output.canvas[0].tolist() == [EN, A, B, X, X, EOS]


def test_confidence_is_the_probability_among_allowed_tokens(script: Script) -> None:
    script.answers = [logits_for(SPOKEN)]
    output = script.run(SamplerConfig(steps=1, canvas_length=C))
    expected = torch.tensor([p for _, p in SPOKEN])[1:]
    torch.testing.assert_close(output.confidence[0, 1:], expected, atol=1e-5, rtol=1e-4)


def test_the_next_pass_is_shown_the_last_prediction(script: Script) -> None:
    script.answers = [logits_for(SPOKEN), logits_for(SPOKEN) / 2, logits_for(SPOKEN)]
    script.run(SamplerConfig(steps=3, canvas_length=C))
    assert script.signals[0] is None
    assert torch.equal(script.signals[1], script.answers[0].softmax(dim=-1) + 1)
    assert torch.equal(script.signals[2], script.answers[1].softmax(dim=-1) + 1)


def test_every_pass_is_reported_and_none_is_added(script: Script) -> None:
    script.answers = [logits_for(SPOKEN)]
    seen: list[tuple[int, list[int]]] = []
    output = script.run(
        SamplerConfig(steps=5, canvas_length=C),
        on_pass=lambda step, canvas: seen.append((step, canvas[0].tolist())),
    )
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert seen[-1][1] == output.canvas[0].tolist()
    assert (len(script.canvases), output.passes) == (5, (5,))


def test_one_pass_from_a_draft_shows_the_draft_and_returns_the_prediction(script: Script) -> None:
    script.answers = [logits_for(SPOKEN)]
    output = script.run(SamplerConfig(steps=1, canvas_length=C, init="draft"), drafts=[[X, B]])
    assert len(script.canvases) == 1
    assert script.canvases[0][0, 1:].tolist() == [X, B, EOS, EOS, EOS]
    assert output.canvas[0].tolist() == [EN, A, B, EOS, EOS, EOS]


# Tags and forbidden tokens


def tag_logits(en: float, de: float, end: float) -> Tensor:
    logits = logits_for(SPOKEN)
    logits[0, 0] = -20
    logits[0, 0, [EN, DE, EOS]] = torch.tensor([en, de, end])
    return logits


def test_the_tag_is_the_likeliest_and_its_probability_is_among_tags(script: Script) -> None:
    script.answers = [tag_logits(0.0, 1.0, -5.0)]
    output = script.run(SamplerConfig(steps=1, canvas_length=C))
    assert output.canvas[0, 0] == DE
    expected = torch.tensor([[1 / (1 + torch.e), torch.e / (1 + torch.e)]])
    torch.testing.assert_close(output.tag_probabilities, expected)
    torch.testing.assert_close(output.confidence[0, 0], expected[0, 1])


def test_a_given_tag_is_on_every_canvas_and_takes_nobodys_place(script: Script) -> None:
    script.answers = [tag_logits(5.0, 0.0, 9.0)]
    output = script.run(SamplerConfig(steps=2, canvas_length=C), tags=[DE])
    assert [int(canvas[0, 0]) for canvas in script.canvases] == [DE, DE]
    # Of three places of text two are kept: half of three, rounded up, without the tag.
    noise = draws(0, 0, 2)[1]
    assert script.canvases[1][0, 1:].tolist() == [int(noise[1]), B, EOS, EOS, EOS]
    assert output.canvas[0].tolist() == [DE, A, B, EOS, EOS, EOS]
    assert output.tag_probabilities.tolist() == [[0, 1]]
    assert output.confidence[0, 0] == 1


def test_tags_are_given_clip_by_clip(script: Script) -> None:
    script.answers = [tag_logits(5.0, 0.0, -9.0)]
    output = script.run(SamplerConfig(steps=2, canvas_length=C), n_clips=2, tags=[None, DE])
    assert output.canvas[:, 0].tolist() == [EN, DE]


def test_a_clip_without_speech_has_the_end_token_for_a_tag(script: Script) -> None:
    script.answers = [tag_logits(1.0, 0.0, 2.0)]
    output = script.run(SamplerConfig(steps=2, canvas_length=C))
    assert output.canvas[0, 0] == EOS
    script.canvases.clear()
    script.answers = [tag_logits(2.0, 0.0, 1.0)]
    assert script.run(SamplerConfig(steps=2, canvas_length=C)).canvas[0, 0] == EN


def test_without_tags_the_text_begins_at_once(script: Script) -> None:
    script.answers = [logits_for([(A, 0.9), *SPOKEN[1:]])]
    output = script.run(SamplerConfig(steps=2, canvas_length=C), known=())
    assert output.canvas[0].tolist() == [A, A, B, EOS, EOS, EOS]
    assert output.tag_probabilities.shape == (1, 0)


def test_forbidden_tokens_never_appear_however_likely(script: Script) -> None:
    logits = logits_for(SPOKEN)
    logits[:, :, list(FORBIDDEN)] = 50.0
    script.answers = [logits]
    seen: list[Tensor] = []
    script.run(SamplerConfig(steps=4, canvas_length=C), on_pass=lambda _, canvas: seen.append(canvas.clone()))
    for canvas in seen:
        assert canvas[0, 1:].tolist() == [A, B, EOS, EOS, EOS]
        assert int(canvas[0, 0]) in (EN, DE)


# With a model


@pytest.fixture(scope="module")
def decode(model: CanvasASRModel) -> Callable[..., SamplerOutput]:
    """Decode the chosen ones of four prompts of unequal length in one batch."""
    backbone = model.backbone
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4096, (n,), generator=generator).tolist() for n in (5, 12, 1, 8)]
    drafts = [[500, 501], [600] * 20, [], [700]]
    text = torch.ones(4096, dtype=torch.bool)
    text[:16] = False
    text[EOS] = True
    words = Vocabulary(4096, EOS, (7, 8), text)

    def run(
        rows: list[int], seed: int = 0, keys: list[int] | None = None, **options: object
    ) -> SamplerOutput:
        ids, n_prompt = pad_ids([prompts[row] for row in rows], 0)
        with torch.no_grad():
            _, prefix = encode_prefix(backbone, backbone.get_input_embeddings()(ids))
        config = SamplerConfig(canvas_length=16, seed=seed, **options)  # type: ignore[arg-type]
        return sample(
            backbone,
            prefix,
            n_prompt,
            words,
            config,
            clip_keys=rows if keys is None else keys,
            drafts=[drafts[row] for row in rows],
        )

    return run


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(
    decode: Callable[..., SamplerOutput],
) -> None:
    first, again, other = decode([0, 1], 3), decode([0, 1], 3), decode([0, 1], 4)
    assert torch.equal(first.canvas, again.canvas)
    assert torch.equal(first.confidence, again.confidence)
    assert not torch.equal(first.canvas, other.canvas)


def test_the_global_random_state_plays_no_part(decode: Callable[..., SamplerOutput]) -> None:
    torch.manual_seed(1)
    first = decode([0])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(decode([0]).canvas, first.canvas)
    torch.set_rng_state(state)


@pytest.mark.parametrize("options", [{"steps": 4}, {"steps": 1}, {"steps": 2, "init": "draft"}])
def test_unequal_clips_in_a_batch_give_what_each_gives_alone(
    decode: Callable[..., SamplerOutput], options: dict
) -> None:
    together = decode([0, 1, 2, 3], **options)
    assert len({tuple(row) for row in together.canvas.tolist()}) == 4
    for row in range(4):
        alone = decode([row], **options)
        assert together.canvas[row].tolist() == alone.canvas[0].tolist()
        torch.testing.assert_close(together.confidence[row], alone.confidence[0], atol=1e-5, rtol=1e-3)
    other_order = decode([3, 1], **options)
    assert torch.equal(other_order.canvas, together.canvas[[3, 1]])


@pytest.mark.parametrize("positions", [1, 3, 16])
def test_a_canvas_read_in_pieces_reads_the_same(
    decode: Callable[..., SamplerOutput], monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    whole = decode([0, 1, 2], steps=3)
    monkeypatch.setattr(module, "MAX_LOGITS", positions * 4096)
    read: list[int] = []
    stock = module.output_logits
    monkeypatch.setattr(module, "output_logits", lambda b, h: (read.append(len(h)), stock(b, h))[1])
    in_pieces = decode([0, 1, 2], steps=3)
    assert max(read) == positions
    assert torch.equal(in_pieces.canvas, whole.canvas)
    torch.testing.assert_close(in_pieces.confidence, whole.confidence, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(in_pieces.tag_probabilities, whole.tag_probabilities, atol=1e-5, rtol=1e-3)


def test_noise_belongs_to_the_clip_not_to_its_place(decode: Callable[..., SamplerOutput]) -> None:
    assert not torch.equal(decode([0], keys=[0]).canvas, decode([0], keys=[9]).canvas)
    both = decode([0, 0], keys=[9, 0])
    assert torch.equal(both.canvas[1], decode([0], keys=[0]).canvas[0])


def test_sampling_leaves_the_prefix_as_it_is(model: CanvasASRModel) -> None:
    ids = torch.arange(50, 60)[None]
    with torch.no_grad():
        _, prefix = encode_prefix(model.backbone, model.backbone.get_input_embeddings()(ids))
    before: DynamicCache = select_cache(prefix, torch.tensor([0]))
    words = Vocabulary(4096, EOS, (), torch.ones(4096, dtype=torch.bool))
    sample(model.backbone, prefix, torch.tensor([10]), words, SamplerConfig(3, 8), clip_keys=[0])
    for layer, kept in zip(prefix.layers, before.layers, strict=True):
        assert torch.equal(layer.keys, kept.keys)


def test_no_logits_are_kept_between_passes(model: CanvasASRModel) -> None:
    def kept() -> list[tuple[int, ...]]:
        tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.dim() > 1]
        return [tuple(tensor.shape) for tensor in tensors if tensor.shape[-1] == 4096]

    seen, before = [], kept()
    with torch.no_grad():
        _, prefix = encode_prefix(model.backbone, torch.randn(1, 10, model.config.hidden_size))
    words = Vocabulary(4096, EOS, (), torch.ones(4096, dtype=torch.bool))
    options = {"clip_keys": [0], "on_pass": lambda *_: seen.append(kept())}
    sample(model.backbone, prefix, torch.tensor([10]), words, SamplerConfig(3, 8), **options)
    assert seen == [before] * 3


def test_entropy_is_that_of_the_allowed_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "output_logits", lambda _backbone, hidden: hidden)
    logits = 5 * torch.randn(2, C, V, generator=torch.Generator().manual_seed(0))
    logits[:, :, list(FORBIDDEN)] = 9.0
    words = vocabulary()
    reading = module.read_canvas(None, logits, words, wants_soft=False, wants_entropy=True)  # type: ignore[arg-type]
    expected = torch.distributions.Categorical(logits=logits[:, :, words.text]).entropy()
    assert reading.entropy is not None
    torch.testing.assert_close(reading.entropy, expected, atol=1e-5, rtol=1e-4)
    assert module.read_canvas(None, logits, words, wants_soft=False).entropy is None  # type: ignore[arg-type]


@pytest.mark.parametrize("n_scores", [128, 100])
def test_the_likeliest_is_the_first_of_the_greatest(n_scores: int) -> None:
    scores = torch.randint(0, 9, (2, 7, n_scores), generator=torch.Generator().manual_seed(0)).float()
    scores[1, 3] = -torch.inf
    best, ids = likeliest(scores)
    assert torch.equal(best, scores.amax(dim=-1))
    first = [[row.index(max(row)) for row in rows] for rows in scores.tolist()]
    assert ids.tolist() == first
