from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import integrate, ndimage, stats

from isocost.data import degradation as module
from isocost.data.degradation import (
    DEGRADATIONS,
    DIRECTIONS,
    FAMILIES,
    INTERPOLATIONS,
    KERNEL_SIZES,
    KERNELS,
    Degradation,
    Draw,
    Kernel,
    Stage,
    blur,
    degrade,
    draw,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resize,
    to_bytes,
)
from isocost.errors import DataError, SpecError
from isocost.specs import digest_of

DRAWS = 4000
SURPRISE = 1e-4


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: smooth colours with an edge and some grain."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], axis=2)
    grain = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return np.clip(128 + 70 * waves + 40 * (x > width / 3)[..., None] + grain, 0, 255).astype(np.uint8)


def rotated(size: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in axes turned by `angle`, by complex numbers."""
    half = size // 2
    points = np.arange(-half, half + 1) + 1j * np.arange(-half, half + 1)[:, None]
    turned = points * np.exp(-1j * angle)
    return turned.real, turned.imag


def quadratic(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    x, y = rotated(size, angle)
    return x**2 / sigma_x**2 + y**2 / sigma_y**2


def low_pass(size: int, cutoff: float) -> np.ndarray:
    """The inverse Fourier transform of a disc, by quadrature over its rows: no Bessel function is used."""

    def at(radius: float) -> float:
        def row(frequency: float) -> float:
            return 2 * math.sqrt(cutoff**2 - frequency**2) * math.cos(frequency * radius)

        return integrate.quad(row, -cutoff, cutoff, limit=200, epsabs=1e-12)[0] / (4 * math.pi**2)

    radii = np.abs(rotated(size, 0.0)[0] + 1j * rotated(size, 0.0)[1])
    values = {radius: at(radius) for radius in np.unique(radii)}
    return np.vectorize(values.__getitem__)(radii)


CLOSED_FORMS: dict[str, tuple[dict[str, float], Callable[..., np.ndarray]]] = {
    "isotropic": (
        {"sigma": 1.3},
        lambda size, sigma: np.multiply.outer(*[stats.norm.pdf(np.arange(size) - size // 2, scale=sigma)] * 2),
    ),
    "anisotropic": (
        {"sigma_x": 2.1, "sigma_y": 0.6, "angle": 0.7},
        lambda size, sigma_x, sigma_y, angle: stats.multivariate_normal(
            cov=turned_covariance(sigma_x, sigma_y, angle)  # pyright: ignore[reportArgumentType]
        ).pdf(np.stack(rotated(size, 0.0), axis=2)),
    ),
    "generalised-isotropic": (
        {"sigma": 1.7, "beta": 0.6},
        lambda size, sigma, beta: np.exp(-0.5 * np.hypot(*rotated(size, 0.0)) ** (2 * beta) / sigma ** (2 * beta)),
    ),
    "generalised-anisotropic": (
        {"sigma_x": 1.2, "sigma_y": 2.8, "angle": -2.3, "beta": 3.1},
        lambda size, sx, sy, angle, beta: np.exp(-0.5 * quadratic(size, sx, sy, angle) ** beta),
    ),
    "plateau-isotropic": (
        {"sigma": 0.9, "beta": 1.4},
        lambda size, sigma, beta: 1 / (1 + np.hypot(*rotated(size, 0.0)) ** (2 * beta) / sigma ** (2 * beta)),
    ),
    "plateau-anisotropic": (
        {"sigma_x": 0.4, "sigma_y": 1.9, "angle": 1.1, "beta": 2.0},
        lambda size, sx, sy, angle, beta: 1 / (1 + quadratic(size, sx, sy, angle) ** beta),
    ),
    "sinc": ({"cutoff": 1.9}, low_pass),
}


def turned_covariance(sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return axes @ np.diag([sigma_x**2, sigma_y**2]) @ axes.T


@pytest.mark.parametrize("family", KERNELS)
@pytest.mark.parametrize("size", [7, 21])
def test_kernels_are_their_closed_forms(family, size):
    parameters, closed_form = CLOSED_FORMS[family]
    wanted = closed_form(size, *parameters.values())
    found = Kernel(family, size, parameters).weights()
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-6)
    assert found.shape == (size, size) and found.sum() == pytest.approx(1)


def test_gaussians_are_those_of_generalised_ones_at_beta_1():
    np.testing.assert_allclose(module.generalised_isotropic(9, 1.5, 1.0), module.isotropic(9, 1.5), atol=1e-15)
    np.testing.assert_allclose(
        module.generalised_anisotropic(9, 1.5, 0.5, 0.3, 1.0), module.anisotropic(9, 1.5, 0.5, 0.3), atol=1e-15
    )


def test_a_kernel_of_even_size_has_no_centre():
    with pytest.raises(SpecError, match="size 8: sizes are odd"):
        module.isotropic(8, 1.0)


@pytest.mark.parametrize("shape", [(48, 64), (9, 5), (1, 3)])
def test_blur_is_scipys_correlation(shape):
    pixels = np.random.default_rng(1).random((*shape, 3))
    kernel = np.random.default_rng(2).random((15, 15))  # of no symmetry: a convolution would differ
    wanted = ndimage.correlate(pixels, kernel[:, :, None], mode="mirror")
    np.testing.assert_allclose(blur(pixels, kernel), wanted, atol=1e-10)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(11, 90), (48, 20), (60, 64), (48, 64), (3, 3), (1, 1)])
def test_resize_is_that_of_the_originals_tensors(interpolation, size):
    pixels = picture() / 255
    options = {} if interpolation == "area" else {"align_corners": False}
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(tensor, size, mode=interpolation, **options)[0].permute(1, 2, 0)
    np.testing.assert_allclose(resize(pixels, size, interpolation), wanted.numpy(), atol=1e-12)


def test_area_by_a_whole_factor_is_pillows_box():
    image = picture()
    wanted = np.asarray(Image.fromarray(image).reduce(4))
    assert (
        np.abs(to_bytes(resize(image / 255, (12, 16), "area")).astype(int) - wanted).max() <= 1
    )  # it rounds halves up


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_has_its_deviation_and_colour(grey):
    pixels = np.full((300, 300, 3), 0.5)
    noise = gaussian_noise(pixels, 20.0, grey, np.random.default_rng(0)) + np.zeros_like(pixels)
    per_channel = noise.reshape(-1, 3) * 255
    assert np.abs(per_channel.mean(axis=0)).max() < 4 * 20 / 300
    assert np.abs(per_channel.std(axis=0) / 20 - 1).max() < 0.01
    correlation = np.corrcoef(per_channel.T)[0, 1]
    assert correlation == pytest.approx(1) if grey else abs(correlation) < 4 / 300
    assert stats.kstest(per_channel[::3, 0] / 20, "norm").pvalue > SURPRISE


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("levels", [2, 4])
def test_poisson_noise_has_the_variance_of_its_levels(grey, levels):
    values = np.round(np.linspace(0.2, 0.9, levels) * 255) / 255
    pixels = np.repeat(values, 90_000 // levels).reshape(300, 300, 1) * np.ones(3)
    noise = poisson_noise(pixels, 1.5, grey, np.random.default_rng(0)) + np.zeros_like(pixels)
    assert (np.ptp(noise, axis=2) == 0).all() == grey
    for value in values:
        here = noise[pixels == value]
        count = len(here) / 3 if grey else len(here)
        deviation = 1.5 * math.sqrt(value / levels)
        assert abs(here.mean()) < 4.5 * deviation / math.sqrt(count) + 1e-3  # the luma's weights sum to 0.9999
        assert here.std() == pytest.approx(deviation, rel=0.03)


def test_poisson_noise_counts_levels_up_to_a_power_of_two():
    three = np.array([0.2, 0.4, 0.8])[:, None, None] * np.ones((1, 1, 3))
    found = poisson_noise(three, 1.0, False, np.random.default_rng(3))
    wanted = np.random.default_rng(3).poisson(three * 4) / 4 - three
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert not poisson_noise(np.zeros((4, 4, 3)), 1.0, False, np.random.default_rng(0)).any()


@pytest.mark.parametrize("quality", [30, 61, 95, 100])
def test_jpeg_is_pillows(quality):
    image = picture(37, 53)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    assert np.array_equal(jpeg(image, quality), np.asarray(Image.open(file).convert("RGB")))


# The distribution of each choice.


@pytest.fixture(scope="module", params=DEGRADATIONS)
def preset(request) -> tuple[Degradation, list[Draw]]:
    degradation = DEGRADATIONS[request.param]
    return degradation, [draw(degradation, 11, index) for index in range(DRAWS)]


def assert_shares(found: Iterable, probabilities: dict) -> None:
    """Chi-square of how often each value came, against its probability; nothing else may come."""
    counts = Counter(found)
    likely = {value: share for value, share in probabilities.items() if share}
    assert set(counts) <= set(likely)
    observed = [counts[value] for value in likely]
    expected = [sum(observed) * share for share in likely.values()]
    assert min(expected) > 5
    p = stats.chisquare(observed, expected).pvalue if len(likely) > 1 else 1.0
    assert p > SURPRISE, f"p = {p}: {counts}"


def assert_uniform(found: Iterable[float], least: float, most: float, bins: int = 8) -> None:
    values = np.array(list(found))
    assert least <= values.min() and values.max() <= most
    places = np.minimum(((values - least) / (most - least) * bins).astype(int), bins - 1)
    assert_shares(places.tolist(), dict.fromkeys(range(bins), 1 / bins))


def even(options: Iterable) -> dict:
    options = tuple(options)
    return dict.fromkeys(options, 1 / len(options))


@pytest.mark.parametrize("which", ["first", "second"])
def test_blur_kernels_are_drawn_as_said(preset, which):
    degradation, draws = preset
    stage: Stage = getattr(degradation, which)
    kernels = [getattr(one, which).kernel for one in draws]
    share = stage.blur_probability
    assert_shares([kernel is not None for kernel in kernels], {True: share, False: 1 - share})
    kernels = [kernel for kernel in kernels if kernel]
    of_families = {name: p * (1 - stage.sinc_probability) for name, p in zip(FAMILIES, stage.families, strict=True)}
    assert_shares([kernel.family for kernel in kernels], {**of_families, "sinc": stage.sinc_probability})
    assert_shares([kernel.size for kernel in kernels], even(KERNEL_SIZES))
    for name, interval in (("sigma", stage.sigma), ("sigma_x", stage.sigma), ("sigma_y", stage.sigma)):
        assert_uniform([kernel.parameters[name] for kernel in kernels if name in kernel.parameters], *interval)
    assert_uniform(
        [kernel.parameters["angle"] for kernel in kernels if "angle" in kernel.parameters], -math.pi, math.pi
    )
    for short in (True, False):
        cutoffs = [one.parameters["cutoff"] for one in kernels if one.family == "sinc" and (one.size < 13) == short]
        assert_uniform(cutoffs, math.pi / (3 if short else 5), math.pi)


@pytest.mark.parametrize("which", ["first", "second"])
def test_betas_lie_below_and_above_1_in_equal_shares(preset, which):
    degradation, draws = preset
    stage: Stage = getattr(degradation, which)
    kernels = [kernel for one in draws if (kernel := getattr(one, which).kernel)]
    for shape, (least, most) in (("generalised", stage.generalised_beta), ("plateau", stage.plateau_beta)):
        betas = [kernel.parameters["beta"] for kernel in kernels if kernel.family.startswith(shape)]
        assert_shares([beta > 1 for beta in betas], even((False, True)))
        assert_uniform([beta for beta in betas if beta > 1], 1, most)
        low = [beta for beta in betas if beta <= 1]
        assert set(low) == {1.0} if least == 1 else assert_uniform(low, least, 1) is None


@pytest.mark.parametrize("which", ["first", "second"])
def test_resize_noise_and_quality_are_drawn_as_said(preset, which):
    degradation, draws = preset
    stage: Stage = getattr(degradation, which)
    found = [getattr(one, which) for one in draws]
    assert_shares([one.direction for one in found], dict(zip(DIRECTIONS, stage.directions, strict=True)))
    assert_uniform([one.scale for one in found if one.direction == "up"], 1, stage.scale[1])
    assert_uniform([one.scale for one in found if one.direction == "down"], stage.scale[0], 1)
    assert {one.scale for one in found if one.direction == "keep"} == {1.0}
    assert_shares([one.interpolation for one in found], even(INTERPOLATIONS))
    share = stage.gaussian_probability
    assert_shares([one.noise.kind for one in found], {"gaussian": share, "poisson": 1 - share})
    for kind, interval in (("gaussian", stage.gaussian), ("poisson", stage.poisson)):
        assert_uniform([one.noise.strength for one in found if one.noise.kind == kind], *interval)
    share = stage.grey_probability
    assert_shares([one.noise.grey for one in found], {True: share, False: 1 - share})
    assert_shares([one.quality for one in found], even(range(stage.quality[0], stage.quality[1] + 1)))


def test_the_end_is_drawn_as_said(preset):
    degradation, draws = preset
    share = degradation.final_sinc_probability
    assert_shares([one.sinc is not None for one in draws], {True: share, False: 1 - share})
    kernels = [one.sinc for one in draws if one.sinc]
    assert_shares([kernel.size for kernel in kernels], even(KERNEL_SIZES))
    assert_uniform([kernel.parameters["cutoff"] for kernel in kernels], math.pi / 3, math.pi)
    assert_shares([one.interpolation for one in draws], even(INTERPOLATIONS))
    share = degradation.resize_first_probability
    assert_shares([one.resize_first for one in draws], {True: share, False: 1 - share})


def test_choices_are_independent_of_each_other(preset):
    _, draws = preset
    choices = {
        "family": [one.first.kernel.family for one in draws if one.first.kernel],
        "direction": [one.first.direction for one in draws],
        "noise": [one.second.noise.kind for one in draws],
        "order": [one.resize_first for one in draws],
        "number": [one.index % 2 for one in draws],
    }
    names = list(choices)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            counts = Counter(zip(choices[one], choices[other], strict=True))
            rows, columns = sorted(set(choices[one])), sorted(set(choices[other]))
            table = [[counts[row, column] for column in columns] for row in rows]
            found: Any = stats.chi2_contingency(table)
            assert found.pvalue > SURPRISE, (one, other)


def test_the_presets_hold_the_published_figures():
    heavy, light = DEGRADATIONS["realesrgan"], DEGRADATIONS["stablesr"]
    for stage in (heavy.first, heavy.second, light.first, light.second):
        assert stage.families == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
        assert (stage.sinc_probability, stage.gaussian_probability, stage.grey_probability) == (0.1, 0.5, 0.4)
    assert (heavy.first.sigma, heavy.second.sigma) == ((0.2, 3.0), (0.2, 1.5))
    assert (heavy.first.scale, heavy.second.scale) == ((0.15, 1.5), (0.3, 1.2))
    assert (heavy.first.gaussian, heavy.second.gaussian) == ((1, 30), (1, 25))
    assert (heavy.first.poisson, heavy.second.poisson) == ((0.05, 3), (0.05, 2.5))
    assert (heavy.first.blur_probability, heavy.second.blur_probability) == (1.0, 0.8)
    assert (light.first.scale, light.second.scale) == ((0.3, 1.5), (0.6, 1.2))
    assert (light.first.quality, light.second.quality) == ((60, 95), (60, 100))
    assert light.second.blur_probability == 0.5
    assert heavy.digest != light.digest and Degradation.from_yaml(heavy.to_yaml()) == heavy


def test_probabilities_sum_to_one():
    with pytest.raises(SpecError, match=r"first\.directions: .*sum to 1"):
        Degradation.parse(
            {
                **DEGRADATIONS["realesrgan"].model_dump(),
                "first": {**DEGRADATIONS["realesrgan"].first.model_dump(), "directions": (0.2, 0.2, 0.2)},
            }
        )


# Whole images.


def test_a_draw_is_a_function_of_seed_and_index():
    preset = DEGRADATIONS["realesrgan"]
    assert draw(preset, 3, 7) == draw(preset, 3, 7)
    others = [draw(preset, 4, 7), draw(preset, 3, 8)]
    assert all(replace(other, seed=3, index=7) != draw(preset, 3, 7) for other in others)
    json.dumps(asdict(draw(preset, 3, 7)))
    assert digest_of([asdict(draw(preset, 0, index)) for index in range(20)])[:12] == "27f505966832"


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_an_image_is_a_function_of_its_draw(name):
    image, before = picture(), picture()
    found = {}
    for index in (*range(12), *reversed(range(12))):  # in any order
        result = degrade(image, draw(DEGRADATIONS[name], 5, index))
        assert result.shape == (12, 16, 3) and result.dtype == np.uint8
        assert np.array_equal(found.setdefault(index, result), result)
    assert len({result.tobytes() for result in found.values()}) == 12
    assert np.array_equal(image, before)
    other_noise = degrade(image, replace(draw(DEGRADATIONS[name], 5, 0), seed=6))
    assert not np.array_equal(other_noise, found[0])


def test_the_steps_come_in_the_drawn_order():
    """By hand, step by step, from the public functions."""
    image = picture()
    for index in range(8):
        one = draw(DEGRADATIONS["realesrgan"], 2, index)
        out, sides = image / 255, [(48, 64), (12, 16)]
        for number, (stage, base) in enumerate(zip((one.first, one.second), sides, strict=True), 1):
            out = blur(out, stage.kernel.weights()) if stage.kernel else out
            height, width = (math.floor(side * stage.scale) for side in base)
            out = resize(out, (height, width), stage.interpolation)
            random = module.generator(2, f"noise of degradation {number}", index)
            noise = {"gaussian": gaussian_noise, "poisson": poisson_noise}[stage.noise.kind]
            out = (out + noise(out, stage.noise.strength, stage.noise.grey, random)).clip(0, 1)
            out = jpeg(to_bytes(out), stage.quality) / 255 if number == 1 else out
        steps = [lambda x, one=one: jpeg(to_bytes(x), one.second.quality) / 255]
        ends = [lambda x, one=one: resize(x, (12, 16), one.interpolation)]
        ends += [lambda x, kernel=one.sinc: blur(x, kernel.weights())] if one.sinc else []
        for step in [*ends, *steps] if one.resize_first else [*steps, *ends]:
            out = step(out)
        assert np.array_equal(to_bytes(out), degrade(image, one))


def test_any_draw_leaves_something_of_the_smallest_image():
    image = picture(module.SMALLEST, module.SMALLEST)
    smallest = draw(DEGRADATIONS["realesrgan"], 0, 0)
    smallest = replace(
        smallest,
        first=replace(smallest.first, scale=0.15, kernel=Kernel("isotropic", 21, {"sigma": 3.0})),
        second=replace(smallest.second, scale=0.3, kernel=Kernel("isotropic", 21, {"sigma": 1.5})),
        sinc=Kernel("sinc", 21, {"cutoff": 1.1}),
    )
    for interpolation in INTERPOLATIONS:
        assert degrade(image, replace(smallest, interpolation=interpolation)).shape == (4, 4, 3)


def test_the_lighter_preset_keeps_more_of_the_picture():
    image = picture(128, 128)
    clean = resize(image / 255, (32, 32), "area") * 255

    def mean_error(name: str) -> float:
        errors = [degrade(image, draw(DEGRADATIONS[name], 0, index)) - clean for index in range(60)]
        return float(np.mean(np.square(errors)))

    assert mean_error("stablesr") < 0.7 * mean_error("realesrgan")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((12, 64, 3), np.uint8), r"12 x 64 px: sides must be multiples of 4, of 16 px or more"),
        (np.zeros((64, 66, 3), np.uint8), r"64 x 66 px: sides must be multiples of 4"),
        (np.zeros((64, 64, 3), np.float32), r"expected a uint8 image \[H, W, 3\], found float32 \(64, 64, 3\)"),
        (np.zeros((64, 64, 3), np.uint16), r"found uint16"),
        (np.zeros((64, 64), np.uint8), r"found uint8 \(64, 64\)"),
        (np.zeros((64, 64, 4), np.uint8), r"found uint8 \(64, 64, 4\)"),
        (np.zeros((1, 64, 64, 3), np.uint8), r"found uint8 \(1, 64, 64, 3\)"),
    ],
)
def test_what_is_no_image_to_degrade_is_refused(image, said):
    with pytest.raises(DataError, match=said):
        degrade(image, draw(DEGRADATIONS["realesrgan"], 0, 0))


def test_torch_is_not_needed():
    code = "import sys, isocost.data.degradation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
