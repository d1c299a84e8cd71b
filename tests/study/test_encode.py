"""Training data encoded by many processes, and live: what training makes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.study.conftest import tiny_study

import isocost
from isocost.cli import main
from isocost.data.shards import Shards, write_shards
from isocost.encoders import precompute
from isocost.encoders.latents import LatentShards
from isocost.errors import DataError, SpecError
from isocost.specs import Filter, StudySpec


def short_study(**changes) -> StudySpec:
    """The tiny study, trained for two steps."""
    return tiny_study(train=tiny_study().train.model_copy(update={"images": 64, "checkpoints": ()}), **changes)


def losses(store: Path) -> list[float]:
    (log,) = store.glob("checkpoints/*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


def of_pictures(pictures, **changes) -> StudySpec:
    """The short study on pictures in folders, by shipped encoders."""
    fields = {"autoencoder": "scenes-vae", "text_encoder": "scenes-clip-condition", "resolution": 32, **changes}
    return short_study(data=pictures.model_copy(update={**fields, "encoder_training": None}))


@pytest.fixture
def small_shards(monkeypatch):
    """128 images in four shards."""
    monkeypatch.setattr(precompute, "IMAGES_PER_SHARD", 32)


def test_shares_then_training(small_shards, tmp_path):
    study, store = short_study(), tmp_path / "store"
    for number, done in ((2, 1), (0, 3), (1, 4)):
        found = isocost.encode(study, store, (number, 3))
        assert (found.done, found.shards, found.finished) == (done, 4, done == 4)
    header = (found.folder / "header.json").read_bytes()
    isocost.train(study, store, workers=1)
    assert (found.folder / "header.json").read_bytes() == header
    assert len(list((store / "data").iterdir())) == 1, "training took what was encoded"


def test_live_training_is_training_on_what_was_encoded_ahead(tmp_path):
    """The same losses, to the last bit: with batches of one size, encoders give an image the same latent in any."""
    live = short_study(data=short_study().data.model_copy(update={"encode": "live"}))
    isocost.train(short_study(), tmp_path / "ahead", workers=1)
    isocost.train(live, tmp_path / "live", workers=1)
    assert losses(tmp_path / "live") == losses(tmp_path / "ahead")
    assert not list(tmp_path.glob("live/data/*/*.safetensors"))
    with pytest.raises(SpecError, match="there is nothing to encode ahead"):
        isocost.encode(live, tmp_path / "live")


def test_a_process_that_is_killed_and_run_again(tmp_path):
    """kill -9 in the middle of the work; the same command ends it."""
    arguments = ["encode", "quickstart", "--set", "data.images=320", "--store", str(tmp_path / "killed")]
    small = "from isocost.encoders import precompute; precompute.IMAGES_PER_SHARD = 16; "
    command = [sys.executable, "-c", f"{small}from isocost.cli import main; main()", *arguments]
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("killed/data/*/latents-00000.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("killed/data/*/header.json"))
    for rank in ("0", "1"):
        done = subprocess.run([*command, "--json"], env={**environment, "RANK": rank}, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert found["finished"] and (found["done"], found["shards"]) == (20, 20)
    LatentShards(found["folder"]).verify()


def test_filters_reach_training_and_its_encoders(pictures, tmp_path):
    rules = (Filter(field="caption_words", max=11),)
    study = of_pictures(pictures, filters=rules)
    found = isocost.encode(study, tmp_path)
    header = json.loads((found.folder / "header.json").read_text())
    assert 0 < header["images"] == header["filters"]["kept"] < 24
    assert all(len(caption.split()) <= 11 for caption in LatentShards(found.folder).captions)
    assert isocost.encode(of_pictures(pictures), tmp_path).folder != found.folder


def test_a_shard_that_shrinks_between_runs_is_named_before_training(pictures, tmp_path):
    samples = [
        {"__key__": path.stem, "png": path.read_bytes(), "txt": path.with_suffix(".txt").read_text()}
        for path in sorted(Path(pictures.train[0]).glob("*.png"))
    ]
    folder = tmp_path / "shards"
    write_shards(samples, folder, "x", per_shard=12)
    for encode in ("ahead", "live"):
        study, store = of_pictures(pictures, train=(str(folder),), encode=encode), tmp_path / encode
        isocost.train(study, store, workers=1)
        before = sorted(store.rglob("*"))
        write_shards(samples[:20], folder, "x", per_shard=12)
        assert len(Shards(folder)) == 20
        message = r"x-00001\.tar: changed since it was encoded: 8 samples, were 12; sha256 .*: bring the old files back"
        with pytest.raises(DataError, match=message):
            isocost.train(study, store, workers=1)
        assert sorted(store.rglob("*")) == before, "nothing is lost, nothing begun"
        write_shards(samples, folder, "x", per_shard=12)
        isocost.train(study, store, workers=1)


def test_own_encoders_are_not_trained_by_every_process(pictures, tmp_path):
    with pytest.raises(SpecError, match=r"own encoders \(autoencoder, text_encoder\) are not trained yet: run `isoc"):
        isocost.encode(tiny_study(data=pictures), tmp_path, (0, 2))


def test_commands_that_are_wrong(capsys, monkeypatch, tmp_path):
    for arguments, message in (
        (["encode", "quickstart", "--shard", "4/4"], "--shard 4/4: expected i/n with 0 <= i < n"),
        (["data", "info"], "name a folder"),
        (["data", "info", str(tmp_path / "nowhere")], "nowhere: neither a .tar nor a folder"),
        (["data", "filter", str(tmp_path), "--rule", "sharpness>=3"], "no field 'sharpness' to filter by"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(SystemExit, match="2"):
        main(["encode", "quickstart"])
    assert "RANK=first WORLD_SIZE=1: expected numbers" in capsys.readouterr().err


# --- isocost data ---


def test_info_of_images_and_of_latents(pictures, tmp_path, capsys):
    found = isocost.encode(of_pictures(pictures), tmp_path)
    main(["data", "info", pictures.train[0], str(found.folder), "--verify", "--json"])
    images, latents = json.loads(capsys.readouterr().out)
    assert (images["kind"], images["images"], images["without_caption"], images["shards"]) == ("images", 24, 0, 1)
    assert (latents["kind"], latents["images"], latents["latent_shape"]) == ("latents", 24, [4, 8, 8])
    (shard,) = found.folder.glob("latents-*")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SystemExit, match="1"):
        main(["data", "info", str(found.folder), "--verify"])
    assert "latents-00000.safetensors: damaged" in capsys.readouterr().err


def test_info_counts_what_is_missing(tmp_path, capsys):
    samples = [{"__key__": "a", "png": b"1", "txt": "x", "json": '{"score": 3}'}, {"__key__": "b", "png": b"2"}]
    write_shards(samples, tmp_path, "x")
    main(["data", "info", f"{tmp_path}/x-{{00000..00000}}.tar"])
    shown = capsys.readouterr().out
    assert "images, 2 images" in shown and "without caption: 1" in shown and "fields: {'score': 1}" in shown


def test_filter_shows_counts_and_leaves_an_index(pictures, tmp_path, capsys):
    out = tmp_path / "kept.safetensors"
    arguments = ["data", "filter", pictures.train[0], "--rule", "caption_words<=11", "--rule", "width>=32"]
    main([*arguments, "--out", str(out), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 24 and found["kept"] + found["rules"][0]["dropped"] == 24 and len(found["digest"]) == 64
    from safetensors.numpy import load_file

    assert load_file(out)["kept"].dtype == np.int64 and len(load_file(out)["kept"]) == found["kept"]
    main(arguments)
    assert f"{found['kept']} of 24 images kept\ncaption_words <= 11: " in capsys.readouterr().out
