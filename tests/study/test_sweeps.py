"""Sweeps over more than plain plans, from end to end: stitches, ways of guiding, best-of-n."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from tests.study.conftest import tiny_study

from isocost import api
from isocost.analysis.cells import best_guidance
from isocost.analysis.frontier import frontier
from isocost.recipes.scenes import micro_members
from isocost.reporting.from_store import write
from isocost.sampling.generate import generate
from isocost.scoring.extractors import clip_features
from isocost.specs import Evaluation, Grid, Stitch, StudySpec
from isocost.study import run
from isocost.study.pipelines import load_pipeline
from isocost.study.store import Store

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
STITCH = Stitch(first="c8", then="c16", shares=SHARES)


def sweeps_study() -> StudySpec:
    train = tiny_study().train.model_copy(update={"images": 64, "checkpoints": ()})
    return tiny_study(
        name="sweeps",
        members=micro_members(8, 16),
        train=train,
        grid=Grid(steps=(4,), guidance=(1.0, 2.0)),
        extra_grids=(
            Grid(steps=(4,), guidance=(1.0, 2.0), stitch=STITCH),
            Grid(steps=(4,), guidance=(2.0,), stitch=Stitch(first="c16", then="c8", shares=(0.25,))),
            Grid(steps=(4,), guidance=(0.5, 1.0), mode="cfg++", members=("c8",)),
            Grid(steps=(4,), guidance=(1.0, 2.0, 3.0), mode="autoguidance", guide="c8"),
            Grid(steps=(4,), guidance=(2.0, 3.0), interval=(200, 800), members=("c16",)),
            Grid(steps=(2,), members=("c8",), best_of=(1, 3)),
        ),
        curve=None,
        evaluation=Evaluation(images=16, references=64, fd_dims=4, metrics=("fd", "clip"), keep_images=True),
        engine=tiny_study().engine.model_copy(update={"batch": 8}),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("sweeps"))
    run.sweep(sweeps_study(), store, workers=1)
    return store


@pytest.fixture(scope="module")
def rows(made) -> dict[str, dict]:
    """What the expansion says of a cell, by its label."""
    labels = {cell.key.digest: cell.label for cell in run.opened(made).cells}
    return {labels[row["sample_key"]]: row for row in made.expansion()["cells"]}


def images(store: Store, row: dict) -> np.ndarray:
    found = [store.read_chunk(row["sample_key"], chunk).images for chunk in range(2)]
    return np.concatenate([part for part in found if part is not None])


def test_every_cell_is_made_once(made, rows):
    assert len(rows) == 2 * 2 + 3 * 2 + 1 + 2 + 2 + 2 + 2
    assert len({row["sample_key"] for row in rows.values()}) == len(rows)


def test_counted_evaluations_are_the_planned_ones(made, rows):
    for label, row in rows.items():
        assert {evaluations for evaluations, _ in made.chunk_costs(row["sample_key"])} == {row["evaluations"]}, label
    assert rows["c16 ddim 4 steps x2 at 200-800"]["evaluations"] == 7
    assert rows["c8 ddim 2 steps x1, best of 3"]["evaluations"] == 6


def test_the_ends_of_a_stitch_are_the_single_checkpoints_and_what_lies_between_is_neither(made, rows):
    """At shares of 0 and 1 there are no cells but the single checkpoints': `test_every_cell_is_made_once` counts."""
    stitched = [rows[f"c8 for {share}% of the steps, then c16 ddim 4 steps x2"] for share in (25, 50, 75)]
    line = [rows["c16 ddim 4 steps x2"], *stitched, rows["c8 ddim 4 steps x2"]]
    for cost in ("gflops_per_image", "paper_cost", "norm_cost"):
        values = [row[cost] for row in line]
        assert values == sorted(values, reverse=True) and len(set(values)) == 5
    drawn = [images(made, row) for row in line]
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_stitch_of_all_the_steps_gives_the_bits_of_the_checkpoint_alone(made, rows, tmp_path):
    """In a store of its own the end of a stitch is made anew, by way of the stitch."""
    store = Store(tmp_path / "ends")
    ends = Grid(steps=(4,), guidance=(2.0,), stitch=STITCH.model_copy(update={"shares": (0.0, 1.0)}))
    study = sweeps_study().model_copy(update={"grid": ends, "extra_grids": ()})
    (tmp_path / "ends").mkdir()
    for part in ("checkpoints", "data"):
        (store.path / part).symlink_to(made.path / part)
    run.sweep(study, store, workers=1)
    for label in ("c8 ddim 4 steps x2", "c16 ddim 4 steps x2"):
        key = rows[label]["sample_key"]
        for chunk in range(2):
            there, here = store.read_chunk(key, chunk), made.read_chunk(key, chunk)
            assert there.features.keys() == here.features.keys()
            assert all(there.features[name].tobytes() == here.features[name].tobytes() for name in there.features)


