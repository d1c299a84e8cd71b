"""Training images a second beside diffusers' train_text_to_image: same member, global batch, latents and cores.

    python benchmarks/training.py                    the headline: data parallel, a process a core, beside one process
    python benchmarks/training.py --changes          what each change brings: all of them, and all but one
    python benchmarks/training.py --widths 8,16,24   the headline for several members

Both sides start from encoded latents and text embeddings and do all that a step does: data, noise, forward, backward,
clipping, AdamW, learning rate, EMA. The other side is the training step of diffusers' example script at its defaults,
on `DDPMScheduler` and `EMAModel`, without the encoders (it encodes every image at every step, which is left out in its
favour) and without caption dropout, which it does not have; one process with a thread a core. Our side is what
`torchrun --nproc-per-node CORES -m isocost train` does: a process a core, which splits each batch. Turns alternate,
seconds are the wall's, and ratios are medians over turns. Keep the machine quiet meanwhile.

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
from dataclasses import dataclass
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
from isocost.training import loop
from isocost.training.parallel import torchrun_ranks
from isocost.utilisation import matmul_peak

CORES = environment()["cores"]
CHANGES = ("a process a core", "lean forward", "fused AdamW", "freed memory kept")


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
        noisy = schedule.add_noise(latents, noise, timesteps)
        target = schedule.get_velocity(latents, noise, timesteps)
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
        if without == "fused AdamW":
            for group in state.optimizer.param_groups:
                group["fused"] = False
            state.optimizer.defaults["fused"] = False
        side = timed(lambda: loop.step(state, spec, data, task.folder, ranks))
        for line in sys.stdin:
            print(side(int(line)), flush=True)


# ---------------------------------------------------------------------------------------------------------- comparing


def compare(sides: dict[str, Side], steps: int, turns: int) -> dict[str, list[float]]:
    """Seconds of each side's turns; the first ones, which warm up, are left out."""
    for side in sides.values():
        side(2)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(side(steps))
            time.sleep(0.3)  # threads of the side before may still spin
    return found


def headline(width: int, batch: int, steps: int, turns: int, folder: Path) -> dict[str, Any]:
    task = Task(width, batch, folder)
    with ours(task) as together, ours(task, alone=True) as apart:
        found = compare({"theirs": theirs(task), "ours": together, "side by side": apart}, steps, turns)
    ratios = [there / here for there, here in zip(found["theirs"], found["ours"], strict=True)]
    apart_ratios = [CORES * there / here for there, here in zip(found["theirs"], found["side by side"], strict=True)]
    speeds = {name: batch * steps / statistics.median(seconds) for name, seconds in found.items()}
    speeds["side by side"] *= CORES
    flops = training_flops(task.spec.model, 8, 32)
    torch.set_num_threads(1)
    mfu = {name: speed * flops / (CORES * matmul_peak()) for name, speed in speeds.items()}
    torch.set_num_threads(CORES)
    print(f"c{width}: " + ", ".join(f"{name} {speed:.0f} images/s" for name, speed in speeds.items()), flush=True)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "slowest turn": round(min(ratios), 3),
        "fastest turn": round(max(ratios), 3),
        "side by side": round(statistics.median(apart_ratios), 3),
        "images_per_core_second": {name: round(speed / CORES, 1) for name, speed in speeds.items()},
        "mfu": {name: round(share, 3) for name, share in mfu.items()},
    }


def changes(width: int, batch: int, steps: int, turns: int, folder: Path) -> dict[str, float]:
    """Times the other side's speed: with every change, with all but one, and with none."""
    task = Task(width, batch, folder)
    with contextlib.ExitStack() as held:
        sides: dict[str, Side] = {"theirs": theirs(task), "all": held.enter_context(ours(task))}
        one = {"world": 1, "threads": CORES}
        for change in CHANGES:
            how = one if change == "a process a core" else {}
            sides[f"all but: {change}"] = held.enter_context(ours(Task(width, batch, folder, change), **how))
        found = compare(sides, steps, turns)
    return {
        name: round(statistics.median(b / o for b, o in zip(found["theirs"], seconds, strict=True)), 3)
        for name, seconds in found.items()
        if name != "theirs"
    }


def measure(width: int = 16, batch: int = 128, steps: int = 4, repeats: int = 7, **more: Any) -> dict[str, Any]:
    """The benchmark's result. more: `changes` True, or `widths`, a list of further members."""
    torch.set_num_threads(CORES)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        precompute(DataSource(images=4096), AnyLatents(), AnyContexts(), folder)
        found = headline(width, batch, steps, repeats, folder)
        spread = {name: found[name] for name in ("side by side", "slowest turn", "fastest turn")}
        result = {
            "name": f"training: micro c{width}, batch {batch}, {CORES} cores, fp32",
            "ratio": found["ratio"],
            "ratios": {"fp32": found["ratio"], **spread},
            "images_per_core_second": found["images_per_core_second"],
            "mfu": found["mfu"],
            "baseline": "diffusers train_text_to_image step: DDPMScheduler, AdamW, EMAModel; latents precomputed",
            "device": environment(),
        }
        if more.get("widths"):
            result["widths"] = {f"c{w}": headline(w, batch, steps, repeats, folder) for w in more["widths"]}
        if more.get("changes"):
            result["changes"] = changes(width, batch, steps, repeats, folder)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 16), ("batch", 128), ("steps", 4), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--changes", action="store_true")
    parser.add_argument("--widths", type=lambda text: [int(part) for part in text.split(",")], default=[])
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank_main(*json.loads(args.rank))
        return
    more = {"widths": args.widths, "changes": args.changes}
    print(json.dumps(measure(args.width, args.batch, args.steps, args.repeats, **more)))


if __name__ == "__main__":
    main()
