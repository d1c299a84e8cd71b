"""The adapters, on stand-ins that note what the real tools would be told; tensorboard itself where it is installed."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from isocost import trackers
from isocost.errors import SpecError
from isocost.trackers import mirror, scalars

LINES = [
    {"images_seen": 8, "loss": 1.0, "loss_by_timestep": [0.5, None, 2.0], "seconds": 0.1},
    {"images_seen": 16, "loss": 0.5, "loss_by_timestep": [0.25, 1.0, 2.0], "seconds": 0.2},
]
FIRST = {"loss": 1.0, "loss_by_timestep/0": 0.5, "loss_by_timestep/2": 2.0, "seconds": 0.1}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "abcdef0123456789"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


class Tool:
    """wandb and trackio as far as they are used."""

    def __init__(self):
        self.told, self.begun, self.finished = [], {}, 0

    def init(self, **how):
        self.begun = how
        return self

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.finished += 1


class SummaryWriter(Tool):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        opened.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.finish()

    def add_text(self, tag, text):
        self.begun = {tag: text}

    def add_scalar(self, tag, value, step):
        self.told.append((step, tag, value))


opened: list[SummaryWriter] = []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_line_is_told_at_its_images_seen(run, monkeypatch, name):
    tool = Tool()
    monkeypatch.setitem(sys.modules, name, tool)
    assert mirror(run, name, "c16-seed0", {"batch": 8}) == 2
    assert tool.told[0] == (8, FIRST) and tool.told[1][0] == 16 and tool.finished == 1
    assert tool.begun["project"] == "isocost" and tool.begun["config"] == {"batch": 8}


def test_tensorboard_has_a_scalar_a_number(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    mirror(run, "tensorboard", "c16-seed0", {})
    (writer,) = opened
    assert writer.folder == str(run / "tensorboard") and writer.finished == 1
    assert {(8, tag, value) for tag, value in FIRST.items()} <= set(writer.told)


def test_a_log_that_grows_is_followed_to_its_end(run, monkeypatch):
    tool = Tool()
    monkeypatch.setitem(sys.modules, "wandb", tool)
    monkeypatch.setattr(trackers, "SECONDS_BETWEEN_LOOKS", 0.01)
    counted = []
    follower = threading.Thread(target=lambda: counted.append(mirror(run, "wandb", "c16", {}, until=24)))
    follower.start()
    while len(tool.told) < 2:
        time.sleep(0.01)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"images_seen": 24, "loss": 0.1}) + "\n")
    follower.join()
    assert counted == [3] and [step for step, _ in tool.told] == [8, 16, 24]


def test_a_tracker_that_is_not_there(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError, match=r"tracker wandb: .*pip install 'isocost\[trackers\]'"):
        mirror(run, "wandb", "c16", {})
    with pytest.raises(SpecError, match=r"unknown tracker 'wandbb'\. Did you mean 'wandb'"):
        mirror(run, "wandbb", "c16", {})


def test_scalars_leave_out_what_is_unknown():
    assert scalars(LINES[0]) == FIRST
