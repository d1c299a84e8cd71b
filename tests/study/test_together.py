"""What rank 0 and the others tell each other around trainings, with the ranks' messages in a list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from isocost.errors import TrainingError
from isocost.models.cost import training_flops
from isocost.models.ladder import ladder
from isocost.study import together
from isocost.study.together import Training, follow, leading, speed_of, train_together
from isocost.training.parallel import Ranks


@dataclass(frozen=True)
class Told(Ranks):
    """Ranks whose rank 0 says into a list what the others hear from it."""

    said: Any = None
    world: int = 2

    def first(self, function):
        if self.leads:
            self.said.append(function())
            return self.said[-1]
        return self.said.pop(0)


@pytest.fixture
def trained(monkeypatch):
    """Calls of `train_member`; the one whose spec is an error raises it."""
    calls = []

    def member(spec, data, folder, training):
        calls.append((training.ranks.rank, spec))
        if isinstance(spec, BaseException):
            raise spec

    monkeypatch.setattr(together, "train_member", member)
    return calls


def test_all_ranks_train_each_member_and_then_go(trained):
    said = []
    lead, other = Training(Told(0, said=said)), Training(Told(1, said=said))
    with leading(lead.ranks):
        for spec in ("c8", "c16"):
            train_together(spec, "data", "folder", lead)
    assert said == [("c8", "data", "folder"), ("c16", "data", "folder"), None]
    follow(other)
    assert trained == [(0, "c8"), (0, "c16"), (1, "c8"), (1, "c16")] and said == []


@pytest.mark.parametrize("error", [TrainingError("NaN"), SystemExit(143)])
def test_an_error_of_a_training_ends_every_rank_once_rank_0_has_ended(trained, error):
    said = []
    with pytest.raises(type(error)), leading(Told(0, said=said)):
        train_together(error, "data", "folder", Training(Told(0, said=said)))
    assert said[-1] is None
    with pytest.raises(type(error)):
        follow(Training(Told(1, said=said)))
    assert said == []


def test_where_rank_0_dies_nobody_is_told(trained):
    said = []
    with pytest.raises(ZeroDivisionError), leading(Told(0, said=said)):
        raise ZeroDivisionError
    assert said == []


def test_speed_and_utilisation_are_of_the_runs_at_work(tmp_path, monkeypatch):
    member = ladder("micro").members[0]
    monkeypatch.setattr(together, "matmul_peak", lambda device, precision: 1000 * training_flops(member, 8, 32))
    data = SimpleNamespace(latent_shape=(4, 8, 8), context_shape=(32, 64))
    spec = SimpleNamespace(model=member, images=800, precision="fp32", data=data, other_evaluations=lambda embeds: 0)
    runs, folders = [SimpleNamespace(spec=spec)] * 3, [tmp_path / name for name in ("done", "begun", "waiting")]
    for folder in folders[:2]:
        folder.mkdir()
        lines = [{"images_seen": 8 * step, "seconds": 0.02 * step} for step in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert speed_of(runs, folders, [800, 24, 0], Training()) == ["400 images/s, MFU 40%"]
    assert speed_of(runs, folders, [800, 24, 0], Training(Ranks(world=4))) == ["400 images/s, MFU 10%"]
    assert speed_of(runs, folders, [800, 800, 0], Training()) == []
