from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from isocost.diffusion.denoiser import (
    PREDICTIONS,
    Denoiser,
    Levels,
    add_noise,
    from_unet,
    levels,
    target,
    to_epsilon,
    to_x0,
)
from isocost.diffusion.schedule import Level, alphas_cumprod, level
from isocost.errors import SpecError
from isocost.specs import NoiseSchedule

SD = NoiseSchedule()
ZERO_SNR = NoiseSchedule(zero_terminal_snr=True)
FLOW = NoiseSchedule(kind="flow")
PURE_NOISE, CLEAN = Level(0.0, 1.0), Level(1.0, 0.0)
SHAPE = (3, 2, 4, 4)


def draw(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(2))


@given(
    prediction=st.sampled_from(PREDICTIONS),
    signal=st.floats(1e-4, 1 - 1e-4),
    straight=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_target_gives_back_image_and_noise(prediction, signal, straight, seed):
    straight = straight and prediction != "v_prediction"
    at = Level(signal, 1 - signal) if straight else Level(signal**0.5, (1 - signal) ** 0.5)
    x0, noise = draw(seed)
    x_t = add_noise(x0, noise, at)
    output = target(prediction, x0, noise, at)
    torch.testing.assert_close(to_x0(prediction, output, x_t, at), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(to_epsilon(prediction, output, x_t, at), noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_level_for_each_row(prediction):
    x0, noise = draw()
    timesteps = [3, 400, 998]
    rows = levels(SD, torch.tensor(timesteps))
    x_t = add_noise(x0, noise, rows)
    output = target(prediction, x0, noise, rows)
    for row, t in enumerate(timesteps):
        one, at = slice(row, row + 1), level(SD, t)
        torch.testing.assert_close(x_t[one], add_noise(x0[one], noise[one], at))
        torch.testing.assert_close(output[one], target(prediction, x0[one], noise[one], at))
    torch.testing.assert_close(to_x0(prediction, output, x_t, rows), x0)
    torch.testing.assert_close(to_epsilon(prediction, output, x_t, rows), noise)


def test_noise_and_velocity_match_diffusers():
    x0, noise = draw()
    scheduler = DDIMScheduler()
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod(SD).copy())
    timesteps = torch.tensor([0, 400, 999])
    rows = levels(SD, timesteps)
    torch.testing.assert_close(add_noise(x0, noise, rows), scheduler.add_noise(x0, noise, timesteps))
    torch.testing.assert_close(target("v_prediction", x0, noise, rows), scheduler.get_velocity(x0, noise, timesteps))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_noise_and_velocity_match_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    x0, noise = draw()
    rows = levels(NoiseSchedule(kind="flow", shift=shift), torch.tensor([0, 400, 999]))
    theirs = scheduler.scale_noise(x0, scheduler.timesteps.flip(0)[[0, 400, 999]], noise)  # whose levels are float32
    torch.testing.assert_close(add_noise(x0, noise, rows), theirs, rtol=0, atol=1e-6)
    slope = (add_noise(x0, noise, Level(0.4, 0.6)) - add_noise(x0, noise, Level(0.5, 0.5))) / 0.1
    torch.testing.assert_close(target("flow", x0, noise, rows), slope)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_dtype_of_x(prediction, dtype):
    x0, noise = draw(dtype=dtype)
    for at in (Level(0.6, 0.8), Levels(torch.full((3,), 0.6), torch.full((3,), 0.8))):
        output = target(prediction, x0, noise, at)
        assert output.dtype == add_noise(x0, noise, at).dtype == dtype
        assert to_x0(prediction, output, x0, at).dtype == to_epsilon(prediction, output, x0, at).dtype == dtype


@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "flow"])
def test_image_at_pure_noise(prediction):
    x0, noise = draw()
    output = target(prediction, x0, noise, PURE_NOISE)
    torch.testing.assert_close(to_x0(prediction, output, noise, PURE_NOISE), x0)


@pytest.mark.parametrize("at", [PURE_NOISE, Levels(torch.tensor([0.6, 0.0, 0.6]), torch.tensor([0.8, 1.0, 0.8]))])
def test_epsilon_says_nothing_of_the_image_at_pure_noise(at):
    x0, noise = draw()
    with pytest.raises(SpecError, match="use 'v_prediction'"):
        to_x0("epsilon", noise, x0, at)


