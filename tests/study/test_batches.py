from __future__ import annotations

import shutil

import pytest
import torch
from tests.study.conftest import tiny_study

from isocost.errors import IsocostError
from isocost.specs import EngineSpec, SampleKey, load
from isocost.study import images, run
from isocost.study.batches import is_out_of_memory
from isocost.study.status import status
from isocost.study.store import Store


@pytest.fixture
def unsampled(swept, tmp_path):
    """The store of the tiny study, trained."""
    return Store(shutil.copytree(swept, tmp_path / "store", ignore=shutil.ignore_patterns("chunks", "cells", "index*")))


def too_large(monkeypatch, fits) -> None:
    """Sampling runs out of memory where `fits(plan, batch, chunk)` is False."""
    generate = images.generate

    def limited(pipeline, plan, engine, prompts):
        if not fits(plan, engine.batch, prompts):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return generate(pipeline, plan, engine, prompts)

    monkeypatch.setattr(images, "generate", limited)


def test_a_cell_too_large_goes_on_at_a_smaller_batch_from_its_first_chunk(unsampled, swept, monkeypatch):
    """Memory runs out in the second chunk of a guided cell of 2 steps, until its batch is 4."""
    first = run.opened(unsampled).prompts.at(0)[0].id
    guided = lambda plan: plan.steps == 2 and plan.guidance.scale == 2  # noqa: E731
    too_large(monkeypatch, lambda plan, batch, prompts: not guided(plan) or batch <= 4 or prompts[0][0] == first)
    said = []
    table = run.sweep(tiny_study(), unsampled, workers=1, progress=lambda *words: said.append(words[-1]))

    assert [note for note in said if "memory" in note] == [
        f"c8 ddim 2 steps x2: out of memory at batch {batch}, goes on at {batch // 2}"
        for batch in (16, 8)
        for _ in range(2)  # a grid's cell, and one of the curve of another checkpoint
    ]
    lowered = {row["sample_key"]: row for row in unsampled.expansion()["cells"] if row["batch"] != 16}
    assert {(row["steps"], row["guidance_scale"], row["batch"]) for row in lowered.values()} == {(2, 2.0, 4)}
    for key in lowered:
        kept = load(unsampled.chunk_path(key, 0).with_name("key.yaml"), SampleKey)
        assert kept.engine == EngineSpec(batch=4) and kept.digest == key
        assert unsampled.chunks()[key] == set(range(10))
    before = {row["sample_key"] for row in Store(swept).expansion()["cells"]}
    assert set(table["sample_key"]) - before == set(lowered)
    assert len(set(table["sample_key"])) == 5
    found = status(unsampled)
    assert found.finished and found.smaller_batches == 2 and found.chunks_wanted == 3 * 3 + 2 * 10


def test_a_resumed_sweep_knows_the_smaller_batch(unsampled, monkeypatch):
    too_large(monkeypatch, lambda plan, batch, prompts: batch <= 8)
    run.sweep(tiny_study(), unsampled, workers=1)
    times = {path: path.stat().st_mtime_ns for path in unsampled.path.glob("c*/*/*/*")}
    tried = []
    monkeypatch.setattr(images, "generate", lambda *arguments: tried.append(arguments))
    assert set(run.sweep(tiny_study(), unsampled, workers=1)["batch"]) == {8}
    assert {path: path.stat().st_mtime_ns for path in unsampled.path.glob("c*/*/*/*")} == times
    assert not tried


def test_memory_that_is_too_small_for_one_image(unsampled, monkeypatch):
    too_large(monkeypatch, lambda plan, batch, prompts: False)
    with pytest.raises(IsocostError, match=r"c8 ddim . steps x.: out of memory at batch 1 \(CUDA out of memory"):
        run.sweep(tiny_study(), unsampled, workers=1)


def test_what_is_out_of_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(raised.value)


def test_another_error_is_raised_as_it_is(unsampled, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes")

    monkeypatch.setattr(images, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run.sweep(tiny_study(), unsampled, workers=1)
    assert not unsampled.smaller_batches()
