"""What stages (b) and (c) minimise, against the stock forward and by changing what must not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import BACKBONE
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from canvas_asr.backbone import build_backbone
from canvas_asr.errors import RecipeError
from canvas_asr.training import objective
from canvas_asr.training.corruption import CorruptionOptions
from canvas_asr.training.objective import ObjectiveOptions, append_targets, denoising_losses

V, EOS = 4096, 1
PREDICTIONS = CorruptionOptions(uniform=0, predictions=1)


@pytest.fixture(scope="module")
def backbone() -> DiffusionGemmaForBlockDiffusion:
    """Every token goes to every expert.

    Routing would change how many rows one matrix product has, and with it the last bit of a prompt's states,
    when nothing but the transcript behind it differs.
    """
    torch.manual_seed(0)
    text = {**BACKBONE["text_config"], "top_k_experts": 4}
    backbone = build_backbone(DiffusionGemmaConfig(**{**BACKBONE, "text_config": text}))
    for parameter in backbone.parameters():
        if parameter.ndim > 1:  # at their first size, weights hardly mix positions
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone.requires_grad_(False).eval()


class Batch:
    """Two prompts of unequal length, two texts of unequal length."""

    def __init__(self, backbone: DiffusionGemmaForBlockDiffusion) -> None:
        generator = torch.Generator().manual_seed(0)
        self.backbone = backbone
        self.prompt_ids = torch.randint(100, V, (2, 7), generator=generator)
        self.n_prompt = torch.tensor([7, 4])
        self.targets = torch.randint(100, V, (2, 5), generator=generator)
        self.n_targets = torch.tensor([5, 3])
        self.targets[0, 4] = self.targets[1, 2] = EOS
        self.canvas = torch.full((2, 8), EOS)
        self.canvas[0, :5], self.canvas[1, :3] = self.targets[0], self.targets[1, :3]

    def losses(self, seed: int = 0, **options: object) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        prompt = self.backbone.get_input_embeddings()(self.prompt_ids)
        return denoising_losses(
            self.backbone,
            prompt,
            self.n_prompt,
            self.targets,
            self.n_targets,
            self.canvas,
            ObjectiveOptions(**options),
        )

    def stock_logits(self, row: int, canvas: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Logits of the stock forward for one clip, (C, V)."""
        prompt = self.prompt_ids[row : row + 1, : self.n_prompt[row]]
        return self.backbone(
            input_ids=prompt, decoder_input_ids=canvas[None], self_conditioning_logits=earlier
        ).logits[0]


@pytest.fixture
def batch(backbone: DiffusionGemmaForBlockDiffusion) -> Batch:
    return Batch(backbone)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Logits that the diffusion loss is given, call by call."""
    logits: list[Tensor] = []
    loss = objective.diffusion_loss

    def spy(states: Tensor, canvas: Tensor, n_text: Tensor, read: Any, **options: Any) -> Any:
        logits.append(read(states).detach())
        return loss(states, canvas, n_text, read, **options)

    monkeypatch.setattr(objective, "diffusion_loss", spy)
    return logits


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "sample_noise_levels", lambda n_clips, _: torch.zeros(n_clips))


def test_targets_are_written_right_behind_each_prompt() -> None:
    prompt = torch.arange(1.0, 7.0).reshape(2, 3, 1)
    targets = torch.arange(10.0, 14.0).reshape(2, 2, 1)
    joined = append_targets(prompt, torch.tensor([3, 1]), targets, torch.tensor([1, 2]))
    assert joined[..., 0].tolist() == [[1, 2, 3, 10], [4, 12, 13, 0]]


@torch.no_grad()
def test_several_canvases_of_a_clip_are_as_the_clip_several_times(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise differs, but not where there is none, or nothing else."""
    monkeypatch.setattr(objective, "sample_noise_levels", lambda n_clips, _: torch.zeros(n_clips))
    options = {"corruption": CorruptionOptions(uniform=0, edits=0, draft=0, predictions=1)}
    levels: list[float] = []
    uniform = objective.Corruption.uniform

    def spy(self: Any, canvas: Tensor, level: Tensor, generator: Any = None) -> Tensor:
        levels.append(float(level))
        return uniform(self, canvas, torch.zeros_like(level), generator)

    monkeypatch.setattr(objective.Corruption, "uniform", spy)
    once = batch.losses(self_conditioning=0, **options)
    levels.clear()
    thrice = batch.losses(self_conditioning=0, n_canvases=3, **options)
    assert thrice["loss"] == pytest.approx(float(once["loss"]), rel=1e-5)
    # Renoised at a level below t, which is 0, 1/3 and 2/3 for the canvases of a clip.
    assert all(level <= t for level, t in zip(levels[-6:], [0, 1 / 3, 2 / 3] * 2, strict=True))
    assert len(levels) >= 6
    assert max(levels) > 1 / 3


