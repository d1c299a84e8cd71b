"""An image's latent beside the noise: a widened network is the narrow one at first, and heeds it once it is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.diffusion.denoiser import from_unet
from isocost.errors import SpecError
from isocost.models.build import build, widened
from isocost.sampling.checkpoints import SHARED, Traits, check_checkpoints
from isocost.sampling.engine import prepare, sample_latents
from isocost.specs import CheckpointRef, EngineSpec, ModelSpec, NoiseSchedule, SamplingPlan, Stage
from isocost.training.lean import LeanForward

SHAPE = (4, 8, 8)
FIRST, SECOND = (CheckpointRef(content_digest=name, images_seen=0) for name in ("first", "second"))
MEMBERS = [
    ModelSpec(family="micro", width=8, context_dim=16, num_heads=4),
    ModelSpec(family="micro", width=24, context_dim=16, num_heads=4, in_channels=8, out_channels=8),
    ModelSpec(family="dit-micro", width=32, context_dim=16, num_heads=2),
]


def plan(**changes) -> SamplingPlan:
    values = {
        "stages": (Stage(checkpoint=FIRST),),
        "schedule": NoiseSchedule(),
        "prediction": "v_prediction",
        "sampler": "ddim",
        "steps": 3,
    }
    return SamplingPlan(**(values | changes))


def narrow_and_wide(spec: ModelSpec) -> tuple:
    """A pretrained network, every weight of which does something, and the one that starts from it."""
    torch.manual_seed(3)
    narrow = build(spec)
    for weight in narrow.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    wide = build(spec.conditioned)
    wide.load_state_dict(widened(narrow.state_dict(), spec.conditioned))
    return narrow.eval().requires_grad_(False), wide.eval().requires_grad_(False)


@pytest.mark.parametrize("spec", MEMBERS, ids=lambda spec: f"{spec.family}-{spec.in_channels}")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_at_step_0_the_widened_network_is_the_pretrained_one_to_the_bit(spec, layout):
    narrow, wide = (network.to(memory_format=layout) for network in narrow_and_wide(spec))
    x, condition = torch.randn(2, 5, spec.out_channels, 8, 8)
    timesteps, context = torch.tensor([0, 1, 300, 600, 999]), torch.randn(5, 7, 16)
    both = torch.cat([x, condition], dim=1)
    assert torch.equal(from_unet(wide)(both, timesteps, context), from_unet(narrow)(x, timesteps, context))
    if spec.family == "micro":
        assert torch.equal(LeanForward(wide)(both, timesteps, context), LeanForward(narrow)(x, timesteps, context))


def test_weights_of_the_same_width_are_left_as_they_are():
    weights = build(MEMBERS[0]).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in widened(weights, MEMBERS[0]).items())


@pytest.mark.parametrize("network", ["diffusers", "lean"])
@pytest.mark.parametrize("spec", [MEMBERS[0], MEMBERS[2]], ids=lambda spec: spec.family)
def test_whole_trajectories_are_the_pretrained_ones_until_training_moves_the_new_weights(spec, network):
    narrow, wide = narrow_and_wide(spec)
    engine = EngineSpec(batch=3, network=network)
    rng = np.random.default_rng(0)
    context, condition = rng.standard_normal((3, 7, 16), np.float32), rng.standard_normal((3, *SHAPE), np.float32)
    ids = [(f"image {number}", 0) for number in range(3)]

    def made(module, condition=None):
        prepared = prepare(module, engine)
        return sample_latents(prepared, plan(), context, context[0], ids, SHAPE, engine, condition)

    plain, evaluations = made(narrow)
    first, counted = made(wide, condition)
    assert torch.equal(first, plain) and counted == evaluations
    _, trained = narrow_and_wide(spec)
    inward = trained.conv_in if spec.family == "micro" else trained.pos_embed.proj
    inward.weight[:, 4:] = 0.1
    moved, _ = made(trained, condition)
    assert (moved - plain).abs().max() > 1e-3


@pytest.mark.parametrize("network", ["diffusers", "lean"])
def test_an_image_hangs_on_its_own_condition_alone(network):
    _, wide = narrow_and_wide(MEMBERS[0])
    wide.conv_in.weight[:, 4:] = 0.1
    engine = EngineSpec(batch=4, network=network)
    prepared = prepare(wide, engine)
    rng = np.random.default_rng(0)
    context, conditions = rng.standard_normal((1, 7, 16), np.float32), rng.standard_normal((6, *SHAPE), np.float32)

    def made(numbers):
        ids = [(f"image {number}", 0) for number in numbers]
        inputs = np.repeat(context, len(numbers), axis=0), context[0], ids, SHAPE, engine, conditions[numbers]
        return sample_latents(prepared, plan(), *inputs)[0]

    together = made([0, 1, 2, 3])
    assert torch.equal(made([2]), together[2:3])
    assert torch.equal(made([3, 5, 0]), torch.stack([together[3], made([5])[0], together[0]]))


def test_a_member_says_whether_it_takes_an_image():
    assert not MEMBERS[0].takes_image and MEMBERS[0].conditioned.takes_image
    assert (MEMBERS[1].conditioned.in_channels, MEMBERS[1].conditioned.out_channels) == (16, 8)


def test_text_and_image_checkpoints_share_no_trajectory():
    text = Traits(NoiseSchedule(), "v_prediction", SHAPE, "a" * 64, "b" * 64, 0.0)
    image = Traits(NoiseSchedule(), "v_prediction", SHAPE, "a" * 64, "b" * 64, 0.0, takes_image=True)
    both = plan(stages=(Stage(checkpoint=FIRST, until=0.5), Stage(checkpoint=SECOND)), steps=4)
    with pytest.raises(SpecError, match=SHARED["takes_image"]):
        check_checkpoints(both, {"first": text, "second": image})
