"""What the ranks of test_parallel.py do. torchrun starts it: ranks.py DATA FOLDER NAME..., where each name is a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
os.environ["HF_HUB_OFFLINE"] = "1"

from conftest import tiny_spec
from isocost.encoders.latents import LatentShards
from isocost.errors import DataError, IsocostError
from isocost.study import together
from isocost.training import loop, state
from isocost.training.parallel import Layout, Ranks, torchrun_ranks

IMAGES = 400
PLAIN, FSDP = Layout(), Layout(sharding="fsdp")


class Recorded(LatentShards):
    """Latents that note who asked for which, and call `on_read` with the number of the step."""

    def __init__(self, folder: Path, on_read: Callable[[int], None] = lambda step: None):
        super().__init__(folder)
        self.asked: list[list[int]] = []
        self.on_read = on_read

    def latents(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        self.on_read(len(self.asked))
        self.asked.append([int(index) for index in indices])
        return super().latents(indices)


def spec_of(data: LatentShards, **changes: Any):
    return tiny_spec(data, **{"images": IMAGES, "checkpoints": (), "lr_schedule": {"warmup_images": 80}, **changes})


def train(ranks: Ranks, data: Recorded, folder: Path, layout: Layout = PLAIN, **options: Any) -> None:
    """Train, and leave what this rank read and how it ended beside the run."""
    changes = options.pop("changes", {})
    options.setdefault("save_every_images", IMAGES)
    ended = "whole"
    try:
        loop.train(spec_of(data, **changes), data, folder, ranks=ranks, layout=layout, **options)
    except (IsocostError, SystemExit) as error:
        ended = f"{type(error).__name__}: {error}"
    note(ranks, folder, asked=data.asked, ended=ended)


def note(ranks: Ranks, folder: Path, **found: Any) -> None:
    note_of(ranks, folder).write_text(json.dumps(found))


def note_of(ranks: Ranks, folder: Path) -> Path:
    return folder / f"rank-{ranks.rank}-of-{ranks.world}.json"


def stopping_at(step: int) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None


def on(rank: int, ranks: Ranks, action: Callable[[int], None]) -> Callable[[int], None]:
    return action if ranks.rank == rank else lambda step: None


def half(layout: Layout, step: int):
    """One rank is told to stop, in the middle of a step."""

    def run(ranks: Ranks, data: Path, folder: Path) -> None:
        train(ranks, Recorded(data, on(1, ranks, stopping_at(step))), folder, layout)

    return run


def nan(ranks: Ranks, data: Path, folder: Path) -> None:
    real = loop.OBJECTIVES["denoise"]
    calls: list[int] = []

    def broken(network, batch, settings):
        calls.append(1)
        return real(network, batch, settings) * (float("nan") if ranks.rank == 1 and len(calls) == 6 else 1)

    loop.OBJECTIVES["denoise"] = broken
    train(ranks, Recorded(data), folder, save_every_images=32)
    loop.OBJECTIVES["denoise"] = real


def full_disk(ranks: Ranks, data: Path, folder: Path) -> None:
    """Rank 1 finds no room for its shards of the second checkpoint, which are written aside."""
    from torch.distributed.checkpoint import filesystem

    real, saves = filesystem._write_item, []

    def full(*arguments, **options):
        saves.append(1)
        if ranks.rank == 1 and state_of_save["number"] == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    state_of_save = {"number": 0}
    saving = loop.Saving

    def counted(*arguments, **options):
        state_of_save["number"] += 1
        return saving(*arguments, **options)

    filesystem._write_item, loop.Saving = full, counted
    try:
        train(ranks, Recorded(data), folder, FSDP, save_every_images=16, save_aside=True, changes={"images": 64})
    finally:
        filesystem._write_item, loop.Saving = real, saving


def killed(ranks: Ranks, data: Path, folder: Path) -> None:
    """Rank 1 dies once; torchrun starts all ranks again."""

    def die(step: int) -> None:
        if step == 21 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    train(ranks, Recorded(data, on(1, ranks, die)), folder, save_every_images=64)


def shrunk(ranks: Ranks, data: Path, folder: Path) -> None:
    """Rank 1's copy of the data has a shard that has become shorter since it was indexed."""
    own = data
    if ranks.rank == 1:
        own = Path(shutil.copytree(data, folder / "copy"))
        os.truncate(own / "latents-00000.safetensors", 3000)
    try:
        together.train_member(spec_of(LatentShards(data)), own, folder / "run", together.Training(ranks))
        ended = "whole"
    except IsocostError as error:
        ended = f"{type(error).__name__}: {error}"
    note(ranks, folder, asked=[], ended=ended)


def unreadable(ranks: Ranks, data: Path, folder: Path) -> None:
    """Rank 1 finds a damaged file in the midst of training."""

    def fail(step: int) -> None:
        if step == 3:
            raise DataError("latents-00007.safetensors: damaged")

    train(ranks, Recorded(data, on(1, ranks, fail)), folder, save_every_images=16)


def told_in_a_save(ranks: Ranks, data: Path, folder: Path) -> None:
    """torchrun is told to stop while rank 0 writes a checkpoint."""
    real = state.save_file

    def slow(tensors, path):
        if not (folder / "told").exists():
            (folder / "told").touch()
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.5)
        real(tensors, path)

    state.save_file = slow
    train(ranks, Recorded(data), folder, save_every_images=160)


def whole(layout: Layout, **options: Any):
    def run(ranks: Ranks, data: Path, folder: Path) -> None:
        train(ranks, Recorded(data), folder, layout, **options)

    return run


RUNS: dict[str, Callable[[Ranks, Path, Path], None]] = {
    "plain": whole(PLAIN),
    "fsdp": whole(FSDP),
    "hsdp": whole(Layout(sharding="hsdp", shard_ranks=2, checkpoint_activations=True), changes={"images": 40}),
    "muon": whole(FSDP, changes={"images": 40, "accumulation": 2, "optimizer": {"kind": "muon", "lr": 3e-3}}),
    "half": half(PLAIN, 20),
    "half-sharded": half(FSDP, 2),
    "on": half(PLAIN, 15),
    "on-sharded": half(FSDP, 2),
    "nan": nan,
    "full-disk": full_disk,
    "shrunk": shrunk,
    "unreadable": unreadable,
    "killed": killed,
    "told-in-a-save": told_in_a_save,
}

if __name__ == "__main__":
    with torchrun_ranks("cpu") as ranks:
        for name in sys.argv[3:]:
            place, _, run = name.rpartition(":")
            folder = Path(sys.argv[2]) / (place or run)
            folder.mkdir(exist_ok=True)
            begun = time.monotonic()
            if not note_of(ranks, folder).exists():  # what was done before torchrun started us again
                RUNS[run](ranks, Path(sys.argv[1]), folder)
            if ranks.leads:
                print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)