@torch.no_grad()
def test_the_decoder_does_not_see_the_transcript(batch: Batch, seen: list[Tensor]) -> None:
    """Change what the autoregressive loss reads: the decoder's logits are the same to the last bit."""
    before = batch.losses()
    batch.targets = torch.randint(100, V, batch.targets.shape, generator=torch.Generator().manual_seed(9))
    after = batch.losses()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(before["diffusion"], after["diffusion"])
    assert not torch.isclose(before["autoregressive"], after["autoregressive"], rtol=1e-3)
    batch.losses(autoregressive_weight=0.0)
    torch.testing.assert_close(seen[2], seen[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_decoder_does_see_the_prompt(batch: Batch, seen: list[Tensor]) -> None:
    batch.losses()
    batch.prompt_ids[1, 3] += 1
    batch.losses()
    batch.prompt_ids[1, 4] += 1  # padding
    batch.losses()
    assert torch.equal(seen[0][0], seen[1][0])
    assert (seen[0][1] - seen[1][1]).abs().max() > 1e-3
    torch.testing.assert_close(seen[2], seen[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_autoregressive_loss_is_the_causal_sides_next_token_loss(batch: Batch) -> None:
    losses = []
    for row in range(2):
        n, u = int(batch.n_prompt[row]), int(batch.n_targets[row])
        ids = torch.cat([batch.prompt_ids[row, :n], batch.targets[row, :u]])
        states = batch.backbone.model.encoder(input_ids=ids[None]).last_hidden_state[0, n - 1 : n + u - 1]
        logits = states @ batch.backbone.lm_head.weight.T
        logits = 30 * torch.tanh(logits / 30)
        losses.append(torch.nn.functional.cross_entropy(logits, ids[n:], reduction="none"))
    found = batch.losses()["autoregressive"]
    torch.testing.assert_close(found, torch.cat(losses).mean(), atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("no_noise")
def test_the_diffusion_loss_is_that_of_the_stock_forward(batch: Batch, seen: list[Tensor]) -> None:
    outputs = batch.losses(self_conditioning=0.0, tail_weight=0.5)
    stock = torch.stack([batch.stock_logits(row, batch.canvas[row]) for row in range(2)])
    torch.testing.assert_close(seen[0], stock, atol=1e-4, rtol=1e-4)
    losses = torch.nn.functional.cross_entropy(stock.flatten(0, 1), batch.canvas.flatten(), reduction="none")
    weights = torch.tensor([1.0] * 5 + [0.5] * 3 + [1.0] * 3 + [0.5] * 5)
    torch.testing.assert_close(outputs["diffusion"], (losses * weights).sum() / weights.sum())
    right = (stock.argmax(-1) == batch.canvas).flatten()[weights == 1]
    torch.testing.assert_close(outputs["accuracy"], right.float().mean())


@torch.no_grad()
@pytest.mark.usefixtures("no_noise")
def test_self_conditioning_shows_the_decoder_its_earlier_prediction(batch: Batch, seen: list[Tensor]) -> None:
    batch.losses(self_conditioning=1.0)
    for row in range(2):
        earlier = batch.stock_logits(row, batch.canvas[row])
        stock = batch.stock_logits(row, batch.canvas[row], earlier[None])
        torch.testing.assert_close(seen[0][row], stock, atol=1e-4, rtol=1e-4)
        assert (stock - earlier).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.usefixtures("no_noise")
def test_self_conditioning_is_drawn_clip_by_clip(batch: Batch, seen: list[Tensor]) -> None:
    kinds = []
    for seed in range(40):
        batch.losses(seed, self_conditioning=0.5)
        for row in range(2):
            plain = batch.stock_logits(row, batch.canvas[row])
            kinds.append(bool((seen[-1][row] - plain).abs().max() > 1e-3))
    assert 25 < sum(kinds) < 55
    assert any(a != b for a, b in zip(kinds[::2], kinds[1::2], strict=True))


@torch.no_grad()
@pytest.mark.usefixtures("no_noise")
def test_predictions_put_the_models_own_reading_on_the_canvas(batch: Batch, seen: list[Tensor]) -> None:
    batch.losses(self_conditioning=0.0, corruption=PREDICTIONS)
    for row in range(2):
        own = batch.stock_logits(row, batch.canvas[row]).argmax(-1)
        assert (own != batch.canvas[row]).any()
        torch.testing.assert_close(seen[0][row], batch.stock_logits(row, own), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_noise_reaches_the_canvas(batch: Batch, seen: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "sample_noise_levels", lambda n_clips, _: torch.ones(n_clips))
    batch.losses(self_conditioning=0.0)
    batch.canvas = batch.canvas.flip(0)
    batch.losses(self_conditioning=0.0)
    assert torch.equal(seen[0], seen[1])  # at t = 1 nothing of the canvas is left


@torch.no_grad()
def test_drafts_are_laid_on_the_canvas(batch: Batch, seen: list[Tensor]) -> None:
    drafts = [[700, 701], [800]]
    options = ObjectiveOptions(
        self_conditioning=0.0, corruption=CorruptionOptions(uniform=0, draft=1, max_renoise=0.0)
    )
    prompt = batch.backbone.get_input_embeddings()(batch.prompt_ids)
    denoising_losses(
        batch.backbone,
        prompt,
        batch.n_prompt,
        batch.targets,
        batch.n_targets,
        batch.canvas,
        options,
        drafts=drafts,
    )
    for row, draft in enumerate(drafts):
        canvas = torch.tensor(draft + [EOS] * (8 - len(draft)))
        torch.testing.assert_close(seen[0][row], batch.stock_logits(row, canvas), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_its_parts(batch: Batch) -> None:
    parts = batch.losses(diffusion_weight=0.3, autoregressive_weight=2.0)
    expected = 0.3 * parts["diffusion"] + 2.0 * parts["autoregressive"]
    torch.testing.assert_close(parts["loss"], expected)
    alone = batch.losses(diffusion_weight=0.3, autoregressive_weight=0.0)
    assert "autoregressive" not in alone
    torch.testing.assert_close(alone["loss"], 0.3 * alone["diffusion"])


def test_both_losses_reach_the_prompt(batch: Batch) -> None:
    prompt = batch.backbone.get_input_embeddings()(batch.prompt_ids).requires_grad_()
    torch.manual_seed(0)
    outputs = denoising_losses(
        batch.backbone,
        prompt,
        batch.n_prompt,
        batch.targets,
        batch.n_targets,
        batch.canvas,
        ObjectiveOptions(),
    )
    for name in ("diffusion", "autoregressive"):
        (gradient,) = torch.autograd.grad(outputs[name], prompt, retain_graph=True)
        reached = gradient.abs().sum(dim=-1) > 0
        assert reached.tolist() == [[True] * 7, [True] * 4 + [False] * 3]


@pytest.mark.parametrize("share", [-0.1, 1.5])
@pytest.mark.parametrize("name", ["self_conditioning", "draft_conditioning"])
def test_a_share_outside_its_range_is_refused(name: str, share: float) -> None:
    with pytest.raises(RecipeError, match=rf"{name} is {share}"):
        ObjectiveOptions(**{name: share}, corruption=CorruptionOptions(draft=1))  # type: ignore[arg-type]


def test_what_changes_drafts_needs_drafts() -> None:
    with pytest.raises(RecipeError, match=r"draft_conditioning is 0.5 and corruption.draft 0"):
        ObjectiveOptions(draft_conditioning=0.5)
    with pytest.raises(RecipeError, match="max_draft_threshold is given, and draft 0"):
        CorruptionOptions(max_draft_threshold=0.5)
