"""Training logs in other people's tools. metrics.jsonl stays the truth: an adapter reads it, at the end or as it grows.

An adapter is one function and one line of `TRACKERS`. Extra `trackers` of the package installs all three tools.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from isocost.errors import SpecError, lookup
from isocost.runlog import read_log

Write = Callable[[dict[str, float], int], None]
"""(values by name, images seen)."""
Tracker = Callable[[Path, str, dict[str, Any]], AbstractContextManager[Write]]
"""(the run's folder, its name, its spec's fields)."""
PROJECT = "isocost"
SECONDS_BETWEEN_LOOKS = 1.0


@contextmanager
def tensorboard(run: Path, name: str, fields: dict[str, Any]) -> Iterator[Write]:
    """Event files in the run's folder, under tensorboard/."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard")) as writer:
        writer.add_text("spec", f"{name}: {fields}")

        def write(values: dict[str, float], images_seen: int) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, images_seen)

        yield write


@contextmanager
def wandb(run: Path, name: str, fields: dict[str, Any]) -> Iterator[Write]:
    """A run of project isocost, which is gone on with where it is known already."""
    import wandb as tool  # pyright: ignore[reportMissingImports]

    opened = tool.init(project=PROJECT, name=name, id=run.name[:32], resume="allow", config=fields)
    try:
        yield lambda values, images_seen: opened.log(values, step=images_seen)
    finally:
        opened.finish()


@contextmanager
def trackio(run: Path, name: str, fields: dict[str, Any]) -> Iterator[Write]:
    """A run of project isocost, on this machine."""
    import trackio as tool  # pyright: ignore[reportMissingImports]

    tool.init(project=PROJECT, name=f"{name}-{run.name[:8]}", config=fields)
    try:
        yield lambda values, images_seen: tool.log(values, step=images_seen)
    finally:
        tool.finish()


TRACKERS: dict[str, Tracker] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def mirror(run: Path, tracker: str, name: str, fields: dict[str, Any], until: int | None = None) -> int:
    """Copy a run's log to a tracker, and return how many lines it had.

    until: images seen at which the run ends: the log is followed until then. None: as it is now.

    Raises:
        SpecError: an unknown tracker, or one that is not installed.
        DataError: a damaged log.
    """
    adapter = lookup(TRACKERS, tracker, "tracker")
    try:
        with adapter(run, name, fields) as write:
            count, seen = 0, 0
            while True:
                for line in read_log(run):
                    if line["images_seen"] > seen:
                        seen = line["images_seen"]
                        write(scalars(line), seen)
                        count += 1
                if until is None or seen >= until:
                    return count
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except ImportError as error:
        raise SpecError(f"tracker {tracker}: {error}: pip install 'isocost[trackers]'") from None


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line, those of a list by place: `loss_by_timestep` gives loss_by_timestep/0, /1, ..."""
    found: dict[str, float] = {}
    for name, value in line.items():
        parts = (
            {f"{name}/{place}": part for place, part in enumerate(value)} if isinstance(value, list) else {name: value}
        )
        found |= {key: float(part) for key, part in parts.items() if part is not None and key != "images_seen"}
    return found
