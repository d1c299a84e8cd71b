"""What a process that works for hours owes to others: to hold its folder alone, and to stop when it is asked to."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from isocost.errors import IsocostError, TrainingError

# What flock says where a file system has no locks: nothing is held then, and two processes may do the same work.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


class HeldByOthersError(IsocostError):
    """A folder that others hold. The message says which processes."""


@contextmanager
def hold(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold a folder against other processes, or with `shared` together with those that share it.

    The system lets go when this process dies, however it dies. Holders on other machines count too, where the file
    system passes locks on (NFS does).

    Raises:
        HeldByOthersError: others hold it in a way that excludes this one.
        OSError: the folder cannot be written.
    """
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise HeldByOthersError(", ".join(_may_live(lock.read().splitlines()))) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if not shared:
            lock.truncate(0)  # names of holders that are gone
        lock.write(f"pid {os.getpid()} on {platform.node()}\n")
        lock.flush()
        yield


def _may_live(holders: list[str]) -> list[str]:
    """Those of `holders`, lines of a lock's file, that are not known to be gone."""
    holders = list(dict.fromkeys(holders))
    return [line for line in holders if not line.endswith(f" on {platform.node()}") or is_alive(int(line.split()[1]))]


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Hold a training's folder against a second process. Raises `TrainingError` where another process holds it."""
    with ExitStack() as held:
        try:
            held.enter_context(hold(folder))
        except HeldByOthersError as others:
            raise TrainingError(
                f"{folder}: another process is training here ({others}): wait for it, or stop it"
            ) from None
        yield


@contextmanager
def stop_signals(patient: bool = False) -> Iterator[list[int]]:
    """A list that receives the first SIGTERM or SIGINT; the second acts as it always does.

    patient: the list receives all of them. For ranks, which a scheduler and torchrun may both tell the same.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        if not patient:
            restore()

    for number in before:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        restore()