@pytest.mark.parametrize("at", [CLEAN, Levels(torch.tensor([0.6, 1.0, 0.6]), torch.tensor([0.8, 0.0, 0.8]))])
def test_sample_says_nothing_of_the_noise_at_a_clean_image(at):
    x0, _ = draw()
    with pytest.raises(SpecError, match="clean image"):
        to_epsilon("sample", x0, x0, at)


def test_epsilon_is_refused_on_a_zero_terminal_snr_schedule():
    with pytest.raises(SpecError, match="use 'v_prediction'"):
        Denoiser(lambda x, t, context: x, ZERO_SNR, "epsilon")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_predictions_that_mean_nothing_on_a_flow_are_refused(prediction):
    with pytest.raises(SpecError, match="'flow'"):
        Denoiser(lambda x, t, context: x, FLOW, prediction)


def test_unknown_prediction_names_the_nearest():
    x0, noise = draw()
    message = "unknown prediction 'epsilo'.*'epsilon'"
    for function in (target, to_x0, to_epsilon):
        with pytest.raises(SpecError, match=message):
            function("epsilo", x0, noise, CLEAN)
    with pytest.raises(SpecError, match=message):
        Denoiser(lambda x, t, context: x, SD, "epsilo")


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        *((prediction, SD) for prediction in PREDICTIONS),
        ("v_prediction", ZERO_SNR),
        ("sample", ZERO_SNR),
        ("flow", FLOW),
        ("sample", FLOW),
    ],
)
def test_denoiser_of_a_perfect_network_returns_the_image(prediction, schedule):
    x0, noise = draw()
    seen = []

    def network(x, timesteps, context):
        seen.append((timesteps, context))
        return target(prediction, x0, noise, level(schedule, int(timesteps[0])))

    context = torch.zeros(3, 5, 7)
    denoise = Denoiser(network, schedule, prediction).bind(context)
    for t in (0, 500, 999):
        x_t = add_noise(x0, noise, level(schedule, t))
        torch.testing.assert_close(denoise(x_t, t), x0)
        assert seen[-1][0].tolist() == [t] * 3 and seen[-1][0].dtype == torch.int64
        assert seen[-1][1] is context


def test_evaluations_are_counted_for_each_image():
    denoiser = Denoiser(lambda x, t, context: x, SD, "v_prediction")
    x, _ = draw()
    once, twice = denoiser.bind(torch.zeros(3, 1, 1)), denoiser.bind(torch.zeros(6, 1, 1), rows_per_image=2)
    assert denoiser.evaluations == 0
    assert once(x, 10).shape == x.shape
    assert denoiser.evaluations == 1
    assert twice(x, 10).shape == (6, *x.shape[1:])
    assert denoiser.evaluations == 3


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_binds_is_given_contexts_once_and_images_without_copies(prediction):
    class Binding:
        def __init__(self):
            self.bound, self.rows = [], []

        def bind(self, context, rows_per_image):
            self.bound.append(context)
            offset = context.mean((1, 2)).reshape(-1, 1, 1, 1)

            def predict(x, t):
                self.rows.append(len(x))
                return x.repeat(rows_per_image, 1, 1, 1) * t + offset

            return predict

    x, _ = draw()
    context = torch.randn(6, 5, 7, dtype=torch.float64)
    binding = Binding()
    denoise = Denoiser(binding, SD, prediction).bind(context, rows_per_image=2)

    def plain(x, timesteps, context):
        return x * timesteps.reshape(-1, 1, 1, 1) + context.mean((1, 2)).reshape(-1, 1, 1, 1)

    expected = Denoiser(plain, SD, prediction).bind(context, rows_per_image=2)
    for t in (3, 700):
        assert torch.equal(denoise(x, t), expected(x, t))
    assert binding.bound == [context] and binding.rows == [3, 3]


def test_a_network_of_lower_precision_keeps_the_states_precise():
    denoise = Denoiser(lambda x, t, context: x.bfloat16(), SD, "v_prediction").bind(torch.zeros(3, 1, 1))
    assert denoise(draw(dtype=torch.float32)[0], 10).dtype == torch.float32


def test_from_unet_is_the_module(unet):
    x, context = draw(dtype=torch.float32)[0], torch.randn(3, 5, 8)
    denoise = Denoiser(from_unet(unet), SD, "v_prediction").bind(context)
    with torch.no_grad():
        expected = to_x0("v_prediction", unet(x, 321, context).sample, x, level(SD, 321))
        torch.testing.assert_close(denoise(x, 321), expected)
        half = Denoiser(from_unet(unet.bfloat16()), SD, "v_prediction").bind(context)(x, 321)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)
