"""Papers: stages that stand on each other, done once, and what each will take."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
from tests.study.conftest import tiny_study

from isocost import api, recipes
from isocost.errors import SpecError, StoreError
from isocost.specs import Grid
from isocost.study import estimate, run, stages
from isocost.study.stages import Stage
from isocost.study.store import Store


def later(root):
    """The tiny study at another training seed too, of which only one plan is sampled."""
    first = tiny_study()
    of_first = tuple(grid.model_copy(update={"seeds": first.seeds}) for grid in first.grids)
    control = Grid(steps=(2,), guidance=(1.0,), seeds=(9,))
    curve = first.curve and first.curve.model_copy(update={"seeds": first.seeds})
    more = {"grid": of_first[0], "extra_grids": (*of_first[1:], control), "curve": curve}
    return first.model_copy(update={"name": "later", "seeds": (*first.seeds, 9), **more})


PAPER = (
    Stage("first", lambda root: tiny_study(), ("Fig. 3",)),
    Stage("later", later, continues="first"),
)


@pytest.fixture(scope="module")
def root(swept, tmp_path_factory):
    """A folder in which the first stage was done before."""
    root = tmp_path_factory.mktemp("paper")
    shutil.copytree(swept, root / "first")
    return root


@pytest.fixture(scope="module")
def done(root):
    """What a run of the paper did."""
    trained, told = [], []
    stores = stages.reproduce(
        PAPER,
        root,
        workers=1,
        progress=lambda *said: told.append(said),
        done=lambda stage, _: trained.append(stage.name),
    )
    return stores, trained, told


def test_a_stage_that_is_done_is_left_alone_and_a_later_one_uses_its_work(done, root):
    stores, trained, told = done
    assert stores == [root / "first", root / "later"] and trained == ["later"]
    assert ("first", 1, 1, "done before") in told
    first, second = (run.table(Store(store)) for store in stores)
    assert set(first["score_key"]) < set(second["score_key"])  # to the bit: nothing was sampled again
    new = second[~second["score_key"].isin(first["score_key"])]
    assert set(new["seed"]) == {9} and set(new["steps"]) == {2}
    assert json.loads((root / "paper.json").read_text())["stages"] == [
        {"name": "first", "figures": ["Fig. 3"]},
        {"name": "later", "figures": []},
    ]


def test_again_does_nothing(done, root):
    assert stages.reproduce(PAPER, root, workers=1, done=lambda *_: pytest.fail("done again"))


def test_only_some_stages(done, root):
    assert stages.reproduce(PAPER, root, ["later"], workers=1) == [root / "later"]
    with pytest.raises(SpecError, match=r"no stage 'latter'\. Did you mean 'later'"):
        stages.reproduce(PAPER, root, ["latter"])


def test_a_folder_of_another_study_is_refused(root, tmp_path):
    shutil.copytree(root / "first", tmp_path / "later")
    with pytest.raises(StoreError, match="holds another study than this stage's"):
        stages.reproduce(PAPER, tmp_path, ["later"])


def test_images_that_are_scored_otherwise_are_not_carried(root, tmp_path):
    study = tiny_study()
    other = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"images": 8})})
    target = Store(tmp_path)
    stages.carry(Store(root / "first"), target, other)
    assert list((tmp_path / "checkpoints").rglob("ema.safetensors")) and not (tmp_path / "chunks").exists()


def test_the_estimate_counts_what_the_stores_then_have(done, root):
    first, second = tiny_study(), later(root)
    found = estimate.workload(first)
    table = run.table(Store(root / "first")).drop_duplicates("sample_key")
    images = first.evaluation.images
    assert found.cells == len(table) and found.images == images * len(table)
    assert sum(found.evaluated.values()) == images * table["evaluations"].sum()
    assert found.runs == len(first.members) and sum(found.trained.values()) == len(first.members) * first.train.images
    more = estimate.workload(second, first)
    assert more.runs == len(first.members) and more.encoded == 0
    assert more.cells == len(first.members) and set(more.trained.values()) == {first.train.images}


def test_what_is_left_is_said_for_each_stage(done, root):
    rows = [asdict(found) for found in estimate.estimate(PAPER, root, workers=2)]
    assert [row["stage"] for row in rows] == ["first", "later"] and all(row["done"] for row in rows)
    for row in rows:
        assert 0 < row["wall_seconds"] < sum(row["seconds"].values()) and row["flops"] > 0


def test_the_page_judges_all_stores_and_leads_to_their_reports(done, root):
    api.report(root / "first")
    text = api.paper_page(root).read_text()
    assert '<a href="first/report.html">first</a>' in text and "Fig. 3" in text
    assert "What the paper claims" in text and "<script" not in text


def test_a_paper_is_no_study():
    with pytest.raises(SpecError, match="isocost reproduce paper-micro"):
        api.load_study("paper-micro")
    with pytest.raises(SpecError, match="Did you mean 'paper-micro'"):
        recipes.stages("paper-mirco")
    with pytest.raises(SpecError, match="takes no 'data'"):
        recipes.stages("paper-micro", data="here")


def test_a_folder_of_studies_is_no_store_but_names_those_it_has(done, root):
    with pytest.raises(StoreError, match=r"a folder of studies: name one of them: first, later\."):
        Store(root).study()
