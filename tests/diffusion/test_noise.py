from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocost.diffusion.noise import NOISE_VERSION, batch_noise, noise
from isocost.errors import SpecError

SHAPE = (4, 8, 8)


def test_version():
    assert NOISE_VERSION == 1


@pytest.mark.parametrize(
    ("prompt_id", "replicate", "stream", "golden"),
    [
        (
            "scenes-val/0",
            0,
            "x_T",
            ["-0x1.5dac300000000p+0", "-0x1.c3faea0000000p-6", "0x1.70c04a0000000p+0", "0x1.24e3da0000000p+0"],
        ),
        (
            "scenes-val/0",
            1,
            "x_T",
            ["-0x1.11a1320000000p-2", "0x1.12dba80000000p-1", "-0x1.36a9660000000p-2", "-0x1.203aa80000000p-1"],
        ),
        (
            "scenes-val/0",
            0,
            ("step", 12),
            ["-0x1.1ae0f20000000p+0", "-0x1.d07c2a0000000p-4", "-0x1.3797fc0000000p+1", "-0x1.fff82a0000000p-1"],
        ),
        (
            "héron ☃",
            7,
            "x_T",
            ["-0x1.c8b0320000000p-1", "-0x1.4e9bec0000000p-3", "0x1.8c7a700000000p-1", "0x1.2a72a60000000p-2"],
        ),
    ],
)
def test_golden_values(prompt_id, replicate, stream, golden):
    """Stores hold images made from these: a change here needs a new NOISE_VERSION."""
    values = noise(prompt_id, replicate, stream, (4,))
    assert values.dtype == np.float32
    assert [value.hex() for value in values.astype(float).tolist()] == golden


def test_key_is_the_documented_one():
    key = hashlib.sha256(b'["a \\"red\\" cube",3,["step",7]]').digest()[:16]
    expected = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    np.testing.assert_array_equal(
        noise('a "red" cube', 3, ("step", 7), SHAPE), expected.standard_normal(SHAPE, dtype=np.float32)
    )


def test_every_argument_counts():
    streams = [noise(p, r, s, SHAPE) for p in ("a", "b") for r in (0, 1) for s in ("x_T", ("step", 0), ("step", 1))]
    assert len({values.tobytes() for values in streams}) == 12
    # Ids that a careless join would confuse.
    assert not np.array_equal(noise("a,1", 1, "x_T", SHAPE), noise("a", 11, "x_T", SHAPE))
    assert not np.array_equal(noise("a", 1, "x_T", SHAPE), noise("a1", 1, "x_T", SHAPE))


def test_numpy_integers_are_integers():
    np.testing.assert_array_equal(
        noise("a", np.int64(2), ("step", np.int64(3)), SHAPE), noise("a", 2, ("step", 3), SHAPE)
    )


@given(st.permutations([("a", 0), ("a", 1), ("b", 0), ("c", 5)]))
def test_a_row_does_not_depend_on_its_batch(ids):
    batch = batch_noise(ids, "x_T", (2, 3))
    assert batch.shape == (4, 2, 3) and batch.dtype == np.float32
    for row, (prompt_id, replicate) in zip(batch, ids, strict=True):
        np.testing.assert_array_equal(row, noise(prompt_id, replicate, "x_T", (2, 3)))


def test_standard_normal_and_uncorrelated():
    values = batch_noise([(str(i), 0) for i in range(200)], "x_T", (1000,)).astype(float)
    assert values.mean() == pytest.approx(0, abs=0.01)  # 4.5 standard errors, and the same draw every time
    assert values.std() == pytest.approx(1, abs=0.01)
    correlation = np.corrcoef(values)[np.triu_indices(200, 1)]
    assert np.abs(correlation).max() < 0.17  # 19900 pairs of standard error 0.032: the largest is about 4 of them


@pytest.mark.parametrize("stream", ["x_0", "step", ("step",), ("step", -1), ("x_T", 1)])
def test_unknown_stream(stream):
    with pytest.raises(SpecError, match="noise stream"):
        noise("a", 0, stream, SHAPE)


def test_negative_replicate():
    with pytest.raises(SpecError, match="replicate -1"):
        noise("a", -1, "x_T", SHAPE)
