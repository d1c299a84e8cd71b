from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.study.conftest import tiny_study

from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.errors import DataError, SpecError, StoreError
from isocost.models.cost import autoencoder_flops, forward_flops
from isocost.recipes.scenes import micro_members
from isocost.specs import Grid
from isocost.study import run
from isocost.study.status import status
from isocost.study.store import Store


def contents(store: Path) -> dict[str, bytes]:
    """Every score (without its environment) and influence file of a store, by name."""
    found = {}
    for path in sorted((store / "cells").glob("*/[!.]*")):  # a kill may leave the temporary file of a write
        if path.suffix == ".json":
            score = json.loads(path.read_text())
            score.pop("environment")
            found[path.name] = json.dumps(score).encode()
        else:
            found[path.name] = path.read_bytes()
    return found


def features(store: Path) -> dict[str, list[bytes]]:
    opened = Store(store)
    return {
        f"{path.parent.name}/{path.name}": [
            values.tobytes()
            for _, values in sorted(opened.read_chunk(path.parent.name, int(path.stem)).features.items())
        ]
        for path in (store / "chunks").glob("*/*/*.safetensors")
    }


def test_table_has_a_row_for_every_cell_metric_and_split(swept):
    table = run.table(Store(swept))
    grid_cells = table[~table["curve"]]
    assert grid_cells["sample_key"].nunique() == 4
    assert table[table["curve"]]["images_seen"].unique().tolist() == [128, 256]
    assert set(table["split"]) == {"selection", "report", "all"}
    for metric in ("fd[scenes-clip-score-4]", "kid[scenes-clip-score]", "clip[scenes-clip-score]", "accuracy"):
        rows = grid_cells[grid_cells["metric"].str.startswith(metric) & (grid_cells["split"] == "report")]
        assert len(rows) >= 4, metric
    assert (table.loc[table["split"] == "report", "n"] == 20).any()
    assert table["seconds_per_image"].gt(0).all()


def test_counted_evaluations_are_the_planned_ones(swept):
    store = Store(swept)
    for cell in store.expansion()["cells"]:
        counted = {evaluations for evaluations, _ in store.chunk_costs(cell["sample_key"])}
        assert counted == {cell["evaluations"]} == {cell["steps"] * (2 if cell["guidance_scale"] != 1 else 1)}


def test_costs_charge_guidance_and_encoders(swept):
    cells = {(c["steps"], c["guidance_scale"]): c for c in Store(swept).expansion()["cells"] if not c["curve"]}
    plain, guided = cells[2, 1.0], cells[2, 2.0]
    assert guided["paper_cost"] == plain["paper_cost"] == pytest.approx(2 * plain["norm_cost"])
    text_encoder = load_text_encoder("scenes-clip-condition")
    unet = forward_flops(micro_members(8)[0], 8, text_encoder.context_shape[0])
    decoder = autoencoder_flops(load_autoencoder("scenes-vae").module, 8)
    assert plain["gflops_per_image"] == pytest.approx((2 * unet + text_encoder.flops + decoder) / 1e9)
    assert guided["gflops_per_image"] == pytest.approx((4 * unet + 2 * text_encoder.flops + decoder) / 1e9)


def test_a_second_sweep_does_nothing(own_copy):
    before = {path: path.stat().st_mtime_ns for path in own_copy.rglob("*.safetensors")}
    scores = contents(own_copy)
    run.sweep(tiny_study(), Store(own_copy), workers=1)
    assert {path: path.stat().st_mtime_ns for path in own_copy.rglob("*.safetensors")} == before
    assert contents(own_copy) == scores


def test_more_images_keep_the_ones_that_are_there(own_copy):
    before = features(own_copy)
    evaluation = tiny_study().evaluation.model_copy(update={"images": 60})
    run.sweep(tiny_study(evaluation=evaluation), Store(own_copy), workers=1)
    after = features(own_copy)
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_any_order_and_two_workers_give_the_same_bits(swept, tmp_path):
    shutil.copytree(swept, tmp_path / "store", ignore=shutil.ignore_patterns("chunks", "cells", "index*"))
    study = tiny_study(grid=Grid(steps=(2, 1), guidance=(2.0, 1.0)))
    run.sweep(study, Store(tmp_path / "store"), workers=2)
    assert features(tmp_path / "store") == features(swept)
    assert contents(tmp_path / "store") == contents(swept)


def test_killed_at_random_moments_nothing_is_lost_and_nothing_made_twice(swept, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(swept, store, ignore=shutil.ignore_patterns("chunks", "cells", "index*"))
    (tmp_path / "study.yaml").write_text(tiny_study().to_yaml())
    command = [sys.executable, "-m", "isocost.cli", "sweep", str(tmp_path / "study.yaml"), "--store", str(store)]
    seen: dict[Path, int] = {}
    moments = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        target = len(seen) + moments.randint(1, 4)
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(store.glob("chunks/*/*/*.safetensors"))) >= target:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {path: path.stat().st_mtime_ns for path in store.glob("chunks/*/*/*.safetensors")}
        assert seen.items() <= now.items()
        seen = now
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True)
    assert seen.items() <= {path: path.stat().st_mtime_ns for path in store.glob("chunks/*/*/*.safetensors")}.items()
    assert features(store) == features(swept)
    assert contents(store) == contents(swept)


