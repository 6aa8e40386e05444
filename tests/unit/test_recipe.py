from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.errors import RecipeError
from canvas_asr.training.acoustic import AcousticOptions
from canvas_asr.training.adapter_options import AdapterOptions
from canvas_asr.training.recipe import STAGES, Recipe, TrainingOptions, from_mapping, load_recipe
from canvas_asr.training.sources import parse_sources
from canvas_asr.training.text import TextOptions

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
OPTIONS = {"acoustic": AcousticOptions, "text": TextOptions, "adapter": AdapterOptions}
TRAINING = {"max_steps": 10, "batch_size": 4, "learning_rate": 0.001}
RECIPE = {"stage": "text", "output_dir": "runs/x", "training": TRAINING, "options": {"a": 1}}


def write(tmp_path: Path, changes: dict[Any, Any] | None = None) -> Path:
    path = tmp_path / "recipe.yaml"
    content = {key: value for key, value in {**RECIPE, **(changes or {})}.items() if value is not ...}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def training(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**TRAINING, **changes}.items() if value is not ...}


# Shipped recipes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_one_that_its_stage_understands(path: Path) -> None:
    recipe = load_recipe(path)
    options = from_mapping(OPTIONS[recipe.stage], recipe.options, "options")
    if isinstance(options, TextOptions):
        return
    for source in parse_sources([*options.train, *options.dev], "options"):
        assert source.set or source.path.endswith(".jsonl")
    if isinstance(options, AdapterOptions):
        CanvasASRConfig(**options.model)


def test_recipes_of_every_stage_are_shipped() -> None:
    assert {load_recipe(path).stage for path in SHIPPED} == set(STAGES)


# Reading


def test_a_recipe_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, {"training": training(n_workers=3, learning_rate=1)}))
    assert recipe == Recipe(
        "text", Path("runs/x"), TrainingOptions(10, 4, 1.0, n_workers=3), options={"a": 1}
    )
    assert isinstance(recipe.training.learning_rate, float)


