"""Training images a second beside diffusers' train_text_to_image: same member, global batch, latents and cores.

    python benchmarks/training.py                    every micro member; the headline is the median of their ratios
    python benchmarks/training.py --widths 16        of some members
    python benchmarks/training.py --changes          and what each change brings: all of them, and all but one
    python benchmarks/training.py --tuned            the other side keeps freed memory too

Both sides start from encoded latents and text embeddings and do all that a step does: data, noise, forward, backward,
clipping, AdamW, learning rate, EMA. The other side is the training step of diffusers' example script at its defaults,
on `DDPMScheduler` and `EMAModel`, without the encoders (it encodes every image at every step, which is left out in its
favour) and without caption dropout, which it does not have; one process with a thread a core, and malloc as it is.
Our side is what `torchrun --nproc-per-node CORES -m isocost train` does: a process a core, which splits each batch.
That losses agree is held by tests (tests/training/test_parallel.py, test_lean.py). Turns alternate, seconds are the
wall's, and ratios are medians over turns. Keep the machine quiet meanwhile.

`side by side` is how a study trains its members: one to a core, each with the whole batch, beside the other side's
training them one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from isocost.allocator import keep_freed_memory
from isocost.diffusion.denoiser import from_unet
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import precompute
from isocost.environment import environment
from isocost.models.cost import training_flops
from isocost.models.ladder import ladder
from isocost.specs import DataSource, TrainSpec
from isocost.training import lean, loop
from isocost.training.parallel import torchrun_ranks
from isocost.utilisation import matmul_peak

CORES = environment()["cores"]
WIDTHS = [model.width for model in ladder("micro").members]
CHANGES = ("a process a core", "lean forward", "2x2 convolutions as products", "fused AdamW", "freed memory kept")


class AnyLatents:
    """Stands for an autoencoder: numbers of the right shape and scale cost a training step as much as real latents."""

    digest = "any"

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(images), 4, 8, 8), dtype=np.float32)


class AnyContexts:
    digest = "any"

    def encode(self, captions: list[str]) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(captions), 32, 64), dtype=np.float32)


@dataclass(frozen=True)
class Task:
    """What is trained, on which data, and of our side without which of `CHANGES`."""

    width: int
    batch: int
    folder: Path
    without: str = ""

    @property
    def spec(self) -> TrainSpec:
        member = next(model for model in ladder("micro").members if model.width == self.width)
        data = LatentShards(self.folder)
        return TrainSpec(
            model=member, data=data.spec, images=self.batch * 10_000, batch=self.batch, caption_dropout=0.1
        )


Side = Callable[[int], float]
"""Steps to do -> seconds that they took."""


# ------------------------------------------------------------------------------------------------------------- theirs


def theirs(task: Task) -> Side:
    """The inner loop of diffusers' examples/text_to_image/train_text_to_image.py, on precomputed latents."""
    spec, data = task.spec, LatentShards(task.folder)
    unet = loop.start(spec).module.to(memory_format=torch.contiguous_format)  # pyright: ignore
    ema = EMAModel(unet.parameters())
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    chosen = spec.optimizer
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=chosen.lr,
        betas=(chosen.beta1, chosen.beta2),
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
    )
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=spec.images // spec.batch)
    every = range(len(data))
    dataset = TensorDataset(torch.from_numpy(data.latents(every)), torch.from_numpy(data.contexts(every)))
    batches = endless(DataLoader(dataset, batch_size=spec.batch, shuffle=True))

    def step() -> None:
        latents, contexts = next(batches)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),)).long()
        noisy = schedule.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
        target = schedule.get_velocity(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
        output = unet(noisy, timesteps, contexts, return_dict=False)[0]
        loss = functional.mse_loss(output.float(), target.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), spec.clip or float("inf"))
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        loss.item()

    return timed(step)


