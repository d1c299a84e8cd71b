"""A study small enough for a test: one member, 256 images, four cells; trained and swept once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isocost.recipes.scenes import micro_members
from isocost.specs import (
    DataSource,
    EngineSpec,
    Evaluation,
    Grid,
    LrSchedule,
    SceneOptions,
    StudySpec,
    TrainSettings,
)


def tiny_study(**changes) -> StudySpec:
    study = StudySpec(
        name="tiny",
        data=DataSource(kind="scenes", resolution=32, images=128, scenes=SceneOptions(groups=1)),
        members=micro_members(8),
        train=TrainSettings(
            images=256,
            batch=32,
            lr_schedule=LrSchedule(kind="constant"),
            caption_dropout=0.1,
            checkpoints=(128,),
        ),
        grid=Grid(steps=(1, 2), guidance=(1.0, 2.0)),
        curve=Grid(steps=(2,), guidance=(2.0,)),
        evaluation=Evaluation(images=40, references=64, fd_dims=4),
        engine=EngineSpec(batch=16),
    )
    return study.model_copy(update=changes)


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> Path:
    """The store of the tiny study, swept without interruption. Read only: copy it to change it."""
    from isocost.study.run import sweep
    from isocost.study.store import Store

    store = tmp_path_factory.mktemp("swept")
    sweep(tiny_study(), Store(store), workers=1)
    return store


@pytest.fixture
def own_copy(swept: Path, tmp_path: Path) -> Path:
    """A copy of the swept store that a test may change."""
    return Path(shutil.copytree(swept, tmp_path / "store"))
