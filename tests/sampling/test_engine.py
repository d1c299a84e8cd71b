from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.diffusion.samplers import SAMPLERS, planned_evaluations
from isocost.diffusion.schedule import timestep_pairs
from isocost.errors import SpecError
from isocost.models.build import build
from isocost.recipes.scenes import micro_members
from isocost.sampling.engine import prepare, sample_latents
from isocost.specs import CheckpointRef, EngineSpec, Guidance, NoiseSchedule, SamplingPlan, Stage

SHAPE = (4, 8, 8)


def plan(**changes) -> SamplingPlan:
    values = {
        "stages": (Stage(checkpoint=CheckpointRef(content_digest="random", images_seen=0)),),
        "schedule": NoiseSchedule(),
        "prediction": "v_prediction",
        "sampler": "ddim",
        "steps": 4,
        "guidance": Guidance(scale=7.5),
    }
    return SamplingPlan(**(values | changes))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return prepare(build(micro_members(8)[0]), EngineSpec())


@pytest.fixture(scope="module")
def contexts() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((65, 12, 64), dtype=np.float32)


def latents(network, contexts, numbers, batch, of=None) -> np.ndarray:
    """Latents of the prompts with these numbers, `batch` at a time."""
    made = []
    for start in range(0, len(numbers), batch):
        part = numbers[start : start + batch]
        ids = [(f"prompt {number}", 0) for number in part]
        engine = EngineSpec(batch=batch)
        x, _ = sample_latents(network, of or plan(), contexts[part], contexts[64], ids, SHAPE, engine)
        made.append(x.numpy())
    return np.concatenate(made)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_one_batch_size_gives_the_same_bits_in_any_order_and_padding(network, contexts, sampler):
    of = plan(sampler=sampler)
    numbers = list(range(16))
    whole = latents(network, contexts, numbers, 16, of)
    shuffled = [int(n) for n in np.random.default_rng(1).permutation(16)]
    np.testing.assert_array_equal(latents(network, contexts, shuffled, 16, of), whole[shuffled])
    np.testing.assert_array_equal(latents(network, contexts, [5, 3, 11], 16, of), whole[[5, 3, 11]])


def test_other_batch_sizes_agree_to_2e_4_at_guidance_7_5(network, contexts):
    numbers = list(range(64))
    whole = latents(network, contexts, numbers, 64)
    for batch in (1, 7):
        difference = np.abs(latents(network, contexts, numbers, batch) - whole).max()
        assert difference < 2e-4 * max(1.0, np.abs(whole).max())


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_counted_evaluations_are_the_planned_ones(network, contexts, sampler, steps, scale):
    of = plan(sampler=sampler, steps=steps, guidance=Guidance(scale=scale))
    engine = EngineSpec(batch=2)
    _, counted = sample_latents(network, of, contexts[:1], contexts[64], [("a", 0)], SHAPE, engine)
    pairs = timestep_pairs(of.schedule, steps, of.spacing)
    assert counted == planned_evaluations(sampler, pairs, of.guidance, of.schedule)


def test_replicates_and_prompts_differ(network, contexts):
    engine = EngineSpec(batch=3)
    same = np.repeat(contexts[:1], 3, axis=0)
    x, _ = sample_latents(network, plan(), same, contexts[64], [("a", 0), ("a", 1), ("b", 0)], SHAPE, engine)
    assert len({row.numpy().tobytes() for row in x}) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there():
    with pytest.raises(SpecError, match="no GPU"):
        prepare(build(micro_members(8)[0]), EngineSpec(device="cuda"))


def test_bf16_stays_near_fp32(contexts):
    torch.manual_seed(0)
    fp32 = latents(prepare(build(micro_members(8)[0]), EngineSpec()), contexts, [0, 1], 2)
    torch.manual_seed(0)
    engine = EngineSpec(dtype="bf16", batch=2)
    network = prepare(build(micro_members(8)[0]), engine)
    ids = [("prompt 0", 0), ("prompt 1", 0)]
    bf16, _ = sample_latents(network, plan(), contexts[:2], contexts[64], ids, SHAPE, engine)
    assert bf16.dtype == torch.float32
    difference = np.abs(bf16.numpy() - fp32).mean()
    assert 0 < difference < 0.2 * np.abs(fp32).mean()
