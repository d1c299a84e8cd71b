"""Doing many independent tasks: in this process, or in several with one thread each. Results go through the store."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from isocost.allocator import keep_freed_memory
from isocost.errors import IsocostError

# A worker that dies (out of memory, killed) costs the task in hand, which is done again; more deaths than this in one
# call mean that something is wrong with the machine, not with one worker.
MOST_DEATHS = 3
SECONDS_BETWEEN_WAITS = 0.5

OnWait = Callable[[], None]
OnDone = Callable[[int, Any], None]


def default_workers() -> int:
    """One process per core: faster on CPU than one process with as many threads."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def run_tasks(
    function: Callable[..., Any],
    tasks: Sequence[tuple],
    *,
    workers: int,
    on_done: OnDone | None = None,
    on_wait: OnWait | None = None,
) -> None:
    """Call `function(*task)` for every task, `workers` at a time; `on_done(place, result)` in the caller's process.

    `on_wait` is called there too, twice a second while tasks are at work (from a thread, where they are at work there).
    The first error of a task stops the rest and is raised. A worker that dies is replaced and its task done again.

    Raises:
        IsocostError: workers keep dying.
    """
    if workers <= 1 or len(tasks) <= 1:
        # One thread here too: a task's bits must not depend on whether it had a process of its own.
        with one_thread():
            for place, task in enumerate(tasks):
                with _calling(on_wait):
                    result = function(*task)
                if on_done:
                    on_done(place, result)
        return
    remaining = dict(enumerate(tasks))
    deaths = 0
    while remaining:
        try:
            _run_pool(function, remaining, workers, on_done, on_wait)
        except BrokenProcessPool:
            deaths += 1
            if deaths > MOST_DEATHS:
                raise IsocostError(
                    f"workers died {deaths} times with {len(remaining)} tasks left (out of memory?). What was done is "
                    "kept: run the same command again, with fewer --workers."
                ) from None


def _run_pool(
    function: Callable[..., Any],
    remaining: dict[int, tuple],
    workers: int,
    on_done: OnDone | None,
    on_wait: OnWait | None,
) -> None:
    """One pool's life. What it finishes leaves `remaining`."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(remaining)), mp_context=context, initializer=_start_worker)
    try:
        futures = {pool.submit(function, *task): place for place, task in remaining.items()}
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=SECONDS_BETWEEN_WAITS, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                place = futures[future]
                del remaining[place]
                if on_done:
                    on_done(place, result)
            if on_wait:
                on_wait()
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()  # training saves its state on SIGTERM
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


def _start_worker() -> None:
    """One thread; Ctrl-C is the parent's to handle; and a worker whose parent was killed goes too."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
