"""Training seeds, kept checkpoints and best-of-n are asked for in a spec."""

from __future__ import annotations

from isocost import recipes
from isocost.specs import StudySpec
from isocost.study.checks import check_checkpoints_of


def test_the_recipe_asks_for_every_axis_and_is_a_file_again():
    study = recipes.recipe("axes")
    assert StudySpec.from_yaml(study.to_yaml()) == study and len(study.seeds) > 1
    check_checkpoints_of(study)
    assert {n for grid in study.grids for n in grid.best_of} == {1, 2, 4}
    assert {(grid.mode, grid.interval is not None) for grid in study.grids} >= {("cfg", True), ("autoguidance", False)}
    kept = (*study.train.checkpoints, study.train.images)
    assert len(kept) >= 6 and kept[-1] / kept[0] > 16  # beyond the ratio of two neighbours' parameters
