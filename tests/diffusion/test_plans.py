from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isocost.diffusion.denoiser import Denoiser
from isocost.diffusion.guidance import guide
from isocost.diffusion.plans import (
    calls_of,
    check,
    evaluations_of,
    guided,
    noises_of,
    pairs_of,
    serving,
    stitched,
)
from isocost.diffusion.samplers import SAMPLERS, planned_evaluations, sample
from isocost.diffusion.schedule import timestep_pairs
from isocost.errors import SpecError
from isocost.specs import CheckpointRef, Guidance, NoiseSchedule, SamplingPlan, Stage

SMALL, LARGE, GUIDE = (CheckpointRef(content_digest=letter * 64, images_seen=0) for letter in "abc")
AUTO = {"mode": "autoguidance", "guide": GUIDE}
CONTEXT, NULL = torch.ones(2, 3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
X = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plan(**changes) -> SamplingPlan:
    values = {
        "stages": (Stage(checkpoint=LARGE),),
        "schedule": NoiseSchedule(),
        "prediction": "sample",
        "sampler": "ddim",
        "steps": 10,
    }
    return SamplingPlan(**(values | changes))


def networks() -> dict[CheckpointRef, Denoiser]:
    """Three networks that differ, and that the prompt moves."""

    def network(factor):
        return lambda x, timesteps, context: torch.tanh(factor * x + context.mean((1, 2)).reshape(-1, 1, 1, 1))

    return {
        ref: Denoiser(network(factor), NoiseSchedule(), "sample")
        for ref, factor in ((SMALL, 0.3), (LARGE, 0.7), (GUIDE, 0.1))
    }


def noise(k: int) -> torch.Tensor:
    return torch.randn(X.shape, generator=torch.Generator().manual_seed(100 + k), dtype=torch.float64)


def run(of: SamplingPlan) -> tuple[torch.Tensor, dict[CheckpointRef, int]]:
    denoisers = networks()
    denoise = guided(of, denoisers, CONTEXT, NULL)
    *_, last = sample(of.sampler, denoise, X, of.schedule, pairs_of(of), eta=of.eta, step_noise=noise)
    return last, {ref: denoiser.evaluations for ref, denoiser in denoisers.items() if denoiser.evaluations}


# --- stages ----------------------------------------------------------------------------------------------------------


def test_pairs_are_the_plans():
    of = plan(spacing="leading", steps_offset=0)
    assert pairs_of(of) == timestep_pairs(of.schedule, 10, "leading", 0)
    assert pairs_of(of)[0][0] == 900


@pytest.mark.parametrize(("share", "small"), [(0.25, 3), (0.5, 5), (0.75, 8), (0.04, 0), (0.99, 10)])
def test_stages_share_the_steps(share, small):
    early = serving(plan(stages=stitched(SMALL, LARGE, share)))
    assert list(early) == [t for t, _ in timestep_pairs(NoiseSchedule(), 10, "trailing")]
    assert list(early.values()) == [SMALL] * small + [LARGE] * (10 - small)
    late = serving(plan(stages=stitched(LARGE, SMALL, share)))
    assert list(late.values()) == [LARGE] * small + [SMALL] * (10 - small)


@given(steps=st.integers(1, 500), shares=st.lists(st.floats(0.001, 0.999), unique=True, max_size=4))
def test_every_step_has_one_stage(steps, shares):
    refs = [SMALL, LARGE, GUIDE, SMALL, LARGE]
    stages = tuple(Stage(checkpoint=ref, until=until) for ref, until in zip(refs, [*sorted(shares), 1], strict=False))
    of = plan(stages=stages, steps=steps)
    assert [t for t, _ in pairs_of(of)] == list(serving(of))
    assert sum(evaluations_of(of).values()) == steps


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_nothing_or_all_is_one_stage(share):
    alone = SMALL if share else LARGE
    assert stitched(SMALL, LARGE, share) == (Stage(checkpoint=alone),)
    assert plan(stages=stitched(SMALL, LARGE, share)).digest == plan(stages=(Stage(checkpoint=alone),)).digest


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.999, 1.0])
def test_the_ends_are_the_checkpoints_alone_to_the_bit(sampler, share):
    # 0.1% of ten steps is none of them, so these trajectories are those of one checkpoint, though two are named.
    guidance = Guidance(scale=3)
    alone = SMALL if share > 0.5 else LARGE
    of = plan(sampler=sampler, guidance=guidance, stages=stitched(SMALL, LARGE, share))
    last, counted = run(of)
    expected, spent = run(plan(sampler=sampler, guidance=guidance, stages=(Stage(checkpoint=alone),)))
    assert torch.equal(last, expected)
    assert counted == spent == evaluations_of(of)
    assert list(counted) == [alone]


def test_a_stitched_trajectory_goes_on_from_the_first_checkpoints_state():
    of = plan(stages=stitched(SMALL, LARGE, 0.5), guidance=Guidance(scale=3))
    pairs, denoisers = pairs_of(of), networks()
    first, then = (guide(denoisers[ref], CONTEXT, NULL, of.guidance) for ref in (SMALL, LARGE))
    *_, x = sample("ddim", first, X, of.schedule, pairs[:5])
    *_, x = sample("ddim", then, x, of.schedule, pairs[5:])
    assert torch.equal(run(of)[0], x)


