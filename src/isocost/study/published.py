"""What `isocost store publish` has written, read back: a results table without the store behind it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd

from isocost.errors import DataError, StoreError
from isocost.scoring.metrics import label
from isocost.specs import StudySpec, load

SPEC, CELLS, SCORES = "spec.yaml", "cells.json", "scores.json"


def is_published(folder: Path) -> bool:
    """Whether a folder holds published results, and no store."""
    return (folder / CELLS).is_file() and not (folder / "study.yaml").is_file()


def study(folder: Path) -> StudySpec:
    return load(folder / SPEC, StudySpec)


def table(folder: Path) -> pd.DataFrame:
    """One row a (cell, metric, split), as the store's own table, but for seconds, which belong to a machine.

    Influence values are not published, so differences of its scores are unpaired. Raises `StoreError` where there are
    no published scores, `DataError` for a file that is no JSON list of cells, or of scores.
    """
    cells = pd.DataFrame(_listed(folder / CELLS))
    scores = pd.DataFrame([_row(score, folder) for score in _listed(folder / SCORES)])
    if cells.empty or scores.empty:
        raise StoreError(f"{folder}: no published scores.")
    frame: Any = cells.merge(scores, on="sample_key", how="inner")
    frame["value"] = frame["plug_in"] - frame["bias"].astype(float).fillna(0.0)
    return frame.assign(seconds_per_image=float("nan"), seconds_as="not published")


def _row(score: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        spec = score["score_spec"]
        name = label(spec["metric"], (spec["extractor"] or "").partition("@")[0])
        fixed = {key: score[key] for key in ("sample_key", "stderr", "bias", "n", "higher_is_better", "valid")}
        described = {key: spec[key] for key in ("extractor", "reference", "split")}
        described["protocol"] = spec.get("protocol", "")
        key = f"{score['sample_key']}/{name}/{spec['split']}/{score['n']}"
        return {**fixed, **described, "metric": name, "plug_in": score["value"], "score_key": key}
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / SCORES}: not a list of scores: one lacks {error}.") from None


def _listed(path: Path) -> list[dict[str, Any]]:
    """A JSON list, or its compressed form beside."""
    packed = path.with_name(f"{path.name}.gz")
    if not path.is_file() and not packed.is_file():
        raise StoreError(f"{path}: missing; `isocost store publish` writes it.")
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        found = json.loads(content)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}): publish the store again.") from None
    if not isinstance(found, list):
        raise DataError(f"{path}: not a JSON list: publish the store again.")
    return found
