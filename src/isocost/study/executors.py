"""Doing many independent tasks: in this process, in several with one thread each, or wherever an `Executor` does them.

A task's result is small: what tasks make goes through the store.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Generic, Protocol, TypeVar

from isocost.allocator import keep_freed_memory
from isocost.errors import IsocostError

# A worker that dies (killed, out of memory, its machine gone) costs the task in hand, which is done again. A task
# whose workers died more often than this is what kills them.
MOST_DEATHS = 3
SECONDS_BETWEEN_WAITS = 0.5

OnWait = Callable[[], None]
OnDone = Callable[[int, Any], None]
Worker = TypeVar("Worker", bound=Hashable)


@dataclass(frozen=True)
class Task:
    """A call to make. `name` is what an error calls it.

    needs: what the call loads first, if that takes long: a worker that has done a task with the same needs is
    preferred, as it keeps what it loaded.
    """

    arguments: tuple
    name: str = ""
    needs: Hashable = None


class Executor(Protocol):
    """Where tasks are done, and how many at a time."""

    @property
    def workers(self) -> int:
        """Tasks at work at once, as far as that is known beforehand."""
        ...

    def run(
        self,
        function: Callable[..., Any],
        tasks: Sequence[Task],
        *,
        on_done: OnDone | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        """Call `function(*task.arguments)` for every task; `on_done(place, result)` in the caller's process.

        `on_wait` is called there too, twice a second while tasks are at work (from a thread, where they are at work
        there). The first error of a task stops the rest and is raised. A worker that dies is replaced and its task
        done again.

        Raises:
            IsocostError: a task's workers keep dying, or no worker starts.
        """
        ...


def default_workers() -> int:
    """One process per core: faster on CPU than one process with as many threads."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass(frozen=True)
