"""Dividing a study's cells among processes that know nothing of each other, as a job array's are."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from isocost.study.grid import Cell

Shard = tuple[int, int]
"""(i, n): share i of n, from 0."""


def cells_of(shard: Shard, cells: Sequence[Cell]) -> list[Cell]:
    """A share of cells: about as much work as each other share's, and the same whatever is done already.

    The costliest first, each to the share with the least so far.
    """
    number, count = shard
    loads = [(0, share) for share in range(count)]
    mine = []
    for cell in sorted({cell.sample_key: cell for cell in cells}.values(), key=lambda cell: -cell.work):
        load, share = loads[0]
        heapq.heapreplace(loads, (load + cell.work, share))
        if share == number:
            mine.append(cell)
    return mine
