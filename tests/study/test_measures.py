from __future__ import annotations

import pytest

from isocost.errors import SpecError
from isocost.specs import Evaluation
from isocost.study.artifacts import EncoderRefs
from isocost.study.measures import check, metric_names, with_own

REFS = EncoderRefs("vae", "text", "runs/x/extractor", "scenes-attributes")


def evaluation(*metrics: str, **changes) -> Evaluation:
    return Evaluation.parse({"metrics": metrics, "select_by": metrics[0], **changes})


def test_a_studys_metrics_have_its_extractor_unless_they_name_one():
    names = metric_names(evaluation("fd", "kid", "kid[own]", "fd[own-8]", "fd[fid-tf]", "accuracy", "psnr"), REFS)
    assert names == (
        "fd[runs/x/extractor-32]",
        "kid[runs/x/extractor]",
        "kid[runs/x/extractor]",
        "fd[runs/x/extractor-8]",
        "fd[fid-tf]",
        "accuracy[scenes-attributes]",
        "psnr",
    )
    assert with_own("kid[owner]", "x") == "kid[owner]"


@pytest.mark.parametrize(
    ("metrics", "changes", "message"),
    [
        (("fdd",), {}, r"unknown metric 'fdd'\. Did you mean 'fd'"),
        (("fd", "psnr"), {}, "'psnr' compares every image with a target, and a study of prompts has none"),
        (("fd[scenes-clip-scor]",), {}, "unknown extractor 'scenes-clip-scor'"),
        (("clip[scenes-attributes]",), {}, "needs features of captions"),
        (("fd", "fd[scenes-clip-score-32]"), {}, "is asked for twice"),
        (("fd",), {"select_by": "kid"}, r"evaluation\.select_by 'kid' is not among"),
        (("fd",), {"fd_dims": 4096}, "4096"),
    ],
)
def test_metrics_that_a_study_cannot_have_are_refused(metrics, changes, message):
    with pytest.raises(SpecError, match=message):
        check(evaluation(*metrics, **changes))


def test_metrics_whose_extractor_is_to_be_trained_are_checked_later():
    found = check(evaluation("kid[own]", "fd", "accuracy", extractor="own"))
    assert [measure.metric for measure in found] == ["accuracy"]


def test_a_metric_that_is_no_name_is_a_wrong_field():
    with pytest.raises(SpecError, match=r"metrics\.1: metric 'fd\[': expected NAME"):
        Evaluation.parse({"metrics": ["kid", "fd["]})