class Processes:
    """An `Executor`: processes of this machine with one thread each. With one worker, or one task, this process."""

    workers: int

    def run(
        self,
        function: Callable[..., Any],
        tasks: Sequence[Task],
        *,
        on_done: OnDone | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        if self.workers > 1 and len(tasks) > 1:
            dispatch(_Spawned(function, self.workers), tasks, on_done, on_wait)
            return
        # One thread here too: a task's bits must not depend on whether it had a process of its own.
        with one_thread():
            for place, task in enumerate(tasks):
                with _calling(on_wait):
                    result = function(*task.arguments)
                if on_done:
                    on_done(place, result)


# --- handing tasks to workers that may die ---


@dataclass(frozen=True)
class Died:
    """The reply of a worker that is gone."""

    why: str


class Pool(Protocol, Generic[Worker]):
    """Workers of one sort, each of which has one thing to do at a time: first to start, then the task in hand."""

    def size(self) -> int:
        """How many workers there may be now."""
        ...

    def start(self) -> Worker:
        """A worker more. It replies once it is ready."""
        ...

    def send(self, worker: Worker, arguments: tuple) -> None:
        """Hand over a task."""
        ...

    def replies(self, seconds: float) -> list[tuple[Worker, Any]]:
        """Results (`Died` among them) that come within `seconds`. Raises the error of a task."""
        ...

    def dismiss(self, worker: Worker) -> None:
        """Let a worker go that has nothing to do."""
        ...

    def close(self) -> None:
        """Stop every worker, whatever it does."""
        ...


def dispatch(
    pool: Pool[Worker], tasks: Sequence[Task], on_done: OnDone | None = None, on_wait: OnWait | None = None
) -> None:
    """Have `pool` do `tasks`, as `Executor.run` says."""
    backlog = _Backlog(tasks)
    in_hand: dict[Worker, int | None] = {}  # None: it is starting
    deaths = Counter[int | None]()
    try:
        while backlog or any(place is not None for place in in_hand.values()):
            while len(in_hand) < pool.size() and list(in_hand.values()).count(None) < len(backlog):
                in_hand[pool.start()] = None
            for worker, reply in pool.replies(SECONDS_BETWEEN_WAITS):
                place = in_hand.pop(worker)
                if isinstance(reply, Died):
                    deaths[place] += 1
                    if deaths[place] > MOST_DEATHS:
                        raise _too_many(deaths[place], None if place is None else tasks[place], reply)
                    backlog.take_back(worker, place)
                    continue
                if place is None:
                    deaths[None] = 0
                elif on_done:
                    on_done(place, reply)
                following = backlog.take(worker)
                if following is None:
                    pool.dismiss(worker)
                else:
                    in_hand[worker] = following
                    pool.send(worker, tasks[following].arguments)
            if on_wait:
                on_wait()
    finally:
        pool.close()


def _too_many(deaths: int, task: Task | None, died: Died) -> IsocostError:
    if task is None:
        return IsocostError(f"no worker starts: {deaths} died ({died.why}).")
    return IsocostError(
        f"{task.name or 'a task'}: its workers died {deaths} times ({died.why}). What was done is kept: run the same "
        "command again, with fewer --workers or a smaller engine.batch."
    )


class _Backlog:
    """Places of tasks that nobody has in hand, in order, by what they need."""

    def __init__(self, tasks: Sequence[Task]):
        self.needs = [task.needs for task in tasks]
        self.places: dict[Hashable, deque[int]] = {}
        self.loaded: dict[Hashable, Hashable] = {}  # worker -> what its latest task needed
        for place, needs in enumerate(self.needs):
            self.places.setdefault(needs, deque()).append(place)

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def take(self, worker: Hashable) -> int | None:
        """The next task for a worker: one that needs what it has loaded, else what nobody has, else what is first."""
        left = {needs: places[0] for needs, places in self.places.items() if places}
        if not left:
            self.forget(worker)
            return None
        own = self.loaded.get(worker)
        others = {needs for other, needs in self.loaded.items() if other != worker}
        chosen = own if own in left else min(left, key=lambda needs: (needs in others, left[needs]))
        self.loaded[worker] = chosen
        return self.places[chosen].popleft()

    def take_back(self, worker: Hashable, place: int | None) -> None:
        """A worker is gone, with the task in its hand if it had one."""
        self.forget(worker)
        if place is not None:
            self.places[self.needs[place]].appendleft(place)

    def forget(self, worker: Hashable) -> None:
        self.loaded.pop(worker, None)


# --- processes of this machine ---


@dataclass(eq=False)
class _Process:
    process: Any
    pipe: connection.Connection


class _Spawned:
    """A `Pool` of processes of this machine."""

    def __init__(self, function: Callable[..., Any], workers: int):
        self.function = function
        self.workers = workers
        self.context = multiprocessing.get_context("spawn")
        self.running: dict[connection.Connection, _Process] = {}

    def size(self) -> int:
        return self.workers

    def start(self) -> _Process:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.function), daemon=False)
        process.start()
        theirs.close()
        self.running[ours] = _Process(process, ours)
        return self.running[ours]

    def send(self, worker: _Process, arguments: tuple) -> None:
        with contextlib.suppress(OSError):  # it died: its next reply says so
            worker.pipe.send(arguments)

    def replies(self, seconds: float) -> list[tuple[_Process, Any]]:
        return [self._reply(self.running[pipe]) for pipe in connection.wait(list(self.running), seconds)]  # pyright: ignore[reportArgumentType]

    def _reply(self, worker: _Process) -> tuple[_Process, Any]:
        try:
            failed, reply = worker.pipe.recv()
        except (EOFError, OSError):
            self.dismiss(worker)
            return worker, Died(_end(worker.process.exitcode))
        if failed:
            raise reply
        return worker, reply

    def dismiss(self, worker: _Process) -> None:
        """Its pipe's end tells it to go."""
        del self.running[worker.pipe]
        worker.pipe.close()
        worker.process.join()

    def close(self) -> None:
        for worker in self.running.values():
            worker.process.terminate()  # training saves its state on SIGTERM
        for worker in list(self.running.values()):
            self.dismiss(worker)


def _end(code: int) -> str:
    """A process's exit code in words."""
    if code < 0:
        return f"{signal.Signals(-code).name}: out of memory?"
    return f"exit code {code}: what it wrote to stderr says why"


def _work(pipe: connection.Connection, function: Callable[..., Any]) -> None:
    """A worker's life: say that it is ready, then do what comes until nothing more does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    start_worker()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    pipe.send((False, None))
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            reply = (False, function(*arguments))
        except BaseException as error:
            if not isinstance(error, IsocostError):
                error.add_note("".join(traceback.format_tb(error.__traceback__)))  # which pickling drops
            reply = (True, error)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            pipe.send(reply)


def start_worker() -> None:
    """What a process owes to the tasks it is about to do: one thread, and memory kept."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# --- this process ---


@contextlib.contextmanager
def _calling(on_wait: OnWait | None) -> Iterator[None]:
    """Inside, a thread calls `on_wait` now and then."""
    done = threading.Event()

    def call() -> None:
        while on_wait and not done.wait(SECONDS_BETWEEN_WAITS):
            on_wait()

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    try:
        yield
    finally:
        done.set()
        caller.join()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run with one torch thread, as workers do."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
