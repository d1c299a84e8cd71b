"""Folders of several stores, as one that holds a whole paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from isocost.errors import DataError
from isocost.study.published import is_published

ORDER = "paper.json"


def stores_in(paths: Sequence[Path]) -> dict[str, Path]:
    """Name -> store, or what was published of one, of some folders.

    A folder that is neither, but holds some, stands for them: in the order of the `stages` of its `paper.json`, where
    it has one, then by name. A store is called as its folder is, or by its whole path where two would be called alike.
    Raises `DataError` for a `paper.json` without stages.
    """
    found = [store for path in paths for store in _expanded(path)]
    names = [store.resolve().name for store in found]
    return {name if names.count(name) == 1 else str(store): store for name, store in zip(names, found, strict=True)}


def _expanded(path: Path) -> list[Path]:
    if _is_store(path) or not path.is_dir():
        return [path]
    inside = {child.name: child for child in sorted(path.iterdir()) if _is_store(child)}
    order = [name for name in stages_of(path) if name in inside]
    return [inside[name] for name in dict.fromkeys([*order, *inside])] or [path]


def _is_store(path: Path) -> bool:
    return (path / "study.yaml").is_file() or is_published(path)


def stages_of(root: Path) -> dict[str, tuple[str, ...]]:
    """Stage -> the figures that it is for, as the `paper.json` of a paper's folder lists them; none without one.

    Raises `DataError` for one without stages.
    """
    path = root / ORDER
    if not path.is_file():
        return {}
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return {str(stage["name"]): tuple(stage.get("figures", ())) for stage in listed}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: lists no stages by name ({error}).") from None
