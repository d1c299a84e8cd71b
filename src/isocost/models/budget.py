"""What training will take, before it is started: a pure function of a member, its settings and the hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isocost.errors import SpecError
from isocost.models.cost import objective_flops, parameters
from isocost.models.memory import ALONE, Memory, Spread, training_memory
from isocost.specs import ModelSpec, TrainSettings

FULL_STATES = 2  # that a run keeps to resume from
H100_BF16_TFLOPS = 989.0  # dense, of the SXM module, as NVIDIA's data sheet gives it


@dataclass(frozen=True)
class Hardware:
    """Devices, how training is spread over them, and how fast they are assumed to be.

    mfu: model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): the share of peak_tflops that goes into the
    model's own FLOPs; recomputed activations do not count, and lower it. peak_tflops: of one device, in the precision
    of the training.
    """

    spread: Spread = ALONE
    mfu: float = 0.4
    peak_tflops: float = H100_BF16_TFLOPS


@dataclass(frozen=True)
class TrainingCost:
    """One member's training at one seed. Bytes and FLOPs are whole numbers; memory is of one device.

    flops_per_step: of a whole batch, forward and backward. state_bytes: a checkpoint that can be resumed from (weights,
    EMA, moments). ema_bytes: one that can be sampled from. disk_bytes: all that a finished run leaves.
    """

    member: str
    parameters: int
    images: int
    steps: int
    flops_per_step: int
    flops: int
    micro_batch: int
    memory: Memory
    gpu_hours: float
    days: float
    state_bytes: int
    ema_bytes: int
    disk_bytes: int


def training_cost(
    model: ModelSpec, settings: TrainSettings, latent_size: int, context_length: int, hardware: Hardware
) -> TrainingCost:
    """What training `model` takes. Raises `SpecError` where the batch does not split over the devices."""
    spread = hardware.spread
    check_split(settings, hardware)
    micro_batch = settings.batch // (spread.ranks * settings.accumulation)
    memory = training_memory(
        model,
        latent_size,
        context_length,
        micro_batch,
        settings.precision,
        spread=spread,
        accumulate=settings.accumulation > 1,
        optimizer=settings.optimizer.kind,
    )
    an_image = objective_flops(model, settings, latent_size, context_length)
    flops = an_image * settings.images
    gpu_hours = flops / (hardware.mfu * hardware.peak_tflops * 1e12) / 3600
    ema_bytes = 4 * parameters(model)
    state_bytes = 2 * ema_bytes + memory.optimizer * spread.shards
    kept = len({*settings.checkpoints, settings.images})
    return TrainingCost(
        member=model.name,
        parameters=parameters(model),
        images=settings.images,
        steps=settings.images // settings.batch,
        flops_per_step=an_image * settings.batch,
        flops=flops,
        micro_batch=micro_batch,
        memory=memory,
        gpu_hours=gpu_hours,
        days=gpu_hours / spread.ranks / 24,
        state_bytes=state_bytes,
        ema_bytes=ema_bytes,
        disk_bytes=FULL_STATES * state_bytes + max(kept - FULL_STATES, 0) * ema_bytes,
    )


def training_costs(
    members: Sequence[ModelSpec], settings: TrainSettings, latent_size: int, context_length: int, hardware: Hardware
) -> list[TrainingCost]:
    """Of every member."""
    return [training_cost(model, settings, latent_size, context_length, hardware) for model in members]


def check_split(settings: TrainSettings, hardware: Hardware) -> None:
    """Raise `SpecError` where training could not be spread so, or the hardware is impossible."""
    spread, parts = hardware.spread, settings.accumulation
    if spread.ranks < 1 or settings.batch % (spread.ranks * parts):
        raise SpecError(
            f"batch {settings.batch} in {parts} part{'s' * (parts > 1)} does not split over {spread.ranks} GPUs: use a "
            f"number of GPUs that divides {settings.batch // parts}."
        )
    if spread.sharding == "hsdp" and spread.ranks % spread.shards:
        raise SpecError(f"{spread.ranks} GPUs are not a multiple of the {spread.shards} that share the weights.")
    if not 0 < hardware.mfu <= 1:
        raise SpecError(f"mfu {hardware.mfu:g} is outside 0..1: it is a share of the peak.")
    if hardware.peak_tflops <= 0:
        raise SpecError(f"peak_tflops {hardware.peak_tflops:g}: expected TFLOP/s of one GPU, more than 0.")
