"""Worlds where quality follows images per parameter alone, and where size counts too."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isocost.analysis.laws import laws

SEEN = (4096, 16384, 65536, 262144, 1048576)


def world(synthetic, fd):
    """Training curves of four members with FD `fd(parameters, images)`."""
    made = synthetic.World(3, attributes=False, curve=False, samplers=("ddim",), steps=(8,), guidance=(1.5,))
    rows = [
        row
        for member, width in synthetic.MEMBERS.items()
        for images in SEEN
        for row in made.cell(member, 0, "ddim", 8, 1.5, images,
                             fd(2500 * width**2, images) - synthetic.true_fd(member, "ddim", 8, 1.5), True)
    ]  # fmt: skip
    return laws(pd.DataFrame(rows), made.influence).per_parameter


def test_one_curve_is_found_where_there_is_one(synthetic):
    found = world(synthetic, lambda size, images: 5 + 10 * (images / size) ** -0.3)
    assert found.one_curve and found.law.fit.form == "x alone" and "holds (" in found.sentence
    assert found.law.exponents["b"][0] == pytest.approx(0.3, rel=0.35)
    assert found.gaps and all(gap.interval[0] <= 0 <= gap.interval[1] for gap in found.gaps)
    assert {gap.verdict for gap in found.gaps} == {"within 5% of one curve"}


def test_size_that_counts_by_itself_is_seen(synthetic):
    """Images alone count: at equal images per parameter the larger member has seen more."""
    found = world(synthetic, lambda size, images: 5 + 400 * images**-0.3)
    assert not found.one_curve and "does not hold" in found.sentence
    assert all(gap.verdict == "off one curve" and gap.gain > 0 for gap in found.gaps)
    small, large = found.law.points.x.min(), found.law.points.x.max()
    assert all(small < gap.range[0] < gap.range[1] < large for gap in found.gaps)
    assert found.as_dict()["gaps"][0]["verdict"] == "off one curve"


def test_the_last_of_each_member_is_held_out(synthetic):
    found = world(synthetic, lambda size, images: 5 + 10 * (images / size) ** -0.3)
    largest, last = found.law.held_out
    assert largest.what == "c64" and len(largest.observed) == len(SEEN)
    assert last.what == "the most images per parameter of each member" and len(last.observed) == 4
    assert np.isfinite(list(found.law.rivals.values())).all()


def test_what_it_needs_is_said(synthetic):
    made = synthetic.World(attributes=False, curve=False, samplers=("ddim",))
    found = laws(made.table, made.influence)
    assert found.per_parameter is None
    assert any(line.startswith("law of images per parameter: needs three scored checkpoints") for line in found.missing)
