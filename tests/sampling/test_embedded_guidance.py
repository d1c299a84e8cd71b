"""A guidance scale as an input of a UNet: through diffusers' forward pass and both lean ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from isocost.diffusion.denoiser import GuidanceEmbedded, from_unet
from isocost.errors import SpecError
from isocost.models.build import build, widened
from isocost.models.cost import forward_flops
from isocost.sampling.checkpoints import Traits, check_checkpoints
from isocost.sampling.engine import prepare, sample_latents
from isocost.specs import CheckpointRef, EngineSpec, Guidance, ModelSpec, NoiseSchedule, SamplingPlan, Stage
from isocost.training.lean import LeanForward

PLAIN = ModelSpec(family="micro", width=8, context_dim=16, num_heads=4)
SPEC = PLAIN.model_copy(update={"guidance_dim": 32})
REF = CheckpointRef(content_digest="c", images_seen=1)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


X, CONTEXT, TIMESTEPS, SCALES = (
    normal(3, 4, 8, 8),
    normal(3, 5, 16),
    torch.tensor([3, 500, 999]),
    torch.tensor([1.0, 3, 8]),
)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    module = build(SPEC).eval().requires_grad_(False)
    module.time_embedding.cond_proj.weight.normal_()
    return module


def test_a_member_that_embeds_no_guidance_is_the_same_until_it_learns():
    torch.manual_seed(0)
    plain, embeds = build(PLAIN), build(SPEC)
    embeds.load_state_dict(widened(plain.state_dict(), SPEC))
    with torch.no_grad():
        for forward in (from_unet, LeanForward):
            assert torch.equal(forward(plain)(X, TIMESTEPS, CONTEXT), forward(embeds)(X, TIMESTEPS, CONTEXT, SCALES))


def test_the_lean_forward_passes_are_diffusers(unet):
    theirs = from_unet(unet)(X, TIMESTEPS, CONTEXT, SCALES)
    torch.testing.assert_close(LeanForward(unet)(X, TIMESTEPS, CONTEXT, SCALES), theirs, rtol=1e-5, atol=1e-5)
    for network in ("lean", "diffusers"):
        prepared = prepare(copy.deepcopy(unet), EngineSpec(batch=3, network=network))
        for row in range(3):
            bound = GuidanceEmbedded(prepared, float(SCALES[row])).bind(CONTEXT[row : row + 1], 1)
            made = bound(X[row : row + 1], int(TIMESTEPS[row]))
            torch.testing.assert_close(made, theirs[row : row + 1], rtol=1e-4, atol=1e-5)


def plan(**how) -> SamplingPlan:
    fields = {"sampler": "lcm", "steps": 2, "spacing": "lcm", "guidance": Guidance(scale=3.0, mode="embedded")}
    return SamplingPlan(
        stages=(Stage(checkpoint=REF),), schedule=NoiseSchedule(), prediction="v_prediction", **(fields | how)
    )


def test_it_takes_one_evaluation_a_step_and_the_scale_matters(unet):
    engine = EngineSpec(batch=2)
    prepared = prepare(copy.deepcopy(unet), engine)
    ids = [("a", 0), ("b", 0)]
    made = {
        scale: sample_latents(
            prepared, plan(guidance=Guidance(scale=scale, mode="embedded")), CONTEXT[:2].numpy(),
            np.zeros((5, 16), np.float32), ids, (4, 8, 8), engine,
        )
        for scale in (1.0, 3.0)
    }  # fmt: skip
    assert made[1.0][1] == made[3.0][1] == {REF: 2}
    assert not torch.allclose(made[1.0][0], made[3.0][0])


def test_its_cost_is_that_of_the_member_but_for_one_small_product():
    assert forward_flops(SPEC, 8, 5) == pytest.approx(forward_flops(PLAIN, 8, 5), rel=1e-3)


TRAITS = Traits(NoiseSchedule(), "v_prediction", (4, 8, 8), "a", "t", 0.0, embeds_guidance=True)


@pytest.mark.parametrize(
    ("traits", "how", "message"),
    [
        ({}, {"guidance": Guidance(scale=3.0)}, "takes the guidance scale as an input: use guidance mode 'embedded'"),
        ({"embeds_guidance": False}, {}, "does not embed guidance: use guidance mode 'cfg', not 'embedded'"),
        ({"rounds_to": 4}, {"sampler": "ddim", "spacing": "trailing"}, "distilled to 4 steps: use ddim at 4 steps"),
        ({"rounds_to": 2}, {"sampler": "ddim", "spacing": "leading"}, "spacing 'trailing' and eta 0, not ddim at 2"),
        ({"rounds_to": 1, "between": True}, {"sampler": "ddim"}, "use ddim at 1 or ddim_back at 2 steps"),
    ],
)
def test_plans_that_a_student_cannot_run_are_refused(traits, how, message):
    from dataclasses import replace

    with pytest.raises(SpecError, match=message):
        check_checkpoints(plan(**how), {"c": replace(TRAITS, **traits)})
    check_checkpoints(plan(), {"c": TRAITS})


def test_a_transformer_embeds_none():
    with pytest.raises(SpecError, match="family 'dit-micro' embeds no guidance"):
        build(ModelSpec(family="dit-micro", width=32, context_dim=16, num_heads=2, guidance_dim=32), "meta")
    with pytest.raises(SpecError, match="leave `interval` out"):
        Guidance.parse({"mode": "embedded", "interval": [0, 500]})
