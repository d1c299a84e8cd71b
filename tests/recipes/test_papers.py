"""Every figure of arXiv 2404.01367 has its cells in some stage of the paper, and of the papers at smaller scales."""

from __future__ import annotations

from pathlib import Path

import pytest

from isocost import recipes
from isocost.models.ladder import TABLE1
from isocost.specs import StudySpec
from isocost.study.estimate import expanded

RATES = {1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}
WIDTHS = {row.width for row in TABLE1}
FIGURES = {
    *("Table 1", "Fig. 1", "Fig. 3", "Fig. 4", "Fig. 5", "Fig. 6", "Fig. 7", "Fig. 8", "Fig. 9", "Fig. 10", "Fig. 11"),
    *("Fig. 12", "Fig. 13", "Fig. 14-16", "Fig. 17", "Fig. 18", "Fig. 19", "Fig. 20", "Fig. 21-23", "Fig. 24"),
}  # but Fig. 2, which shows what the family is


@pytest.fixture(scope="module")
def studies() -> dict[str, StudySpec]:
    return {stage.name: stage.study(Path("runs/paper")) for stage in recipes.stages("paper")}


@pytest.fixture(scope="module")
def cells(studies) -> dict[str, set]:
    """Stage -> (width, sampler, steps, guidance, curve, objective), and images seen, of every cell."""
    return {name: set(_described(study)) for name, study in studies.items() if study.dreambooth is None}


def _described(study):
    for cell in expanded(study)[1]:
        last, plan = cell.checkpoints[-1], cell.plan
        what = (last.width, plan.sampler, plan.steps, plan.guidance.scale, cell.curve, last.traits.objective)
        yield (*what, last.ref.images_seen)


def having(cells, curve=False, objective="denoise"):
    """(width, sampler, steps, guidance) of the cells of a stage."""
    return {cell[:4] for cell in cells if cell[4] == curve and cell[5] == objective}


@pytest.mark.parametrize("name", recipes.PAPERS)
def test_every_figure_is_some_stage_s(name):
    stages = recipes.stages(name)
    assert {figure for stage in stages for figure in stage.figures} == FIGURES
    names = [stage.name for stage in stages]
    for place, stage in enumerate(stages):
        study = stage.study(Path("runs/x"))
        assert StudySpec.from_yaml(study.to_yaml()) == study
        before = [stage.continues, Path(study.start_from).name if study.start_from else None]
        assert all(other in names[:place] for other in before if other)


def test_table_1_and_the_pictures_are_ddim_50_at_7_5(cells):
    assert {(width, "ddim", 50, 7.5) for width in WIDTHS} <= having(cells["pretraining"])  # Table 1, Fig. 1, 14 to 16


def test_fig_3_is_ddim_50_at_7_5_of_every_checkpoint(cells):
    curve = {(cell[0], cell[6]) for cell in cells["pretraining"] if cell[4] and cell[1:4] == ("ddim", 50, 7.5)}
    assert {(width, 2048 * step) for width in WIDTHS for step in range(50_000, 500_001, 50_000)} == curve


def test_fig_7_to_10_are_every_step_count_at_every_rate(cells):
    steps = (4, 6, 8, 10, 20, 50, 100, 250, 500)
    wanted = {(width, "ddim", count, rate) for width in WIDTHS for count in steps for rate in RATES}
    assert wanted <= having(cells["pretraining"])


def test_fig_11_is_ddpm_to_50_and_dpm_solver_to_20(cells):
    for sampler, steps in (("ddpm", (4, 6, 8, 10, 20, 50)), ("dpmpp_2m", (4, 6, 8, 10, 20))):
        wanted = {(width, sampler, count, rate) for width in WIDTHS for count in steps for rate in RATES}
        assert wanted <= having(cells["pretraining"])


def test_super_resolution_is_without_guidance_to_250_steps_and_over_tuning(cells):
    steps = (4, 6, 8, 10, 20, 50, 100, 250)
    found = having(cells["sr"], objective="superres")
    assert {(width, "ddim", count, 1.0) for width in WIDTHS for count in steps} == found  # Fig. 5, 12, 18, 21 to 23
    budgets = {cell[6] for cell in cells["sr"] if cell[4] and cell[:4] == (320, "ddim", 50, 1.0)}
    assert len(budgets) == 4  # Fig. 4, 17


def test_fig_13_and_20_are_codi_at_4_steps_beside_what_was_there(cells):
    after = having(cells["distill"], objective="consistency")
    assert {(width, "lcm", 4, rate) for width in WIDTHS for rate in RATES} <= after
    before = having(cells["distill"])
    assert {(width, "ddim", count, rate) for width in WIDTHS for count in (4, 10, 20, 50) for rate in RATES} <= before


def test_fig_19_is_guided_distillation_of_83m_and_223m_at_16_and_8(cells):
    for steps in (16, 8):
        found = having(cells[f"guided-{steps}"], objective="guided")
        assert {(width, "ddim", steps, rate) for width in (96, 160) for rate in RATES} == found


def test_fig_24_is_ddim_20_at_7_5_between_prompts(cells, studies):
    assert {(width, "ddim", 20, 7.5) for width in WIDTHS} == having(cells["interpolation"])
    assert studies["interpolation"].evaluation.between.alphas == (1.0, 0.8, 0.5, 0.2, 0.0)


def test_fig_6_is_dreambooth_by_ddim_50_at_7_5(studies):
    study = studies["dreambooth"]
    assert (study.grid.samplers, study.grid.steps, study.grid.guidance) == (("ddim",), (50,), (7.5,))
    assert {model.width for model in study.members} == WIDTHS and len(study.dreambooth.subjects) == 30


def test_protocols_and_training(studies):
    assert studies["pretraining"].evaluation.prompts.startswith("coco2014-30k:")
    assert studies["sr"].evaluation.prompts.startswith("div2k-sr-3k:")
    for study in studies.values():
        assert study.train.schedule == studies["pretraining"].train.schedule
    assert studies["pretraining"].train.optimizer.lr == 1e-4


def test_paper_micro_has_its_seeds_and_sizes():
    studies = {stage.name: stage.study(Path("nowhere")) for stage in recipes.stages("paper-micro")}
    assert len(studies["pretraining"].members) == 5 and len(studies["seeds"].seeds) == 3
    seeds = {cell.seed for cell in expanded(studies["seeds"])[1]}
    assert seeds == {0, 1, 2}
    first = {cell.sample_key for cell in expanded(studies["pretraining"])[1]}
    again = {cell.sample_key for cell in expanded(studies["seeds"])[1] if cell.seed == 0}
    assert first == again
    undistilled = [cell for cell in expanded(studies["distill"])[1] if cell.checkpoints[0].undistilled]
    assert undistilled and studies["distill"].evaluation == studies["pretraining"].evaluation
