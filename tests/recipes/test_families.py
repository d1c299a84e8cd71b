"""Transformers and flow matching go through the same sweep as everything else."""

from __future__ import annotations

import json

import pytest

from isocost import api, recipes
from isocost.errors import SpecError
from isocost.specs import EngineSpec, Evaluation, Grid

TINY = {
    "train": {"images": 64, "batch": 32, "caption_dropout": 0.1, "lr_schedule": {"kind": "constant"}},
    "evaluation": Evaluation(images=8, references=64, fd_dims=2, metrics=("fd",)).model_dump(mode="json"),
    "engine": EngineSpec(batch=8).model_dump(mode="json"),
}


def tiny(name: str):
    """A recipe with its smallest member, two steps of training and a cell or three."""
    study = recipes.recipe(name)
    value = study.model_dump(mode="json")
    value["members"] = value["members"][:1]
    value["data"] |= {"images": 64}
    value["train"] |= TINY["train"]
    value["evaluation"], value["engine"] = TINY["evaluation"], TINY["engine"]
    value["grid"] = Grid(samplers=study.grid.samplers, steps=(2,), guidance=(2.0,)).model_dump(mode="json")
    return type(study).parse(value)


@pytest.mark.parametrize(
    ("name", "evaluations"), [("dit", {"ddim": 4}), ("flow", {"euler": 4, "heun": 6, "dpmpp_2m": 4})]
)
def test_train_sample_and_score(name, evaluations, tmp_path):
    table = api.sweep(tiny(name), tmp_path / "store", workers=1)
    rows = table[table["split"] == "all"].set_index("sampler")
    assert rows["evaluations"].to_dict() == evaluations
    assert rows["value"].notna().all() and (rows["gflops_per_image"] > 0).all()
    images = api.sample(tmp_path / "store", ["a red circle"], steps=2, sampler=next(iter(evaluations)))
    assert images.shape == (1, 32, 32, 3)
    reason = "family 'dit-micro'" if name == "dit" else "'flow'"
    with pytest.raises(SpecError, match=reason):
        api.export(tmp_path / "store", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    log = next((tmp_path / "store").rglob("metrics.jsonl"))
    assert [json.loads(line)["images_seen"] for line in log.read_text().splitlines()] == [32, 64]


@pytest.mark.parametrize("name", ["dit", "flow"])
def test_recipes_have_members_of_one_family_and_pass_the_checks(name):
    study = recipes.recipe(name)
    assert len({member.family for member in study.members}) == 1 and len(study.members) == 3
