"""The studies that docs/sweeps.md shows run as they stand, but for how much is trained and drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tests.study.test_given import ZERO_SNR, write_folder

from isocost import api
from isocost.diffusion.samplers import SAMPLERS
from isocost.specs import Spacing

PAGE = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
WAYS, OTHERS = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
SMALL = {"evaluation.images": 4, "evaluation.references": 6, "engine.batch": 4}


def test_every_way_of_spending(tmp_path):
    (tmp_path / "ways.yaml").write_text(WAYS)
    small = SMALL | {"data.images": 128, "train.images": 128, "evaluation.references": 64}
    small |= {"grid.samplers": ["ddim"], "grid.steps": [4]} | {f"extra_grids.{place}.steps": [4] for place in range(5)}
    study = api.load_study(tmp_path / "ways.yaml", small)
    table = api.sweep(study, tmp_path / "store", workers=1)
    plain, intervals, plus_plus, guided_by, stitches, best = 2 * 3, 2 * 3, 2 * 3, 3, 2 * 3, 1
    wide = api.cells(tmp_path / "store")
    # The ends of the stitch, and best of 1, are cells of `grid`.
    assert len(wide) == plain + intervals + plus_plus + guided_by + stitches + best
    assert {"stages", "guidance_mode", "guidance_interval", "guide", "best_of", "scorer"} < set(wide.columns)
    assert table["value"].notna().all()


def test_other_people_s_checkpoints(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures.val[0], "pictures")
    write_folder(Path("models/sd15"))
    write_folder(Path("models/sd21"), **ZERO_SNR)
    Path("others.yaml").write_text(OTHERS)
    study = api.load_study("others.yaml", SMALL | {"data.resolution": 64, "grid.steps": [2]})
    table = api.sweep(study, "store", workers=1)
    assert set(table["member"]) == {"sd15", "sd21"}
    assert table["sample_key"].nunique() == 2 * 2 * 3


@pytest.mark.parametrize("name", [*SAMPLERS, *Spacing.__args__])
def test_every_sampler_and_spacing_is_described(name):
    assert f"`{name}`" in PAGE


def test_the_table_s_columns_are_described():
    from isocost.analysis.cells import PLAIN

    assert all(f"`{name}`" in PAGE for name in PLAIN)
