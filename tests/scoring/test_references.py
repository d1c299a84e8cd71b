from __future__ import annotations

import numpy as np
import pytest
from tests.scoring.pictures import Means, pictures, write_folder

from isocost.data.shards import write_shards
from isocost.errors import DataError, SpecError
from isocost.scoring.extractors import Projected, project
from isocost.scoring.references import ReferenceSet, build, load_reference
from isocost.scoring.sets import ImageSet, open_set
from isocost.scoring.statistics import Moments, moments


def built(images: ImageSet | None = None, **options) -> ReferenceSet:
    (found,) = build(images or open_set(pictures(40), "real"), [Means()], **options)
    return found


def test_a_reference_keeps_features_and_what_they_are(tmp_path):
    folder = write_folder(tmp_path / "real", pictures(40))
    found = built(open_set(folder))
    path = tmp_path / "x.safetensors"
    path.write_bytes(found.to_bytes())
    again = load_reference(path)
    assert np.array_equal(again.values, Means()(pictures(40)).astype(np.float16))
    for name in ("extractor", "extractor_digest", "digest", "source", "protocol", "keys", "notices"):
        assert getattr(again, name) == getattr(found, name), name
    assert again.describe() | {"digest": ""} == {
        "digest": "",
        "extractor": "means@abababababababab",
        "protocol": "none",
        "n": 40,
        "dims": 24,
        "holds": "features",
        "source": "real",
        "notices": [],
    }
    assert again.keys[:2] == ("000", "001")


def test_the_digest_is_of_pixels_extractor_and_protocol(tmp_path):
    folder = write_folder(tmp_path / "real", pictures(10))
    samples = [{"__key__": path.stem, "png": path.read_bytes()} for path in folder.glob("*.png")]
    write_shards(samples, tmp_path / "tars", "x", per_shard=4)
    digest = built(open_set(folder)).digest
    assert built(open_set(tmp_path / "tars")).digest == digest
    assert built(open_set(pictures(10))).digest == digest
    assert built(open_set(pictures(10, seed=1))).digest != digest
    (other,) = build(open_set(folder), [Means(digest="cd" * 32)])
    assert other.digest != digest

    class Chosen(type(open_set(folder))):
        protocol = "named@123"

    named = built(Chosen("real", open_set(folder).images))
    assert named.digest != digest and named.protocol == "named@123"


def test_moments_are_those_of_the_features(tmp_path):
    features, found = built(), built(moments_only=True)
    expected = moments(features.values)
    assert isinstance(found.values, Moments) and found.n == 40
    assert np.array_equal(found.values.mean, expected.mean) and np.array_equal(found.values.m2, expected.m2)
    assert found.digest == features.digest
    (tmp_path / "x.safetensors").write_bytes(found.to_bytes())
    again = load_reference(tmp_path / "x.safetensors")
    assert again.describe()["holds"] == "moments" and again.describe()["dims"] == 24
    assert np.array_equal(again.reference.factor, found.reference.factor)
    with pytest.raises(DataError, match="holds moments only"):
        again.reference.require_features()


def test_a_reference_serves_its_extractor_and_projections_of_it():
    found = built()
    assert found.of(Means()) is found.reference
    projected = found.of(Projected(Means(), 5))
    np.testing.assert_array_equal(projected.features, project(found.reference.require_features(), 5))
    for other in (Means(digest="cd" * 32), Projected(Means(digest="cd" * 32), 5)):
        with pytest.raises(SpecError, match=r"by means@abababababababab, and means@cdcdcdcdcdcdcdcd is asked for"):
            found.of(other)


def test_moments_are_projected_as_features_are():
    whole, small = built().of(Projected(Means(), 5)).moments, built(moments_only=True).of(Projected(Means(), 5)).moments
    np.testing.assert_allclose(small.mean, whole.mean, atol=1e-5)
    np.testing.assert_allclose(small.covariance, whole.covariance, atol=1e-5)


def test_several_extractors_share_one_pass(tmp_path):
    folder = write_folder(tmp_path / "real", pictures(6))
    first, second = build(open_set(folder), [Means(), Means("other", "cd" * 32)])
    assert (first.extractor, second.extractor) == ("means", "other") and first.digest != second.digest


def test_what_was_left_out_is_kept_with_the_reference(tmp_path):
    folder = write_folder(tmp_path / "real", pictures(5))
    (folder / "003.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"003\.png"):
        built(open_set(folder))
    found = built(open_set(folder), skip_unreadable=True)
    assert found.n == 4 and found.keys == ("000", "001", "002", "004")
    assert "1 images cannot be read" in found.notices[0]


def test_one_image_is_no_reference():
    with pytest.raises(DataError, match="1 image, and a reference needs at least 2"):
        built(open_set(pictures(1)))


def test_features_of_another_program_have_no_extractor(tmp_path):
    np.savez(tmp_path / "x.npz", np.ones((3, 4)))
    found = load_reference(tmp_path / "x.npz")
    assert found.made_by is None and found.source == "x.npz" and found.protocol == ""
    assert found.of(Means()).dims == 4
