"""Recipes as data: overrides by text, checks of values, JSON in and out."""

import contextlib
import json
import math
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fabricate
from alexnet.config import (
    SECTIONS,
    Recipe,
    check,
    diff,
    differences,
    from_dict,
    override,
    settings,
)
from alexnet.errors import UserError
from alexnet.recipes import RECIPES
from alexnet.schedule import make_schedule

ALL = tuple(settings(Recipe()))


def value_of(recipe: Recipe, path: str) -> Any:
    section, _, name = path.partition(".")
    return getattr(getattr(recipe, section), name)


def kind_of(path: str) -> Any:
    section, _, name = path.partition(".")
    return typing.get_type_hints(type(getattr(Recipe(), section)))[name]


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe()
    assert recipe.network.name == "paper"
    assert recipe.optimizer.batch_size == 128
    assert (recipe.optimizer.lr, recipe.optimizer.bias_lr) == (0.01, 0.01)
    assert recipe.optimizer.momentum == 0.9
    assert recipe.optimizer.weight_decay == recipe.optimizer.bias_weight_decay == 0.0005
    assert (recipe.data.image_px, recipe.augment.crop_px) == (256, 224)
    assert (recipe.augment.colour, recipe.augment.colour_strength) == ("paper", 0.1)
    assert (recipe.schedule.divisor, recipe.schedule.drops, recipe.schedule.epochs) == (10, 3, 90)
    assert recipe.views == (1, 10)


@pytest.mark.parametrize("path", ALL)
def test_each_setting_takes_its_own_value_as_text(path: str) -> None:
    recipe = Recipe()
    assert override(recipe, f"{path}={value_of(recipe, path)}") == recipe


@pytest.mark.parametrize("path", ALL)
def test_an_override_changes_what_it_names_and_nothing_else(path: str) -> None:
    kind, recipe = kind_of(path), Recipe()
    others = {str: "other", int: 77, float: 0.125, bool: not value_of(recipe, path)}
    if typing.get_origin(kind) is typing.Literal:
        choices = [c for c in typing.get_args(kind) if c != value_of(recipe, path)]
        other: Any = choices[0]
    else:
        other = others[kind]
    changed = override(recipe, f" {path} = {other} ")
    assert differences(recipe, changed) == {path: (value_of(recipe, path), other)}
    assert from_dict(json.loads(json.dumps(changed.as_dict()))) == changed


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("optimizer.learning_rate=1", "no setting 'optimizer.learning_rate'"),
        ("optimiser.lr=1", "did you mean 'optimizer.lr'?"),
        ("augment.cropp_px=1", "did you mean 'augment.crop_px'?"),
        ("name=x", "no setting 'name'"),
        ("=1", "no setting ''"),
        ("optimizer.lr", "--set takes section.field=value, not 'optimizer.lr'"),
        ("optimizer.lr=fast", "optimizer.lr is a number; not 'fast'"),
        ("optimizer.batch_size=1.5", "optimizer.batch_size is a whole number; not '1.5'"),
        ("augment.flip=maybe", "augment.flip is true or false; not 'maybe'"),
        ("augment.mean=middle", "augment.mean is one of crop, centre; not 'middle'"),
        ("system.precision=fp16", "system.precision is one of fp32, bf16, fp64; not 'fp16'"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(assignment: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        override(Recipe(), assignment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(path=st.sampled_from(ALL) | st.text(max_size=12), text=st.text(max_size=12))
def test_any_text_is_a_recipe_or_one_clear_mistake(path: str, text: str) -> None:
    with contextlib.suppress(UserError):
        make_schedule(check(override(Recipe(), f"{path}={text}")).schedule)


@pytest.mark.parametrize("path", [path for path in ALL if kind_of(path) is float])
@pytest.mark.parametrize("text", ["nan", "-1"])
def test_no_number_is_taken_that_cannot_be(path: str, text: str) -> None:
    with pytest.raises(UserError, match=path):
        make_schedule(check(override(Recipe(), f"{path}={text}")).schedule)


@pytest.mark.parametrize(
    "assignment",
    [
        "optimizer.lr=0",
        "optimizer.lr=inf",
        "optimizer.momentum=1",
        "optimizer.batch_size=0",
        "optimizer.layer_weight_decay=conv",
        "optimizer.layer_weight_decay=conv:-1",
        "data.val_fraction=0",
        "data.val_fraction=1",
        "data.image_px=100",
        "augment.crop_px=257",
        "augment.crop_chunk=0",
        "evaluate.every_epochs=0",
        "evaluate.views=2",
        "evaluate.views=one",
        "evaluate.views=",
        "evaluate.batch_size=0",
        "schedule.epochs=0",
        "schedule.epochs=1e308",
        "system.seed=-1",
        "system.seed=99999999999999999999",
        "system.log_steps=0",
        "system.stall_steps=0",
        "system.keep_checkpoints=0",
        "system.checkpoint_minutes=0",
        "system.max_steps=-1",
        "system.threads=-1",
    ],
)
def test_values_that_cannot_be_are_refused_by_name(assignment: str) -> None:
    with pytest.raises(UserError, match=assignment.partition("=")[0]):
        check(override(Recipe(), assignment))


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_comes_back_from_json(name: str) -> None:
    recipe = RECIPES[name]()
    assert from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert differences(recipe, recipe) == {}


def damaged(change: dict[str, Any]) -> Any:
    return {**Recipe().as_dict(), **change}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "recipe",
        {},
        damaged({"network": None}),
        damaged({"network": {"nome": "paper"}}),
        damaged({"optimizer": {"lr": "0.01"}}),
        damaged({"optimizer": {"batch_size": 1.5}}),
        damaged({"system": {"precision": "fp8"}}),
        damaged({"augment": {"flip": 1}}),
        damaged({"data": {"dataset": None}}),
    ],
)
def test_a_recipe_of_another_version_or_a_damaged_one_is_one_line(values: Any) -> None:
    with pytest.raises(UserError, match=r"recipe\.json .*another version") as caught:
        from_dict(values)
    assert "\n" not in str(caught.value)


def test_a_diff_leaves_what_it_came_from() -> None:
    base = Recipe()
    changed = diff(base, optimizer={"lr": 0.5}, network={"name": "small"})
    assert base == Recipe()
    assert differences(base, changed) == {
        "network.name": ("paper", "small"),
        "optimizer.lr": (0.01, 0.5),
    }


def test_every_section_is_in_the_recipe_file() -> None:
    assert set(Recipe().as_dict()) == {"name", "base", *SECTIONS}


def test_weight_decay_by_layer_is_read_from_text() -> None:
    recipe = fabricate.recipe(optimizer={"layer_weight_decay": "conv:0.004, fc:1,"})
    assert recipe.layer_weight_decay == {"conv": 0.004, "fc": 1.0}
    assert Recipe().layer_weight_decay == {}


def test_a_limit_may_be_infinite_where_that_means_never() -> None:
    recipe = check(override(Recipe(), "evaluate.every_epochs=inf"))
    assert math.isinf(recipe.evaluate.every_epochs)
