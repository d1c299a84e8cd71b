from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
from tests.study.conftest import tiny_study
from tests.study.test_run import contents, features

from isocost.cli import main
from isocost.errors import StoreError
from isocost.study import run
from isocost.study.shards import cells_of
from isocost.study.status import status
from isocost.study.store import Store


def cells(*work: int):
    return [SimpleNamespace(work=value, sample_key=str(place)) for place, value in enumerate(work)]


def test_every_cell_is_in_one_share_and_shares_weigh_alike():
    study = cells(*range(1, 101))
    shares = [cells_of((i, 7), study) for i in range(7)]
    assert sorted(cell.sample_key for share in shares for cell in share) == sorted(cell.sample_key for cell in study)
    loads = [sum(cell.work for cell in share) for share in shares]
    assert max(loads) - min(loads) <= 7


def test_a_sample_set_that_two_cells_share_is_made_once():
    assert len(cells_of((0, 1), cells(1, 2) + cells(1))) == 2


def test_three_shards_in_stores_of_their_own_come_to_what_one_sweep_does(swept, tmp_path, capsys):
    trained = tmp_path / "trained"
    shutil.copytree(swept, trained, ignore=shutil.ignore_patterns("chunks", "cells", "index*"))
    study = tmp_path / "study.yaml"
    study.write_text(tiny_study().to_yaml())
    places = [str(shutil.copytree(trained, tmp_path / f"job{i}")) for i in range(3)]
    for i, place in enumerate(places):
        main(["sweep", str(study), "--store", place, "--shard", f"{i}/3", "--workers", "1", "--json"])
    made = [json.loads(text + "}")["cells"] for text in capsys.readouterr().out.split("}")[:-1]]
    assert sum(made) == 5 and min(made) >= 1
    assert not any((tmp_path / f"job{i}" / "cells").exists() for i in range(3))
    assert status(Store(places[0])).cells == 5
    merged = tmp_path / "merged"
    main(["store", "merge", str(merged), *places])
    times = {path: path.stat().st_mtime_ns for path in merged.glob("chunks/*/*/*")}
    table = run.sweep(tiny_study(), Store(merged), workers=1)
    assert {path: path.stat().st_mtime_ns for path in merged.glob("chunks/*/*/*")} == times
    assert features(merged) == features(swept)
    assert contents(merged) == contents(swept)
    pd.testing.assert_frame_equal(
        table.drop(columns="seconds_per_image"), run.table(Store(swept)).drop(columns="seconds_per_image")
    )


def test_shards_of_a_study_that_is_not_trained(own_copy):
    with pytest.raises(StoreError, match="holds another study: run `isocost train`"):
        run.sweep_shard(tiny_study(strips="scenes-val"), Store(own_copy), (0, 2), workers=1)
    shutil.rmtree(own_copy / "checkpoints")
    with pytest.raises(StoreError, match="`isocost train` goes on"):
        run.sweep_shard(tiny_study(), Store(own_copy), (0, 2), workers=1)


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2"])
def test_a_shard_that_is_none(capsys, shard):
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "quickstart", f"--shard={shard}"])
    assert "expected i/n with 0 <= i < n" in capsys.readouterr().err
