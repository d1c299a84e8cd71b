"""Laws against a truth that is known, at points that the fit never saw."""

from __future__ import annotations

import numpy as np
import pytest

from isocost.analysis.fits import FORMS, Points, fit, law
from isocost.analysis.quantity import Covariance
from isocost.errors import SpecError

SIZES, X = np.array([1e6, 4e6, 9e6, 2.5e7, 6e7]), np.array([2.0, 4, 8, 16, 32])


def truth(size, x):
    return 5.0 + 8.0 * (size / 1e6) ** -0.4 + 12.0 * x**-0.8


def points(rng=None, sd=0.15, rho=0.8, seeds_sd=0.0, law_of=truth) -> Points:
    size, x = (grid.ravel() for grid in np.meshgrid(SIZES, X, indexing="ij"))
    member = np.repeat([f"c{place}" for place in range(len(SIZES))], len(X))
    same = member[:, None] == member
    covariance = sd**2 * (rho + (1 - rho) * np.eye(len(x))) + seeds_sd**2 * same
    noise = np.linalg.cholesky(covariance) @ rng.standard_normal(len(x)) if rng is not None else 0.0
    return Points(size, x, law_of(size, x) + noise, member, Covariance(covariance, 200.0))


def test_an_exact_law_is_found():
    found = law(points(), "FD", "steps", forms=("constant", "compute", "logarithmic", "saturating"))
    assert found.fit.form == "saturating" and found.held_out[0].error < 0.1
    # The exponents are of a grid: to a step of it.
    assert found.exponents["a"][0] == pytest.approx(0.4, rel=0.3)
    assert found.exponents["b"][0] == pytest.approx(0.8, rel=0.3)
    value, low, high = found.predict(1.2e8, 64)
    assert low < truth(1.2e8, 64) < high and value == pytest.approx(truth(1.2e8, 64), abs=0.3)
    assert "held out, c4" in found.sentence and "one training seed" in found.sentence


def test_the_form_is_chosen_by_what_it_predicts():
    turning = points(law_of=lambda size, x: 5 + 8 * (size / 1e6) ** -0.4 + 4 / x**2 + 0.8 * np.log(x))
    found = law(turning, "FD", "steps", forms=("saturating", "turning"))
    assert found.fit.form == "turning" and found.rivals["turning"] < found.rivals["saturating"]
    flat = points(law_of=lambda size, x: 5 + 8 * (size / 1e6) ** -0.4 + 0 * x)
    assert law(flat, "FD", "steps", forms=("constant", "size alone", "saturating")).fit.form == "size alone"


@pytest.mark.parametrize("seeds_sd", [0.0, 0.2])
def test_what_was_held_out_lies_in_the_interval(seeds_sd):
    rng, covered = np.random.default_rng(0), []
    for _ in range(25):
        drawn = points(rng, seeds_sd=seeds_sd)
        largest = drawn.size == SIZES[-1]
        seen = fit(drawn.part(~largest), "saturating", draws=60)
        own = np.diag(drawn.covariance.part(largest).matrix)
        _, low, high = seen.interval(seen.at(drawn.size[largest], drawn.x[largest]), own)
        covered.append(np.mean((low <= drawn.value[largest]) & (drawn.value[largest] <= high)))
    assert np.mean(covered) >= 0.8


def test_coefficients_are_not_negative():
    rising = points(law_of=lambda size, x: 5 + 0.1 * np.log(size) + 0.5 * np.log(x))
    for form in FORMS:
        found = fit(rising, form, draws=5)
        free = 1 if FORMS[form].floor else 0
        assert np.all(found.coefficients[:, free:] >= 0), form


def test_too_little_for_a_law():
    few = points()
    with pytest.raises(SpecError, match="three members and three values of steps"):
        law(few.part(few.size < 5e6), "FD", "steps")
