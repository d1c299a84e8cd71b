from __future__ import annotations

import pytest
import torch

from isocost.diffusion.denoiser import PREDICTIONS, Denoiser, from_unet, to_x0
from isocost.diffusion.guidance import evaluations_per_call, guide
from isocost.diffusion.schedule import alpha_cumprod_at
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
    expected = to_x0(prediction, uncond + scale * (cond - uncond), X, alpha_cumprod_at(SD, t))
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
    ],
)
def test_counted_evaluations_are_the_planned_ones_in_one_network_call(guidance, evaluations):
    network = Network()
    denoiser = Denoiser(network, SD, "v_prediction")
    denoise = guide(denoiser, CONTEXT, NULL, guidance)
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


def test_autoguidance_is_refused():
    checkpoint = CheckpointRef(content_digest="0" * 64, images_seen=0)
    with pytest.raises(SpecError, match="autoguidance"):
        guide(Denoiser(Network(), SD, "sample"), CONTEXT, NULL, Guidance(scale=3, guide=checkpoint))
