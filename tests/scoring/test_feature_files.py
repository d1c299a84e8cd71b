from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from isocost.errors import DataError
from isocost.scoring.feature_files import read_features, to_bytes, values_digest
from isocost.scoring.statistics import Moments, moments

FEATURES = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float16)


@pytest.mark.parametrize("values", [FEATURES, moments(FEATURES)], ids=["features", "moments"])
def test_what_is_written_is_read(tmp_path, values):
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_bytes(values, {"extractor": "means", "keys": ["a", "b"]}))
    found = read_features(path)
    assert values_digest(found.values) == values_digest(values)
    assert found.about["extractor"] == "means" and found.about["n"] == 20


def test_a_changed_value_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    content = bytearray(to_bytes(FEATURES, {}))
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.safetensors: its values are not those that were written"):
        read_features(path)
    path.write_bytes(content[:50])
    with pytest.raises(DataError, match=r"x\.safetensors: corrupt"):
        read_features(path)


def test_files_of_other_programs(tmp_path):
    np.save(tmp_path / "a.npy", FEATURES)
    np.savez(tmp_path / "b.npz", anything=FEATURES)
    np.savez(tmp_path / "c.npz", features=FEATURES, keys=np.array([f"k{i}" for i in range(20)]), other=np.ones(3))
    save_file({"features": FEATURES}, tmp_path / "d.safetensors")
    for name in ("a.npy", "b.npz", "c.npz", "d.safetensors"):
        assert np.array_equal(read_features(tmp_path / name).values, FEATURES), name
    assert read_features(tmp_path / "c.npz").about["keys"][19] == "k19"
    covariance = np.cov(FEATURES.astype(float).T)
    np.savez(tmp_path / "e.npz", mu=FEATURES.astype(float).mean(0), sigma=covariance, n=20)
    found = read_features(tmp_path / "e.npz").values
    assert isinstance(found, Moments) and found.n == 20
    np.testing.assert_allclose(found.covariance, covariance)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": FEATURES, "b": FEATURES}, "holds a, b"),
        ({"features": FEATURES[0]}, r"expected float features \[N, D\], found float16 \[4\]"),
        ({"features": FEATURES.astype(int)}, "found int64"),
        ({"features": FEATURES, "keys": np.array(["a"])}, "1 keys for 20 rows"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "not of how many images"),
        ({"mu": np.zeros(3), "sigma": np.eye(2), "n": 5}, r"expected mu \[D\]"),
    ],
)
def test_what_is_no_features_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=rf"x\.npz: .*{message}"):
        read_features(tmp_path / "x.npz")


def test_a_pickle_is_not_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", features=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"x\.npz: not an array that can be read"):
        read_features(tmp_path / "x.npz")
    (tmp_path / "y.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"y\.npy"):
        read_features(tmp_path / "y.npy")


def test_safetensors_keep_the_tensors_of_other_programs_readable(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(to_bytes(FEATURES, {}))
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["features"], FEATURES)
