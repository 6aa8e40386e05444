"""Stage (b): canvases, judging, and a run of a few steps that is resumed."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import BACKBONE, TINY, small_model
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from canvas_asr.backbone import build_backbone
from canvas_asr.errors import CheckpointError, DataError, RecipeError
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.sampler import SamplerConfig, SamplerOutput, Vocabulary
from canvas_asr.training import text
from canvas_asr.training.corruption import CorruptionOptions
from canvas_asr.training.objective import ObjectiveOptions
from canvas_asr.training.recipe import Recipe, TrainingOptions
from canvas_asr.training.sentences import split_of
from canvas_asr.training.stage import Stage
from canvas_asr.training.text import CanvasCollator, TextDataset, TextModel, balanced, judge, run
from canvas_asr.training.text_noise import Pieces
from canvas_asr.training.text_tasks import TextExample, TextTasks, repair_case

EOS, PAD, BLANK, EN, ZH = 1, 0, 6, 7, 12


# Canvases


def test_targets_end_and_the_canvas_is_the_shortest_of_eights_that_fits() -> None:
    batch = CanvasCollator(EOS, PAD).canvases([[7, 8, 9], [], [5] * 8])
    assert batch["n_targets"].tolist() == [4, 1, 9]
    assert batch["targets"].tolist() == [
        [7, 8, 9, EOS, 0, 0, 0, 0, 0],
        [EOS, 0, 0, 0, 0, 0, 0, 0, 0],
        [5] * 8 + [EOS],
    ]
    assert batch["canvas"].tolist() == [
        [7, 8, 9] + [EOS] * 13,
        [EOS] * 16,
        [5] * 8 + [EOS] * 8,
    ]
    exact = CanvasCollator(EOS, PAD).canvases([[5] * 7])
    assert exact["canvas"].tolist() == [[5] * 7 + [EOS]]


def test_longer_canvases_are_drawn_now_and_then() -> None:
    stage = Stage()
    stage.canvas_choices, stage.p_long_canvas = (8, 16, 32), 0.5
    lengths = [stage.canvas_length(16, np.random.default_rng(i)) for i in range(400)]
    assert set(lengths) == {16, 32}  # 8 and 16 are no longer than what fits
    assert 0.42 < lengths.count(32) / 400 < 0.58


def test_a_batch_of_text_examples() -> None:
    examples = [TextExample([2, 50, 51, 5], [EN, 50], "en", "copy"), TextExample([2, 5], [], "", "empty")]
    batch = CanvasCollator(EOS, PAD)(examples)
    assert batch["prompt_ids"].tolist() == [[2, 50, 51, 5], [2, 5, 0, 0]]
    assert batch["n_prompt"].tolist() == [4, 2]
    assert batch["targets"].tolist() == [[EN, 50, EOS], [EOS, 0, 0]]
    assert batch["canvas"].shape == (2, 8)


# Sentences


def test_every_language_gets_as_many_lines_as_the_longest_has() -> None:
    lists = {"en": ["a", "b", "c", "d", "e"], "zh": ["x", "y"]}
    assert balanced(lists, ("en", "zh")) == [
        ("a", "en"),
        ("x", "zh"),
        ("b", "en"),
        ("y", "zh"),
        ("c", "en"),
        ("x", "zh"),
        ("d", "en"),
        ("y", "zh"),
        ("e", "en"),
        ("x", "zh"),
    ]


def test_examples_are_drawn_from_seed_epoch_and_index(processor: CanvasASRProcessor) -> None:
    sentences = {"en": ["The cat sat on the mat and slept.", "Good morning to all of you."]}
    tasks = TextTasks(processor.tokenizer, sentences, None)
    lines = balanced(sentences, ("en",)) * 2
    first, again, other = (TextDataset(lines, tasks, seed) for seed in (1, 1, 2))
    assert len(first) == 4
    assert first[(0, 1)] == again[(0, 1)]
    made = {
        tuple(dataset[index].prompt_ids) for dataset in (first, other) for index in product(range(5), (1, 3))
    }
    assert len(made) > 10


# The model


def test_all_but_the_vision_tower_learns() -> None:
    backbone = build_backbone(DiffusionGemmaConfig(**BACKBONE))
    model = TextModel(backbone, ObjectiveOptions())
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("vision" in name for name in frozen)
    torch.manual_seed(0)
    ids = torch.randint(100, 4096, (2, 6))
    targets = torch.tensor([[EN, 500, EOS], [EN, EOS, 0]])
    canvas = torch.full((2, 8), EOS)
    canvas[:, 0], canvas[0, 1] = EN, 500
    outputs = model(ids, torch.tensor([6, 4]), targets, torch.tensor([3, 2]), canvas)
    assert set(outputs) == {"loss", "diffusion", "diffusion_by_noise", "autoregressive", "accuracy"}
    outputs["loss"].backward()
    # Self-conditioning and rarely used experts aside, every part has a gradient.
    for name in ("embed_tokens", "q_proj", "q_norm", "o_proj", "router", "gate_up_proj", "mlp.down_proj"):
        gradients = [p.grad for n, p in model.named_parameters() if name in n and "vision" not in n]
        assert any(g is not None and g.abs().max() > 0 for g in gradients), name


def test_drafts_are_what_the_prompt_reads_as(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats merged, blanks dropped, a language tag before them: canvases start so from a CTC draft."""
    found: list[Any] = []
    monkeypatch.setattr(text, "denoising_losses", lambda *_, drafts, **__: found.append(drafts) or {})
    backbone = build_backbone(DiffusionGemmaConfig(**BACKBONE))
    prompts = torch.tensor([[2, 500, 500, BLANK, 500, 7], [2, BLANK, 600, 7, 0, 0]])
    batch = (prompts, torch.tensor([6, 4]), torch.zeros(2, 3), torch.tensor([3, 2]), torch.zeros(2, 8))
    for share, blank in ((0.5, BLANK), (0.0, BLANK), (0.5, None)):
        objective = ObjectiveOptions(corruption=CorruptionOptions(uniform=1 - share, draft=share))
        TextModel(backbone, objective, blank=blank, tags=[EN])(*batch)
    assert found == [[[EN, 500, 500], [EN, 600]], None, None]


