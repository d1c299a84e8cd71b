"""Checkpoints that a user points at, and what becomes of a study when one of them is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.study.conftest import tiny_study

from isocost.errors import DataError, SpecError
from isocost.sampling.generate import generate
from isocost.specs import EngineSpec
from isocost.study import run
from isocost.study.checkpoints import find, pipeline_of
from isocost.study.store import Store


def run_folder(store: Path) -> Path:
    return next((store / "checkpoints").iterdir())


def test_a_store_a_run_and_a_checkpoint_lead_to_the_same(swept):
    run_, last = run_folder(swept), run_folder(swept) / "checkpoints" / "000000256"
    for place in (swept, run_, last):
        found = find(place)
        assert found.checkpoint.folder == last and found.checkpoint.images_seen == 256
        assert found.store is not None and found.store.path == swept.resolve()
        assert (found.autoencoder, found.text_encoder) == ("scenes-vae", "scenes-clip-condition")
    assert find(run_ / "checkpoints" / "000000128").checkpoint.images_seen == 128
    assert find(swept, "c8").checkpoint.folder == last


def test_what_is_found_makes_images(swept):
    found = find(swept)
    pipeline = pipeline_of(found, EngineSpec(batch=2))
    plan = next(iter(run.opened(Store(swept)).cells)).plan
    made = generate(pipeline, plan, EngineSpec(batch=2), [("a red circle", "a red circle", r) for r in range(2)])
    assert made.images.shape == (2, 32, 32, 3)


def test_outside_a_store_the_shipped_encoders_are_known_by_content(swept, tmp_path):
    alone = shutil.copytree(run_folder(swept), tmp_path / "alone")
    found = find(alone)
    assert found.store is None and found.autoencoder == "scenes-vae" and found.text_encoder == "scenes-clip-condition"


def test_the_locator_says_where_other_encoders_lie(own_copy):
    digest = find(own_copy).checkpoint.spec.data.autoencoder
    (own_copy / "locator.json").write_text(json.dumps({digest: "somewhere/else"}))
    assert find(own_copy).autoencoder == "somewhere/else"


def test_unknown_encoders_are_said(swept, tmp_path, monkeypatch):
    from isocost.study import checkpoints

    alone = shutil.copytree(run_folder(swept), tmp_path / "alone")
    other = type("Other", (), {"digest": "of another one"})
    monkeypatch.setattr(checkpoints, "load_autoencoder", lambda ref: other)
    with pytest.raises(DataError, match=r"the autoencoder [0-9a-f]{12} .* keep the checkpoint in its store"):
        find(alone)


def test_where_there_is_no_checkpoint(own_copy, tmp_path):
    with pytest.raises(SpecError, match=f"{tmp_path}/nowhere: no checkpoint here"):
        find(tmp_path / "nowhere")
    with pytest.raises(SpecError, match=r"no trained member 'c9'\. Known: c8"):
        find(own_copy, "c9")
    store = Store(own_copy)
    known = store.expansion()["runs"]
    store.write_expansion(runs=[*known, {**known[0], "member": "c16"}])
    with pytest.raises(SpecError, match=r"several members: say which with --member \((c8, c16|c16, c8)\)"):
        find(own_copy)


@pytest.mark.parametrize("images", [128, 256])
def test_a_sweep_names_a_damaged_checkpoint_and_makes_a_deleted_one_again(own_copy, images):
    damaged = run_folder(own_copy) / "checkpoints" / f"{images:09d}"
    weights = (damaged / "ema.safetensors").read_bytes()
    (damaged / "ema.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{images:09d}/ema\.safetensors: damaged.* delete {damaged} and run the"):
        run.sweep(tiny_study(), Store(own_copy), workers=1)
    shutil.rmtree(damaged)
    run.train(tiny_study(), Store(own_copy), workers=1)
    assert (damaged / "ema.safetensors").read_bytes() == weights