def test_guidance_is_chosen_within_a_way_of_guiding(made):
    chosen = best_guidance(run.table(made), "fd").rows
    ways = set(
        zip(chosen["stages"], chosen["guidance_mode"], chosen["guidance_interval"], chosen["best_of"], strict=True)
    )
    assert len(ways) == 1 + 4 + 1 + 1 + 1 + 1  # plain, stitches, cfg++, autoguidance, interval, best of 3
    one = chosen[(chosen["guidance_mode"] == "autoguidance")].iloc[0]
    assert (one["guide"], one["guidances"]) == ("c8", 2)  # at scale 1 it is the plain cell


def test_the_frontier_has_stitched_cells(made):
    table = run.table(made)
    better = table["stages"].str.startswith("c8 for 50%") & table["metric"].str.startswith("fd")
    table.loc[better, "value"] = 0.01
    points = frontier(best_guidance(table, "fd", keep_unguided=True)).points
    assert "c8 for 50% of the steps, then c16" in set(points["stages"])


def test_the_best_of_three_is_the_candidate_closest_to_its_caption(made, rows):
    trained = run.opened(made)
    cells = {cell.label: cell for cell in trained.cells}
    plain, best = cells["c8 ddim 2 steps x1"], cells["c8 ddim 2 steps x1, best of 3"]
    pipeline = load_pipeline(plain.key, trained.folders, trained.refs)
    prompts = [trained.prompts.at(place)[0] for place in range(8)]
    candidates = np.stack([
        generate(pipeline, plain.plan, plain.key.engine, [(p.id, p.text, replicate) for p in prompts]).images
        for replicate in range(3)
    ])  # fmt: skip
    assert candidates[0].tobytes() == images(made, rows[plain.label])[:8].tobytes()
    clip = clip_features("scenes-clip-score").clip
    captions = clip.text_features([prompt.text for prompt in prompts], normalised=True)
    closeness = np.stack([(clip.image_features(part, normalised=True) * captions).sum(1) for part in candidates])
    expected = candidates[closeness.argmax(axis=0), range(8)]
    assert images(made, rows[best.label])[:8].tobytes() == expected.tobytes()
    assert (closeness.argmax(axis=0) > 0).any()


def test_the_report_names_them_and_who_judged_what_he_chose(made, tmp_path):
    page = write(made, tmp_path).read_text()
    assert "Best-of-n keeps the image that scenes-clip-score finds closest" in page
    assert "c8 for 50% of the steps, then c16" in page
    assert list((tmp_path / "figures").glob("fig09-cost-paper.png"))
    assert 'id="variance"' in page and 'id="best-of"' in page and (tmp_path / "figures" / "best-of.png").is_file()
    sources = [row["source"] for row in csv.DictReader((tmp_path / "variance.csv").open())]
    assert sources[:3] == ["size", "steps", "guidance"] and "training seed" in sources
    assert {row["n"] for row in csv.DictReader((tmp_path / "best-of.csv").open())} == {"1", "3"}


def test_the_library_answers_what_the_report_shows(made):
    found = api.laws(made.path)
    assert {choice.n for point in found.best_of.at for choice in point.choices} == {1, 3}
    assert api.variance(made.path).frame()["source"].tolist() == [part.source for part in found.variance.components]
    assert found.variance["size"].variance is not None and "one training seed" in found.variance["training seed"].said


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"guiding": "autoguidance"}, "guided by c8"),
        ({"guiding": "cfg interval"}, "guided at timesteps 200-800"),
        ({"guiding": "cfg++"}, "CFG++"),
        ({"guiding": ["none", "cfg++"], "best_of": 3}, "best of 3"),
    ],
)
def test_plan_is_asked_for_a_way_of_guiding_or_for_best_of_n(made, filters, said):
    assert said in api.plan(made.path, filters=filters).sentence
