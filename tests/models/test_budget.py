from __future__ import annotations

import pytest

from isocost.errors import SpecError
from isocost.models.budget import Hardware, training_cost, training_costs
from isocost.models.cost import parameters, training_flops
from isocost.models.memory import Spread, training_memory
from isocost.specs import ModelSpec, Optimizer, TrainSettings

MODEL = ModelSpec(family="dit-micro", width=32, context_dim=48, num_heads=2)
SIZE, LENGTH = 8, 11


def settings(**changes) -> TrainSettings:
    return TrainSettings(**({"images": 640, "batch": 64, "caption_dropout": 0.1} | changes))


def test_every_number_by_hand() -> None:
    hardware = Hardware(Spread("fsdp", 4), mfu=0.5, peak_tflops=2.0)
    found = training_cost(MODEL, settings(checkpoints=(128, 320)), SIZE, LENGTH, hardware)
    count, an_image = parameters(MODEL), training_flops(MODEL, SIZE, LENGTH)
    assert (found.member, found.parameters, found.images, found.steps) == ("c32", count, 640, 10)
    assert (found.flops_per_step, found.flops, found.micro_batch) == (64 * an_image, 640 * an_image, 16)
    assert found.gpu_hours == pytest.approx(640 * an_image / 1e12 / 3600)
    assert found.days == pytest.approx(found.gpu_hours / 4 / 24)
    assert found.memory == training_memory(MODEL, SIZE, LENGTH, 16, spread=hardware.spread)
    assert found.ema_bytes == 4 * count
    assert found.state_bytes == pytest.approx(16 * count, abs=64)
    assert found.disk_bytes == 2 * found.state_bytes + found.ema_bytes  # 128 of 128, 320 and 640; the last two are full


def test_parts_of_a_batch() -> None:
    found = training_cost(MODEL, settings(accumulation=4), SIZE, LENGTH, Hardware(Spread(ranks=2)))
    assert found.micro_batch == 8
    assert found.memory == training_memory(MODEL, SIZE, LENGTH, 8, spread=Spread(ranks=2), accumulate=True)


def test_precision_and_optimizer_count() -> None:
    found = training_cost(MODEL, settings(precision="bf16", optimizer=Optimizer(kind="muon")), SIZE, LENGTH, Hardware())
    assert found.memory == training_memory(MODEL, SIZE, LENGTH, 64, "bf16", optimizer="muon")
    assert found.state_bytes == 8 * parameters(MODEL) + found.memory.optimizer


def test_of_every_member() -> None:
    wide = MODEL.model_copy(update={"width": 64})
    found = training_costs((MODEL, wide), settings(), SIZE, LENGTH, Hardware())
    assert [cost.member for cost in found] == ["c32", "c64"]
    assert found[1] == training_cost(wide, settings(), SIZE, LENGTH, Hardware())


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        (
            Hardware(Spread(ranks=3)),
            "batch 64 in 1 part does not split over 3 GPUs: use a number of GPUs that divides 64",
        ),
        (Hardware(Spread(ranks=0)), "does not split over 0 GPUs"),
        (Hardware(Spread("hsdp", 4, shard_ranks=3)), "4 GPUs are not a multiple of the 3 that share the weights"),
        (Hardware(mfu=40), r"mfu 40 is outside 0\.\.1"),
        (Hardware(peak_tflops=0), "peak_tflops 0: expected"),
    ],
)
def test_what_cannot_be(hardware: Hardware, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        training_cost(MODEL, settings(), SIZE, LENGTH, hardware)
