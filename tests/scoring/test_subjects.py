from __future__ import annotations

import numpy as np
import pytest

from isocost.scoring import subjects
from isocost.scoring.kernels import kid
from isocost.scoring.metrics import METRICS, compute
from isocost.scoring.statistics import Reference
from isocost.scoring.subjects import OF_A_SUBJECT, Look, over_subjects

EAST, NORTH = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def look(**changes) -> Look:
    fields = {
        "images": np.stack([EAST, 2 * NORTH, EAST, EAST]),
        "prompt_of": np.array([0, 0, 1, 1]),
        "class_images": np.stack([NORTH, NORTH, EAST + NORTH]),
        "class_before": np.stack([NORTH, EAST, NORTH]),
        "pictures": np.stack([EAST, 3 * EAST]),
        "texts": np.stack([EAST, EAST, -EAST, EAST]),
    }
    return Look(**{**fields, **changes})


def test_each_measure_by_hand():
    assert subjects.fidelity(look()) == pytest.approx(3 / 4)
    assert subjects.prompt_fidelity(look()) == pytest.approx(100 * (1 + 0 + 0 + 1) / 4)
    assert subjects.prior_similarity(look()) == pytest.approx(np.sqrt(0.5) / 3)
    assert subjects.diversity(look()) == pytest.approx((1 + 0) / 2)


def test_drift_is_kid_of_the_class():
    rng = np.random.default_rng(0)
    after, before = rng.standard_normal((2, 20, 4))
    found = subjects.drift(look(class_images=after + 1, class_before=before))
    assert found == pytest.approx(kid(after + 1, Reference.of(before.astype(np.float32))).corrected, rel=1e-5)
    assert found > abs(subjects.drift(look(class_images=after, class_before=before)))


def test_the_error_is_over_subjects():
    three = [look(), look(pictures=np.stack([NORTH, NORTH])), look()]
    estimate = over_subjects("similarity", three)
    values = np.array([0.75, 0.25, 0.75])
    assert estimate.value == pytest.approx(values.mean()) and estimate.n == 3
    assert estimate.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert compute("pres", subjects=three)["pres"].higher_is_better is False
    assert compute("div", subjects=three)["div"].value == pytest.approx(0.5)


def test_accuracy_asks_what_the_prompt_says():
    values = {"place": ("left", "top"), "background": ("white", "black")}
    logits = np.array([[1, 0, 1, 0], [1, 0, 0, 1]], float)
    split = lambda rows: {"place": rows[:, :2], "background": rows[:, 2:]}  # noqa: E731
    asked = [{"place": "left", "background": "white"}] * 2
    found = subjects.accuracy([look(images=logits, asked=asked)] * 2, split, values)
    assert found.value == pytest.approx(3 / 4)


def test_directions_are_those_of_the_metrics():
    for name, (_, _, higher) in OF_A_SUBJECT.items():
        assert METRICS[name].higher_is_better == higher
