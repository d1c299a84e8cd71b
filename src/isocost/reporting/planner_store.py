"""A planner from a store, or from what was published of one."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from isocost.analysis.cells import best_guidance
from isocost.analysis.frontier import frontier
from isocost.reporting.figures import known_units
from isocost.reporting.planner import Pictures, Planner, Start, planner
from isocost.reporting.strips import png
from isocost.study import published, tables
from isocost.study.seconds import Wanted
from isocost.study.store import Store

LARGEST = 160  # pixels a side of a picture in the page: as many as it shows

Source = Callable[[str, int], str]
"""(key of a strip, which of its images) -> where the page finds that image."""


def planner_of(
    path: Path | str, source: Source | None = None, start: Start | None = None, wanted: Wanted | None = None
) -> Planner:
    """The planner of a folder of results. `source`: of pictures; None: none are shown.

    Raises:
        StoreError: no results there.
        SpecError: nothing to choose from, or nothing that is `wanted` was measured.
    """
    path, start = Path(path), start or Start()
    if published.is_published(path):
        study = published.study(path)
        return planner(published.table(path), study, store=str(path), select_by=study.evaluation.select_by, start=start)
    store = Store(path)
    study = store.study()
    table = tables.table(store, wanted)
    metric = tables.metric_label(store, start.metric) if start.metric else None
    return planner(
        table,
        study,
        store=str(path),
        select_by=tables.metric_label(store, study.evaluation.select_by),
        influence=store.influence,
        pictures=_pictures(store, source) if source else None,
        start=replace(start, metric=metric),
    )


def _pictures(store: Store, source: Source) -> dict[str, Pictures]:
    return {
        cell: Pictures(tuple(strip["captions"]), tuple(source(strip["key"], k) for k in range(len(strip["captions"]))))
        for cell, strip in store.strips().items()
    }


def draw_frontier(path: Path | str, metric: str | None = None) -> int:
    """Draw what the store lacks of the pictures of every cell on a frontier; how many cells those are.

    Raises as `run.opened` does where checkpoints or encoders are missing.
    """
    from isocost.reporting.from_store import Pictures as Drawing
    from isocost.study import run

    store = Store(path)
    select_by = tables.metric_label(store, store.study().evaluation.select_by)
    judge = tables.metric_label(store, metric) if metric else select_by
    cells = best_guidance(tables.table(store), judge, select_by, keep_unguided=True)
    keys = [key for unit in known_units(cells) for key in frontier(cells, unit).points["sample_key"]]
    shown = Drawing(run.opened(store))
    for key in dict.fromkeys(keys):
        shown.of(shown.by_key[key])
    return len(set(keys))


def picture(store: Store, key: str, index: int) -> bytes:
    """One image of a strip as PNG, no larger than the page shows it. Raises `DataError` for a chunk that is damaged."""
    images = store.read_chunk(key, 0).images
    assert images is not None
    return png(_small(images[index]))


def embedded(store: Store) -> Source:
    """Pictures as `data:` URIs."""

    def source(key: str, index: int) -> str:
        return f"data:image/png;base64,{base64.b64encode(picture(store, key, index)).decode()}"

    return source


def changed(path: Path | str) -> tuple[tuple[str, int], ...]:
    """What moves when results do: files appear by renaming, so that their folder gets a new time."""
    path = Path(path)
    places = [
        path / name for name in ("study.yaml", "expansion.json", "strips.json", "cells.json", "measured", "cells")
    ]
    places += sorted((path / "cells").glob("*")) if (path / "cells").is_dir() else []
    return tuple((str(place), place.stat().st_mtime_ns) for place in places if place.exists())


def _small(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    if max(image.shape[:2]) <= LARGEST:
        return image
    opened = Image.fromarray(image)
    opened.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(opened)
