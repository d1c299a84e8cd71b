from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.scoring.pictures import pictures, write_folder

from isocost.data.shards import write_shards
from isocost.errors import DataError, SpecError
from isocost.scoring.sets import matched, open_set


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_folder_and_tars_of_any_sharding_are_one_set(tmp_path):
    images = pictures(10)
    folder = open_set(write_folder(tmp_path / "folder", images))
    samples = [{"__key__": f"{index:03d}", "png": png(image)} for index, image in enumerate(images)]
    write_shards(samples[::-1], tmp_path / "backwards", "x", per_shard=3)
    write_shards(samples, tmp_path / "one", "x", per_shard=100)
    for found in (folder, open_set(tmp_path / "backwards"), open_set(tmp_path / "one" / "x-00000.tar")):
        assert found.keys == tuple(f"{index:03d}" for index in range(10))
        assert all(np.array_equal(found.read(index).pixels, images[index]) for index in range(10))
    assert folder.where(3) == str(tmp_path / "folder" / "003.png")
    assert "key '003'" in open_set(tmp_path / "backwards").where(3)


def test_captions_are_the_images_own_or_those_given(tmp_path):
    folder = write_folder(tmp_path / "a", pictures(3), ["one", "two", "three"])
    assert [open_set(folder).caption(index) for index in range(3)] == ["one", "two", "three"]
    listed = tmp_path / "captions.txt"
    listed.write_text("uno\ndue\ntre\n")
    assert [open_set(folder, captions=listed).caption(index) for index in range(3)] == ["uno", "due", "tre"]
    with pytest.raises(SpecError, match=r"captions\.txt: 3 captions for 2 images"):
        open_set(write_folder(tmp_path / "b", pictures(2)), captions=listed)
    with pytest.raises(DataError, match=r"001\.png has no caption"):
        open_set(tmp_path / "b").caption(1)
    with pytest.raises(DataError, match=r"nothing\.txt: cannot read captions"):
        open_set(folder, captions=tmp_path / "nothing.txt")


def test_what_an_image_is_to_show_is_in_its_json(tmp_path):
    folder = write_folder(tmp_path / "a", pictures(2))
    (folder / "000.json").write_text('{"attributes": {"colour": "red"}}')
    assert open_set(folder).wanted(0) == {"colour": "red"}
    with pytest.raises(DataError, match=r"001\.png: nothing says what it is to show"):
        open_set(folder).wanted(1)


def test_arrays_are_images_or_features():
    images = open_set(pictures(4), "mine")
    assert (len(images), images.keys, images.where(2)) == (4, (), "mine: image 2")
    features = open_set(np.ones((3, 5), np.float32))
    assert (len(features), features.has_images, features.holds("anything@ab")) == (3, False, True)
    for bad in (np.ones(3), np.ones((2, 4, 4, 3)), pictures(2)[..., :1], pictures(2)[:0]):
        with pytest.raises(DataError, match="expected images uint8"):
            open_set(bad)


@pytest.mark.parametrize("name", ["missing", "missing.tar", "missing.npz"])
def test_what_is_not_there_is_named(tmp_path, name):
    with pytest.raises(DataError, match=name):
        open_set(tmp_path / name)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: no images"):
        open_set(tmp_path)


def test_targets_are_matched_by_key(tmp_path):
    images, targets = pictures(4), pictures(6, seed=1)
    found = matched(open_set(write_folder(tmp_path / "t", targets)), open_set(write_folder(tmp_path / "g", images)))
    assert len(found) == 4 and np.array_equal(found.read(3).pixels, targets[3])
    write_folder(tmp_path / "g", images[:1], prefix="x")
    with pytest.raises(DataError, match=r"g: x000 has no target of that name in t \(1 have none\)"):
        matched(open_set(tmp_path / "t"), open_set(tmp_path / "g"))


def test_arrays_are_matched_by_place():
    assert np.array_equal(matched(open_set(pictures(4, 1)), open_set(pictures(4))).read(2).pixels, pictures(4, 1)[2])
    with pytest.raises(DataError, match=r"a \(4 images\) and b \(5\) cannot be matched"):
        matched(open_set(pictures(5), "b"), open_set(pictures(4), "a"))


def test_moments_are_no_set_to_score(tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), n=10)
    with pytest.raises(DataError, match=r"stats\.npz: holds moments"):
        open_set(Path(path)).features("any")
