"""Adaptive search on a store: what it makes, what it leaves, and that an interrupted one goes on as it would have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.study.conftest import tiny_study

from isocost import api
from isocost.errors import SpecError
from isocost.scoring.uncertainty import mean_estimate
from isocost.specs import Grid
from isocost.study import adaptive, images, run
from isocost.study.search import Settings
from isocost.study.status import status
from isocost.study.store import Store
from isocost.study.upkeep import prune

STUDY = tiny_study(grid=Grid(steps=(1, 2, 3), guidance=(1.0, 2.0, 4.0)))
SEARCH = Settings(confidence=0.6, tolerance=0.2, arms=2)


def trained_only(swept: Path, folder: Path) -> Path:
    """A copy of the tiny study's store from before anything was sampled."""
    return Path(shutil.copytree(swept, folder, ignore=shutil.ignore_patterns("chunks", "cells", "index*")))


def chunks(store: Path) -> dict[str, list[bytes]]:
    """Features of every chunk, by key and index."""
    opened = Store(store)
    return {
        f"{path.parent.name}/{path.stem}": [
            part.tobytes() for _, part in sorted(opened.read_chunk(path.parent.name, int(path.stem)).features.items())
        ]
        for path in (store / "chunks").glob("*/*/*.safetensors")
    }


@pytest.fixture(scope="module")
def full(swept, tmp_path_factory) -> Path:
    """The nine cells, all of them made. Read only."""
    store = trained_only(swept, tmp_path_factory.mktemp("full") / "store")
    run.sweep(STUDY, Store(store), workers=1)
    return store


@pytest.fixture(scope="module")
def searched(swept, tmp_path_factory) -> Path:
    """The nine cells, searched. Read only."""
    store = trained_only(swept, tmp_path_factory.mktemp("searched") / "store")
    run.sweep(STUDY, Store(store), workers=1, search=SEARCH)
    return store


def record(store: Path) -> dict:
    found = Store(store).search()
    assert found is not None
    return found


def finalists_of(store: Path) -> set[str]:
    return {key for choice in record(store)["frontier"] for key in choice["sample_keys"]}


def test_finalists_have_the_very_chunks_and_scores_of_full_search(searched, full):
    keys = finalists_of(searched)
    ours, theirs = chunks(searched), chunks(full)
    mine = {name for name in ours if name.partition("/")[0] in keys}
    assert len(mine) == 3 * len(keys)
    assert all(ours[name] == theirs[name] for name in mine)
    columns = ["sample_key", "metric", "split", "value", "stderr", "n"]
    tables = [run.table(Store(store))[columns] for store in (searched, full)]
    found, expected = (
        sorted((row for row in table.to_dict("records") if row["sample_key"] in keys), key=str) for table in tables
    )
    assert found == expected


