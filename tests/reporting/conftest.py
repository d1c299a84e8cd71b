from __future__ import annotations

import pytest

from isocost.analysis.cells import best_guidance


@pytest.fixture(scope="session")
def cells(world, synthetic):
    return best_guidance(world.table, synthetic.FD)
