"""Two nodes of Ray on this machine. Skipped where Ray is not installed."""

from __future__ import annotations

import operator
import os
import shutil
import signal
import sys

import pytest
from tests.study.conftest import tiny_study
from tests.study.test_run import contents, features

from isocost.errors import IsocostError, SpecError
from isocost.study import ray_executor, run
from isocost.study.executors import Died, Task
from isocost.study.ray_executor import Actors, RayCluster, connected
from isocost.study.store import Store


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"pip install 'isocost\[ray\]'"):
        connected()


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes of one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**memory, "include_dashboard": False})
    made.add_node(**memory)
    yield made
    ray.shutdown()
    made.shutdown()


class Killing(Actors):
    """Kills the worker that is the first to finish a task, and takes its node away from another after three."""

    def __init__(self, cluster: RayCluster, function, remove_node):
        super().__init__(connected(cluster.address), cluster, function)
        self.remove_node = remove_node
        self.pids, self.finished, self.died = {}, 0, 0

    def _reply(self, reference):
        worker, reply = super()._reply(reference)
        if isinstance(reply, Died):
            self.died += 1
        elif worker not in self.pids:
            self.pids[worker] = reply
        else:
            self.finished += 1
            if self.finished == 1:
                os.kill(self.pids[worker], signal.SIGKILL)
            elif self.finished == 3:
                self.remove_node()
        return worker, reply


def test_an_error_of_a_task_is_raised_as_it_was(cluster):
    with pytest.raises(ZeroDivisionError):
        RayCluster(cluster.address).run(operator.truediv, [Task((1, 0))])


def test_a_node_that_does_not_see_the_folder_says_so(cluster, monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/no/such/folder")
    with pytest.raises(IsocostError, match=r"no worker starts.*does not see /no/such/folder"):
        RayCluster(cluster.address).run(operator.add, [Task((1, 1))])


def test_room_for_workers(cluster, monkeypatch):
    monkeypatch.setattr(ray_executor, "SECONDS_FOR_NODES", 0.1)
    assert RayCluster(cluster.address).workers == 2
    assert RayCluster(cluster.address, at_most=1).workers == 1
    with pytest.raises(SpecError, match="no room for a worker of 1 CPU and 1 GPUs"):
        assert RayCluster(cluster.address, num_gpus=1).workers


def test_a_killed_worker_and_a_lost_node_move_no_bit(swept, tmp_path, cluster):
    """Last of the tests: one node is left."""
    shutil.copytree(swept, tmp_path / "store", ignore=shutil.ignore_patterns("chunks", "cells", "index*"))
    (lost,) = cluster.worker_nodes
    pools = []

    class Watched(RayCluster):
        def pool(self, function):
            pools.append(Killing(self, function, lambda: cluster.remove_node(lost)))
            return pools[-1]

    run.sweep(tiny_study(), Store(tmp_path / "store"), executor=Watched(cluster.address))
    assert sum(pool.died for pool in pools) >= 2
    assert features(tmp_path / "store") == features(swept)
    assert contents(tmp_path / "store") == contents(swept)
