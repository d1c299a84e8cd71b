"""Doing tasks on a Ray cluster: actors that keep what they loaded, on as many nodes as there are.

Nodes share a file system, on which the store lies: that is how results come back. Ray is asked for resources and told
of deaths; which task goes where is `executors.dispatch`'s, as for processes of one machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from isocost import __version__
from isocost.errors import IsocostError, SpecError
from isocost.study.executors import SECONDS_BETWEEN_WAITS, Died, OnDone, OnWait, Task, dispatch, start_worker

SECONDS_FOR_NODES = 60


@dataclass(frozen=True)
class RayCluster:
    """An `Executor`: actors with one CPU and `num_gpus` GPUs each, as many as the cluster has room for.

    address: of a running cluster, "HOST:PORT" or "auto"; None: the one that RAY_ADDRESS names or that runs on this
        machine, else one of this process's own. The connection stays until `ray.shutdown()` or the process ends.
    at_most: actors at once.
    num_gpus: of one actor; 0.5 lets two share one.

    Nodes may come and go while tasks are at work.
    """

    address: str | None = None
    at_most: int | None = None
    num_gpus: float = 0

    @property
    def workers(self) -> int:
        """Actors for which the cluster has room, or will have in a minute: its nodes may still be on their way.

        Raises:
            SpecError: Ray is not installed, no cluster answers at `address`, or it has no room for any.
        """
        ray = connected(self.address)
        deadline = time.monotonic() + SECONDS_FOR_NODES
        while (room := self.room(ray)) < 1 and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_WAITS)
        if room < 1:
            wanted = f"1 CPU and {self.num_gpus:g} GPUs" if self.num_gpus else "1 CPU"
            raise SpecError(f"the Ray cluster has no room for a worker of {wanted}: add nodes, or lower --num-gpus.")
        return room

    def room(self, ray: Any) -> int:
        """Actors for which the cluster has room now."""
        has = ray.cluster_resources()
        by_cpu = int(has.get("CPU", 0))
        by_gpu = int(has.get("GPU", 0) / self.num_gpus) if self.num_gpus else by_cpu
        return min(by_cpu, by_gpu, self.at_most or by_cpu)

    def run(
        self,
        function: Callable[..., Any],
        tasks: Sequence[Task],
        *,
        on_done: OnDone | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        """As `Executor.run` says. Raises also as `workers` does."""
        if tasks and self.workers:
            dispatch(self.pool(function), tasks, on_done, on_wait)

    def pool(self, function: Callable[..., Any]) -> Actors:
        return Actors(connected(self.address), self, function)


def connected(address: str | None = None) -> Any:
    """The module `ray`, connected to a cluster: the one it is connected to already, if so.

    Raises:
        SpecError: Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SpecError("the ray executor needs Ray: pip install 'isocost[ray]'.") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SpecError(f"--address {address}: cannot connect to a Ray cluster: {reason}") from None
    return ray


class _Worker:
    """What runs in an actor's process."""

    def __init__(self, folder: str, version: str):
        if version != __version__:
            raise IsocostError(f"{platform.node()} has isocost {__version__}, and the driver {version}")
        try:
            os.chdir(folder)  # relative paths of data and stores then mean the same here
        except OSError as error:
            raise IsocostError(f"{platform.node()} does not see {folder}: {error.strerror}") from None
        start_worker()

    def started(self) -> int:
        return os.getpid()

    def do(self, function: Callable[..., Any], arguments: tuple) -> Any:
        return function(*arguments)


class Actors:
    """A `Pool` of actors. An actor's first reply is its process's id."""

    def __init__(self, ray: Any, cluster: RayCluster, function: Callable[..., Any]):
        self.ray = ray
        self.cluster = cluster
        self.function = function
        # An actor that Ray restarted by itself would have lost what it loaded, and its deaths would not be counted.
        options = {"num_cpus": 1, "num_gpus": cluster.num_gpus, "max_restarts": 0, "max_task_retries": 0}
        self.kind = ray.remote(**options)(_Worker)
        self.names = count()
        self.actors: dict[int, Any] = {}
        self.pending: dict[Any, int] = {}  # reference of a reply -> worker

    def size(self) -> int:
        return self.cluster.room(self.ray)

    def start(self) -> int:
        worker = next(self.names)
        actor = self.kind.remote(os.getcwd(), __version__)
        self.actors[worker] = actor
        self.pending[actor.started.remote()] = worker
        return worker

    def send(self, worker: int, arguments: tuple) -> None:
        self.pending[self.actors[worker].do.remote(self.function, arguments)] = worker

    def replies(self, seconds: float) -> list[tuple[int, Any]]:
        if not self.pending:  # the cluster has no nodes at present
            time.sleep(seconds)
            return []
        ready, _ = self.ray.wait(list(self.pending), timeout=seconds)
        return [self._reply(reference) for reference in ready]

    def _reply(self, reference: Any) -> tuple[int, Any]:
        worker = self.pending.pop(reference)
        try:
            return worker, self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            self.dismiss(worker)
            last = str(error).strip().splitlines()[-1].strip()
            return worker, Died(last.partition(" Some common causes")[0])

    def dismiss(self, worker: int) -> None:
        actor = self.actors.pop(worker)
        with contextlib.suppress(self.ray.exceptions.RayError):  # it is gone already
            self.ray.kill(actor)

    def close(self) -> None:
        self.pending.clear()
        for worker in list(self.actors):
            self.dismiss(worker)
