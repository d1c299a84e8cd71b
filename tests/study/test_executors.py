from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from isocost.errors import DataError, IsocostError
from isocost.study.executors import MOST_DEATHS, Died, Processes, Task, dispatch


def run(function, tasks, workers: int, **options) -> None:
    Processes(workers).run(function, [Task(task, f"task {place}") for place, task in enumerate(tasks)], **options)


def note(folder: str, name: str) -> str:
    Path(folder, name).touch()
    return name


def die_once(folder: str, name: str) -> None:
    """Be killed the first time, succeed the next."""
    try:
        Path(folder, f"{name}.tried").touch(exist_ok=False)
    except FileExistsError:
        Path(folder, name).touch()
        return
    os.kill(os.getpid(), signal.SIGKILL)


def fail_or_wait(folder: str, name: str) -> None:
    if name == "bad":
        raise DataError("broken")
    time.sleep(60)


def own_error(folder: str, name: str) -> None:
    raise KeyError(name)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once_and_reported(tmp_path, workers):
    done = []
    tasks = [(str(tmp_path), str(i)) for i in range(5)]
    run(note, tasks, workers, on_done=lambda place, result: done.append((place, result)))
    assert sorted(done) == [(i, str(i)) for i in range(5)]


def linger(folder: str, name: str) -> None:
    """Work until it was seen that somebody looks on."""
    while not Path(folder, "looked").exists():
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_looked_at_while_tasks_are_at_work(tmp_path, workers):
    run(linger, [(str(tmp_path), "a"), (str(tmp_path), "b")], workers, on_wait=(tmp_path / "looked").touch)


def test_a_killed_worker_costs_its_task_only(tmp_path):
    run(die_once, [(str(tmp_path), "a"), (str(tmp_path), "b")], 2)
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_the_first_error_stops_the_rest(tmp_path):
    begun = time.monotonic()
    with pytest.raises(DataError, match="broken"):
        run(fail_or_wait, [(str(tmp_path), "slow"), (str(tmp_path), "bad")], 2)
    assert time.monotonic() - begun < 55


def test_an_error_of_ours_says_where_it_was_raised(tmp_path):
    with pytest.raises(KeyError, match="a") as raised:
        run(own_error, [(str(tmp_path), "a"), (str(tmp_path), "a")], 2)
    assert "in own_error" in "".join(raised.value.__notes__)


class Scripted:
    """A pool of which every task ends at once, one worker after the other; it notes who did what.

    `dies(worker, *arguments)` says whether a task kills its worker.
    """

    def __init__(self, workers: int, dies=lambda *_: False):
        self.workers, self.dies = workers, dies
        self.started, self.done, self.waiting = 0, [], []

    def size(self):
        return self.workers

    def start(self):
        self.started += 1
        self.waiting.append((self.started, None))
        return self.started

    def send(self, worker, arguments):
        self.done.append((worker, *arguments))
        self.waiting.append((worker, Died("killed") if self.dies(worker, *arguments) else None))

    def replies(self, seconds):
        return [self.waiting.pop(0)]

    def dismiss(self, worker):
        pass

    def close(self):
        pass


def test_a_worker_goes_on_with_what_it_has_loaded():
    pool = Scripted(2)
    needs = ["large", "small", "large", "small", "tiny"]
    dispatch(pool, [Task((place, what), needs=what) for place, what in enumerate(needs)])
    assert [(worker, what) for worker, _, what in pool.done] == [
        (1, "large"),
        (2, "small"),  # the largest that nobody has, not the second large one
        (1, "large"),
        (2, "small"),
        (1, "tiny"),
    ]


def test_deaths_of_many_tasks_cost_nothing_but_those_chunks():
    """Every worker dies in its second task, wherever that is: many deaths, few of one task."""
    tried = Counter()

    def dies(worker, place):
        tried[worker] += 1
        return tried[worker] == 2

    pool, done = Scripted(2, dies), []
    dispatch(pool, [Task((place,)) for place in range(40)], on_done=lambda place, _: done.append(place))
    assert sorted(done) == list(range(40))
    assert len(pool.done) > 40 + 10 * MOST_DEATHS


def test_a_task_that_kills_its_workers_is_named():
    pool = Scripted(2, lambda worker, place: place == 3)
    with pytest.raises(IsocostError, match=f"c64 8 steps: its workers died {MOST_DEATHS + 1} times"):
        dispatch(pool, [Task((place,), "c64 8 steps") for place in range(4)])
    assert {place for _, place in pool.done} == set(range(4))


def test_workers_that_do_not_start_end_in_words():
    class Broken(Scripted):
        def start(self):
            self.started += 1
            self.waiting.append((self.started, Died("no such folder")))
            return self.started

    with pytest.raises(IsocostError, match=r"no worker starts: 4 died \(no such folder\)"):
        dispatch(Broken(2), [Task(())])
