from __future__ import annotations

import pytest

from isocost.encoders.own import KINDS
from isocost.errors import TrainingError
from isocost.processes import only_trainer
from isocost.study.encoders import train_encoders
from isocost.study.executors import Processes


def test_progress_is_in_images_seen_of_all_that_are_trained(pictures, tmp_path):
    told = []
    train_encoders(KINDS, pictures, tmp_path, Processes(2), lambda *seen: told.append(seen))
    stages, done, totals, notes = zip(*told, strict=True)
    assert set(stages) == {"train encoders"} and set(totals) == {3 * 160}
    assert done[0] == 0 and list(done) == sorted(done) and done[-1] == 3 * 160
    assert notes[0] == "autoencoder 0%, text_encoder 0%, extractor 0%"
    assert notes[-1] == "autoencoder 100%, text_encoder 100%, extractor 100%"
    assert all((tmp_path / kind / "metrics.json").is_file() for kind in KINDS)
    told.clear()
    train_encoders(KINDS, pictures, tmp_path, Processes(1), lambda *seen: told.append(seen))
    assert told[0][1] == 3 * 160


def test_a_second_sweep_does_not_train_the_same_encoders(pictures, tmp_path):
    (tmp_path / ".extractor.part").mkdir()
    with only_trainer(tmp_path / ".extractor.part"), pytest.raises(TrainingError, match="another process is training"):
        train_encoders(["extractor"], pictures, tmp_path, Processes(1), lambda *_: None)
