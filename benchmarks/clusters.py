"""A sweep on two Ray nodes of this machine, and a store of many cells.

    python benchmarks/clusters.py [--cells 100] [--images 64] [--kills 20] [--repeats 5] [--seed 0]
    python benchmarks/clusters.py --status [--cells 10000] [--images 512]

The first makes the images and features of a study's cells (one micro member, trained for a moment; every chunk 16
images) in one process with one thread, and on a Ray cluster of two nodes with one CPU each, interleaved. `ratio` is the
seconds of the one over those of the other, of everything from the first task to the last, start of the actors included
(the cluster itself is up). Then once more on Ray, with workers killed at seeded times, each after it has finished a
chunk or more, and one of the two nodes taken away: every chunk has to be there, and equal to the other's to the bit.

The second writes the files of a study of many cells that is done, and times what an empty resume does: expanding the
study, finding nothing to do (`sweep`, from a process that has imported what it needs), and `status` as a command.
`ratio` is 5 s, the most that any should take, over the slowest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from isocost.environment import environment
from isocost.recipes.scenes import micro_members
from isocost.scoring.measures import columns_of
from isocost.specs import (
    DataSource,
    EngineSpec,
    Evaluation,
    Grid,
    LrSchedule,
    SceneOptions,
    Score,
    ScoreSpec,
    StudySpec,
    TrainSettings,
)
from isocost.study import measures, run
from isocost.study.executors import Died, Executor, Processes, one_thread
from isocost.study.images import chunks_needed, make_chunks
from isocost.study.ray_executor import Actors, RayCluster, connected
from isocost.study.store import Store, StoredChunk, write_atomically

BATCH = 16
MOST_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--status", action="store_true", help="time a resume of many cells instead")
    parser.add_argument("--cells", type=int, help="default: 100, with --status 10000")
    parser.add_argument("--images", type=int, help="of a cell; default: 64, with --status 512")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.status:
            result = many_cells(Path(folder), asked.cells or 10_000, asked.images or 512)
        else:
            study = small_study(asked.cells or 100, asked.images or 64)
            result = on_two_nodes(Path(folder), study, asked.kills, asked.repeats, asked.seed)
    print(json.dumps(result))


def small_study(cells: int, images: int, batch: int = BATCH) -> StudySpec:
    """A member of the smallest width, trained for eight steps, and a grid of that many cells."""
    guidance = next(count for count in range(max(int(cells**0.5), 1), 0, -1) if cells % count == 0)
    samplers = ("ddim", "dpmpp_2m") if guidance % 2 == 0 else ("ddim",)
    scales = guidance // len(samplers)
    return StudySpec(
        name="clusters",
        data=DataSource(kind="scenes", resolution=32, images=128, scenes=SceneOptions(groups=1)),
        members=micro_members(8),
        train=TrainSettings(images=256, batch=32, lr_schedule=LrSchedule(kind="constant"), caption_dropout=0.1),
        grid=Grid(
            samplers=samplers,
            steps=tuple(range(1, cells // guidance + 1)),
            guidance=tuple(1 + place / 4 for place in range(scales)),
        ),
        evaluation=Evaluation(images=images, references=64, fd_dims=4),
        engine=EngineSpec(batch=batch),
    )


# --- two nodes ---


def on_two_nodes(folder: Path, study: StudySpec, kills: int, repeats: int, seed: int) -> dict[str, Any]:
    trained = Store(folder / "trained")
    run.train(study, trained)
    with two_nodes() as cluster:
        on_ray = RayCluster(cluster.address)
        assert on_ray.workers == 2
        seconds: dict[str, list[float]] = {"inline": [], "ray": []}
        for number in range(repeats):
            for name, executor in (("inline", Processes(1)), ("ray", on_ray)):
                store = Store(shutil.copytree(trained.path, folder / f"{name}{number}"))
                seconds[name].append(sample(study, store, executor))
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
        reference = tensors(Store(folder / "inline0"))
        wanted = len(reference)
        equal = all(tensors(Store(folder / f"ray{number}")) == reference for number in range(repeats))
        watched = Watched(cluster, random.Random(seed), kills, wanted)
        store = Store(shutil.copytree(trained.path, folder / "killed"))
        killed_seconds = sample(study, store, watched)
        after = tensors(store)
    return {
        "name": f"{study.name}: {wanted} chunks of {study.engine.batch} images, 2 Ray nodes of 1 CPU",
        "ratio": round(statistics.median(seconds["inline"]) / statistics.median(seconds["ray"]), 3),
        "ratios": {"by round": [round(a / b, 3) for a, b in zip(seconds["inline"], seconds["ray"], strict=True)]},
        "seconds": {name: round(statistics.median(values), 1) for name, values in seconds.items()},
        "bit for bit as inline": equal,
        "killed": {
            "workers killed": watched.killed,
            "nodes removed": watched.removed,
            "deaths seen": watched.died,
            "cells": len({key for key, _ in after}),
            "chunks": len(after),
            "bit for bit as inline": after == reference,
            "seconds": round(killed_seconds, 1),
        },
        "baseline": "one process with one thread",
        "device": environment()["cpu"],
    }


def sample(study: StudySpec, store: Store, executor: Executor) -> float:
    """Seconds of making all chunks of a trained study."""
    trained = run.opened(store)
    names = measures.metric_names(study.evaluation, trained.refs)
    with one_thread():
        measures.loaded(names)
        start = time.perf_counter()
        make_chunks(
            trained.cells,
            trained.folders,
            store,
            trained.refs,
            trained.prompts,
            study.evaluation.images,
            metrics=names,
            executor=executor,
            keep_images=False,
        )
    return time.perf_counter() - start


def tensors(store: Store) -> dict[tuple[str, int], Any]:
    """All that a store's chunks hold but the seconds they took."""
    found = {}
    for path in (store.path / "chunks").glob("*/*/*.safetensors"):
        chunk = store.read_chunk(path.parent.name, int(path.stem))
        values = {name: features.tobytes() for name, features in chunk.features.items()}
        found[path.parent.name, int(path.stem)] = (values, chunk.evaluations, chunk.count)
    return found


