"""A paper: studies done one after the other, each in a store of its own, of which later ones start from earlier ones.

ROOT/paper.json     the stages in order, by name, with the figures that each is for
ROOT/STAGE/         a store
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isocost.errors import SpecError, StoreError, did_you_mean
from isocost.specs import StudySpec
from isocost.study import run
from isocost.study.artifacts import Progress, silent
from isocost.study.folders import ORDER
from isocost.study.status import status
from isocost.study.store import Store, write_atomically

# What a study makes that is known by what it is made of, and so serves another study.
TRAINED = ("data", "checkpoints", "starts")
SCORED = ("references", "chunks", "cells", "influence")


@dataclass(frozen=True)
class Stage:
    """A study of a paper.

    study: of the paper's folder; asked for when the stages before it are done, as it may follow from what they found.
    figures: what of the paper it redraws. prepare: makes the data that the study reads, in the folder that it is given.
    continues: an earlier stage, of which what was trained and sampled is used again.
    """

    name: str
    study: Callable[[Path], StudySpec]
    figures: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    continues: str | None = None


def chosen(stages: Sequence[Stage], only: Sequence[str] | None) -> list[Stage]:
    """Those of some names, in the paper's order; None: all. Raises `SpecError` for a name that there is not."""
    names = [stage.name for stage in stages]
    for name in only or ():
        if name not in names:
            raise SpecError(f"no stage '{name}'.{did_you_mean(name, names)}")
    return [stage for stage in stages if only is None or stage.name in only]


def reproduce(
    stages: Sequence[Stage],
    root: Path,
    only: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress = silent,
    done: Callable[[Stage, Store], None] = lambda stage, store: None,
) -> list[Path]:
    """Do every stage that is not done, in order, and return the stores. Call it again to go on after a stop.

    `only`: some stages by name. `done`: called after each stage that was not done before. Errors as `run.sweep`, and
    `StoreError` where a stage's store holds another study.
    """
    write_list(stages, root)
    stores = []
    for stage in chosen(stages, only):
        store = Store(root / stage.name)
        stores.append(store.path)
        if stage.prepare is not None:
            stage.prepare(root)
        study = stage.study(root)
        if is_done(store, study):
            progress(stage.name, 1, 1, "done before")
            continue
        if stage.continues is not None:
            carry(Store(root / stage.continues), store, study)
        run.sweep(study, store, workers, lambda what, *how, name=stage.name: progress(f"{name}: {what}", *how))
        done(stage, store)
    return stores


def write_list(stages: Sequence[Stage], root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    listed = [{"name": stage.name, "figures": list(stage.figures)} for stage in stages]
    write_atomically(root / ORDER, json.dumps({"stages": listed}, indent=1).encode())


def is_done(store: Store, study: StudySpec) -> bool:
    """Whether a store holds this study with all of its scores."""
    if not store.study_file.is_file():
        return False
    if store.study().digest != study.digest:
        raise StoreError(f"{store.path}: holds another study than this stage's: take another folder, or move it away.")
    return is_scored(store)


def is_scored(store: Store) -> bool:
    """Whether a store's study has all of its scores."""
    return store.study_file.is_file() and status(store).finished


def carry(source: Store, target: Store, study: StudySpec) -> int:
    """Let what one study has trained serve another, `study`, and its images and scores too, where those are scored
    alike; returns how many files.

    Files are linked where the file system can, as none is ever written to again, and else copied. Raises `StoreError`
    for a source that is no store.
    """
    alike = source.study().evaluation == study.evaluation
    count = 0
    for part in (*TRAINED, *(SCORED if alike else ())):
        for path in sorted((source.path / part).rglob("*")):
            place = target.path / path.relative_to(source.path)
            if not path.is_file() or path.name.startswith(".") or place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, place)
            except OSError:  # another file system, or one without links
                shutil.copy2(path, place)
            count += 1
    return count
