"""metrics.jsonl, the log of a training run: a line a step, by which any other process sees how far the run is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from isocost.errors import DataError, TrainingError
from isocost.files import atomic_write

NAME = "metrics.jsonl"
TAIL_BYTES = 4096  # more than a line


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
            raise TrainingError(f"{self._path}: cannot be written: {error}; make room and run again") from None

    def sync(self) -> None:
        """Before a state is saved, so that no state is ahead of the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


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
    try:
        file = (Path(run) / NAME).open("rb")
    except FileNotFoundError:
        return 0
    with file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        whole_lines = file.read().split(b"\n")[:-1]
    return int(json.loads(whole_lines[-1])["images_seen"]) if whole_lines else 0
