"""What the parts of sampling take on this machine, warm, and from that what any plan takes.

An image is its prompt's embedding, draws of noise, what each network computes once a trajectory, network calls, and the
decoder. Each is measured by itself, at the engine's batch; whole plans are run too, and say how far the sum is off.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isocost.diffusion.denoiser import Denoiser
from isocost.diffusion.noise import batch_noise
from isocost.diffusion.plans import calls_of, noises_of
from isocost.sampling.engine import threads
from isocost.sampling.generate import Pipeline, generate
from isocost.sampling.instruments import joules_meter, seconds_of
from isocost.sampling.prices import Call, Parts, Whole, image_price
from isocost.specs import EngineSpec, SamplingPlan

SHORTEST_TURN = 0.05  # seconds: short calls are timed many at a time
ENERGY_WINDOW = 1.0  # seconds: NVML's counter moves every 20 to 100 ms


@dataclass(frozen=True)
class Timing:
    """Seconds, and joules where the GPU counts them, of each of `Parts`; and how their sum does on whole plans."""

    seconds: dict[str, float]
    joules: dict[str, float] | None
    wholes: tuple[Whole, ...]


def measure(
    pipeline: Pipeline,
    plans: Sequence[SamplingPlan],
    engine: EngineSpec,
    repeats: int = 5,
    more: Mapping[str, Callable[[], object]] | None = None,
) -> Timing:
    """Time the parts of a pipeline's images, and whole plans.

    Args:
        pipeline: of one checkpoint.
        plans: of that checkpoint. Their calls say of how many rows an image calls are timed: 1 unguided, 2 guided.
        repeats: turns, of which the medians are taken. Turns of all parts alternate, so that what else the machine
            does meets all alike; the first calls are left out.
        more: further parts, each a function that does it for a batch.
    """
    names = [f"plan/{place}" for place in range(len(plans))]
    with threads(engine.threads), torch.inference_mode():
        parts = _parts(pipeline, plans, engine) | dict(more or {})
        wholes = {name: _whole(pipeline, plan, engine) for name, plan in zip(names, plans, strict=True)}
        medians = _medians(parts | wholes, repeats, engine.device)
        joules = _joules(parts, engine)
    seconds = {name: medians[name] / engine.batch for name in parts}
    return Timing(
        seconds,
        joules,
        wholes=tuple(
            Whole(
                steps=plan.steps,
                guidance=plan.guidance.scale,
                measured=medians[name] / engine.batch,
                modelled=_modelled(plan, seconds),
            )
            for name, plan in zip(names, plans, strict=True)
        ),
    )


def work_of(plan: SamplingPlan) -> tuple[list[Call], int]:
    """What `image_price` has to know of a plan: its network calls, and its draws of noise."""
    calls = [(checkpoint.content_digest, rows, count) for (checkpoint, rows), count in calls_of(plan).items()]
    return calls, noises_of(plan)


def _modelled(plan: SamplingPlan, parts: Parts) -> float:
    calls, noises = work_of(plan)
    return image_price({who: parts for who, _, _ in calls}, calls, noises)


def _parts(pipeline: Pipeline, plans: Sequence[SamplingPlan], engine: EngineSpec) -> dict[str, Callable[[], object]]:
    """A function for each part, which does it for a whole batch."""
    network, captions = pipeline.network, _fresh_captions()
    assert not isinstance(network, Mapping)
    denoiser = Denoiser(network, plans[0].schedule, plans[0].prediction)
    context = torch.randn(engine.batch, *pipeline.text_encoder.context_shape).to(engine.device)
    latents = torch.randn(engine.batch, *pipeline.latent_shape).to(engine.device)
    ids = [(str(i), 0) for i in range(engine.batch)]
    parts: dict[str, Callable[[], object]] = {
        "text": lambda: pipeline.text_encoder.encode([next(captions) for _ in range(engine.batch)]),
        "noise": lambda: torch.from_numpy(batch_noise(ids, "x_T", pipeline.latent_shape)).to(engine.device),
        "decode": lambda: pipeline.autoencoder.decode(latents),
    }
    for rows in sorted({rows for plan in plans for _, rows in calls_of(plan)}):
        parts[f"start/{rows}"] = _start(denoiser, context, rows)
        parts[f"call/{rows}"] = _call(denoiser, context, rows, latents)
    return parts


def _start(denoiser: Denoiser, context: torch.Tensor, rows: int) -> Callable[[], object]:
    """What follows from the contexts alone."""
    return lambda: denoiser.bind(context.repeat(rows, 1, 1), rows)


def _call(denoiser: Denoiser, context: torch.Tensor, rows: int, latents: torch.Tensor) -> Callable[[], object]:
    """One call at a timestep that was met before, as all but a process's first trajectory meet them."""
    denoise = denoiser.bind(context.repeat(rows, 1, 1), rows)
    return lambda: denoise(latents, denoiser.schedule.num_train_timesteps // 2)


def _whole(pipeline: Pipeline, plan: SamplingPlan, engine: EngineSpec) -> Callable[[], np.ndarray]:
    captions = _fresh_captions()

    def run() -> np.ndarray:
        texts = [next(captions) for _ in range(engine.batch)]
        return generate(pipeline, plan, engine, [(text, text, 0) for text in texts]).images

    return run


_numbers = itertools.count()


def _fresh_captions() -> Iterator[str]:
    """Captions that no text encoder has in its cache: their number stands first, where none cuts it off."""
    return (f"{number} red circles on a blue background" for number in _numbers)


def _medians(runs: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of a call of each."""
    times = {}
    for name, run in runs.items():
        seconds_of(run, 1, device)  # compiles, allocates, fills caches
        times[name] = max(1, math.ceil(SHORTEST_TURN / seconds_of(run, 1, device)))
    turns = [
        {name: seconds_of(run, times[name], device) / times[name] for name, run in runs.items()} for _ in range(repeats)
    ]
    return {name: statistics.median(turn[name] for turn in turns) for name in runs}


def _joules(parts: Mapping[str, Callable[[], object]], engine: EngineSpec) -> dict[str, float] | None:
    """What the GPU takes while a part runs, the parts on the processor too: it idles meanwhile, at a price."""
    meter = joules_meter(engine.device)
    if meter is None:
        return None
    taken = {}
    for name, run in parts.items():
        times = max(1, math.ceil(ENERGY_WINDOW / seconds_of(run, 1, engine.device)))
        before = meter()
        seconds_of(run, times, engine.device)
        taken[name] = (meter() - before) / times / engine.batch
    return taken
