from __future__ import annotations

import json
import os

import pytest
import torch

from isocost.files import file_digest
from isocost.scoring import inception, inventory, perceptual
from isocost.scoring.extractors import EXTRACTORS
from isocost.scoring.inventory import cached_digest, from_home


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home/torch"))
    monkeypatch.delenv("ISOCOST_WEIGHTS", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def rows() -> dict[str, dict]:
    return {f"{row['field']} {row['name']}": row for row in inventory.inventory()}


def test_every_extractor_and_lpips_is_listed():
    names = {row["name"] for row in inventory.inventory()}
    assert set(EXTRACTORS) <= names
    assert {f"lpips-{net}: {part}" for net in perceptual.NETS for part in ("trunk", "heads")} <= names


def test_what_ships_is_found_with_its_digest(home):
    row = rows()["data.autoencoder scenes-vae"]
    path = inventory.ASSETS / "scenes-vae" / "diffusion_pytorch_model.safetensors"
    assert row["found"] and row["what to do"] == "" and row["sha256"] == file_digest(path)[:12]


def test_what_is_missing_says_where_it_was_looked_for_and_what_to_do(home):
    row = rows()["evaluation.extractor fid-tf"]
    assert not row["found"] and row["sha256"] == ""
    assert row["where"] == "~/.cache/isocost/weights, ~/torch/hub/checkpoints"
    assert row["what to do"].startswith("curl -L --create-dirs -o ~/.cache/isocost/weights/pt_inception-2015-12-05")
    row = rows()["evaluation.extractor facebook/dinov2-base"]
    assert (row["found"], row["what to do"]) == (False, "hf download facebook/dinov2-base")


def test_what_is_put_there_is_found(home):
    folder = home / ".cache/isocost/weights"
    folder.mkdir(parents=True)
    torch.save({}, folder / inception.WEIGHTS.names[0])
    row = rows()["evaluation.extractor fid-clean"]
    assert row["found"] and row["what to do"] == ""
    assert row["where"] == f"~/.cache/isocost/weights/{inception.WEIGHTS.names[0]}"


def test_a_digest_is_computed_once_for_each_state_of_a_file(home, monkeypatch, tmp_path):
    path, computed = tmp_path / "net.pth", []
    monkeypatch.setattr(inventory, "file_digest", lambda path: computed.append(path) or file_digest(path))
    path.write_bytes(b"one")
    first = cached_digest(path)
    assert first == cached_digest(path) == file_digest(path) and len(computed) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert cached_digest(path) == file_digest(path) != first and len(computed) == 2
    store = home / ".cache/isocost/digests.json"
    assert list(json.loads(store.read_text())) == [str(path)]
    store.write_text("damaged")
    assert cached_digest(path) == file_digest(path) and len(computed) == 3


def test_a_home_that_cannot_be_written_to_is_no_obstacle(home, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(b"one")
    (home / ".cache").write_text("a file where the cache should be")
    assert cached_digest(path) == file_digest(path)


def test_the_hub_s_cache_says_its_digests_itself(tmp_path, home):
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes(b"whatever")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert cached_digest(tmp_path / "model.safetensors") == "ab" * 32


def test_paths_are_shown_from_home(home, tmp_path):
    assert from_home(home / "a" / "b.pth") == "~/a/b.pth"
    assert from_home(tmp_path / "b.pth") == str(tmp_path / "b.pth")
