"""Members trained by several ranks: rank 0 does the study, and the others take part in each training it calls for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocost.encoders.live import open_data
from isocost.errors import IsocostError
from isocost.models.cost import objective_flops
from isocost.runlog import images_per_second
from isocost.specs import TrainSpec
from isocost.study.grid import Run
from isocost.study.superres import start_folder
from isocost.training import loop
from isocost.training.parallel import ALONE, PLAIN, Layout, Ranks
from isocost.utilisation import matmul_peak


@dataclass(frozen=True)
class Training:
    """How members are trained, beside what their specs say. Results are the same, up to rounding.

    Fields as the arguments of `isocost.training.loop.train`; `ranks` says the device, too.
    """

    ranks: Ranks = ALONE
    layout: Layout = PLAIN
    save_aside: bool = False
    threads: int = 1


AS_SPECIFIED = Training()


def train_member(spec: TrainSpec, data: Path, folder: Path, training: Training) -> None:
    """Train a member in this process, or as one of the ranks that do it together."""
    how = training
    opened: Any = how.ranks.together(lambda: open_data(data, how.ranks.device))
    loop.train(
        spec,
        opened,
        folder,
        device=how.ranks.device,
        locate=lambda ref: start_folder(folder.parents[1], ref),
        ranks=how.ranks,
        layout=how.layout,
        save_aside=how.save_aside,
        threads=how.threads,
    )


def train_together(spec: TrainSpec, data: Path, folder: Path, training: Training) -> None:
    """On rank 0: call the other ranks, and train a member with them."""
    training.ranks.first(lambda: (spec, data, folder))
    train_member(spec, data, folder, training)


def speed_of(runs: Sequence[Run], folders: Sequence[Path], seen: Sequence[int], training: Training) -> list[str]:
    """Images a second of the runs at work, together, and their MFU; empty before their second step.

    MFU is of as many processes and threads as are at work, each at `matmul_peak`.
    """
    rates = [
        (run.spec, images_per_second(folder))
        for run, folder, count in zip(runs, folders, seen, strict=True)
        if count < run.spec.images
    ]
    rates = [(spec, rate) for spec, rate in rates if rate]
    if not rates:
        return []
    shares = [rate * _flops(spec) / matmul_peak(training.ranks.device, spec.precision) for spec, rate in rates]
    mfu = sum(shares) / (len(shares) * training.ranks.world * training.threads)
    return [f"{sum(rate for _, rate in rates):,.0f} images/s, MFU {mfu:.0%}"]


def _flops(spec: TrainSpec) -> int:
    """Of training on an image once."""
    return objective_flops(spec.model, spec, spec.data.latent_shape[1], spec.data.context_shape[0])


@contextmanager
def leading(ranks: Ranks) -> Iterator[None]:
    """On rank 0, around a study: when it ends, the other ranks may go."""
    try:
        yield
    except (IsocostError, SystemExit):
        ranks.first(lambda: None)
        raise
    ranks.first(lambda: None)


def follow(training: Training) -> None:
    """On every other rank: take part in each training, until rank 0 says that it was the last.

    An error of a training, or a signal to stop, is every rank's: it is raised here too, once rank 0 has ended.
    """
    ended: BaseException | None = None
    while (called := training.ranks.first(_nothing)) is not None:
        try:
            train_member(*called, training)  # pyright: ignore[reportCallIssue]
        except (IsocostError, SystemExit) as error:
            ended = error
    if ended is not None:
        raise ended


def _nothing() -> Any:
    """What a rank says that is not asked."""