@contextmanager
def two_nodes() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class Watched(RayCluster):
    """A cluster whose workers are killed, and one of whose nodes goes, after so many chunks as the dice say."""

    def __init__(self, cluster: Any, dice: random.Random, kills: int, chunks: int):
        super().__init__(cluster.address)
        moments = sorted(dice.sample(range(1, max(chunks - 2, kills + 1)), kills))
        vars(self).update(cluster=cluster, dice=dice, moments=moments, remove_at=chunks // 2)
        vars(self).update(killed=0, removed=0, died=0, done=0)

    def pool(self, function: Callable[..., Any]) -> Actors:
        return WatchedActors(connected(self.address), self, function)


class WatchedActors(Actors):
    def __init__(self, ray: Any, cluster: Watched, function: Callable[..., Any]):
        super().__init__(ray, cluster, function)
        self.watched = vars(cluster)
        self.pids: dict[int, int] = {}
        self.finished: set[int] = set()
        self.doomed: set[int] = set()

    def _reply(self, reference: Any) -> tuple[int, Any]:
        worker, reply = super()._reply(reference)
        if isinstance(reply, Died):
            self.watched["died"] += 1
            self.finished.discard(worker)
        elif worker not in self.pids:
            self.pids[worker] = reply
        else:
            self.watched["done"] += 1
            self.finished.add(worker)
            self._strike()
        return worker, reply

    def _strike(self) -> None:
        """Kill a worker that has finished a chunk, a moment from now: in the middle of another."""
        told, candidates = self.watched, sorted(self.finished - self.doomed)
        if told["moments"] and told["done"] >= told["moments"][0] and candidates:
            del told["moments"][0]
            chosen = told["dice"].choice(candidates)
            self.doomed.add(chosen)
            threading.Timer(told["dice"].uniform(0, 0.3), self._kill, [self.pids[chosen]]).start()
        if told["done"] == told["remove_at"]:
            told["removed"] += 1
            told["cluster"].remove_node(next(iter(told["cluster"].worker_nodes)))

    def _kill(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
            self.watched["killed"] += 1
        except ProcessLookupError:
            print(f"worker {pid} had gone with its node", flush=True)


# --- many cells ---


def many_cells(folder: Path, cells: int, images: int) -> dict[str, Any]:
    store = Store(folder / "store")
    study = small_study(cells, images, batch=64)
    run.train(study, store)
    start = time.perf_counter()
    with mock.patch("os.fsync"):  # nothing is lost if these are
        write_results(study, store)
    print(f"wrote the files of {cells} cells: {time.perf_counter() - start:.0f} s", flush=True)
    times = {path: path.stat().st_mtime_ns for path in store.path.glob("chunks/*/*/*")}
    run.sweep(study, store)  # builds the index, once
    seconds = {
        "expand": timed(lambda: run.opened(store).cells),
        "resume": timed(lambda: run.sweep(study, store)),
        "status": timed(lambda: status(store.path)),
    }
    assert {path: path.stat().st_mtime_ns for path in store.path.glob("chunks/*/*/*")} == times, "it was not done"
    return {
        "name": f"{cells:,} cells of {images} images, nothing to do",
        "ratio": round(MOST_SECONDS / max(seconds.values()), 3),
        "ratios": {name: round(MOST_SECONDS / value, 3) for name, value in seconds.items()},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "files": {"chunks": len(times) - cells, "scores": len(store.score_keys())},
        "baseline": f"{MOST_SECONDS:g} s",
        "device": environment()["cpu"],
    }


def timed(call: Callable[[], Any]) -> float:
    """Seconds, the median of three."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def status(store: Path) -> None:
    command = [sys.executable, "-m", "isocost.cli", "status", str(store), "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["finished"], found


def write_results(study: StudySpec, store: Store) -> None:
    """What a sweep would have written, with numbers of no meaning."""
    trained = run.opened(store)
    names = measures.metric_names(study.evaluation, trained.refs)
    loaded = measures.loaded(names)
    judge = run.Judge.build(study.evaluation, loaded, run.against(study, store), trained.prompts)
    run.write_expansion(trained, judge)
    features = {column.name: np.zeros((1, 1), np.float16) for column in columns_of(loaded)}
    write = {"evaluations": 1, "seconds": 0.1, "count": study.engine.batch, "images": None}
    for cell in trained.cells:
        store.write_sample_key(cell.key)
        for index in range(chunks_needed(study.evaluation.images, study.engine)):
            store.write_chunk(cell.key.digest, index, StoredChunk(features, **write))
        for spec in judge.all_specs():
            write_score(store, cell.key.digest, spec)
    store.write_costs()


def write_score(store: Store, sample_key: str, spec: ScoreSpec) -> None:
    score = Score(
        sample_key=sample_key,
        score_spec=spec,
        value=1.0,
        stderr=0.1,
        bias=None,
        n=spec.n,
        higher_is_better=False,
        unit="",
        valid=True,
        environment={},
    )
    path = store.score_path(store.score_key(sample_key, spec))
    write_atomically(path, json.dumps(score.model_dump(mode="json")).encode())


if __name__ == "__main__":
    main()
