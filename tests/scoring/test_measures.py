from __future__ import annotations

import numpy as np
import pytest
from tests.scoring.pictures import Means, pictures

from isocost.errors import SpecError
from isocost.scoring import measures
from isocost.scoring.extractors import Projected, project
from isocost.scoring.measures import (
    Defaults,
    Maker,
    Measure,
    Sample,
    are_against_others,
    columns_of,
    full_name,
    given,
    load_measures,
    maker_of,
    names_in,
)
from isocost.scoring.metrics import METRICS
from isocost.scoring.statistics import Reference

DEFAULTS = Defaults("some-clip", 16, "some-classifier")


def load(ref: str):
    return {
        "means": Means(),
        "means-8": Projected(Means(), 8),
        "other": Means("other", "cd" * 32),
        "folder/means": Means("means", "ef" * 32),
    }[ref]


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("fd", "fd[some-clip-16]"),
        ("kid", "kid[some-clip]"),
        ("clip", "clip[some-clip]"),
        ("accuracy", "accuracy[some-classifier]"),
        ("is", "is[fid-tf]"),
        ("psnr", "psnr"),
        ("lpips", "lpips-alex"),
        ("similarity", "similarity[some-clip]"),
        ("fd[fid-tf]", "fd[fid-tf]"),
        ("kid[/a/b:c-32]", "kid[/a/b:c-32]"),
    ],
)
def test_a_metric_without_an_extractor_takes_the_default_one(name, full):
    assert full_name(name, DEFAULTS) == full


def test_without_fd_dims_the_whole_extractor_is_used():
    assert full_name("fd", Defaults("x", None)) == "fd[x]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fid", r"unknown metric 'fid'\. Did you mean 'fd'"),
        ("fd[", r"metric 'fd\[': expected NAME, or NAME\[EXTRACTOR\]"),
        ("fd[]", "expected NAME"),
        ("psnr[fid-tf]", "takes no extractor"),
    ],
)
def test_wrong_names_are_refused(name, message):
    with pytest.raises(SpecError, match=message):
        full_name(name, DEFAULTS)


def test_names_are_split_outside_brackets():
    assert names_in("fd, kid[a,b],clip,") == ["fd", "kid[a,b]", "clip"]
    assert names_in(["fd", "kid"]) == ["fd", "kid"]
    with pytest.raises(SpecError, match="no metric: name one or more of accuracy"):
        names_in(" , ")


def test_what_needs_others():
    assert (
        are_against_others(["clip", "fd"]) and are_against_others(["lpips"]) and are_against_others(["similarity[x]"])
    )
    assert not are_against_others(["clip", "is[fid-tf]", "accuracy"])


def test_metrics_of_one_network_share_it_and_what_is_computed():
    found = load_measures(["fd[means-8]", "kid[means]", "clip[means]", "kid[other]"], load=load)
    assert [measure.label(measure.metric) for measure in found] == [
        "fd[means-8]", "kid[means]", "clip[means]", "kid[other]",
    ]  # fmt: skip
    assert found[0].base is found[1].network is found[2].network
    assert [column.name for column in columns_of(found)] == ["means@abababababababab", "other@cdcdcdcdcdcdcdcd"]
    assert found[0].identity.startswith("means-8@") and found[1].identity == "means@abababababababab"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["is[means]"], "needs class logits: take an Inception network"),
        (["accuracy[means]"], "needs attributes: take an attribute classifier"),
        (["clip[means-8]"], "needs features of captions: take a CLIP, whole"),
        (["kid[means]", "kid[means]"], r"kid\[means\] is asked for twice"),
        (["kid[means]", "kid[folder/means]"], r"kid\[means\] would be two metrics of one name"),
    ],
)
def test_what_a_network_cannot_do_is_refused(names, message):
    with pytest.raises(SpecError, match=message):
        load_measures(names, load=load)


def test_estimates_are_the_metrics_own():
    features = Means()(pictures(40)).astype(np.float16)
    reference = Reference.of(Means()(pictures(60, seed=1)))
    texts = Means().text(["a", "b"] * 20)
    sample = Sample({"means@abababababababab": features}, lambda network: texts, list)
    fd, kid, clip = load_measures(["fd[means-8]", "kid[means]", "clip[means]"], load=load)
    small = Reference.of(project(reference.require_features(), 8))
    expected = METRICS["fd"].function(features=project(features.astype(np.float32), 8), reference=small)
    assert fd.estimates(sample, lambda network: small)["fd"].value == expected.value
    whole = features.astype(np.float32)
    expected = METRICS["kid"].function(features=whole, reference=reference)
    assert kid.estimates(sample, lambda network: reference)["kid"].value == expected.value
    expected = METRICS["clip"].function(features=whole, text_features=texts)
    assert clip.estimates(sample, lambda network: reference)["clip"].value == expected.value


def test_features_in_files_need_no_network():
    maker = maker_of([("means", "ab" * 32), None, ("means", "ab" * 32)])
    assert (maker.name, maker.digest) == ("means", "ab" * 32)
    assert given(maker, "means") is maker
    projected = given(maker, "means-8")
    assert isinstance(projected, Projected) and projected.digest == Projected(Means(), 8).digest
    with pytest.raises(SpecError, match="'other' is asked for, but these features are by means@abababababababab"):
        given(maker, "other")
    with pytest.raises(SpecError, match="features by means@abababababababab and by other@cdcdcdcdcdcdcdcd"):
        maker_of([("means", "ab" * 32), ("other", "cd" * 32)])
    untold = maker_of([None])
    assert Measure("kid", untold).label("kid") == "kid[features]" and given(untold, "fid-tf") == Maker("fid-tf")
    with pytest.raises(SpecError, match="cannot see images"):
        untold(pictures(1))


def test_attributes_that_never_differ_are_not_asked():
    wanted = [{"colour": "red", "count": 1}, {"colour": "red", "count": 2}, {"count": 1}]
    assert measures.informative(wanted) == ({"count": 1}, {"count": 2}, {"count": 1})
