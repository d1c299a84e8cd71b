"""A study whose metrics name other extractors, and what it then has to do again: nothing but what is new."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.scoring.pictures import Means
from tests.study.conftest import tiny_study

import isocost
from isocost import api
from isocost.scoring.extractors import EXTRACTORS
from isocost.scoring.references import build
from isocost.scoring.sets import open_set
from isocost.study import images as study_images
from isocost.study import measures, run
from isocost.study.store import Store

SHORT = Means(context=30)


@pytest.fixture(autouse=True)
def extractors(monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "means", lambda ref, device: SHORT)
    measures.loaded.cache_clear()


@pytest.fixture
def sampled(monkeypatch) -> list:
    """The chunks that are sampled anew."""
    tasks: list = []
    real = study_images._sampled

    def counted(task):
        tasks.append(task)
        return real(task)

    monkeypatch.setattr(study_images, "_sampled", counted)
    return tasks


def study(*metrics: str, **changes):
    evaluation = {"metrics": ("fd", "kid", "clip", "accuracy", *metrics), **changes}
    return tiny_study(evaluation=tiny_study().evaluation.model_copy(update=evaluation))


def test_a_metric_with_another_extractor_has_scores_of_its_own(own_copy):
    table = run.sweep(study("kid[means]", "fd[means-4]", "clip[means]"), Store(own_copy), workers=1)
    before = run.table(Store(own_copy))
    for metric in ("kid[means]", "fd[means-4]", "clip[means]", "kid[scenes-clip-score]"):
        rows = table[(table["metric"] == metric) & (table["split"] == "report")]
        assert len(rows) >= 5 and rows["value"].notna().all(), metric
    kid = table[table["metric"] == "kid[means]"]
    assert kid["reference"].nunique() == 1
    assert set(kid["reference"]).isdisjoint(before.loc[before["metric"] == "kid[scenes-clip-score]", "reference"])
    assert set(table.loc[table["metric"] == "fd[means-4]", "reference"]) == set(kid["reference"])


def test_images_that_are_stored_are_not_made_again(own_copy, sampled):
    run.sweep(study(keep_images=True), Store(own_copy), workers=1)
    assert sampled, "their images were not kept before"
    sampled.clear()
    table = run.sweep(study("kid[means]"), Store(own_copy), workers=1)
    assert not sampled and "kid[means]" in set(table["metric"])
    chunk = Store(own_copy).read_chunk(table["sample_key"].iloc[0], 0)
    kept = chunk.features["means@abababababababab"]
    assert np.array_equal(kept, SHORT(chunk.images).astype(np.float16))


def test_a_metric_of_features_that_are_stored_samples_nothing(own_copy, sampled):
    table = run.sweep(study("fd[scenes-clip-score-8]"), Store(own_copy), workers=1)
    assert not sampled and "fd[scenes-clip-score-8]" in set(table["metric"])


def test_captions_that_are_cut_are_counted_and_shown(own_copy):
    table = run.sweep(study("clip[means]"), Store(own_copy), workers=1)
    prompts = run.opened(Store(own_copy)).prompts
    cut = sum(len(prompts.at(place)[0].text) > SHORT.context for place in range(40))
    assert cut > 0
    assert set(table.loc[table["metric"] == "clip[means]", "captions_cut"]) == {cut}
    assert set(table.loc[table["metric"] == "clip[scenes-clip-score]", "captions_cut"]) == {0}
    notes = api.frontier(own_copy, metric="clip[means]")["notes"]
    assert any(f"reads only the beginning of {cut} captions" in note for note in notes)


def test_a_studys_own_name_of_a_metric_is_not_ambiguous(own_copy):
    run.sweep(study("fd[means-4]"), Store(own_copy), workers=1)
    assert isocost.plan(own_copy, metric="fd").metric == "fd[scenes-clip-score-4]"
    assert isocost.plan(own_copy, metric="fd[means-4]").metric == "fd[means-4]"
    assert isocost.plan(own_copy).metric == "fd[scenes-clip-score-4]"


def test_given_references_bring_their_protocol(own_copy, tmp_path):
    class Chosen(type(open_set(np.zeros((1, 4, 4, 3), np.uint8)))):
        protocol = "chosen@12"

    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    (reference,) = build(Chosen("real", pixels), [SHORT])
    path = tmp_path / "real.safetensors"
    path.write_bytes(reference.to_bytes())
    given = study(metrics=("kid[means]", "clip"), select_by="kid[means]", reference_files=(str(path),))
    table = run.sweep(given, Store(own_copy), workers=1)
    kid = table[table["metric"] == "kid[means]"]
    assert set(kid["protocol"]) == {"chosen@12"} and set(kid["reference"]) == {reference.digest}
    assert set(table.loc[table["metric"] == "clip[scenes-clip-score]", "protocol"]) == {""}
    assert any("by the protocol chosen@12" in note for note in api.frontier(own_copy)["notes"])
    without = given.evaluation.model_copy(update={"reference_files": ()})
    assert given.model_copy(update={"evaluation": without}).digest == given.digest, "a path is where to look"


def test_a_reference_that_no_file_gives_is_refused_before_anything_starts(tmp_path):
    (reference,) = build(open_set(np.zeros((3, 8, 8, 3), np.uint8), "real"), [SHORT])
    path = tmp_path / "real.safetensors"
    path.write_bytes(reference.to_bytes())
    with pytest.raises(isocost.errors.SpecError, match="no reference by scenes-clip-score"):
        run.sweep(study(reference_files=(str(path),)), Store(tmp_path / "store"), workers=1)
    assert not (tmp_path / "store").exists()


def test_a_reference_says_what_it_is_and_older_ones_are_built_again(own_copy):
    from safetensors.numpy import load_file, save_file

    (path,) = (own_copy / "references").glob("*.safetensors")
    before = path.read_bytes()
    assert isocost.load_reference(path).describe()["source"] == "held-out images of tiny"
    assert isocost.load_reference(path).digest == path.stem
    save_file(load_file(path), path)
    run.sweep(tiny_study(), Store(own_copy), workers=1)
    assert path.read_bytes() == before


def test_scores_without_a_protocol_keep_their_keys(swept):
    """Stores made before protocols were named are addressed by the same keys: the field is not in their digest."""
    store = Store(swept)
    for key, score in store.scores():
        assert score.score_spec.protocol == "" and "protocol" not in score.score_spec.canonical()
        written = json.loads(store.score_path(key).read_text())
        assert "score_spec" in written
