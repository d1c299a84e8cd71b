"""metrics.jsonl, the log of a training run: a line a step, by which any other process sees how far the run is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from isocost.errors import DataError, TrainingError
from isocost.files import atomic_write

NAME = "metrics.jsonl"
SESSIONS = "sessions.jsonl"
TAIL_BYTES = 4096  # some lines


class Log:
    """The log of the run in a folder, open for appending. A line holds `images_seen`, `seconds` and what else is told.

    `seconds`: of training, up to the line that the run goes on from.
    """

    def __init__(self, run: Path, images_seen: int):
        """Lines past `images_seen` are cut off: the run that resumes there writes them again."""
        self._path = run / NAME
        lines = [line for line in read_log(run) if line["images_seen"] <= images_seen]
        with atomic_write(self._path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self.seconds: float = lines[-1]["seconds"] if lines else 0.0
        self._file = self._path.open("ab", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        """Raises `TrainingError` when the disk is full."""
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def sync(self) -> None:
        """Before a state is saved, so that no state is ahead of the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def note_session(run: Path, images_seen: int, how: dict[str, Any]) -> None:
    """Add a line to sessions.jsonl: how a run was begun, or gone on with, at so many images seen.

    Raises `TrainingError` when the disk is full.
    """
    path = run / SESSIONS
    try:
        with path.open("a") as file:
            file.write(json.dumps({"images_seen": images_seen, **how}) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{path}: cannot be written: {error}; make room and run again")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that was cut short by a kill does not count."""
    path = run / NAME
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}; delete it to go on without the log so far") from None


def images_seen(run: str | Path) -> int:
    """How far a run is, from the end of its log, which another process may be writing; 0 where it has not begun."""
    lines = _last_lines(Path(run))
    return int(lines[-1]["images_seen"]) if lines else 0


def images_per_second(run: str | Path) -> float:
    """A run's speed of late; 0 where it has not begun."""
    lines = _last_lines(Path(run))
    first, last = (lines[0], lines[-1]) if lines else ({"images_seen": 0, "seconds": 0.0},) * 2
    seconds = last["seconds"] - first["seconds"]
    return (last["images_seen"] - first["images_seen"]) / seconds if seconds > 0 else 0.0


def _last_lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines at the end of a run's log."""
    try:
        file = (run / NAME).open("rb")
    except FileNotFoundError:
        return []
    with file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]
