from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from isocost.errors import DataError, IsocostError
from isocost.study.executors import MOST_DEATHS, run_tasks


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


def always_die(folder: str, name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_or_wait(folder: str, name: str) -> None:
    if name == "bad":
        raise DataError("broken")
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once_and_reported(tmp_path, workers):
    done = []
    tasks = [(str(tmp_path), str(i)) for i in range(5)]
    run_tasks(note, tasks, workers=workers, on_done=lambda place, result: done.append((place, result)))
    assert sorted(done) == [(i, str(i)) for i in range(5)]


def linger(folder: str, name: str) -> None:
    """Work until it was seen that somebody looks on."""
    while not Path(folder, "looked").exists():
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_looked_at_while_tasks_are_at_work(tmp_path, workers):
    tasks = [(str(tmp_path), "a"), (str(tmp_path), "b")]
    run_tasks(linger, tasks, workers=workers, on_wait=(tmp_path / "looked").touch)


def test_a_killed_worker_costs_its_task_only(tmp_path):
    run_tasks(die_once, [(str(tmp_path), "a"), (str(tmp_path), "b")], workers=2)
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_workers_that_keep_dying_end_in_words(tmp_path):
    with pytest.raises(IsocostError, match=f"workers died {MOST_DEATHS + 1} times"):
        run_tasks(always_die, [(str(tmp_path), "a"), (str(tmp_path), "b")], workers=2)


def test_the_first_error_stops_the_rest(tmp_path):
    begun = time.monotonic()
    with pytest.raises(DataError, match="broken"):
        run_tasks(fail_or_wait, [(str(tmp_path), "slow"), (str(tmp_path), "bad")], workers=2)
    assert time.monotonic() - begun < 55
