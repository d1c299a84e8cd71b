"""What a grid expands to, and what its cells cost, without anything being trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.study.conftest import tiny_study

from isocost.data.prompts import prompt_list
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError
from isocost.models.cost import autoencoder_flops, clip_flops, forward_flops, parameters
from isocost.recipes.scenes import micro_members
from isocost.sampling.checkpoints import Traits
from isocost.scoring.extractors import clip_features
from isocost.specs import CheckpointRef, Grid, NoiseSchedule, Stitch, StudySpec
from isocost.study.checks import check_checkpoints_of
from isocost.study.costs import CellCosts, reference_member
from isocost.study.grid import Cell, Scorer, StudyCheckpoint, columns, expand

MEMBERS = micro_members(8, 16, 24)
CLIP = clip_features("scenes-clip-score")
SCORERS = {"scenes-clip-score": Scorer("scenes-clip-score", CLIP.digest)}
C8_TO_C24 = Stitch(first="c8", then="c24", shares=(0, 0.25, 0.5, 0.75, 1))


def kept(seed: int = 0, images: int = 256) -> list[StudyCheckpoint]:
    """Checkpoints as if training had kept them."""
    traits = Traits(
        schedule=NoiseSchedule(),
        prediction="v_prediction",
        latent_shape=(4, 8, 8),
        autoencoder="a",
        text_encoder="t",
        caption_dropout=0.1,
    )
    return [
        StudyCheckpoint(
            name=model.name,
            model=model,
            seed=seed,
            ref=CheckpointRef(content_digest=f"{model.name}-{seed}-{images}", images_seen=images),
            traits=traits,
            folder=Path(model.name),
            autoencoder="scenes-vae",
            text_encoder="scenes-clip-condition",
        )
        for model in MEMBERS
    ]


def study(*grids: Grid, **changes) -> StudySpec:
    first, *more = grids
    return tiny_study(**({"members": MEMBERS, "grid": first, "extra_grids": tuple(more), "curve": None} | changes))


def cells(spec: StudySpec, checkpoints: list[StudyCheckpoint] | None = None) -> list[Cell]:
    return expand(spec, checkpoints or kept(), SCORERS, prompt_list("scenes-val", spec.data).promptset)


def test_the_ends_of_a_stitch_are_the_single_checkpoints_cells():
    alone = cells(study(Grid(steps=(8,), guidance=(2.0,))))
    both = cells(study(Grid(steps=(8,), guidance=(2.0,)), Grid(steps=(8,), guidance=(2.0,), stitch=C8_TO_C24)))
    assert [cell.label for cell in both] == [cell.label for cell in alone] + [
        "c8 for 25% of the steps, then c24 ddim 8 steps x2",
        "c8 for 50% of the steps, then c24 ddim 8 steps x2",
        "c8 for 75% of the steps, then c24 ddim 8 steps x2",
    ]
    assert {cell.key.digest for cell in alone} < {cell.key.digest for cell in both}


def test_shares_are_of_whole_steps_so_that_nothing_is_made_twice():
    found = cells(study(Grid(steps=(2,), stitch=C8_TO_C24)))
    assert [columns(cell)["stages"] for cell in found] == ["", "c8 for 50% of the steps, then c24", ""]


def test_a_large_checkpoint_may_come_first():
    (cell,) = cells(study(Grid(steps=(4,), stitch=Stitch(first="c24", then="c8", shares=(0.25,)))))
    assert [checkpoint.name for checkpoint in cell.checkpoints] == ["c24", "c8"]
    assert cell.plan.stages[0].until == 0.25


def test_guidance_that_never_acts_is_no_guidance():
    plain = cells(study(Grid(steps=(4,), guidance=(1.0,), members=("c16",))))
    for way in (
        Grid(steps=(4,), guidance=(1.0,), members=("c16",), mode="autoguidance", guide="c8"),
        Grid(steps=(4,), guidance=(3.0,), members=("c16",), interval=(300, 400)),
    ):
        assert [cell.key for cell in cells(study(way))] == [cell.key for cell in plain]
    everywhere = cells(study(Grid(steps=(4,), guidance=(3.0,), interval=(0, 999))))
    assert [cell.key for cell in everywhere] == [cell.key for cell in cells(study(Grid(steps=(4,), guidance=(3.0,))))]
    (lowest,) = cells(study(Grid(steps=(4,), guidance=(1.0,), members=("c16",), mode="cfg++")))
    assert lowest.guided and lowest.key != plain[0].key


def test_a_guide_guides_all_others_of_its_seed():
    spec = study(Grid(steps=(4,), guidance=(2.0,), mode="autoguidance", guide="c8"), seeds=(0, 1))
    found = cells(spec, kept(0) + kept(1))
    assert [(cell.member, cell.seed) for cell in found] == [("c16", 0), ("c24", 0), ("c16", 1), ("c24", 1)]
    assert all(cell.plan.guidance.guide == cell.guide.ref and cell.guide.seed == cell.seed for cell in found)


def test_best_of_one_is_the_plain_cell():
    plain = cells(study(Grid(steps=(4,), members=("c8",))))
    several = cells(study(Grid(steps=(4,), members=("c8",), best_of=(1, 4))))
    assert several[0].key == plain[0].key
    assert several[1].plan.best_of.n == 4 and several[1].plan.best_of.scorer == CLIP.digest
    assert several[1].label == "c8 ddim 4 steps x1, best of 4"


def test_the_curve_is_of_every_kept_checkpoint_and_its_guide_of_the_final_one():
    curve = Grid(steps=(2,), guidance=(2.0,), mode="autoguidance", guide="c8")
    found = cells(study(Grid(steps=(1,), members=("c8",)), curve=curve), kept(images=128) + kept(images=256))
    points = [(cell.member, cell.checkpoint.images_seen, cell.guide.ref.images_seen) for cell in found if cell.curve]
    assert points == [("c16", 128, 256), ("c24", 128, 256), ("c16", 256, 256), ("c24", 256, 256)]


def test_columns_of_a_plain_cell_are_neutral():
    from isocost.analysis.cells import PLAIN

    (cell,) = cells(study(Grid(steps=(4,), members=("c8",), guidance=(2.0,))))
    assert columns(cell).items() >= PLAIN.items()


def test_labels():
    for grid, label in (
        (Grid(steps=(8,), guidance=(0.6,), mode="cfg++", members=("c8",)), "c8 ddim 8 steps x0.6 cfg++"),
        (Grid(steps=(8,), guidance=(2,), interval=(200, 800), members=("c8",)), "c8 ddim 8 steps x2 at 200-800"),
        (
            Grid(steps=(8,), guidance=(2,), mode="autoguidance", guide="c8", members=("c16",)),
            "c16 ddim 8 steps x2 by c8",
        ),
    ):
        assert [cell.label for cell in cells(study(grid))] == [label]


# --- what they cost ---

SIZE = (8, load_text_encoder("scenes-clip-condition").context_shape[0])
TEXT = load_text_encoder("scenes-clip-condition").flops
DECODER = autoencoder_flops(load_autoencoder("scenes-vae").module, 8)
C8, C16, C24 = (forward_flops(model, *SIZE) for model in MEMBERS)


def costs(grid: Grid, **changes) -> list[dict]:
    spec = study(grid, **changes)
    known = CellCosts(spec, kept())
    return [known.of(cell) for cell in cells(spec)]


def test_a_stitch_costs_what_each_checkpoint_serves():
    unit = forward_flops(reference_member(study(Grid())), *SIZE)
    found = costs(Grid(steps=(8,), guidance=(2.0,), stitch=C8_TO_C24))
    for cost, of_c8 in zip(found, (0, 2, 4, 6, 8), strict=True):
        unet = of_c8 * C8 + (8 - of_c8) * C24
        assert cost["gflops_per_image"] == pytest.approx((2 * unet + 2 * TEXT + DECODER) / 1e9)
        assert cost["paper_cost"] == pytest.approx(unet / unit)
        assert cost["norm_cost"] == pytest.approx(unet / unit / 8)
        assert cost["evaluations"] == 16
    paper = [cost["paper_cost"] for cost in found]
    assert paper == sorted(paper, reverse=True)
    sizes = [parameters(model) for model in MEMBERS]
    assert [cost["params"] for cost in found] == [sizes[2], *[sizes[0] + sizes[2]] * 3, sizes[0]]
    assert found[1]["train_gflops"] == pytest.approx(found[0]["train_gflops"] + found[4]["train_gflops"])


def test_an_interval_pays_for_guided_steps_only():
    (cost,) = costs(Grid(steps=(4,), guidance=(3.0,), members=("c16",), interval=(200, 600)))
    assert cost["evaluations"] == 4 + 2  # timesteps 999, 749, 499, 249
    assert cost["gflops_per_image"] == pytest.approx((6 * C16 + 2 * TEXT + DECODER) / 1e9)


def test_autoguidance_pays_the_guide_and_no_empty_prompt():
    grid = Grid(steps=(4,), guidance=(2.0,), members=("c24",), mode="autoguidance", guide="c8")
    (cost,) = costs(grid)
    assert cost["evaluations"] == 8
    assert cost["gflops_per_image"] == pytest.approx((4 * C24 + 4 * C8 + TEXT + DECODER) / 1e9)
    (plain,) = costs(Grid(steps=(4,), members=("c24",)))
    assert cost["paper_cost"] == plain["paper_cost"]


def test_best_of_n_pays_for_all_candidates_and_who_chooses():
    image, caption = clip_flops(CLIP.clip.module)
    plain, best = costs(Grid(steps=(2,), guidance=(2.0,), members=("c8",), best_of=(1, 3)))
    flops = 3 * (4 * C8 + DECODER + image) + 2 * TEXT + caption
    assert best["gflops_per_image"] == pytest.approx(flops / 1e9)
    assert best["evaluations"] == 3 * plain["evaluations"] == 12
    assert best["paper_cost"] == pytest.approx(3 * plain["paper_cost"])
    assert best["norm_cost"] == plain["norm_cost"]


# --- what is refused before training ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": Grid(members=("c166",))}, "unknown member 'c166'. Did you mean 'c16'"),
        ({"grid": Grid(stitch=Stitch(first="c8", then="c2"))}, "unknown member 'c2'. Did you mean 'c24'"),
        ({"grid": Grid(mode="autoguidance", guide="c12")}, "unknown member 'c12'"),
        ({"grid": Grid(mode="autoguidance", guide="c8"), "members": micro_members(8)}, "it has none to guide"),
        ({"grid": Grid(mode="cfg++", guidance=(0.5,), samplers=("dpmpp_2m",))}, "defined for the step of DDIM"),
        ({"grid": Grid(mode="cfg++", guidance=(0.5,), eta=1.0)}, "defined for the step of DDIM"),
        ({"curve": Grid(members=("c8",))}, "curve: it is of every checkpoint"),
        ({"grid": Grid(best_of=(2,), scorer="scenes-clip-scor")}, "Did you mean 'scenes-clip-score'"),
        ({"grid": Grid(best_of=(2,), scorer="scenes-clip-score-32")}, "cannot compare images with captions"),
        ({"grid": Grid(best_of=(2,), scorer="own")}, "set evaluation.extractor to 'own' too"),
    ],
)
def test_a_grid_that_its_checkpoints_cannot_serve(changes, message):
    with pytest.raises(SpecError, match=message):
        check_checkpoints_of(study(Grid()).model_copy(update=changes))


def test_guidance_by_the_empty_prompt_takes_caption_dropout_and_autoguidance_none():
    never = tiny_study().train.model_copy(update={"caption_dropout": 0.0})
    check_checkpoints_of(study(Grid(guidance=(2.0,), mode="autoguidance", guide="c8"), train=never))
    for grid in (Grid(guidance=(1.0, 2.0)), Grid(guidance=(1.0,), mode="cfg++")):
        with pytest.raises(SpecError, match="caption_dropout > 0"):
            check_checkpoints_of(study(grid, train=never))