def test_status_counts_without_torch(swept):
    code = (
        "import sys, json; from isocost.study.status import status; from isocost.study.store import Store;"
        f"found = status(Store({str(swept)!r})); assert 'torch' not in sys.modules; print(json.dumps(found.as_dict()))"
    )
    shown = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert shown["finished"] and shown["cells"] == shown["scored"] == 5
    assert shown["members"][0]["images_seen"] == shown["members"][0]["images"] == 256


def test_scores_by_other_references_stay_apart(own_copy):
    evaluation = tiny_study().evaluation.model_copy(update={"references": 96})
    table = run.sweep(tiny_study(evaluation=evaluation), Store(own_copy), workers=1)
    assert not table.duplicated(["sample_key", "metric", "split", "curve"]).any()
    assert table["reference"].dropna().nunique() == 1
    first = run.sweep(tiny_study(), Store(own_copy), workers=1)
    assert set(first["reference"].dropna()).isdisjoint(table["reference"].dropna())


def test_images_asked_for_later_are_made_then(own_copy):
    before = features(own_copy)
    evaluation = tiny_study().evaluation.model_copy(update={"keep_images": True})
    run.sweep(tiny_study(evaluation=evaluation), Store(own_copy), workers=1)
    chunks = [Store(own_copy).read_chunk(p.parent.name, int(p.stem)) for p in own_copy.glob("chunks/*/*/*.safetensors")]
    assert all(chunk.images is not None for chunk in chunks)
    assert features(own_copy) == before


def test_the_thread_count_of_the_caller_moves_no_bit(swept, tmp_path):
    import torch

    shutil.copytree(swept, tmp_path / "store", ignore=shutil.ignore_patterns("chunks", "cells", "index*", "references"))
    torch.set_num_threads(2)
    try:
        run.sweep(tiny_study(), Store(tmp_path / "store"), workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert features(tmp_path / "store") == features(swept)


def test_status_of_an_unfinished_store(own_copy):
    doomed = next(own_copy.glob("cells/*/*.json"))
    sample_key = json.loads(doomed.read_text())["sample_key"]
    for path in own_copy.glob("cells/*/*.json"):
        if json.loads(path.read_text())["sample_key"] == sample_key:
            path.unlink()
    next((own_copy / "chunks" / sample_key[:2] / sample_key).glob("*.safetensors")).unlink()
    found = status(Store(own_copy))
    assert not found.finished and found.scored == 4 and found.chunks_done == found.chunks_wanted - 1


def test_a_corrupt_chunk_is_named(own_copy):
    path = next(own_copy.glob("chunks/*/*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    for score in own_copy.glob("cells/*/*"):
        score.unlink()
    with pytest.raises(DataError, match=path.name):
        run.sweep(tiny_study(), Store(own_copy), workers=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_store(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write"):
        run.sweep(tiny_study(), Store(tmp_path / "store"), workers=1)


def test_a_store_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot write"):
        run.sweep(tiny_study(), Store(tmp_path / "store"), workers=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": Grid(samplers=("dddim",))}, "unknown sampler 'dddim'. Did you mean 'ddim'"),
        ({"grid": Grid(steps=(2000,))}, "2000"),
        ({"train": tiny_study().train.model_copy(update={"caption_dropout": 0.0})}, "caption_dropout"),
        ({"members": tiny_study().members * 2}, "of its own"),
        ({"evaluation": tiny_study().evaluation.model_copy(update={"prompts": "scenes-vall"})}, "scenes-val"),
        ({"evaluation": tiny_study().evaluation.model_copy(update={"metrics": ("kid",)})}, "select_by"),
        ({"evaluation": tiny_study().evaluation.model_copy(update={"prompts": "paper-fig1"})}, "accuracy"),
        ({"evaluation": tiny_study().evaluation.model_copy(update={"fd_dims": 4096})}, "4096"),
        ({"strips": "nowhere"}, "nowhere"),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        run.sweep(tiny_study(**changes), Store(tmp_path / "store"), workers=1)
    assert not (tmp_path / "store").exists()


def test_influence_values_of_images_and_references_reproduce_the_standard_error(swept):
    store = Store(swept)
    checked = []
    for key, score in store.scores():
        values = store.influence(key)
        if values is not None and score.stderr and "/" not in score.score_spec.metric:
            images, references = np.split(values, [score.score_spec.n])
            variance = np.var(images, ddof=1) / len(images)
            if score.score_spec.metric in ("fd", "kid"):  # 40 references are few, so their own error counts
                variance += np.var(references, ddof=1) / len(references)
            else:
                assert not len(references)
            assert np.sqrt(variance) == pytest.approx(score.stderr, rel=1e-4)
            checked.append(score.score_spec.metric)
    assert {metric: checked.count(metric) for metric in set(checked)} == dict.fromkeys(("fd", "kid", "clip"), 15) | {
        "accuracy": checked.count("accuracy")
    }


def test_what_a_study_expands_to_is_worked_out_once(own_copy, monkeypatch):
    monkeypatch.setattr(run, "environment", lambda: {"isocost": "1", "commit": "abc", "dirty": False})
    run.sweep(tiny_study(), Store(own_copy), workers=1)
    before = Store(own_copy).expansion()["cells"]
    worked = []
    rows = run.cell_rows
    monkeypatch.setattr(run, "cell_rows", lambda trained: worked.append(trained) or rows(trained))
    run.sweep(tiny_study(), Store(own_copy), workers=1)
    assert not worked
    smaller = tiny_study(curve=None)
    run.train(smaller, Store(own_copy), workers=1)
    run.sweep(tiny_study(), Store(own_copy), workers=1)
    assert len(worked) == 1 and Store(own_copy).expansion()["cells"] == before