def test_only_finalists_have_a_report_half_and_images_are_counted_as_made(searched):
    store, found = Store(searched), record(searched)
    made = store.count_chunks()
    trained = run.opened(store)
    grid = [cell for cell in trained.cells if not cell.curve]
    halves = {split: [made[adaptive.half_of(cell, split).key.digest] for cell in grid] for split in adaptive.HALVES}
    assert 16 * sum(halves["selection"]) == found["images"]["search"]
    assert 16 * sum(halves["report"]) == found["images"]["report"]
    assert found["images"]["full"] == 9 * 48
    reported = {cell.key.digest for cell, count in zip(grid, halves["report"], strict=True) if count}
    assert reported == finalists_of(searched)
    for cell, count in zip(grid, halves["selection"], strict=True):
        assert count == -(-found["counts"].get(cell.key.digest, 0) // 16)


def test_table_plan_report_and_status_speak_of_what_was_found(searched, tmp_path):
    store = shutil.copytree(searched, tmp_path / "store")
    table = api.table(store)
    scored, on_curve = set(table[~table["curve"]]["sample_key"]), set(table[table["curve"]]["sample_key"])
    assert finalists_of(store) <= scored <= finalists_of(store) | on_curve
    assert api.plan(store).cell["sample_key"] in finalists_of(store)
    page = api.report(store).read_text()
    assert "Adaptive search over 9 cells took" in page
    assert status(Store(store)).finished


@pytest.mark.parametrize("chunks_before", [2, 9])
def test_interrupted_anywhere_the_search_goes_on_as_it_would_have(
    chunks_before, swept, searched, tmp_path, monkeypatch
):
    store = trained_only(swept, tmp_path / "store")
    made = []

    def dies(task: images.ChunkTask) -> None:
        if len(made) == chunks_before:
            raise KeyboardInterrupt
        made.append(task)
        make_chunk(task)

    make_chunk = images.make_chunk
    monkeypatch.setattr(images, "make_chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        run.sweep(STUDY, Store(store), workers=1, search=SEARCH)
    monkeypatch.setattr(images, "make_chunk", make_chunk)
    run.sweep(STUDY, Store(store), workers=1, search=SEARCH)
    assert record(store) == record(searched)
    assert chunks(store) == chunks(searched)


def test_a_full_sweep_goes_on_from_the_finalists(searched, full, tmp_path):
    store = Path(shutil.copytree(searched, tmp_path / "store"))
    keys = finalists_of(store)
    before = {path: path.stat().st_mtime_ns for key in keys for path in (store / "chunks").glob(f"*/{key}/*")}
    run.sweep(STUDY, Store(store), workers=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert chunks(full).items() <= chunks(store).items()
    assert Store(store).search() is None
    assert "Adaptive search" not in api.report(store).read_text()


def test_another_studys_search_is_not_this_ones(searched, tmp_path):
    store = Path(shutil.copytree(searched, tmp_path / "store"))
    Store(store).write_study(tiny_study())
    assert Store(store).search() is None


def test_prune_keeps_what_a_search_has_made(searched, tmp_path):
    store = Path(shutil.copytree(searched, tmp_path / "store"))
    before = chunks(store)
    prune(Store(store))
    assert chunks(store) == before


def test_in_words():
    found = {
        "cells": 384,
        "images": {"search": 23_000, "report": 1_576, "full": 196_608},
        "frontier": [{}] * 6,
        "doubt": 0.0312,
        "metric": "fd[any]",
        "settings": {"tolerance": 0.01},
    }
    assert adaptive.in_words(found) == (
        "Adaptive search over 384 cells took 24,576 images, 1,576 of them to report its 6 finalists on fresh prompts; "
        "full search takes 196,608, 8.0 times as many. At no budget would it find anything more than 1% better in "
        "fd[any] on the selection half, with a probability of 96.9%."
    )


def test_arms_are_plans_and_curves_are_what_differs_in_steps_and_guidance_alone(searched):
    store = Store(searched)
    trained = run.opened(store)
    found = adaptive.candidates(trained.cells, store.expansion()["cells"], "gflops")
    assert len(found) == 9
    assert len({candidate.arm.curve for candidate in found}) == 1
    assert len({candidate.arm.place for candidate in found}) == 9
    with pytest.raises(SpecError, match="cost unit of a search"):
        adaptive.candidates(trained.cells, store.expansion()["cells"], "seconds")
    rows = [row | {"paper_cost": None} for row in store.expansion()["cells"]]
    with pytest.raises(SpecError, match="its cost in paper is not known"):
        adaptive.candidates(trained.cells, rows, "paper")


def test_training_seeds_are_averaged_with_their_shared_images():
    values = np.random.default_rng(0).standard_normal((2, 50))
    one, two = (mean_estimate(row, unit="loss") for row in values)
    both, expected = adaptive.mean_of([one, two]), mean_estimate(values.mean(axis=0), unit="loss")
    assert (both.value, both.stderr) == (pytest.approx(expected.value), pytest.approx(expected.stderr))
    assert both.influence is not None and expected.influence is not None
    np.testing.assert_allclose(both.influence, expected.influence)


def test_the_command(swept, tmp_path, capsys):
    from isocost.cli import main

    store = trained_only(swept, tmp_path / "store")
    (tmp_path / "study.yaml").write_text(STUDY.to_yaml())
    command = ["sweep", str(tmp_path / "study.yaml"), "--store", str(store), "--workers", "1", "--search", "adaptive"]
    main([*command, "--confidence", "0.6", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["search"]["settings"]["confidence"] == 0.6
    assert answer["search"]["images"]["search"] <= 9 * 32
    with pytest.raises(SystemExit):
        main([*command, "--shard", "0/2"])
    assert "it goes with --search full" in capsys.readouterr().err
