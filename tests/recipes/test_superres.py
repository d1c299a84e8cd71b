from __future__ import annotations

import pytest

from isocost import recipes
from isocost.errors import SpecError
from isocost.recipes.superres import PAPER_STEPS


@pytest.fixture
def data(tmp_path):
    for name in ("sr-train-a.tar", "sr-train-b.tar", "sr-test-kodak.tar", "emoji-x-train.tar", "emoji-x-val.tar"):
        (tmp_path / name).touch()
    return str(tmp_path)


def test_every_member_starts_from_its_own_text_to_image_one(data):
    base, study = recipes.recipe("sr-base", data=data), recipes.recipe("sr", data=data)
    assert study.start_from == f"runs/{base.name}"
    assert [model.conditioned for model in base.members] == list(study.members)
    assert (base.data.autoencoder, base.data.text_encoder) == (study.data.autoencoder, study.data.text_encoder)


def test_the_last_budget_is_sampled_at_the_papers_steps_and_each_at_some_without_guidance(data):
    study = recipes.recipe("sr", data=data)
    assert study.train is not None and study.train.lr_schedule.kind == "constant"
    budgets = {*study.train.checkpoints, study.train.images}
    assert len(budgets) == 3 and len(study.members) == 3
    assert (
        study.curve is not None and study.grid.steps == PAPER_STEPS and {4, 50} <= {*study.curve.steps} < {*PAPER_STEPS}
    )
    for grid in (study.grid, study.curve):
        assert grid.guidance == (1.0,) and grid.samplers == ("ddim",)
    assert study.evaluation.prompts == f"sr-64:{data}/sr-test-kodak.tar"


@pytest.mark.parametrize("name", ["sr", "sr-base"])
def test_data_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(SpecError, match=r"data: no .*\.tar in"):
        recipes.recipe(name, data=str(tmp_path))
