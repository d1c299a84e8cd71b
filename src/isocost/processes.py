"""What a process that works for hours owes to others: to hold its folder alone, and to stop when it is asked to."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isocost.errors import TrainingError


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Hold a training's folder against a second process; the system lets go when this one dies, however it dies.

    Raises `TrainingError` where another process holds it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"{folder}: another process is training here: wait for it, or stop it") from None
        yield


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives the first SIGTERM or SIGINT; the second acts as it always does."""
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
        restore()

    for number in before:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        restore()
