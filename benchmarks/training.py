"""Training images a second beside diffusers' train_text_to_image: same members, global batch, latents and cores.

    python benchmarks/training.py                           every micro member
    python benchmarks/training.py --widths 16,48 --repeats 3    some members, in less time
    python benchmarks/training.py --changes                 and what each change brings: all of them, and all but one
    python benchmarks/training.py --tuned                   the other side keeps freed memory too

Both sides start from encoded latents and text embeddings and do all that a step does: data, noise, forward, backward,
clipping, AdamW, learning rate, EMA. The other side is the training step of diffusers' example script at its defaults,
on `DDPMScheduler` and `EMAModel`, without the encoders (it encodes every image at every step, which is left out in its
favour) and without caption dropout, which it does not have; malloc as it is. Ours is what `isocost train` does at its
defaults. That losses agree is held by tests (tests/training/test_threads.py, test_parallel.py, test_lean.py).

The headline, `ratio`, is of a family, by `isocost train STUDY`: members side by side, a process and a thread each,
beside the script, which trains them one after the other with all cores. `ratios` has it, and two more:

    one member            ours alone with all cores (threads that share its batch), the script with all cores
    script side by side   ours side by side, and as many scripts side by side, a thread each

Each is the median over members of the median over turns, which alternate; seconds are the wall's. A member stands
beside itself, so that both cores do equal work. `family` is the time of all members together, largest first onto the
next free core, from the same seconds. Keep the machine quiet meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
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
from isocost.specs import DataSource, ModelSpec, TrainSpec
from isocost.training import lean, loop
from isocost.training.parallel import Ranks, torchrun_ranks
from isocost.training.threads import Threads
from isocost.utilisation import matmul_peak

CORES = environment()["cores"]
WIDTHS = [model.width for model in ladder("micro").members]
CHANGES = (
    "lean forward",
    "2x2 convolutions as products",
    "gradients in one tensor",
    "fused AdamW",
    "freed memory kept",
)


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
    """What is trained, on which data."""

    width: int
    batch: int
    folder: Path

    @property
    def model(self) -> ModelSpec:
        return next(model for model in ladder("micro").members if model.width == self.width)

    @property
    def spec(self) -> TrainSpec:
        data, images = LatentShards(self.folder).spec, self.batch * 10_000
        return TrainSpec(model=self.model, data=data, images=images, batch=self.batch, caption_dropout=0.1)


Side = Callable[[int, int], float]
"""(width, steps to do) -> seconds until they are done."""
Stepping = Callable[[int], float]
"""The same, of one member in this process."""


# ------------------------------------------------------------------------------------------------------------- theirs


def theirs(task: Task) -> Stepping:
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


def timed(step: Callable[[], Any]) -> Stepping:
    def side(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - begun

    return side


# --------------------------------------------------------------------------------------------------------------- ours


def ours(task: Task, without: str, threads: int, ranks: Ranks) -> Stepping:
    """What `isocost train` does; `without` one of `CHANGES`."""
    spec, data = task.spec, LatentShards(task.folder)
    state = loop.start(spec, ranks=ranks)
    if without == "lean forward":
        state.module.to(memory_format=torch.contiguous_format)  # pyright: ignore
        state.network = from_unet(state.module)  # pyright: ignore
    if without == "fused AdamW":
        for group in state.optimizer.param_groups:
            group["fused"] = False
        state.optimizer.defaults["fused"] = False
    one = without == "gradients in one tensor"
    sharing = None if one else Threads(state.module, threads)
    return timed(lambda: loop.step(state, spec, data, task.folder, ranks, sharing))


# ---------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Way:
    """How some members are trained: by `processes` of `threads` each.

    openmp: torch's own threads inside each operation, where `threads` are ours. ranks: the processes share a batch, as
    torchrun's do; otherwise each has a member of its own.
    """

    who: str = "ours"
    processes: int = 1
    threads: int = 1
    openmp: int = 1
    ranks: bool = False
    without: str = ""


SCRIPT = Way("theirs", openmp=CORES)
SIDE_BY_SIDE = Way(processes=CORES)
ONE_MEMBER = Way(threads=CORES)
SCRIPTS = Way("theirs", processes=CORES)
WAYS = {"script": SCRIPT, "side by side": SIDE_BY_SIDE, "one member": ONE_MEMBER, "script side by side": SCRIPTS}
RATIOS = ("side by side", "one member", "script side by side")
"""What they are of is said above."""


@contextlib.contextmanager
def started(way: Way, batch: int, folder: Path, tuned: bool) -> Iterator[Side]:
    """Processes that train a member for some steps each time they are asked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, so that none has to import anything: this process has not computed anything in several threads.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pipes = []
    for rank in range(way.processes):
        here, there = context.Pipe()
        context.Process(target=process_main, args=(way, batch, folder, tuned, rank, port, there), daemon=True).start()
        pipes.append(here)
    yield lambda width, steps: ask(pipes, width, steps)
    for pipe in pipes:
        pipe.send(None)


