"""Training a study's own encoders, a process each, and how far they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from isocost.encoders.own import images_seen, images_to_see, train_own
from isocost.specs import DataSource
from isocost.study.executors import Executor, Task


def train_encoders(
    kinds: Sequence[str],
    source: DataSource,
    folder: Path,
    executor: Executor,
    progress: Callable[[str, float, float, str], None],
) -> None:
    """Train what is not trained yet of a source's own encoders, each into `folder`/KIND. Raises as `train_own`."""
    asked = source.encoder_training
    wanted = {kind: images_to_see(kind, asked) for kind in kinds} if asked else {}

    def report(*_: object) -> None:
        seen = {kind: images_seen(folder / kind) for kind in wanted}
        notes = [f"{kind} {seen[kind] / wanted[kind]:.0%}" for kind in wanted]
        progress("train encoders", sum(seen.values()), sum(wanted.values()), ", ".join(notes))

    report()
    tasks = [Task((kind, source, folder / kind), f"training of the {kind}") for kind in kinds]
    executor.run(train_own, tasks, on_done=report, on_wait=report)
