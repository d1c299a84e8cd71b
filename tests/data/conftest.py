from __future__ import annotations

import itertools

import pytest

from isocost.data import cache, remote

_numbers = itertools.count()


@pytest.fixture
def cached(tmp_path, monkeypatch) -> cache.Cache:
    """A cache of this test's own, of 1 MB; stores that fail are asked once."""
    monkeypatch.setenv("ISOCOST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ISOCOST_CACHE_GB", "0.001")
    monkeypatch.setattr(remote, "SECONDS_BETWEEN_TRIES", ())
    return cache.the_cache()


@pytest.fixture
def bucket(cached) -> str:
    """The URL of an empty folder in fsspec's store in memory."""
    return f"memory://bucket-{next(_numbers)}"
