"""A part of the report's page that only some studies have: figures, sentences and a table."""

from __future__ import annotations

from dataclasses import dataclass

from isocost.reporting.plots import Chart


@dataclass(frozen=True)
class Section:
    """`plots`: figures by key. `columns`, `rows`: the table, whose first `texts` columns hold words. `note`: below."""

    key: str
    title: str
    plots: dict[str, Chart]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...] = ()
    note: str = ""
    texts: int = 1