# --- evaluations -----------------------------------------------------------------------------------------------------


def test_evaluations_by_hand():
    half = stitched(SMALL, LARGE, 0.5)  # timesteps 999 899 799 699 599 | 499 399 299 199 99
    some = {"interval": (150, 650)}  # 599 | 499 399 299 199
    for guidance, expected in (
        (Guidance(), {SMALL: 5, LARGE: 5}),
        (Guidance(scale=2), {SMALL: 10, LARGE: 10}),
        (Guidance(scale=2, **some), {SMALL: 6, LARGE: 9}),
        (Guidance(scale=0.5, mode="cfg++", **some), {SMALL: 6, LARGE: 9}),
        (Guidance(scale=2, **AUTO), {SMALL: 5, LARGE: 5, GUIDE: 10}),
        (Guidance(scale=2, **AUTO, **some), {SMALL: 5, LARGE: 5, GUIDE: 5}),
        (Guidance(scale=1, **AUTO), {SMALL: 5, LARGE: 5}),
    ):
        assert evaluations_of(plan(stages=half, guidance=guidance)) == expected
    # Heun calls again at the timestep it steps to: 499 belongs to the later stage.
    assert evaluations_of(plan(stages=half, sampler="heun")) == {SMALL: 9, LARGE: 10}


GUIDANCES = [
    Guidance(),
    Guidance(scale=3),
    Guidance(scale=3, interval=(200, 700)),
    Guidance(scale=3, **AUTO),
    Guidance(scale=3, **AUTO, interval=(200, 700)),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_counted_evaluations_are_the_planned_ones_of_every_checkpoint(sampler, guidance, share):
    for steps in (1, 2, 5, 16):
        of = plan(sampler=sampler, steps=steps, guidance=guidance, stages=stitched(SMALL, LARGE, share))
        _, counted = run(of)
        assert counted == evaluations_of(of)
        total = planned_evaluations(sampler, pairs_of(of), guidance, of.schedule)
        assert Counter(counted).total() == total


def test_calls_by_rows():
    half = stitched(SMALL, LARGE, 0.5)  # timesteps 999 899 799 699 599 | 499 399 299 199 99
    some = {"interval": (150, 650)}  # 599 | 499 399 299 199
    for guidance, expected in (
        (Guidance(), {(SMALL, 1): 5, (LARGE, 1): 5}),
        (Guidance(scale=2), {(SMALL, 2): 5, (LARGE, 2): 5}),
        (Guidance(scale=2, **some), {(SMALL, 1): 4, (SMALL, 2): 1, (LARGE, 2): 4, (LARGE, 1): 1}),
        (Guidance(scale=2, **AUTO, **some), {(SMALL, 1): 5, (GUIDE, 1): 5, (LARGE, 1): 5}),
    ):
        assert calls_of(plan(stages=half, guidance=guidance)) == expected


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_noises_are_those_that_a_trajectory_draws(sampler, eta):
    of, drawn = plan(sampler=sampler, steps=5, eta=eta), ["x_T"]

    def step_noise(k):
        drawn.append(k)
        return torch.zeros_like(X)

    list(sample(sampler, lambda x, t: x, X, of.schedule, pairs_of(of), eta=eta, step_noise=step_noise))
    assert noises_of(of) == len(drawn)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"ddim", "euler"}))
def test_cfg_plus_plus_takes_ddims_steps(sampler):
    guidance = Guidance(scale=0.5, mode="cfg++")
    with pytest.raises(SpecError, match=f"not for '{sampler}' at eta 0. Use sampler 'ddim' at eta 0 or 'euler'"):
        check(plan(sampler=sampler, guidance=guidance))
    with pytest.raises(SpecError, match=r"not for 'ddim' at eta 0\.5"):
        check(plan(eta=0.5, guidance=guidance))
    check(plan(guidance=guidance))
    check(plan(sampler="euler", eta=0.5, guidance=guidance))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "unipcc"}, "unknown sampler 'unipcc'. Did you mean 'unipc'"),
        ({"steps": 2000}, "steps: 2000 is outside"),
        ({"steps": 60, "spacing": "lcm"}, "'lcm' has 50 timesteps"),
        ({"sampler": "heun", "schedule": NoiseSchedule(zero_terminal_snr=True)}, "'heun' cannot start"),
    ],
)
def test_a_plan_that_cannot_be_run(changes, message):
    with pytest.raises(SpecError, match=message):
        evaluations_of(plan(**changes))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside(share):
    with pytest.raises(SpecError, match=r"outside 0\.\.1"):
        stitched(SMALL, LARGE, share)


@pytest.mark.parametrize("untils", [(0.5,), (1.0, 1.0), (0.6, 0.4, 1.0)])
def test_stages_that_do_not_lead_to_the_end(untils):
    stages = [{"checkpoint": SMALL.model_dump(), "until": until} for until in untils]
    with pytest.raises(SpecError, match="they have to rise, the last to 1"):
        SamplingPlan.parse(plan().model_dump(mode="json") | {"stages": stages})