def test_overrides_replace_and_add_values(tmp_path: Path) -> None:
    overrides = {"training.max_steps": 99, "output_dir": "elsewhere", "options.objective.tail_weight": 0.5}
    recipe = load_recipe(write(tmp_path), overrides)
    assert recipe.training.max_steps == 99
    assert recipe.output_dir == Path("elsewhere")
    assert recipe.options == {"a": 1, "objective": {"tail_weight": 0.5}}


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stage\.x cannot be set, 'stage' is not a mapping"):
        load_recipe(write(tmp_path), {"stage.x": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "decode"}, "stage is 'decode'; choose one of acoustic, text, adapter"),
        ({"stage": ...}, "key 'stage' is missing"),
        ({"output_dir": ...}, "key 'output_dir' is missing"),
        ({"output_dir": 3}, "key 'output_dir' has value 3"),
        ({"trainings": {}}, "unknown key 'trainings'; known keys: options, output_dir, stage, training"),
        ({3: 1, "b": 2}, "unknown key 3"),
        ({"options": [1]}, r"key 'options' has value \[1\]"),
        ({"training": ...}, "key 'training' is missing"),
        ({"training": 5}, "training: expected keys and values, got 5"),
        ({"training": training(max_steps=...)}, "training: key 'max_steps' is missing"),
        ({"training": training(steps=5)}, "training: unknown key 'steps'"),
        ({"training": training(max_steps=2.5)}, "training: key 'max_steps' has value 2.5; expected int"),
        ({"training": training(max_steps=True)}, "key 'max_steps' has value True"),
        ({"training": training(learning_rate="1e-3")}, "'learning_rate' has value '1e-3'; expected float"),
        ({"training": training(bf16=1)}, "key 'bf16' has value 1; expected bool"),
        ({"training": training(schedule=None)}, "key 'schedule' has value None"),
    ],
)
def test_a_bad_key_is_named_with_its_file(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path, changes))
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "key", ["max_steps", "batch_size", "eval_steps", "save_steps", "log_steps", "learning_rate"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_value_that_must_be_positive_is_named(key: str, value: int) -> None:
    with pytest.raises(RecipeError, match=rf"training\.{key} is {value}"):
        TrainingOptions(**training(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("warmup_steps", -1),
        ("n_workers", -1),
        ("n_threads", -2),
        ("seed", -1),
        ("weight_decay", -0.1),
        ("max_grad_norm", float("nan")),
        ("max_minutes", float("inf")),
        ("learning_rate", float("nan")),
        ("schedule", "cosinus"),
    ],
)
def test_an_impossible_value_is_named(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"training\.{key} is "):
        TrainingOptions(**training(**{key: value}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not valid YAML"),
        (b"- a\n- b\n", "expected keys and values"),
        (b"", "expected keys and values"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RecipeError, match="no such recipe"):
            load_recipe(path)


# Dataclasses


@dataclass(frozen=True)
class Inner:
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    sizes: tuple[int, ...] = (1, 2)
    limits: tuple[float, float] = (0.0, 1.0)
    folder: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_nested_dataclasses_tuples_and_unions_are_made() -> None:
    made = from_mapping(Outer, {"name": "n", "sizes": [], "limits": [1, 2.5], "inner": {"share": 1}}, "here")
    assert made == Outer("n", (), (1, 2.5), None, Inner(1.0))
    assert isinstance(made.inner.share, float)
    assert from_mapping(Outer, {"name": "n"}, "here") == Outer("n")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "here: key 'name' is missing"),
        ({"name": 3}, "here: key 'name' has value 3; expected str"),
        ({"name": "n", "sizes": 3}, "key 'sizes' has value 3"),
        ({"name": "n", "sizes": ["a"]}, r"key 'sizes' has value \['a'\]"),
        ({"name": "n", "limits": [1]}, r"key 'limits' has value \[1\]"),
        ({"name": "n", "limits": [1, 2, 3]}, r"key 'limits' has value \[1, 2, 3\]"),
        ({"name": "n", "folder": 3}, "key 'folder' has value 3"),
        ({"name": "n", "inner": {"part": 1}}, r"here\.inner: unknown key 'part'; known keys: share"),
        ({"name": "n", "inner": 1}, r"here\.inner: expected keys and values, got 1"),
    ],
)
def test_a_key_that_does_not_fit_is_named_with_its_place(mapping: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_mapping(Outer, mapping, "here")


# Bases


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    write(tmp_path, {"options": {"objective": {"a": 1, "b": 2}, "train": [1], "dev": [1]}})
    middle = {"base": "recipe.yaml", "options": {"objective": {"b": 3}, "train+": [2]}}
    (tmp_path / "further").mkdir()
    last = {"base": "../middle.yaml", "output_dir": "runs/y", "options": {"train+": [3], "dev": [4]}}
    (tmp_path / "middle.yaml").write_text(yaml.safe_dump(middle), encoding="utf-8")
    path = tmp_path / "further" / "last.yaml"
    path.write_text(yaml.safe_dump(last), encoding="utf-8")
    recipe = load_recipe(path, {"training.max_steps": 11})
    assert recipe.output_dir == Path("runs/y")
    assert recipe.options == {"objective": {"a": 1, "b": 3}, "train": [1, 2, 3], "dev": [4]}
    assert (recipe.training.max_steps, recipe.training.batch_size) == (11, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": "b.yaml"}, r"c\.yaml: base 'a\.yaml' is built on this recipe itself"),
        ({"base": "none.yaml"}, r"none\.yaml: no such recipe"),
        ({"base": ["b.yaml"]}, r"a\.yaml: key 'base' is \['b\.yaml'\]; give the path"),
        (
            {"base": "recipe.yaml", "options": {"a+": [1]}},
            r"a\.yaml: key 'a\+' adds a list to the base's 'a'",
        ),
        ({"base": "recipe.yaml", "option": {}}, r"a\.yaml: unknown key 'option'"),
    ],
)
def test_a_base_that_cannot_be_used_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    write(tmp_path)
    for name, lines in (("a", content), ("b", {"base": "c.yaml"}), ("c", {"base": "a.yaml"})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(lines), encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "a.yaml")