def endless(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


def timed(step: Callable[[], Any]) -> Side:
    def side(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - begun

    return side


# --------------------------------------------------------------------------------------------------------------- ours


@contextlib.contextmanager
def ours(task: Task, world: int = CORES, threads: int = 1, alone: bool = False) -> Iterator[Side]:
    """`world` processes of `threads` threads that split each batch; `alone`: each trains a member of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whom = [task.width, task.batch, task.folder, task.without]
    command = [sys.executable, __file__, "--rank", json.dumps([*map(str, whom)])]
    several = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(world):
        own = {} if alone or world == 1 else {"RANK": str(rank), "LOCAL_RANK": str(rank), **several}
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), **own}
        ranks.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        yield lambda steps: ask(ranks, steps)
    finally:
        for rank in ranks:
            rank.communicate("")  # the end of its orders


def ask(ranks: Sequence[subprocess.Popen], steps: int) -> float:
    """Seconds until all have done their steps."""
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write(f"{steps}\n")
        rank.stdin.flush()
    return max(float(rank.stdout.readline()) for rank in ranks if rank.stdout is not None)


def rank_main(width: str, batch: str, folder: str, without: str) -> None:
    """One of our processes: for each number on stdin it does so many steps, and prints the seconds."""
    task = Task(int(width), int(batch), Path(folder), without)
    if without != "freed memory kept":
        keep_freed_memory()
    spec, data = task.spec, LatentShards(task.folder)
    with torchrun_ranks("cpu") as ranks:
        state = loop.start(spec, ranks=ranks)
        if without == "lean forward":
            state.module.to(memory_format=torch.contiguous_format)  # pyright: ignore
            state.network = from_unet(state.module)  # pyright: ignore
        if without == "2x2 convolutions as products":
            lean.convolution = lambda conv, x: conv(x)
        if without == "fused AdamW":
            for group in state.optimizer.param_groups:
                group["fused"] = False
            state.optimizer.defaults["fused"] = False
        side = timed(lambda: loop.step(state, spec, data, task.folder, ranks))
        for line in sys.stdin:
            print(side(int(line)), flush=True)


# ---------------------------------------------------------------------------------------------------------- comparing


def compare(sides: dict[str, Side], seconds: float, turns: int) -> tuple[int, dict[str, list[float]]]:
    """Steps a turn, about `seconds` of the first side's, and seconds of each side's turns."""
    for side in sides.values():
        side(2)  # warms up
    steps = max(1, round(seconds / next(iter(sides.values()))(1)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(side(steps))
            time.sleep(0.3)  # threads of the side before may still spin
    return steps, found


def headline(task: Task, seconds: float, turns: int) -> dict[str, Any]:
    with ours(task) as together, ours(task, alone=True) as apart:
        sides = {"theirs": theirs(task), "ours": together, "side by side": apart}
        steps, found = compare(sides, seconds, turns)
    ratios = [there / here for there, here in zip(found["theirs"], found["ours"], strict=True)]
    apart_ratios = [CORES * there / here for there, here in zip(found["theirs"], found["side by side"], strict=True)]
    speeds = {name: task.batch * steps / statistics.median(turns) for name, turns in found.items()}
    speeds["side by side"] *= CORES
    flops = training_flops(task.spec.model, 8, 32)
    torch.set_num_threads(1)
    mfu = {name: speed * flops / (CORES * matmul_peak()) for name, speed in speeds.items()}
    torch.set_num_threads(CORES)
    shown = ", ".join(f"{name} {speed:.0f} images/s" for name, speed in speeds.items())
    print(f"c{task.width}: {shown}, {statistics.median(ratios):.2f} times", file=sys.stderr, flush=True)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "slowest turn": round(min(ratios), 3),
        "fastest turn": round(max(ratios), 3),
        "side by side": round(statistics.median(apart_ratios), 3),
        "images_per_core_second": {name: round(speed / CORES, 1) for name, speed in speeds.items()},
        "mfu": {name: round(share, 3) for name, share in mfu.items()},
    }


def changes(task: Task, seconds: float, turns: int) -> dict[str, float]:
    """Times the other side's speed: with every change, and with all but one."""
    with contextlib.ExitStack() as held:
        sides: dict[str, Side] = {"theirs": theirs(task), "all": held.enter_context(ours(task))}
        one = {"world": 1, "threads": CORES}
        for change in CHANGES:
            how = one if change == "a process a core" else {}
            sides[f"all but: {change}"] = held.enter_context(ours(replace(task, without=change), **how))
        _, found = compare(sides, seconds, turns)
    return {
        name: round(statistics.median(b / o for b, o in zip(found["theirs"], seconds, strict=True)), 3)
        for name, seconds in found.items()
        if name != "theirs"
    }


def measure(
    widths: Sequence[int] = WIDTHS,
    batch: int = 128,
    seconds: float = 1.5,
    repeats: int = 7,
    with_changes: bool = False,
    tuned: bool = False,
) -> dict[str, Any]:
    """The benchmark's result; its headline `ratio` is the median over members."""
    torch.set_num_threads(CORES)
    if tuned:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        precompute(DataSource(images=4096), AnyLatents(), AnyContexts(), folder)
        tasks = [Task(width, batch, folder) for width in widths]
        members = {f"c{task.width}": headline(task, seconds, repeats) for task in tasks}
        brought = {f"c{task.width}": changes(task, seconds, repeats) for task in tasks if with_changes}
    ratios = {name: found["ratio"] for name, found in members.items()}
    middle = members[sorted(ratios, key=lambda name: ratios[name])[len(ratios) // 2]]
    return {
        "name": f"training: micro {', '.join(members)}, batch {batch}, {CORES} cores, fp32",
        "ratio": round(statistics.median(ratios.values()), 3),
        "ratios": ratios,
        "images_per_core_second": middle["images_per_core_second"],
        "baseline": "diffusers train_text_to_image step: DDPMScheduler, AdamW, EMAModel; latents precomputed"
        + ("; keeps freed memory" if tuned else ""),
        "members": members,
        "changes": brought or None,
        "device": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=lambda text: [int(part) for part in text.split(",")], default=WIDTHS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=1.5, help="a turn of the other side's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--changes", action="store_true")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank_main(*json.loads(args.rank))
        return
    print(json.dumps(measure(args.widths, args.batch, args.seconds, args.repeats, args.changes, args.tuned)))


if __name__ == "__main__":
    main()
