from __future__ import annotations

import pytest

from isocost import recipes
from isocost.models.ladder import ladder

CHAIN = {
    "distill": "quickstart",
    "distill-lcm": "quickstart",
    "distill-guided": "quickstart",
    "distill-16": "distill-guided",
    "distill-8": "distill-16",
    "distill-4": "distill-8",
}


@pytest.mark.parametrize("name", CHAIN)
def test_each_starts_from_the_members_of_the_study_before(name):
    study, base = recipes.recipe(name), recipes.recipe(CHAIN[name])
    assert study.start_from == f"runs/{base.name}" and study.name == name
    before = {model.name: model.model_copy(update={"guidance_dim": None}) for model in base.members}
    for model in study.members:
        assert before[model.name] == model.model_copy(update={"guidance_dim": None})
        assert model.model_copy(update={"guidance_dim": None}) in ladder("micro").members
    assert study.data == base.data
    for field in ("schedule", "prediction"):
        assert getattr(study.train, field) == getattr(base.train, field)


@pytest.mark.parametrize("name", CHAIN)
def test_students_and_what_they_were_are_sampled_at_the_same_scales_within_what_was_learned(name):
    study = recipes.recipe(name)
    (before,) = study.extra_grids
    assert before.undistilled and before.guidance == study.grid.guidance
    assert set(study.grid.steps) <= set(before.steps)
    if study.train.scales:
        assert study.train.scales == (min(study.grid.guidance), max(study.grid.guidance))
    assert all((model.guidance_dim is not None) == (study.train.scales is not None) for model in study.members)
    assert len(study.train.checkpoints) == 2


def test_rounds_halve_the_steps_and_are_sampled_at_them():
    for steps in (16, 8, 4):
        study = recipes.recipe(f"distill-{steps}")
        assert study.train.guided.steps == steps and study.grid.steps == study.curve.steps == (steps,)
    assert 4 in recipes.recipe("distill").grid.steps and len(recipes.recipe("distill").members) == 3
