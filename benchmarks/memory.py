"""The estimate of a training's memory beside its measured peak, for members of 83M parameters and more, on this CPU.

    python benchmarks/memory.py [--widths 96,128,160] [--latent 32] [--batch 2] [--steps 2]

Every member trains unsharded in one process, and with FSDP in two gloo processes, as `isocost train` does it. Measured
is the peak of a process's resident memory from building the model to the last step, less what stood after imports and
the group's start; of several ranks the largest. An unsharded run keeps what it frees, so that its peak has holes of
the heap in it, which the estimate, of live tensors, has not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from isocost.allocator import keep_freed_memory
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import precompute
from isocost.environment import environment
from isocost.models.cost import parameters
from isocost.models.ladder import ladder
from isocost.models.memory import Spread, training_memory
from isocost.specs import DataSource, ModelSpec, TrainSpec
from isocost.training import loop
from isocost.training.parallel import Layout, torchrun_ranks

SHARDINGS = {"none": 1, "fsdp": 2}  # and ranks
CONTEXT_LENGTH = 77


class AnyLatents:
    """Stands for an autoencoder: numbers of the right shape take as much memory as real latents."""

    digest = "any"

    def __init__(self, side: int):
        self.side = side

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(images), 4, self.side, self.side), dtype=np.float32)


class AnyContexts:
    digest = "any"

    def __init__(self, width: int):
        self.width = width

    def encode(self, captions: list[str]) -> np.ndarray:
        return np.zeros((len(captions), CONTEXT_LENGTH, self.width), np.float32)


def resident(what: str) -> int:
    """Bytes: VmRSS, resident now, or VmHWM, the most since the last reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(what)))


def child(width: int, batch: int, steps: int, sharding: Any, folder: Path) -> None:
    """Train some steps as one rank, and leave the peak beside the data."""
    keep_freed_memory()
    with torchrun_ranks("cpu") as ranks:
        data = LatentShards(folder / "data")
        total = batch * ranks.world
        spec = TrainSpec(model=member(width), data=data.spec, images=total * 1000, batch=total, caption_dropout=0.1)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        state = loop.start(spec, ranks=ranks, layout=Layout(sharding))
        for _ in range(steps):
            loop.step(state, spec, data, folder, ranks)
        (folder / f"peak-{ranks.rank}").write_text(str(resident("VmHWM") - before))


def member(width: int) -> ModelSpec:
    return next(model for model in ladder("sd").members if model.width == width)


def measured(width: int, latent: int, batch: int, steps: int, sharding: str) -> int:
    """Bytes of the largest rank."""
    with tempfile.TemporaryDirectory() as name:
        folder, world = Path(name), SHARDINGS[sharding]
        precompute(DataSource(images=64), AnyLatents(latent), AnyContexts(member(width).context_dim), folder / "data")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        arguments = [f"--{key}={value}" for key, value in (("widths", width), ("batch", batch), ("steps", steps))]
        subprocess.run(
            [*launcher, __file__, *arguments, f"--child={sharding}", f"--folder={folder}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
        return max(int((folder / f"peak-{rank}").read_text()) for rank in range(world))


def compare(width: int, latent: int, batch: int, steps: int, sharding: Any) -> dict[str, Any]:
    peak = measured(width, latent, batch, steps, sharding)
    spread = Spread(sharding, SHARDINGS[sharding])
    estimate = training_memory(member(width), latent, CONTEXT_LENGTH, batch, spread=spread).total
    row = {
        "member": f"sd {member(width).name}",
        "parameters": parameters(member(width)),
        "sharding": sharding,
        "ranks": SHARDINGS[sharding],
        "measured_gb": round(peak / 1e9, 3),
        "estimated_gb": round(estimate / 1e9, 3),
        "estimate_over_measured": round(estimate / peak, 3),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="96,128,160")
    for name, default in (("latent", 32), ("batch", 2), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(int(args.widths), args.batch, args.steps, args.child, args.folder)
        return
    widths = [int(width) for width in args.widths.split(",")]
    rows = [compare(width, args.latent, args.batch, args.steps, name) for width in widths for name in SHARDINGS]
    worst = max((row["estimate_over_measured"] for row in rows), key=lambda ratio: abs(ratio - 1))
    print(
        json.dumps(
            {
                "name": f"memory: estimate over measured peak, latents {args.latent}, {args.batch} images a rank",
                "ratio": worst,
                "rows": rows,
                "device": environment(),
            }
        )
    )


if __name__ == "__main__":
    main()