def ask(pipes: Sequence[Connection], width: int, steps: int) -> float:
    """Seconds until all have done their steps."""
    for pipe in pipes:
        pipe.send((width, steps))
    return max(pipe.recv() for pipe in pipes)


def process_main(way: Way, batch: int, folder: Path, tuned: bool, rank: int, port: int, pipe: Connection) -> None:
    """For each width and number that come, train that member for so many steps, and answer with the seconds."""
    torch.set_num_threads(way.openmp)
    if tuned or (way.who == "ours" and way.without != "freed memory kept"):
        keep_freed_memory()
    if way.without == "2x2 convolutions as products":
        lean.convolution = lambda conv, x: conv(x)
    if way.ranks:
        of_all = {"WORLD_SIZE": str(way.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), **of_all})
    with torchrun_ranks("cpu") as ranks:
        members: dict[int, Stepping] = {}
        while (told := pipe.recv()) is not None:
            width, steps = told
            if width not in members:
                task = Task(width, batch, folder)
                script = way.who == "theirs"
                members = {width: theirs(task) if script else ours(task, way.without, way.threads, ranks)}
            pipe.send(members[width](steps))


# ---------------------------------------------------------------------------------------------------------- comparing


def compare(sides: dict[str, Side], width: int, seconds: float, turns: int) -> dict[str, list[float]]:
    """Seconds a step of each side's turns; a turn is about `seconds` of the first side's."""
    for side in sides.values():
        side(width, 2)  # warms up
    steps = max(1, round(seconds / next(iter(sides.values()))(width, 1)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(side(width, steps) / steps)
            time.sleep(0.2)  # threads of the side before may still spin
    return found


def member(sides: dict[str, Side], width: int, batch: int, seconds: float, turns: int) -> dict[str, Any]:
    """What a member's turns say."""
    found = compare(sides, width, seconds, turns)
    pairs = {
        "side by side": ratios(found, "script", "side by side", CORES),
        "one member": ratios(found, "script", "one member"),
        "script side by side": ratios(found, "script side by side", "side by side"),
    }
    at_once = {name: WAYS[name].processes for name in found}
    step = {name: statistics.median(turns) / at_once[name] for name, turns in found.items()}
    flops = batch * training_flops(Task(width, batch, Path()).model, 8, 32) / (CORES * matmul_peak())
    shown = ", ".join(f"{name} {batch / each:.0f} images/s" for name, each in step.items())
    print(f"c{width}: {shown}; {statistics.median(pairs['side by side']):.2f} times", file=sys.stderr, flush=True)
    return {
        **{name: round(statistics.median(turns), 3) for name, turns in pairs.items()},
        "turns": {name: [round(min(turns), 3), round(max(turns), 3)] for name, turns in pairs.items()},
        "images_per_core_second": {name: round(batch / each / CORES, 1) for name, each in step.items()},
        "mfu": {name: round(flops / each, 3) for name, each in step.items()},
        "seconds": {name: round(statistics.median(turns), 4) for name, turns in found.items()},
    }


def ratios(found: dict[str, list[float]], there: str, here: str, members: int = 1) -> list[float]:
    """Of each turn; `members`: as many are trained here in the time of one there."""
    return [members * long / short for long, short in zip(found[there], found[here], strict=True)]


def family(members: dict[str, Any]) -> float:
    """How many times as long the script takes for as many steps of every member, one after the other."""
    cores = [0.0] * CORES
    for one in sorted((one["seconds"]["side by side"] for one in members.values()), reverse=True):
        cores[cores.index(min(cores))] += one
    return sum(one["seconds"]["script"] for one in members.values()) / max(cores)


def changes(widths: Sequence[int], seconds: float, turns: int, **common: Any) -> dict[str, dict[str, float]]:
    """Times the script's speed, by member: side by side with every change, and with all but one; and one member with
    all cores by other ways."""
    ways = {"script": SCRIPT, "all": SIDE_BY_SIDE}
    ways |= {f"all but: {change}": replace(SIDE_BY_SIDE, without=change) for change in CHANGES}
    ways |= {
        "one member, threads that share a batch": ONE_MEMBER,
        "one member, processes that share a batch": Way(processes=CORES, ranks=True),
        "one member, threads within operations": Way(openmp=CORES),
    }
    brought: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as held:
        sides = {name: held.enter_context(started(way, **common)) for name, way in ways.items()}
        for width in widths:
            found = compare(sides, width, seconds, turns)
            own = {name: 1 if way.ranks else way.processes for name, way in ways.items()}
            middle = {name: statistics.median(ratios(found, "script", name, own[name])) for name in ways}
            brought[f"c{width}"] = {name: round(ratio, 3) for name, ratio in middle.items() if name != "script"}
    return brought


def measure(
    widths: Sequence[int] = WIDTHS,
    batch: int = 128,
    seconds: float = 1.5,
    repeats: int = 7,
    with_changes: bool = False,
    tuned: bool = False,
) -> dict[str, Any]:
    """The benchmark's result; its headline `ratio` is the median over members."""
    torch.set_num_threads(1)  # before anything is computed: see `started`
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held:
        common: dict[str, Any] = {"batch": batch, "folder": Path(name) / "data", "tuned": tuned}
        precompute(DataSource(images=4096), AnyLatents(), AnyContexts(), common["folder"])
        sides = {name: held.enter_context(started(way, **common)) for name, way in WAYS.items()}
        members = {f"c{width}": member(sides, width, batch, seconds, repeats) for width in widths}
        brought = changes(widths, seconds, repeats, **common) if with_changes else None
    middle = {name: round(statistics.median(found[name] for found in members.values()), 3) for name in RATIOS}
    return {
        "name": f"training: micro {', '.join(members)}, batch {batch}, {CORES} cores, fp32",
        "ratio": middle["side by side"],
        "ratios": middle | ({"family": round(family(members), 3)} if len(members) > CORES else {}),
        "images_per_core_second": {
            name: round(statistics.median(found["images_per_core_second"][name] for found in members.values()), 1)
            for name in WAYS
        },
        "baseline": "diffusers train_text_to_image step: DDPMScheduler, AdamW, EMAModel; latents precomputed"
        + ("; keeps freed memory" if tuned else ""),
        "members": members,
        "changes": brought,
        "device": environment(),
    }


def table(result: dict[str, Any]) -> str:
    """Scaling with width, as docs/training.md has it: images a second of the machine, and ratios."""
    rows = [
        "| member | " + " | ".join(f"{name}, images/s" for name in WAYS) + " | times " + " | times ".join(RATIOS) + " |"
    ]
    rows.append("|---" * (1 + len(WAYS) + len(RATIOS)) + "|")
    for name, found in result["members"].items():
        speeds = [f"{CORES * found['images_per_core_second'][way]:.0f}" for way in WAYS]
        spread = [
            f"{found[ratio]:.2f} ({found['turns'][ratio][0]:.2f} to {found['turns'][ratio][1]:.2f})" for ratio in RATIOS
        ]
        rows.append(f"| {' | '.join([name, *speeds, *spread])} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=lambda text: [int(part) for part in text.split(",")], default=WIDTHS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=1.5, help="a turn of the other side's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--changes", action="store_true")
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    result = measure(args.widths, args.batch, args.seconds, args.repeats, args.changes, args.tuned)
    print(table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
