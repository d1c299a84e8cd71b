from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys

import pytest
from tests.study.conftest import tiny_study
from tests.study.test_run import contents, features

from isocost import files
from isocost.errors import StoreError
from isocost.specs import ScoreSpec, digest_of
from isocost.study import run
from isocost.study.store import Store

HOLD = """
import sys, time
from isocost.study.store import Store
with Store(sys.argv[1]).held(shared=sys.argv[2] == "shard"):
    print("held", flush=True)
    time.sleep(600)
"""


def stop(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def holder(own_copy):
    """A function that has another process hold the store, as a sweep or as a shard, and returns it."""
    started = []

    def hold(as_what: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(own_copy), as_what]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for process in started:
        stop(process)


def test_a_second_sweep_at_once_is_refused_and_told_whose_the_first_is(own_copy, holder):
    first = holder("sweep")
    named = f"another process works on this store .pid {first.pid} on {platform.node()}."
    for second in (run.sweep, run.train):
        with pytest.raises(StoreError, match=named):
            second(tiny_study(), Store(own_copy), workers=1)
    with pytest.raises(StoreError, match=named):
        run.sweep_shard(tiny_study(), Store(own_copy), (0, 2), workers=1)
    stop(first)
    assert run.sweep_shard(tiny_study(), Store(own_copy), (0, 2), workers=1)["cells"]


def test_shards_share_a_store_and_keep_sweeps_out(own_copy, holder):
    gone, there = holder("shard"), holder("shard")
    stop(gone)
    assert run.sweep_shard(tiny_study(), Store(own_copy), (0, 2), workers=1)["cells"]
    with pytest.raises(StoreError, match=rf"works on this store .*pid {there.pid} on ") as refused:
        run.sweep(tiny_study(), Store(own_copy), workers=1)
    assert f"pid {gone.pid} " not in str(refused.value)


@pytest.mark.parametrize("part", ["chunks", "cells"])
def test_a_full_disk_is_named_and_loses_nothing(swept, tmp_path, monkeypatch, part):
    """The disk is full when the seventh chunk, or the seventh file of scores, is written."""
    store = Store(tmp_path / "store")
    shutil.copytree(swept, store.path, ignore=shutil.ignore_patterns("chunks", "cells", "index*"))
    fsync = os.fsync

    def full(handle: int) -> None:
        there = [path for path in store.path.glob(f"{part}/**/*") if path.is_file() and path.suffix != ".yaml"]
        if len(there) == 7:  # six, and the one that is being written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(StoreError, match=rf"{store.path}/{part}/.*No space left on device.*run again"):
            run.sweep(tiny_study(), store, workers=1)
    kept = features(store.path)
    assert len(kept) == (6 if part == "chunks" else len(features(swept)))
    assert not list(store.path.rglob(".*.tmp-*"))
    times = {path: path.stat().st_mtime_ns for path in store.path.glob("c*/*/*/*")}
    run.sweep(tiny_study(), store, workers=1)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in store.path.glob("c*/*/*/*")}.items()
    assert features(store.path) == features(swept)
    assert contents(store.path) == contents(swept)


def test_the_key_of_a_score_is_the_digest_of_what_it_is_of():
    spec = ScoreSpec(metric="fd", extractor="clip@é", reference=None, n=40, split="all")
    value = {"sample_key": "ab" * 32, "score_spec": spec.canonical()}
    assert Store.score_key("ab" * 32, spec) == digest_of(value)


def test_the_index_follows_a_score_that_is_replaced_or_gone(own_copy):
    store = Store(own_copy)
    before = store.index().set_index("score_key")["value"]
    key, score = next(store.scores())
    store.write_score(score.model_copy(update={"value": score.value + 1}), None)
    after = store.index().set_index("score_key")["value"]
    assert after[key] == before[key] + 1 and after.drop(key).equals(before.drop(key))
    store.score_path(key).unlink()
    assert set(store.index()["score_key"]) == set(before.index) - {key}
