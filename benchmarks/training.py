"""Training images per core-second of our loop beside diffusers' train_text_to_image: same member, batch and latents.

    python benchmarks/training.py [--width 16] [--batch 128] [--steps 4] [--repeats 7]

Both sides start from encoded latents and text embeddings on disk or in memory and do all that a step does: data, noise,
forward, backward, clipping, AdamW, learning rate, EMA. The other side is the training step of diffusers' example script
at its defaults, on `DDPMScheduler` and `EMAModel`, without the encoders (it encodes every image at every step, which is
left out in its favour) and without caption dropout, which it does not have. One thread each, CPU seconds of the
process, rounds interleaved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
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
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import precompute
from isocost.environment import environment
from isocost.models.ladder import ladder
from isocost.specs import DataSource, TrainSpec
from isocost.training import loop


class AnyLatents:
    """Stands for an autoencoder: numbers of the right shape and scale cost a training step as much as real latents."""

    digest = "any"

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(images), 4, 8, 8), dtype=np.float32)


class AnyContexts:
    digest = "any"

    def encode(self, captions: list[str]) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(captions), 32, 64), dtype=np.float32)


def ours(spec: TrainSpec, data: LatentShards, folder: Path) -> Callable[[], None]:
    state = loop.start(spec)
    return lambda: void(loop.step(state, spec, data, folder))


def theirs(spec: TrainSpec, data: LatentShards) -> Callable[[], None]:
    """The inner loop of diffusers' examples/text_to_image/train_text_to_image.py, on precomputed latents."""
    unet = loop.start(spec).module
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

    return step


def endless(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


def void(_: object) -> None:
    pass


def seconds(step: Callable[[], None], steps: int) -> float:
    begun = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 16), ("batch", 128), ("steps", 4), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(json.dumps(measure(args.width, args.batch, args.steps, args.repeats)))


def measure(width: int = 16, batch: int = 128, steps: int = 4, repeats: int = 7) -> dict[str, Any]:
    """The benchmark's result; prints its rounds on the way."""
    torch.set_num_threads(1)
    keep_freed_memory()
    member = next(model for model in ladder("micro").members if model.width == width)

    with tempfile.TemporaryDirectory() as folder:
        data = precompute(DataSource(images=4096), AnyLatents(), AnyContexts(), Path(folder) / "data")
        spec = TrainSpec(model=member, data=data.spec, images=batch * 10_000, batch=batch, caption_dropout=0.1)
        sides = {"isocost": ours(spec, data, Path(folder)), "diffusers": theirs(spec, data)}
        for step in sides.values():
            seconds(step, 2)
        rounds = [{name: seconds(step, steps) for name, step in sides.items()} for _ in range(repeats)]

    speeds = {
        name: statistics.median(batch * steps / spent[name] for spent in rounds) for name in ("isocost", "diffusers")
    }
    ratios = [spent["diffusers"] / spent["isocost"] for spent in rounds]
    for name, speed in speeds.items():
        print(f"{name:>10}: {speed:8.1f} images / core-second")
    return {
        "name": f"training: micro {member.name}, batch {batch}",
        "ratio": round(statistics.median(ratios), 3),
        "ratios": {"fastest round": round(max(ratios), 3), "slowest round": round(min(ratios), 3)},
        "images_per_core_second": {name: round(speed, 1) for name, speed in speeds.items()},
        "baseline": "diffusers train_text_to_image step: DDPMScheduler, AdamW, EMAModel; latents precomputed",
        "device": environment(),
    }


if __name__ == "__main__":
    main()
