from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from isocost.diffusion.denoiser import PREDICTIONS, Denoiser, add_noise, from_unet, target, to_epsilon, to_x0
from isocost.diffusion.schedule import alpha_cumprod_at, alphas_cumprod
from isocost.errors import SpecError
from isocost.specs import NoiseSchedule

SD = NoiseSchedule()
ZERO_SNR = NoiseSchedule(zero_terminal_snr=True)
SHAPE = (3, 2, 4, 4)


def draw(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(2))


@given(prediction=st.sampled_from(PREDICTIONS), alpha_cumprod=st.floats(1e-4, 1 - 1e-4), seed=st.integers(0, 1000))
def test_target_gives_back_image_and_noise(prediction, alpha_cumprod, seed):
    x0, noise = draw(seed)
    x_t = add_noise(x0, noise, alpha_cumprod)
    output = target(prediction, x0, noise, alpha_cumprod)
    torch.testing.assert_close(to_x0(prediction, output, x_t, alpha_cumprod), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(to_epsilon(prediction, output, x_t, alpha_cumprod), noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_level_for_each_row(prediction):
    x0, noise = draw()
    levels = torch.tensor([0.9, 0.5, 0.01])
    x_t = add_noise(x0, noise, levels)
    output = target(prediction, x0, noise, levels)
    for row, alpha_cumprod in enumerate(levels):
        one = slice(row, row + 1)
        torch.testing.assert_close(x_t[one], add_noise(x0[one], noise[one], alpha_cumprod))
        torch.testing.assert_close(output[one], target(prediction, x0[one], noise[one], float(alpha_cumprod)))
    torch.testing.assert_close(to_x0(prediction, output, x_t, levels), x0)
    torch.testing.assert_close(to_epsilon(prediction, output, x_t, levels), noise)


def test_noise_and_velocity_match_diffusers():
    x0, noise = draw()
    scheduler = DDIMScheduler()
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod(SD).copy())
    timesteps = torch.tensor([0, 400, 999])
    levels = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(add_noise(x0, noise, levels), scheduler.add_noise(x0, noise, timesteps))
    torch.testing.assert_close(target("v_prediction", x0, noise, levels), scheduler.get_velocity(x0, noise, timesteps))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_dtype_of_x(prediction, dtype):
    x0, noise = draw(dtype=dtype)
    for levels in (0.5, torch.full((3,), 0.5)):
        output = target(prediction, x0, noise, levels)
        assert output.dtype == add_noise(x0, noise, levels).dtype == dtype
        assert to_x0(prediction, output, x0, levels).dtype == to_epsilon(prediction, output, x0, levels).dtype == dtype


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_image_at_pure_noise(prediction):
    x0, noise = draw()
    output = target(prediction, x0, noise, 0.0)
    torch.testing.assert_close(to_x0(prediction, output, noise, 0.0), x0)


@pytest.mark.parametrize("alpha_cumprod", [0.0, torch.tensor([0.5, 0.0, 0.5])])
def test_epsilon_says_nothing_of_the_image_at_pure_noise(alpha_cumprod):
    x0, noise = draw()
    with pytest.raises(SpecError, match="use 'v_prediction'"):
        to_x0("epsilon", noise, x0, alpha_cumprod)


@pytest.mark.parametrize("alpha_cumprod", [1.0, torch.tensor([0.5, 1.0, 0.5])])
def test_sample_says_nothing_of_the_noise_at_a_clean_image(alpha_cumprod):
    x0, _ = draw()
    with pytest.raises(SpecError, match="clean image"):
        to_epsilon("sample", x0, x0, alpha_cumprod)


def test_epsilon_is_refused_on_a_zero_terminal_snr_schedule():
    with pytest.raises(SpecError, match="use 'v_prediction'"):
        Denoiser(lambda x, t, context: x, ZERO_SNR, "epsilon")


def test_unknown_prediction_names_the_nearest():
    x0, noise = draw()
    message = "unknown prediction 'epsilo'.*'epsilon'"
    for function in (target, to_x0, to_epsilon):
        with pytest.raises(SpecError, match=message):
            function("epsilo", x0, noise, 0.5)
    with pytest.raises(SpecError, match=message):
        Denoiser(lambda x, t, context: x, SD, "epsilo")


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [*((prediction, SD) for prediction in PREDICTIONS), ("v_prediction", ZERO_SNR), ("sample", ZERO_SNR)],
)
def test_denoiser_of_a_perfect_network_returns_the_image(prediction, schedule):
    x0, noise = draw()
    seen = []

    def network(x, timesteps, context):
        seen.append((timesteps, context))
        return target(prediction, x0, noise, alpha_cumprod_at(schedule, int(timesteps[0])))

    context = torch.zeros(3, 5, 7)
    denoise = Denoiser(network, schedule, prediction).bind(context)
    for t in (0, 500, 999):
        x_t = add_noise(x0, noise, alpha_cumprod_at(schedule, t))
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
        expected = to_x0("v_prediction", unet(x, 321, context).sample, x, alpha_cumprod_at(SD, 321))
        torch.testing.assert_close(denoise(x, 321), expected)
        half = Denoiser(from_unet(unet.bfloat16()), SD, "v_prediction").bind(context)(x, 321)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)
