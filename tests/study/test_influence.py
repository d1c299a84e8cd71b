"""Influence values of many scores in packs: what they keep, and that a store with them is the same store."""

from __future__ import annotations

import numpy as np
import pytest
from tests.study.conftest import tiny_study

from isocost.errors import DataError
from isocost.scoring.uncertainty import standard_error
from isocost.specs import Score, ScoreSpec
from isocost.study import store as study_store
from isocost.study import upkeep
from isocost.study.influence import Pack, encode
from isocost.study.store import Store, StoredChunk

IMAGES = 400


def influence_values(cells: int, rho: float = 0.9, n: int = IMAGES) -> np.ndarray:
    """Values [cells, n] of which any two rows correlate by rho."""
    rng = np.random.default_rng(0)
    return 37.0 * (np.sqrt(rho) * rng.standard_normal(n) + np.sqrt(1 - rho) * rng.standard_normal((cells, n)))


def score(cell: int, split: str) -> Score:
    spec = ScoreSpec(metric="fd", extractor="any@0", reference="r", n=IMAGES, split=split)
    plain = {"value": float(cell), "stderr": 1.0, "n": IMAGES, "higher_is_better": False, "environment": {}}
    return Score(sample_key=f"cell{cell}", score_spec=spec, **plain)


@pytest.fixture
def store(tmp_path) -> tuple[Store, dict[str, np.ndarray]]:
    """A store of three cells on two splits, and the influence values of each score."""
    store, values = Store(tmp_path / "store"), {}
    for split in ("selection", "report"):
        for cell, row in enumerate(influence_values(3)):
            values[store.write_score(score(cell, split), row)] = row
    store.write_study(tiny_study())
    store.write_expansion(cells=[{"sample_key": f"cell{cell}"} for cell in range(3)])
    return store, values


@pytest.fixture
def compacted(store):
    upkeep.compact(store[0])
    return store


def test_compacting_moves_values_into_a_pack_a_specification(store):
    store, values = store
    before = sum(path.stat().st_size for path in store.path.rglob("*.npy"))
    assert upkeep.compact(store) == {"scores": 6, "packed": 6}
    assert not list(store.path.rglob("*.npy")) and len(store.packs()) == 2
    assert sum(pack.path.stat().st_size for pack in store.packs()) < 0.7 * before
    for key, row in values.items():
        np.testing.assert_allclose(store.influence(key), row, rtol=2**-11, atol=1e-7 * np.abs(row).max())
    assert store.influence("0" * 64) is None
    assert upkeep.compact(store) == {"scores": 6, "packed": 0}


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.999])
def test_half_precision_moves_paired_errors_as_little_as_it_says(tmp_path, rho):
    n = 30_000
    a, b = influence_values(2, rho, n)
    name, content = encode({"a": a, "b": b})
    (tmp_path / name).write_bytes(content)
    pack = Pack(tmp_path / name)
    assert standard_error(pack["a"]) == pytest.approx(standard_error(a), rel=2.5 * 4e-4 / np.sqrt(n))
    share = 2.5 * 4e-4 / np.sqrt(n * (1 - rho)) + 4e-8 / (1 - rho)
    assert standard_error(pack["a"] - pack["b"]) == pytest.approx(standard_error(a - b), rel=share)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_values_of_any_magnitude_fit(tmp_path, scale):
    values = scale * influence_values(1)[0]
    name, content = encode({"a": values})
    (tmp_path / name).write_bytes(content)
    np.testing.assert_allclose(Pack(tmp_path / name)["a"], values, rtol=2**-10, atol=1e-7 * scale * 100)


def test_packs_hold_a_limited_number_of_scores(store, monkeypatch):
    store, values = store
    monkeypatch.setattr(upkeep, "SCORES_A_PACK", 2)
    upkeep.compact(store)
    assert sorted(len(pack.rows) for pack in store.packs()) == [1, 1, 2, 2]
    assert all(store.influence(key) is not None for key in values)


def test_compacting_goes_on_after_a_kill(store):
    """Killed after a pack was written and before the files that it replaces were gone."""
    store, _ = store
    kept = {path: path.read_bytes() for path in store.path.rglob("*.npy")}
    upkeep.compact(store)
    packs = {pack.path.name for pack in store.packs()}
    for path, content in kept.items():
        path.write_bytes(content)
    assert upkeep.compact(store)["packed"] == 6
    assert {pack.path.name for pack in store.packs()} == packs and not list(store.path.rglob("*.npy"))


def test_later_scores_go_into_packs_of_their_own(compacted):
    store, values = compacted
    new = store.write_score(score(3, "report"), influence_values(4)[3])
    first = {pack.path for pack in store.packs()}
    assert upkeep.compact(store)["packed"] == 1
    assert first < {pack.path for pack in store.packs()}
    assert all(store.influence(key) is not None for key in [new, *values])


def test_verify_names_a_pack_that_was_damaged(compacted):
    store, values = compacted
    assert upkeep.verify(store)["corrupt"] == []
    path = store.packs()[0].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert [path.name in error for error in upkeep.verify(store)["corrupt"]] == [True]
    path.write_bytes(content[:50])
    with pytest.raises(DataError, match=path.name):
        for key in values:
            Store(store.path).influence(key)


def test_pruning_keeps_a_pack_while_one_of_its_scores_is_wanted(compacted):
    store, _ = compacted
    store.write_expansion(cells=[{"sample_key": "cell0"}])
    upkeep.prune(store)
    assert len(store.packs()) == 2 and len(list(store.scores())) == 2
    store.write_expansion(cells=[{"sample_key": "another"}])
    upkeep.prune(store)
    assert store.packs() == [] and list(store.scores()) == []


def test_costs_are_kept_in_one_file_until_there_are_more_chunks(store, monkeypatch):
    store, _ = store
    features = {"any@0": np.zeros((4, 2))}
    for index in range(2):
        store.write_chunk("cell0", index, StoredChunk(features, 8, 0.5 + index, 4, None))
    upkeep.compact(store)
    headers = []
    read = study_store._header
    monkeypatch.setattr(study_store, "_header", lambda path: headers.append(path) or read(path))
    assert Store(store.path).chunk_costs("cell0") == store.chunk_costs("cell0") == [(8, 0.5), (8, 1.5)]
    assert headers == []
    store.write_chunk("cell0", 2, StoredChunk(features, 8, 2.5, 4, None))
    assert store.chunk_costs("cell0")[2] == (8, 2.5)
    upkeep.compact(store)
    assert len(Store(store.path).chunk_costs("cell0")) == 3
