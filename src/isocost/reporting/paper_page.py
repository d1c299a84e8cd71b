"""The page of a whole paper: a verdict on each of its claims, and the way to every stage's own report."""

from __future__ import annotations

from pathlib import Path

from isocost.analysis.claims import Judgement
from isocost.environment import environment
from isocost.errors import StoreError
from isocost.files import atomic_write
from isocost.reporting.page import templates
from isocost.reporting.verdicts import claims_section
from isocost.study.folders import stages_of, stores_in
from isocost.study.status import status
from isocost.study.store import Store


def write(root: Path, judgement: Judgement, folder: Path | None = None) -> Path:
    """Write ROOT/report.html of the stores under a folder; figures are in the reports that it leads to.

    `folder`: where to write it instead, without those reports.
    """
    figures = stages_of(root)
    stages = [_stage(name, place, root, figures.get(name, ())) for name, place in stores_in([root]).items()]
    counts: dict[str, int] = {}
    for verdict in judgement.verdicts:
        counts[verdict.verdict] = counts.get(verdict.verdict, 0) + 1
    page = (
        templates()
        .get_template("paper.html.j2")
        .render(
            name=root.resolve().name,
            stages=stages if folder is None else [stage | {"report": None} for stage in stages],
            claims=claims_section(judgement),
            counts=counts,
            environment=environment(),
        )
    )
    path = (folder or root) / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _stage(name: str, place: Path, root: Path, figures: tuple[str, ...]) -> dict[str, object]:
    """What a row of the page says of a store."""
    try:
        found = status(Store(place))
    except StoreError:  # published results have no work to count
        return {"name": name, "figures": figures, "cells": None, "members": None, "report": None, "finished": True}
    report = place / "report.html"
    return {
        "name": name,
        "figures": figures,
        "cells": found.cells,
        "members": len(found.members),
        "finished": found.finished,
        "report": report.relative_to(root).as_posix() if report.is_file() and place.is_relative_to(root) else None,
    }
