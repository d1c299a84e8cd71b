"""The paper's set-up as PAPER and Table 1 have it; nothing it names has to be there."""

from __future__ import annotations

from isocost import recipes
from isocost.diffusion.samplers import planned_evaluations
from isocost.diffusion.schedule import timestep_pairs
from isocost.models.ladder import TABLE1
from isocost.specs import Guidance, StudySpec


def test_members_and_training():
    study = recipes.recipe("paper")
    assert [member.width for member in study.members] == [row.width for row in TABLE1]
    assert {(member.family, member.context_dim, member.num_heads) for member in study.members} == {("sd", 1024, 8)}
    train = study.train
    assert (train.images // train.batch, train.batch, train.optimizer.lr) == (500_000, 2048, 1e-4)
    assert train.optimizer.lr_scaling == "constant" and train.lr_schedule.kind == "constant"
    assert study.data.resolution // 8 == 64


def test_every_sampler_steps_and_guidance_of_the_figures():
    study = recipes.recipe("paper")
    cells = {
        (sampler, steps, scale)
        for grid in (study.grid, *study.extra_grids)
        for sampler in grid.samplers
        for steps in grid.steps
        for scale in grid.guidance
    }
    scales = (1.5, 2, 3, 4, 5, 6, 7, 8)
    assert {("ddim", steps, scale) for steps in (4, 6, 8, 10, 20, 50, 500) for scale in scales} <= cells
    assert {("ddpm", steps, scale) for steps in (4, 20, 50) for scale in scales} <= cells
    assert {("dpmpp_2m", steps, scale) for steps in (4, 20) for scale in scales} <= cells
    assert ("ddim", 50, 7.5) in cells
    for sampler, steps, scale in cells:
        pairs = timestep_pairs(study.train.schedule, steps, "trailing")
        assert planned_evaluations(sampler, pairs, Guidance(scale=scale), study.train.schedule) == 2 * steps


def test_paths_are_arguments_and_it_is_a_file_again():
    study = recipes.recipe("paper", data="here", coco="there")
    assert study.data.train == ("here/train",) and study.evaluation.prompts == "coco2014-30k:there"
    assert StudySpec.from_yaml(study.to_yaml()) == study
