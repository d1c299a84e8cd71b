from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.scoring.pictures import pictures, write_folder
from tests.study.conftest import tiny_study

import isocost
from isocost.errors import DataError, SpecError, StoreError
from isocost.scoring.references import load_reference
from isocost.scoring.sets import open_set
from isocost.study import run
from isocost.study.sources import cells_of, open_against, open_generated
from isocost.study.store import Store


def names(generated) -> list[str]:
    return [images.name for images in open_generated(generated)]


def test_sources_are_called_by_their_last_part(tmp_path):
    for folder in ("a", "b", "x/same", "y/same"):
        write_folder(tmp_path / folder, pictures(2))
    a, b = tmp_path / "a", tmp_path / "b"
    assert (
        names(a) == ["a"] and names([a, str(b)]) == ["a", "b"] and names({"mine": a, "theirs": b}) == ["mine", "theirs"]
    )
    same = [tmp_path / "x" / "same", tmp_path / "y" / "same"]
    assert names(same) == [str(path) for path in same]
    assert names([pictures(2), pictures(2)]) == ["array 1", "array 2"] and names(pictures(2)) == ["array"]
    with pytest.raises(SpecError, match="a: named twice"):
        names([a, a])
    with pytest.raises(SpecError, match="nothing to score"):
        names([])
    with pytest.raises(SpecError, match="captions can be given for one set"):
        open_generated([a, b], captions=["x", "y"])
    with pytest.raises(SpecError, match="--cell is of a store, and a is none"):
        open_generated(a, cell="ab")


def test_references_are_files_or_one_set_of_images(tmp_path):
    folder = write_folder(tmp_path / "real", pictures(3))
    found = open_against([folder, np.ones((4, 2), np.float32)])
    assert found.images is not None and found.built[0].n == 4 and found.built[0].made_by is None
    with pytest.raises(SpecError, match="two sets of reference images, real and array"):
        open_against([folder, pictures(2)])
    with pytest.raises(DataError, match="takes the 100 of DIV2K_valid_HR"):
        open_against(f"div2k-sr-3k:{folder}")


# --- a store ---


def test_a_stores_cells_score_as_its_sweep_scored_them(swept):
    store = Store(swept)
    found = isocost.score(swept, metrics="fd,kid,clip,accuracy")
    table = run.table(store)
    table = table[table["split"] == "all"].drop_duplicates(["sample_key", "metric"])
    compared = 0
    for images in cells_of(store):
        for _, row in table[table["sample_key"] == images.sample_key].iterrows():
            estimate = found.estimate(row["metric"], images.name)
            assert (estimate.value, estimate.stderr) == (row["plug_in"], row["stderr"])
            compared += 1
    assert compared == len(table)
    known = table.dropna(subset=["reference"]).set_index("metric")["reference"].to_dict()
    shown = found.table.dropna(subset=["reference"]).set_index("metric")["reference"].to_dict()
    assert shown == known
    assert all(place.paired for place in found.ranking if place.sentence)


def test_one_cell_is_named_by_the_beginning_of_its_key(swept):
    store = Store(swept)
    keys = [images.sample_key for images in cells_of(store)]
    (one,) = cells_of(store, keys[1][:10])
    assert one.sample_key == keys[1] and keys[1][:8] in one.name and "c8 ddim" in one.name
    assert one.caption(3) == run.opened(store).prompts.at(3)[0].text and one.wanted(3)
    for prefix, message in (("zz", "no cell begins so"), ("", "several cells begin so")):
        with pytest.raises(SpecError, match=message):
            cells_of(store, prefix)


def test_features_that_are_not_kept_need_the_images(swept, own_copy):
    with pytest.raises(DataError, match=r"neither images nor scenes-attributes@.* are at hand: name the metric in"):
        isocost.score(_without(own_copy, "scenes-attributes"), metrics="accuracy")
    assert isocost.score(own_copy, metrics="kid").estimate("kid", cells_of(Store(own_copy))[0].name).n == 40


def _without(store: Path, extractor: str) -> Path:
    """The store with the features of one extractor taken out of every chunk."""
    from dataclasses import replace

    opened = Store(store)
    for path in store.glob("chunks/*/*/*.safetensors"):
        chunk = opened.read_chunk(path.parent.name, int(path.stem))
        kept = {name: rows for name, rows in chunk.features.items() if not name.startswith(extractor)}
        path.unlink()
        opened.write_chunk(path.parent.name, int(path.stem), replace(chunk, features=kept))
    return store


def test_stored_images_give_any_extractors_features(own_copy):
    evaluation = tiny_study().evaluation.model_copy(update={"keep_images": True})
    run.sweep(tiny_study(evaluation=evaluation), Store(own_copy), workers=1)
    before = isocost.score(own_copy, metrics="accuracy,kid[scenes-clip-score]")
    after = isocost.score(_without(_without(own_copy, "scenes-attributes"), "scenes-clip"), metrics="accuracy,kid")
    for name in before.names:
        for metric in ("accuracy", "kid"):
            assert after.estimate(metric, name).value == before.estimate(metric, name).value


def test_images_of_a_store_score_as_its_features(own_copy, tmp_path):
    evaluation = tiny_study().evaluation.model_copy(update={"keep_images": True})
    run.sweep(tiny_study(evaluation=evaluation), Store(own_copy), workers=1)
    cell = cells_of(Store(own_copy))[0]
    pixels = np.stack([cell.read(index).pixels for index in range(len(cell))])
    reference = next((own_copy / "references").glob("*.safetensors"))
    found = isocost.score(pixels, reference, "kid,fd", extractor="scenes-clip-score")
    kept = isocost.score(own_copy, reference, "kid,fd[scenes-clip-score]", cell=cell.sample_key[:12])
    for metric in ("kid", "fd"):
        assert found.estimate(metric).value == kept.estimate(metric).value


def test_a_store_may_be_the_reference(swept, tmp_path):
    found = isocost.score(pictures(10, size=32), swept, "kid")
    assert found.table["reference_n"][0] == 64
    assert found.table["reference"][0] in {path.stem for path in (swept / "references").glob("*")}


def test_a_folder_that_is_no_store_and_one_without_cells(tmp_path, swept):
    with pytest.raises(DataError, match="no images"):
        isocost.score(tmp_path, metrics="clip")
    (tmp_path / "study.yaml").write_text((swept / "study.yaml").read_text())
    with pytest.raises(StoreError, match="no cells yet"):
        isocost.score(tmp_path, metrics="kid")


# --- the package's own calls ---


def test_a_reference_is_built_loaded_and_used(tmp_path):
    folder = write_folder(tmp_path / "real", pictures(30, size=32))
    path = tmp_path / "deep" / "real.safetensors"
    built = isocost.build_reference(folder, "scenes-clip-score-8", path)
    assert load_reference(path).digest == built.digest == isocost.load_reference(path).digest
    found = isocost.score(pictures(20, 1, size=32), path, "fd[scenes-clip-score-8]")
    again = isocost.score(pictures(20, 1, size=32), folder, "fd[scenes-clip-score-8]")
    assert found.estimate("fd").value == again.estimate("fd").value
    small = isocost.build_reference(folder, "scenes-clip-score-8", moments=True)
    assert small.digest == built.digest
    big = isocost.score(pictures(2, 1, size=32), small, "fd[scenes-clip-score-8]")
    assert big.table["reference_n"][0] == 30


def test_the_images_of_a_set_can_be_opened_once(tmp_path):
    opened = open_set(write_folder(tmp_path / "a", pictures(5, size=32)), "mine")
    assert isocost.score(opened, pictures(5, 1, size=32), "kid").names == ("mine",)
