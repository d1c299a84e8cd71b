from __future__ import annotations

import pytest
import torch

from isocost.diffusion.denoiser import PREDICTIONS, Denoiser, from_unet, to_x0
from isocost.diffusion.guidance import evaluations_per_call, guide
from isocost.diffusion.samplers import sample
from isocost.diffusion.schedule import level, timestep_pairs
from isocost.errors import SpecError
from isocost.specs import CheckpointRef, Guidance, NoiseSchedule

SD = NoiseSchedule()
CONTEXT = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NULL = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
X = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Network:
    """A function of x and each row's context, which remembers how many rows it was called on."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, timesteps, context):
        self.rows.append(x.shape[0])
        return torch.tanh(x + context.mean((1, 2)).reshape(-1, 1, 1, 1) * torch.arange(1, 5).reshape(1, 4, 1, 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 7.5])
def test_scale_moves_the_prediction_from_uncond_to_cond(prediction, scale):
    # The paper's formula, on what the network predicts and on every channel.
    network, t = Network(), 700
    uncond, cond = network(X, None, NULL.expand(3, 5, 4)), network(X, None, CONTEXT)
    expected = to_x0(prediction, uncond + scale * (cond - uncond), X, level(SD, t))
    denoise = guide(Denoiser(Network(), SD, prediction), CONTEXT, NULL, Guidance(scale=scale))
    torch.testing.assert_close(denoise(X, t), expected)


@pytest.mark.parametrize(
    ("guidance", "evaluations"),
    [
        (Guidance(scale=1), {0: 1, 500: 1, 999: 1}),
        (Guidance(scale=1, interval=(0, 999)), {500: 1}),
        (Guidance(scale=2), {0: 2, 500: 2, 999: 2}),
        (Guidance(scale=0), {500: 2}),
        (Guidance(scale=2, interval=(300, 700)), {299: 1, 300: 2, 500: 2, 700: 2, 701: 1}),
        (Guidance(scale=1, mode="cfg++"), {500: 2}),
        (Guidance(scale=0.5, mode="cfg++", interval=(300, 700)), {299: 1, 500: 2, 701: 1}),
    ],
)
def test_counted_evaluations_are_the_planned_ones_in_one_network_call(guidance, evaluations):
    network = Network()
    denoiser = Denoiser(network, SD, "v_prediction")
    denoise = guide(denoiser, CONTEXT, NULL, guidance, pairs=[(t, t - 1) for t in evaluations])
    for t, planned in evaluations.items():
        before = denoiser.evaluations
        assert denoise(X, t).shape == X.shape
        assert denoiser.evaluations - before == planned == evaluations_per_call(guidance, t)
        assert network.rows[-1] == planned * len(X)
    assert len(network.rows) == len(evaluations)


def test_outside_its_interval_guidance_is_off():
    limited = guide(Denoiser(Network(), SD, "sample"), CONTEXT, NULL, Guidance(scale=4, interval=(300, 700)))
    plain = guide(Denoiser(Network(), SD, "sample"), CONTEXT, NULL, Guidance())
    assert torch.equal(limited(X, 200), plain(X, 200))
    assert not torch.allclose(limited(X, 300), plain(X, 300))


def test_null_context_for_each_row():
    guidance = Guidance(scale=3)
    shared = guide(Denoiser(Network(), SD, "sample"), CONTEXT, NULL, guidance)(X, 5)
    assert torch.equal(guide(Denoiser(Network(), SD, "sample"), CONTEXT, NULL.repeat(3, 1, 1), guidance)(X, 5), shared)
    other = torch.stack([NULL, NULL + 1, NULL])
    changed = guide(Denoiser(Network(), SD, "sample"), CONTEXT, other, guidance)(X, 5)
    assert [torch.equal(a, b) for a, b in zip(shared, changed, strict=True)] == [True, False, True]


def test_bits_of_a_row_do_not_depend_on_its_place_or_neighbours(unet):
    # What makes an image the same in any order, worker and padded chunk, so long as B is. Contexts are 8 wide since MKL
    # breaks it in a Linear of 4 or 8 outputs whose inputs are not a multiple of 4, which no member of a ladder has.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, 4, 4, generator=generator)
    context = torch.randn(6, 5, 8, generator=generator)
    junk = torch.randn(3, 2, 4, 4, generator=generator)
    null, guidance = torch.zeros(5, 8), Guidance(scale=7.5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        denoiser = Denoiser(from_unet(unet), SD, "v_prediction")
        expected = guide(denoiser, context, null, guidance)(x, 500)
        permuted = guide(denoiser, context[order], null, guidance)(x[order], 500)
        padded = guide(denoiser, context, null, guidance)(torch.cat([x[:3], junk]), 500)
    assert torch.equal(permuted, expected[order])
    assert torch.equal(padded[:3], expected[:3])


@pytest.mark.parametrize("null", [NULL[:, :3], NULL[:4], NULL.repeat(2, 1, 1)])
def test_null_context_of_another_shape(null):
    with pytest.raises(SpecError, match="does not fit context"):
        guide(Denoiser(Network(), SD, "sample"), CONTEXT, null, Guidance(scale=3))


# --- CFG++ -----------------------------------------------------------------------------------------------------------


def tied_to_its_context(x, timesteps, context):
    """A network of no meaning, float64, that the prompt moves."""
    return torch.tanh(0.7 * x + context.mean((1, 2)).reshape(-1, 1, 1, 1) * 3) + 0.1 * x.roll(1, -1)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "schedule", [SD, NoiseSchedule(final_alpha="first"), NoiseSchedule(zero_terminal_snr=True)], ids=str
)
@pytest.mark.parametrize("steps", [1, 4, 200])
def test_cfg_plus_plus_renoises_by_the_empty_prompt(sampler, scale, schedule, steps):
    # The paper's own form: guided image, unconditional noise (arXiv 2406.08070, Algorithm 2).
    pairs = timestep_pairs(schedule, steps, "trailing")
    x, expected = X, []
    for t, s in pairs:
        now, then = level(schedule, t), level(schedule, s)
        null, cond = (
            to_x0("v_prediction", tied_to_its_context(x, None, context), x, level(schedule, t))
            for context in (NULL.expand(3, 5, 4), CONTEXT)
        )
        x = then.alpha * (null + scale * (cond - null)) + then.sigma * (x - now.alpha * null) / now.sigma
        expected.append(x)
    guidance = Guidance(scale=scale, mode="cfg++")
    denoiser = Denoiser(tied_to_its_context, schedule, "v_prediction")
    denoise = guide(denoiser, CONTEXT, NULL, guidance, pairs=pairs)
    for ours, paper in zip(sample(sampler, denoise, X, schedule, pairs), expected, strict=True):
        torch.testing.assert_close(ours, paper, rtol=1e-9, atol=1e-9)
    assert denoiser.evaluations == 2 * steps


# --- autoguidance ----------------------------------------------------------------------------------------------------

GUIDE = CheckpointRef(content_digest="0" * 64, images_seen=0)


def test_autoguidance_leads_away_from_the_weaker_network_on_the_same_prompt():
    def weak_network(x, timesteps, context):
        assert torch.equal(context, CONTEXT)
        return 0.5 * tied_to_its_context(x, timesteps, context)

    guidance = Guidance(scale=2.5, mode="autoguidance", guide=GUIDE, interval=(300, 700))
    strong, weak = (Denoiser(network, SD, "sample") for network in (tied_to_its_context, weak_network))
    denoise = guide(strong, CONTEXT, NULL, guidance, weak)
    d = tied_to_its_context(X, None, CONTEXT)
    torch.testing.assert_close(denoise(X, 500), 0.5 * d + 2.5 * (d - 0.5 * d))
    assert (strong.evaluations, weak.evaluations) == (1, 1)
    assert torch.equal(denoise(X, 200), d)
    assert (strong.evaluations, weak.evaluations) == (2, 1)


# --- the spec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 3, "guide": GUIDE.model_dump()}, "mode 'autoguidance': give both, or neither"),
        ({"scale": 3, "mode": "autoguidance"}, "mode 'autoguidance': give both, or neither"),
        ({"scale": 1.5, "mode": "cfg++"}, "lambda, which goes from 0 to 1"),
        ({"scale": 2, "interval": [700, 300]}, "the lower timestep first"),
    ],
)
def test_guidance_that_makes_no_sense(fields, message):
    with pytest.raises(SpecError, match=message):
        Guidance.parse(fields)


def test_what_guidance_needs():
    assert not Guidance().active and not Guidance().needs_empty_prompt
    assert Guidance(scale=3).needs_empty_prompt
    assert Guidance(scale=1, mode="cfg++").needs_empty_prompt
    auto = Guidance(scale=3, mode="autoguidance", guide=GUIDE)
    assert auto.active and not auto.needs_empty_prompt