# Judging


class Reader:
    """Stands for the sampler: writes the text that belongs to a prompt, and notes what it was asked."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, texts: dict[tuple[int, ...], str]
    ) -> None:
        self.tokenizer, self.texts, self.configs = tokenizer, texts, []
        self.prompts: list[list[int]] = []
        monkeypatch.setattr(text, "encode_prefix", lambda _backbone, embeds, _positions: (None, embeds))
        monkeypatch.setattr(text, "sample", self.sample)

    def sample(
        self,
        backbone: object,
        prefix: torch.Tensor,
        n_prompt: torch.Tensor,
        vocabulary: Vocabulary,
        config: SamplerConfig,
        clip_keys: range,
        run_pass: object,
    ) -> SamplerOutput:
        assert vocabulary.tags == tuple(range(EN, ZH + 1))
        self.configs.append(config)
        canvas = torch.full((len(prefix), config.canvas_length), EOS)
        for row, n in enumerate(n_prompt.tolist()):
            ids = tuple(prefix[row, :n].tolist())
            spelt = [EN, *self.tokenizer.encode(self.texts[ids], add_special_tokens=False)]
            canvas[row, : len(spelt)] = torch.tensor(spelt)
        return SamplerOutput(canvas, canvas.float(), canvas.float(), config.steps)


class NoEmbedding:
    """A backbone whose embedding is the identity, so that a prefix shows its prompt."""

    device = torch.device("cpu")
    config = DiffusionGemmaConfig(**BACKBONE)

    def get_input_embeddings(self) -> Any:
        return lambda ids: ids


DEV = {"en": ["The cat sat there.", "Good morning.", "He went home."], "zh": ["我们今天去学校。", "你好吗？"]}


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, processor: CanvasASRProcessor) -> Reader:
    pieces = Pieces(processor.tokenizer)
    texts = {
        tuple(repair_case(pieces, line, code).prompt_ids): line
        for code, lines in DEV.items()
        for line in lines
    }
    return Reader(monkeypatch, processor.tokenizer, texts)


def test_a_perfect_reader_makes_no_errors(reader: Reader) -> None:
    figures, _ = judge(NoEmbedding(), reader.tokenizer, DEV, steps=3, canvas_length=24)
    assert (figures["wer_en"], figures["cer_zh"], figures["repetition"]) == (0, 0, 0)
    assert reader.configs == [SamplerConfig(steps=3, canvas_length=24)] * 2


def test_errors_are_counted_by_word_or_by_character(reader: Reader) -> None:
    for ids, line in reader.texts.items():
        reader.texts[ids] = line.replace("cat", "dog").replace("学校", "学").replace("Good ", "")
    figures, _ = judge(NoEmbedding(), reader.tokenizer, DEV)
    assert figures["wer_en"] == pytest.approx(2 / 9)
    assert figures["cer_zh"] == pytest.approx(1 / 12)


def test_shuffled_prompts_are_those_of_the_next_sentence(reader: Reader) -> None:
    figures, _ = judge(NoEmbedding(), reader.tokenizer, DEV)
    # 4, 2 and 3 words, of which none is in its place: 4 + 3 + 4 edits over 9 words.
    chinese = jiwer.cer(DEV["zh"], DEV["zh"][::-1])
    assert chinese > 0.8
    assert figures["shuffled"] == pytest.approx((11 / 9 + chinese) / 2)
    assert figures["gap"] == figures["shuffled"]


@torch.no_grad()
def test_judging_a_random_model_gives_high_error_rates(processor: CanvasASRProcessor) -> None:
    figures, _ = judge(small_model().backbone, processor.tokenizer, DEV, steps=2, canvas_length=16)
    assert figures.keys() == {"wer_en", "cer_zh", "shuffled", "gap", "repetition"}
    assert min(figures["wer_en"], figures["cer_zh"]) > 0.8


# A run

WORDS = {
    "en": (["the cat", "a dog", "my friend", "that man", "no one", "her sister"], ["sees", "likes", "finds"]),
    "zh": (["我们", "他们", "老师", "朋友", "学生", "妈妈"], ["喜欢", "看见", "知道"]),
}


def write_sentences(folder: Path) -> Path:
    """Two lists of short sentences, of which a few fall into the development split."""
    folder.mkdir()
    for code, (nouns, verbs) in WORDS.items():
        space, end = ("", "。") if code == "zh" else (" ", ".")
        clauses = [space.join(parts) for parts in product(nouns, verbs, nouns)]
        more = [f"{space.join(parts)}{end}" for parts in product(clauses[:20], verbs[:1], clauses[-9:])]
        lines = [clause + end for clause in clauses] + more
        assert any(split_of(line) == "dev" for line in lines)
        (folder / f"{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("text") / "sentences")


def recipe_of(folder: Path, sentences: Path, **options: Any) -> Recipe:
    settings: dict[str, Any] = {
        "tokenizer": str(TINY),
        "sentences": str(sentences),
        "backbone": BACKBONE,
        "languages": ["en", "zh"],
        "tasks": {"phonemes": 0.0, "mixed": 0.0},  # these two need espeak-ng
        "objective": {"corruption": {"uniform": 0.4, "predictions": 0.3, "edits": 0.3}},
        "max_target_tokens": 32,
        "n_dev": 2,
        **options,
    }
    training = TrainingOptions(
        6, 4, 0.01, warmup_steps=1, eval_steps=6, save_steps=3, log_steps=1, n_workers=2
    )
    return Recipe("text", folder, training, settings)


@pytest.fixture(scope="module")
def trained(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_stage")
    run(recipe_of(folder, sentences))
    return folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_stock_backbone_and_a_log(trained: Path) -> None:
    backbone, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        trained / "backbone", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert backbone.config.text_config.hidden_size == 32
    state = load_file(trained / "trained.safetensors")
    name = next(name for name in state if name.endswith("layers.0.self_attn.q_proj.weight"))
    sides = backbone.model.decoder, backbone.model.encoder.language_model
    for side in sides:
        assert torch.equal(side.layers[0].self_attn.q_proj.weight, state[name])
    steps = [line for line in log_of(trained) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert {"diffusion", "autoregressive", "accuracy"} <= set(steps[0])
    assert np.isclose(steps[0]["loss"], steps[0]["diffusion"] + steps[0]["autoregressive"], rtol=1e-3)
    (judged,) = [line for line in log_of(trained) if "eval_wer_en" in line]
    assert judged["step"] == 6
    assert {"eval_cer_zh", "eval_wer_en_1pass", "eval_cer_zh_1pass", "eval_shuffled", "eval_gap"} <= set(
        judged
    )


def test_a_resumed_run_equals_an_unbroken_one(trained: Path, sentences: Path, tmp_path: Path) -> None:
    """Noise, kinds of corruption, self-conditioning and canvas lengths included."""
    shutil.copytree(trained / "checkpoint-3", tmp_path / "checkpoint-3")
    run(recipe_of(tmp_path, sentences))
    expected = {line["step"]: line["loss"] for line in log_of(trained) if "loss" in line and line["step"] > 3}
    assert {line["step"]: line["loss"] for line in log_of(tmp_path) if "loss" in line} == expected
    whole, resumed = (load_file(folder / "trained.safetensors") for folder in (trained, tmp_path))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_bad_settings_are_named(trained: Path, sentences: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="draft_conditioning and corruption"):
        run(
            recipe_of(tmp_path, sentences, objective={"corruption": {"draft": 1, "max_draft_threshold": 0.5}})
        )
    with pytest.raises(RecipeError, match=r"options\.objective\.corruption: unknown key 'unifrom'"):
        run(recipe_of(tmp_path, sentences, objective={"corruption": {"unifrom": 1.0}}))
    with pytest.raises(RecipeError, match="key 'languages' has value 'en'"):
        run(recipe_of(tmp_path, sentences, languages="en"))
    with pytest.raises(DataError, match=r"neither hi\.txt"):
        run(recipe_of(tmp_path, sentences, languages=["en", "hi"]))
    with pytest.raises(DataError, match="no such folder"):
        run(recipe_of(tmp_path, tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"training split of en is empty \(\d+ sentences, none within"):
        run(recipe_of(tmp_path, sentences, max_target_tokens=1))
    wide = {**BACKBONE, "text_config": {**BACKBONE["text_config"], "hidden_size": 48}}
    with pytest.raises(CheckpointError, match="does not fit"):
        run(recipe_of(tmp_path, sentences, backbone=wide, init=str(trained / "trained.safetensors")))


def test_a_backbone_learns_on_with_its_embeddings_as_they_are(
    trained: Path, sentences: Path, tmp_path: Path
) -> None:
    """What a CTC tap is read by must not move under it."""
    run(recipe_of(tmp_path, sentences, init=str(trained / "backbone"), train_embeddings=False))
    before, after = (
        DiffusionGemmaForBlockDiffusion.from_pretrained(folder / "backbone") for folder in (trained, tmp_path)
    )
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before.state_dict()[name], after.state_dict()[name])
    state = load_file(tmp_path / "trained.safetensors")
    assert not any("embed_tokens" in name for name in state)
    weights = str(trained / "trained.safetensors")  # with embeddings, which are read and then kept
    run(recipe_of(tmp_path / "again", sentences, init=weights, train_embeddings=False))
    again = load_file(tmp_path / "again" / "trained.safetensors")
    assert all(torch.equal(again[name], state[name]) for name in state)
    wide = {**BACKBONE, "text_config": {**BACKBONE["text_config"], "hidden_size": 48}}
    with pytest.raises(CheckpointError, match=r"backbone: not of the geometry of options\.backbone"):
        run(recipe_of(tmp_path / "wide", sentences, backbone=wide, init=str(trained / "backbone")))


def test_an_empty_development_split_is_named(sentences: Path, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    for path in sentences.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if path.stem != "zh" or split_of(line) == "train"]
        (tmp_path / "short" / path.name).write_text("\n".join(kept), encoding="utf-8")
    with pytest.raises(DataError, match=r"short: the development split of zh is empty \(0 sentences"):
        run(recipe_of(tmp_path, tmp_path / "short"))
