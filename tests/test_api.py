from __future__ import annotations

import re

import pytest

import isocost
from isocost.api import parse_override
from isocost.errors import SpecError


def test_overrides_reach_nested_fields_and_lists():
    study = isocost.load_study("quickstart", {"train.batch": 64, "members.1.width": 24, "grid.steps": [1, 5]})
    assert (study.train.batch, study.members[1].width, study.grid.steps) == (64, 24, (1, 5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.imagess": 64}, "train.imagess: unknown field. Did you mean 'images'"),
        ({"trian.images": 64}, "no field 'trian'. Did you mean 'train'"),
        ({"members.9.width": 8}, "members.9"),
        ({"train.images": 100}, "multiple of batch"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        isocost.load_study("quickstart", overrides)


def test_override_values_are_yaml():
    assert parse_override("grid.steps=[1, 2]") == ("grid.steps", [1, 2])
    assert parse_override("a.b=true") == ("a.b", True)
    with pytest.raises(SpecError, match="PATH=VALUE"):
        parse_override("train.images")


def test_a_study_is_a_recipe_a_file_or_an_error(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(isocost.recipe("quickstart").to_yaml())
    assert isocost.load_study(path) == isocost.recipe("quickstart")
    with pytest.raises(SpecError, match=r"neither a recipe nor a file\. Did you mean 'quickstart'"):
        isocost.load_study("quickstar")


def test_recipes_check_their_arguments(tmp_path):
    with pytest.raises(SpecError, match="takes no"):
        isocost.recipe("emoji", date="x")
    with pytest.raises(SpecError, match=re.escape("needs --data")):
        isocost.recipe("emoji")
    with pytest.raises(SpecError, match=r"emoji-\*-train\.tar"):
        isocost.recipe("emoji", data=str(tmp_path))


def test_ladder_is_a_table():
    frame = isocost.ladder("micro")
    assert {"name", "params", "gflops", "norm_cost"} <= set(frame.columns)
    assert frame["gflops"].max() / frame["gflops"].min() >= 20
