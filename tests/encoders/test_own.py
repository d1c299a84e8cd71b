from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from isocost.encoders import own
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.own import KINDS, images_seen, images_to_see, train_own
from isocost.encoders.text import load_clip, load_text_encoder
from isocost.errors import DataError, SpecError, TrainingError
from isocost.processes import only_trainer
from isocost.runlog import read_log
from isocost.specs import DataSource

LOADERS = {"autoencoder": load_autoencoder, "text_encoder": load_text_encoder, "extractor": load_clip}


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    """A folder with the encoders of the pictures, trained without a stop."""
    folder = tmp_path_factory.mktemp("trained")
    for kind in KINDS:
        assert train_own(kind, pictures, folder / kind) == folder / kind
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_appears_with_what_was_measured_and_nothing_else_stays(pictures, trained, kind):
    metrics = json.loads((trained / kind / "metrics.json").read_text())
    measured = "psnr_held_out" if kind == "autoencoder" else "retrieval_top1_held_out"
    assert metrics["images"] == 6 and np.isfinite(metrics[measured])
    assert LOADERS[kind](trained / kind).digest
    assert images_seen(trained / kind) == images_to_see(kind, pictures.encoder_training) == 160
    assert sorted(path.name for path in trained.iterdir()) == sorted(KINDS)


def test_what_is_trained_is_not_trained_again(pictures, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    for kind in KINDS:
        train_own(kind, pictures, trained / kind)
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}


def test_the_clip_that_conditions_never_scores(trained):
    conditions, scores = load_text_encoder(trained / "text_encoder"), load_clip(trained / "extractor")
    assert conditions.context_shape[1] == 16 and scores.module.config.text_config.hidden_size == 48
    assert load_text_encoder(trained / "extractor").digest != conditions.digest


CHILD = """
import sys
from pathlib import Path
import torch
from isocost.encoders.own import train_own
from isocost.specs import DataSource
torch.set_num_threads(int(sys.argv[3]))
train_own("text_encoder", DataSource.from_yaml(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def test_killed_on_the_way_it_goes_on_to_the_same_bits(pictures, tmp_path):
    longer = pictures.encoder_training.model_copy(update={"clip_images": 480})
    source = pictures.model_copy(update={"encoder_training": longer})
    (tmp_path / "source.yaml").write_text(source.to_yaml())
    folder = tmp_path / "killed"
    arguments = [str(tmp_path / "source.yaml"), str(folder), str(torch.get_num_threads())]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
    deadline = time.monotonic() + 120
    while images_seen(folder) < 64 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    child.kill()
    child.wait()
    assert 64 <= images_seen(folder) < 480 and not folder.exists()
    train_own("text_encoder", source, folder)
    train_own("text_encoder", source, tmp_path / "whole")
    assert load_text_encoder(folder).digest == load_text_encoder(tmp_path / "whole").digest
    assert [line["loss"] for line in read_log(folder)] == [line["loss"] for line in read_log(tmp_path / "whole")]


def test_one_process_trains_an_encoder(pictures, tmp_path, monkeypatch):
    work = tmp_path / ".autoencoder.part"
    work.mkdir()
    said = r"another process is training here \(pid \d+ on .*\): wait for it"
    with only_trainer(work), pytest.raises(TrainingError, match=said):
        train_own("autoencoder", pictures, tmp_path / "autoencoder")
    # Between a first look and the lock, another process ended its training.
    looks = iter([False, True])
    monkeypatch.setattr(own, "is_trained", lambda folder: next(looks))
    monkeypatch.setattr(own, "_train", lambda *_: pytest.fail("trained twice"))
    train_own("autoencoder", pictures, tmp_path / "autoencoder")
    assert not work.exists()


def test_a_broken_held_out_image_is_named_before_training(pictures, tmp_path):
    val = Path(shutil.copytree(pictures.val[0], tmp_path / "val"))
    (val / "0025.png").write_text("no image")
    source = pictures.model_copy(update={"val": (str(val),)})
    with pytest.raises(DataError, match=r"0025\.png"):
        train_own("autoencoder", source, tmp_path / "autoencoder")
    assert images_seen(tmp_path / "autoencoder") == 0 and not (tmp_path / "autoencoder").exists()


def test_scenes_have_their_encoders_shipped(pictures, tmp_path):
    with pytest.raises(SpecError, match=r"need data\.kind 'images' and data\.encoder_training"):
        train_own("autoencoder", DataSource(images=8), tmp_path / "a")
    with pytest.raises(SpecError, match=r"unknown kind of encoder 'autoencode'\. Did you mean 'autoencoder'"):
        train_own("autoencode", pictures, tmp_path / "a")


def halves(count: int, caption: str) -> own._Augmented:
    """Images with a mark in the left half, so that a mirrored one shows."""
    pixels = np.zeros((count, 16, 16, 3), np.uint8)
    pixels[:, 8, 3] = 255
    return own._Augmented(pixels, (caption,) * count, seed=3)


def test_training_images_are_a_function_of_their_number(pictures):
    training = own._Augmented.of(pictures, seed=0)
    one, other = training.images(range(10, 20)), training.images(range(12, 14))
    assert one.dtype == np.uint8 and np.array_equal(one[2:4], other)
    assert training.captions(range(10, 20))[2:4] == training.captions(range(12, 14))
    for epoch in range(2):
        assert sorted(training.captions(range(24 * epoch, 24 * epoch + 24))) == sorted(training.texts)
    assert training.captions(range(24)) != training.captions(range(24, 48))


@pytest.mark.parametrize(("caption", "mirrored"), [("a red heart", True), ("an arrow pointing left", False)])
def test_half_the_images_are_mirrored_unless_the_caption_names_a_side(caption, mirrored):
    columns = [int(image[:, :, 0].argmax() % 16) for image in halves(50, caption).images(range(200))]
    assert {column for column in columns if column < 8} == {2, 3, 4}  # shifted by a sixteenth of the side at most
    share = np.mean([column >= 8 for column in columns])
    assert 0.35 < share < 0.65 if mirrored else share == 0
