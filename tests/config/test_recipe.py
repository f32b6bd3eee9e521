"""Recipes: what converts, what is refused, and --set KEY=VALUE."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from minimind.config.model import PRESETS
from minimind.config.recipe import Recipe, parse_assignments, replace_fields
from minimind.config.sizes import OTHER_MODEL, SIZES, default_sizes
from minimind.errors import ConfigError


def changed(**values: Any) -> Recipe:
    return replace_fields(Recipe(), values, "here")


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("learning_rate", 1, 1.0),
        ("learning_rate", None, None),
        ("learning_rate", 3e-4, 3e-4),
        ("max_steps", 7, 7),
        ("max_steps", None, None),
        ("epochs", 2, 2.0),
        ("betas", [0.9, 0.95], (0.9, 0.95)),
        ("betas", (0, 0.5), (0.0, 0.5)),
        ("lr_factors", {"embed": 1}, {"embed": 1.0}),
        ("lr_factors", {}, {}),
        ("activation_checkpointing", True, True),
    ],
)
def test_a_value_takes_its_fields_type(name: str, given: Any, kept: Any):
    value = getattr(changed(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)
    if isinstance(kept, tuple):
        assert [type(v) for v in value] == [type(v) for v in kept]
    if isinstance(kept, dict):
        assert [type(v) for v in value.values()] == [type(v) for v in kept.values()]


@pytest.mark.parametrize(
    ("name", "given", "kind"),
    [
        ("learning_rate", "1e-3", "'1e-3'; it must be a valid number"),
        ("learning_rate", True, "number"),
        ("max_steps", 7.0, "integer"),
        ("max_steps", True, "integer"),
        ("max_steps", "7", "integer"),
        ("seed", None, "integer"),
        ("activation_checkpointing", 1, "boolean"),
        ("activation_checkpointing", "yes", "boolean"),
        ("betas", 0.9, "0.9; it must be a list"),
        ("betas", ["0.9", 0.95], "betas[0] is '0.9'; it must be a valid number"),
        ("betas", [0.9], "[0.9]"),
        ("betas", [0.9, 0.95, 0.99], "at most 2"),
        ("lr_factors", [0.1], "a table"),
        ("lr_factors", {"embed": "0.1"}, "lr_factors[embed] is '0.1'; it must be a valid number"),
    ],
)
def test_a_wrong_type_is_named(name: str, given: Any, kind: str):
    with pytest.raises(ConfigError) as caught:
        changed(**{name: given})
    for word in ("here", name, kind):
        assert word in str(caught.value)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"here: no such recipe option: lerning_rate.*learning_r"):
        changed(lerning_rate=1.0)


def test_a_changed_recipe_leaves_the_first_alone():
    first = Recipe()
    replace_fields(first, {"seed": 5, "lr_factors": {"a": 2}}, "here")
    assert first == Recipe()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("warmup_steps", -1),
        ("max_steps", 0),
        ("seq_len", 1),
        ("train_batch_size", 0),
        ("micro_batch_size", 0),
        ("weight_decay", -0.1),
        ("gradient_clipping", -1.0),
        ("gradient_clipping", math.nan),
        ("adam_eps", 0.0),
        ("adam_eps", math.nan),
        ("epochs", 0.0),
        ("epochs", math.nan),
        ("epochs", math.inf),
        ("min_lr_ratio", 1.5),
        ("min_lr_ratio", -0.1),
        ("min_lr_ratio", math.nan),
        ("betas", (0.9,)),
        ("betas", (0.9, 0.95, 0.99)),
        ("betas", (0.9, 1.0)),
        ("betas", (math.nan, 0.9)),
        ("seed", -1),
        ("seed", 2**63),
        ("lr_factors", {"embed": -1.0}),
        ("weight_decay_factors", {"embed": math.nan}),
        ("lr_factors", {"(": 1.0}),
        ("weight_decay_factors", {"*norm": 0.0}),
        ("keep_checkpoints", 0),
        ("keep_every", -1),
        ("log_every", 0),
        ("eval_every", -1),
        ("save_every", -1),
        ("sample_every", -1),
        ("eval_rows", -1),
        ("scale_lr_with_batch", -1),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: Any):
    with pytest.raises(ConfigError, match=name):
        changed(**{name: value}).check()


def test_the_defaults_can_be_used():
    Recipe().check()
    changed(gradient_clipping=0.0, weight_decay=0.0, eval_every=0, save_every=0).check()


def test_every_option_has_a_help_text():
    for field in dataclasses.fields(Recipe):
        assert field.metadata["help"]


@pytest.mark.parametrize(
    ("items", "values"),
    [
        ([], {}),
        (["a=1"], {"a": 1}),
        (["a=1e-3", "b=true", "c=null"], {"a": 1e-3, "b": True, "c": None}),
        (["a=[0.9, 0.95]", 'b={"x": 1}'], {"a": [0.9, 0.95], "b": {"x": 1}}),
        (["rope_scaling=yarn"], {"rope_scaling": "yarn"}),
        (["a=b=c"], {"a": "b=c"}),
        (["a="], {"a": ""}),
        ([' a ="x"'], {"a": "x"}),
        (["a=1", "a=2"], {"a": 2}),
    ],
)
def test_assignments(items: list[str], values: dict[str, Any]):
    assert parse_assignments(items) == values


@pytest.mark.parametrize("item", ["a", "=1", " =1", ""])
def test_an_assignment_without_a_name_or_value_is_refused(item: str):
    with pytest.raises(ConfigError, match="must be KEY=VALUE"):
        parse_assignments([item])


def test_every_preset_has_sizes_on_every_kind_of_device():
    for kind, by_preset in SIZES.items():
        assert by_preset.keys() == PRESETS.keys()
        for sizes in (*by_preset.values(), OTHER_MODEL[kind]):
            assert sizes.train_batch_size % sizes.micro_batch_size == 0
            # One to eight GPUs take the same steps.
            assert sizes.train_batch_size % (8 if kind == "gpu" else 4) == 0
        assert default_sizes(kind, "tiny") == by_preset["tiny"]
        assert default_sizes(kind, "mine.json") == OTHER_MODEL[kind]
