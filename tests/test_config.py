"""From ConfigDict to settings: what fits, what is refused and with which words."""

import dataclasses
from typing import Literal

import pytest
from ml_collections import config_dict

from deepsearch_jax.config import differing_keys, from_config, setting_names, to_config


@dataclasses.dataclass(frozen=True)
class Leaf:
    learning_rate: float = 1e-3
    num_steps: int = 3
    names: tuple[str, ...] = ("a",)
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Root:
    leaf: Leaf = Leaf()
    stages: tuple[Leaf, ...] = (Leaf(num_steps=5), Leaf(mode="slow"))
    seed: int = 0
    is_on: bool = False


def test_defaults_survive_the_way_there_and_back():
    assert from_config(Root, to_config(Root())) == Root()
    assert from_config(Root, to_config(Root()).to_dict()) == Root()


def test_values_are_taken_over():
    config = to_config(Root())
    config.leaf.learning_rate = 2.0
    config.leaf.names = ("x", "y")
    config.leaf.unlock()
    config.leaf.limit = 7
    built = from_config(Root, config)
    assert built.leaf == Leaf(learning_rate=2.0, names=("x", "y"), limit=7)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sed": 1}, ["config.sed", "did you mean config.seed"]),
        ({"leaf": {"learning_rat": 1.0}}, ["config.leaf.learning_rat", "did you mean config.leaf.learning_rate"]),
        ({"leaf": {"zzzz": 1.0}}, ["config.leaf.zzzz", "known keys", "num_steps"]),
        ({"leaf": {"num_steps": "many"}}, ["config.leaf.num_steps='many'", "int"]),
        ({"leaf": {"num_steps": 2.5}}, ["config.leaf.num_steps=2.5", "int"]),
        ({"leaf": {"num_steps": True}}, ["config.leaf.num_steps=True", "int"]),
        ({"leaf": {"num_steps": 0}}, ["config.leaf", "num_steps=0 must be at least 1"]),
        ({"leaf": {"names": "abc"}}, ["config.leaf.names='abc'", "list"]),
        ({"leaf": {"mode": "quick"}}, ["config.leaf.mode='quick'", "'fast'", "'slow'"]),
        ({"leaf": 3}, ["config.leaf=3", "group of settings"]),
        ({"is_on": 1}, ["config.is_on=1", "bool"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(config, words):
    with pytest.raises(ValueError, match="config") as error:
        from_config(Root, config)
    for word in words:
        assert word in str(error.value)


def test_an_int_is_a_float_too():
    assert from_config(Root, {"leaf": {"learning_rate": 2}}).leaf.learning_rate == 2.0


def test_a_locked_config_takes_no_new_key():
    config = to_config(Root()).lock()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.leaf.learning_rat = 1
    assert isinstance(config, config_dict.ConfigDict)


def test_differing_keys_are_named_with_both_values():
    one = {"a": 1, "b": {"c": 2, "d": 3}}
    other = {"a": 1, "b": {"c": 5, "d": 3}, "e": 6}
    assert differing_keys(one, other) == ["b.c: 2 -> 5", "e: None -> 6"]
    assert differing_keys(one, one) == []


def test_setting_names_list_groups_and_leaves():
    names = setting_names(Root)
    assert "leaf" in names
    assert "leaf.learning_rate" in names
    assert "seed" in names
    assert "learning_rate" not in names
