"""Measured costs: kept in the store, made once, and what the seconds of cells follow from."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import isocost
from isocost import api
from isocost.cli import main
from isocost.errors import DataError, IsocostError, SpecError
from isocost.sampling.prices import Whole
from isocost.specs import CheckpointRef, EngineSpec
from isocost.study import measured, run
from isocost.study.grid import Scorer
from isocost.study.measured import Target, measure_all, target_of
from isocost.study.seconds import Measured, Wanted, cell_seconds, in_words, measured_in
from isocost.study.store import Store

ENGINE = EngineSpec(batch=16)  # the tiny study's
SECONDS = {"text": 0.5, "noise": 0.25, "start/1": 1, "start/2": 2, "call/1": 10, "call/2": 18, "decode": 0.125}


def record(checkpoint: str, device: str = "Some CPU", engine: EngineSpec = ENGINE, **changes) -> Measured:
    values = {
        "member": "c8",
        "checkpoint": CheckpointRef(content_digest=checkpoint, images_seen=256),
        "device": device,
        "engine": engine,
        "seconds": SECONDS,
        "joules": None,
        "memory": 2**20,
        "wholes": (Whole(steps=4, guidance=2.0, measured=70.0, modelled=77.0),),
        "repeats": 5,
        "environment": {},
    }
    return Measured(**(values | changes))


def keep(store: Store, *records: Measured) -> None:
    (store.path / "measured").mkdir(exist_ok=True)
    for one in records:
        measured._path(store, one.checkpoint, one.device, one.engine).write_text(one.model_dump_json())


@pytest.fixture
def store(own_copy) -> Store:
    return Store(own_copy)


@pytest.fixture
def final(store) -> str:
    """The content digest of the final checkpoint."""
    return next(cell["checkpoint"] for cell in store.expansion()["cells"] if not cell["curve"])


def seconds_by_cell(store: Store, wanted: Wanted | None = None) -> dict[tuple[int, float, bool], float]:
    cells = store.expansion()["cells"]
    found = cell_seconds(store, cells, wanted).by_key
    return {(cell["steps"], cell["guidance_scale"], cell["curve"]): found[cell["sample_key"]] for cell in cells}


# --- what cells take ---


def test_without_a_measurement_seconds_are_the_sweeps_own(store):
    cells = store.expansion()["cells"]
    found = cell_seconds(store, cells)
    assert "as the sweep itself took" in found.source
    for cell in cells:
        own = [seconds for _, seconds in store.chunk_costs(cell["sample_key"])]
        assert found.by_key[cell["sample_key"]] == np.median(own)


def test_measured_parts_add_up_to_every_cell(store, final):
    keep(store, record(final))
    found = seconds_by_cell(store)
    once = 0.5 + 0.25 + 0.125
    grid = {(1, 1.0): once + 1 + 10, (2, 1.0): once + 1 + 20, (1, 2.0): once + 2 + 18, (2, 2.0): once + 2 + 36}
    for (steps, scale), seconds in grid.items():
        assert found[steps, scale, False] == seconds
    assert found[2, 2.0, True] == once + 2 + 36 or math.isnan(found[2, 2.0, True])  # of both kept checkpoints
    table = run.table(store)
    assert set(table["seconds_as"]) == {"measured on Some CPU, fp32, batch 16, 1 thread"}
    grid_rows = table[~table["curve"] & (table["steps"] == 2) & (table["guidance_scale"] == 2)]
    assert set(grid_rows["seconds_per_image"]) == {once + 2 + 36}
    assert not {"calls", "noises", "chosen_by"} & set(table.columns)


def test_a_checkpoint_that_was_not_measured_leaves_all_to_the_sweep(store):
    keep(store, record("another checkpoint"))
    found = cell_seconds(store, store.expansion()["cells"])
    assert found.source.startswith("as the sweep itself took") and "not run for every checkpoint" in found.source
    assert not any(math.isnan(seconds) for seconds in found.by_key.values())
    with pytest.raises(SpecError, match="not every checkpoint was so measured"):
        cell_seconds(store, store.expansion()["cells"], Wanted(device="some"))


def test_of_several_the_nearest_to_the_studys_engine_counts(store, final):
    others = [EngineSpec(batch=1), EngineSpec(batch=16, dtype="bf16", device="cuda")]
    keep(store, *(record(final, "Other", engine) for engine in others), record(final))
    cells = store.expansion()["cells"]
    assert cell_seconds(store, cells).source.endswith("Some CPU, fp32, batch 16, 1 thread")
    for wanted, words in (
        ({"batch": 1}, "Other, fp32, batch 1, 1 thread"),
        ({"dtype": "bf16"}, "Other, bf16, batch 16"),
        ({"device": "cuda"}, "Other, bf16, batch 16"),
        ({"device": "other"}, "Other, fp32, batch 1, 1 thread"),
        ({"device": "other", "batch": 16}, "Other, bf16, batch 16"),
    ):
        assert cell_seconds(store, cells, Wanted(**wanted)).source == f"measured on {words}"
    with pytest.raises(SpecError, match=r"nothing was so measured \(measured: Other, bf16, batch 16; Other.*Some"):
        cell_seconds(store, cells, Wanted(device="H100"))


def test_cells_that_were_written_before_calls_were_counted_keep_the_sweeps_seconds(store, final):
    keep(store, record(final))
    old = [{name: value for name, value in cell.items() if name != "calls"} for cell in store.expansion()["cells"]]
    assert cell_seconds(store, old).source.startswith("as the sweep itself took")


def test_best_of_n_pays_for_its_choice(store, final):
    cell = next(cell for cell in store.expansion()["cells"] if not cell["curve"])
    chosen = [cell | {"best_of": 4, "chosen_by": "clip"}]
    keep(store, record(final, seconds=SECONDS | {"caption/clip": 1000, "choose/clip": 100}))
    once = cell_seconds(store, [cell]).by_key[cell["sample_key"]]
    assert cell_seconds(store, chosen).by_key[cell["sample_key"]] == pytest.approx(4 * once - 3 * 0.5 + 1000 + 400)
    keep(store, record(final))
    assert math.isnan(cell_seconds(store, chosen).by_key[cell["sample_key"]])


def test_a_damaged_record_is_named(store, final):
    keep(store, record(final))
    (path,) = (store.path / "measured").iterdir()
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError, match=rf"{path.name}: corrupt measurement .* Delete it"):
        measured_in(store)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({}, "X, fp32, batch 64, 1 thread"),
        ({"threads": 8, "compiled": True}, "X, fp32, batch 64, 8 threads, compiled"),
        ({"device": "cuda", "dtype": "bf16", "network": "diffusers"}, "X, bf16, batch 64, diffusers' network"),
    ],
)
def test_a_setting_in_words(engine, words):
    assert in_words("X", EngineSpec(**engine)) == words


# --- measuring ---


def test_a_store_is_measured_once_and_then_goes_by_it(store, monkeypatch):
    found = api.measure(store.path, batches=[2], repeats=1)
    assert [(one.member, one.checkpoint.images_seen, one.engine.batch) for one in found] == [("c8", 256, 2)]
    assert set(found[0].seconds) == set(SECONDS) and all(value > 0 for value in found[0].seconds.values())
    assert found[0].engine == ENGINE.model_copy(update={"batch": 2}) and found[0].repeats == 1
    assert found[0].memory is None or found[0].memory > 0
    assert [plan.guidance for plan in found[0].wholes] == [1.0, 2.0]
    assert measured_in(store) == found
    assert isocost.plan(store.path, unit="seconds").cell["seconds_as"].startswith("measured on ")

    def again(*arguments):
        raise IsocostError("measured again")

    monkeypatch.setattr(measured, "_in_own_process", again)
    assert api.measure(store.path, batches=[2], repeats=1) == found
    for changes in ({"again": True}, {"threads": 2}, {"network": "diffusers"}):
        with pytest.raises(IsocostError, match="measured again"):
            api.measure(store.path, batches=[2], repeats=1, **changes)


def test_a_scorer_that_is_new_is_measured_too(store, final, monkeypatch):
    target, _ = target_of(store.path)
    asked = []

    def in_own_process(target, engine, scorers, repeats):
        asked.append([scorer.digest for scorer in scorers])
        more = {f"{part}/{scorer.digest}": 1.0 for scorer in scorers for part in ("caption", "choose")}
        return record(final, measured.device_name("cpu"), engine, seconds=SECONDS | more)

    monkeypatch.setattr(measured, "_in_own_process", in_own_process)
    for scorers in ([], [Scorer("somewhere", "clip")], [Scorer("somewhere", "clip")], []):
        measure_all([target], [ENGINE], store, scorers)
    assert asked == [[], ["clip"]]


def test_choosing_is_timed_by_the_scorer_itself(store):
    from isocost.study.pipelines import open_scorer

    scorer = Scorer("scenes-clip-score", open_scorer("scenes-clip-score").digest)
    target, _ = target_of(store.path)
    found = measured.measure_one(target, EngineSpec(batch=1), [scorer], repeats=1)
    assert {f"caption/{scorer.digest}", f"choose/{scorer.digest}"} <= set(found.seconds)


def test_a_checkpoint_outside_a_store_is_measured_and_not_kept(store, tmp_path, monkeypatch):
    import shutil

    (folder,) = (store.path / "checkpoints").iterdir()
    alone = shutil.copytree(folder, tmp_path / "alone")
    assert target_of(alone)[1] is None
    monkeypatch.setattr(measured, "_in_own_process", lambda target, engine, *rest: record("x", engine=engine))
    found = api.measure(alone)
    assert [one.engine for one in found] == [EngineSpec(batch=1), EngineSpec(batch=64)]
    assert not list(tmp_path.rglob("measured/*"))


def test_a_process_that_dies_is_said(store, monkeypatch):
    target, _ = target_of(store.path)
    monkeypatch.setattr(measured, "measure_one", dies)
    with pytest.raises(IsocostError, match=r"measuring c8 at batch 16: its process died \(out of memory\?\)"):
        measure_all([target], [ENGINE])


def dies(*_) -> None:
    import os

    os._exit(9)


def test_a_gpu_that_is_not_there(store):
    with pytest.raises(SpecError, match="torch sees no GPU"):
        measure_all([target_of(store.path)[0]], [EngineSpec(device="cuda")])


def test_what_a_record_shows():
    joules = {name: value / 10 for name, value in SECONDS.items()}
    (row,) = record("x", joules=joules).columns()
    assert row["guided call"] == 18_000 and row["error, %"] == pytest.approx(10) and row["peak MiB"] == 1
    assert row["joules"] == pytest.approx((0.5 + 0.25 + 2 + 4 * 18 + 0.125) / 10)
    assert record("x").columns()[0]["joules"] is None


# --- as a user runs it ---


def test_measure_and_plan_on_the_command_line(store, final, monkeypatch, capsys):
    def in_own_process(target, engine, *rest):
        return record(final, measured.device_name("cpu"), engine)

    monkeypatch.setattr(measured, "_in_own_process", in_own_process)
    main(["measure", str(store.path), "--batch", "1,16", "--json"])
    assert [one["engine"]["batch"] for one in json.loads(capsys.readouterr().out)] == [1, 16]
    main(["measure", str(store.path)])
    shown = capsys.readouterr().out
    assert "batch 1, 1 thread: milliseconds an image" in shown and "DDIM-4, guidance 2" in shown
    main(["plan", str(store.path), "--budget", "100", "--unit", "seconds", "--batch", "1"])
    assert "per image (measured on " in (answer := capsys.readouterr().out) and "batch 1, 1 thread)" in answer
    main(["plan", str(store.path), "--unit", "seconds"])
    assert "Seconds are measured on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "STORE", "--batch", "1,x"], "--batch 1,x: expected whole numbers from 1, as in 1,64."),
        (["measure", "STORE", "--batch", "0"], "--batch 0: expected whole numbers"),
        (["plan", "STORE", "--unit", "seconds", "--device", "H100"], "nothing was so measured (measured: nothing)"),
    ],
)
def test_what_cannot_be_is_one_line(store, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main([str(store.path) if word == "STORE" else word for word in arguments])
    assert message in capsys.readouterr().err


def test_a_target_is_a_plain_value():
    """It goes to another process."""
    assert {field.name for field in dataclasses.fields(Target)} == {"member", "checkpoint", "folder"}
