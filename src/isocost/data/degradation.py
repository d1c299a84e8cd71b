"""Photographs made worse, as cameras, editors and the web make them: the second-order degradation of Real-ESRGAN.

blur, resize, noise, JPEG; again blur, resize, noise; then, in one of two orders, JPEG and [resize to a quarter, sinc
filter] (arXiv 2107.10833, section 3, with the distributions of its published training options). What is done to image i
is a value, `Draw`, a function of (seed, i) alone, and so is the result: no batch, queue or worker has a part in it.

    low = degrade(image, draw(DEGRADATIONS["realesrgan"], seed=0, index=i))

Beside the original:
- JPEG is real (Pillow's, 4:2:0), so its luminance table is not transposed, and its quality is a whole number.
- Grey noise is one pattern an image, never one for a batch. Poisson noise counts the levels of its own image.
- Resizing is that of the original's tensors, not Pillow's: bilinear and bicubic (a = -0.75) read 2 and 4 pixels however
  much they shrink, so they alias, as cheap scalers do; area is the mean over windows of whole pixels. Scales are those
  of the sizes before and after, so an image stays on its ground truth where a size was rounded.
- It sharpens its ground truth, a choice of training and none of the degradation: nothing is sharpened here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image
from pydantic import Field, field_validator
from scipy.sparse import csr_array
from scipy.special import j1

from isocost.data.sampler import generator
from isocost.errors import DataError, SpecError
from isocost.specs import Spec

SCALE = 4
"""Pixels of the image a pixel of the result, along one side."""
SMALLEST = 16
"""Pixels of the shortest side of which any draw leaves something."""
KERNEL_SIZES = tuple(range(7, 22, 2))
LONG_KERNEL = 13
"""From this size on, a sinc filter of a stage may cut off lower frequencies."""
LUMA = np.array([0.2989, 0.587, 0.114])
CUBIC = -0.75

T = TypeVar("T")
Interval = tuple[float, float]
Direction = Literal["up", "down", "keep"]
Interpolation = Literal["area", "bilinear", "bicubic"]
DIRECTIONS: tuple[Direction, ...] = ("up", "down", "keep")
INTERPOLATIONS: tuple[Interpolation, ...] = ("area", "bilinear", "bicubic")


# Kernels: float64 [size, size], sum 1. Sizes are odd; x runs along a row, y down; angles in radians, from x to y.


def isotropic(size: int, sigma: float) -> np.ndarray:
    """A Gaussian of deviation `sigma` pixels."""
    return _normalised(np.exp(-_squared_radius(size, sigma, sigma, 0.0) / 2))


def anisotropic(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """A Gaussian of deviations `sigma_x` and `sigma_y` along axes turned by `angle`."""
    return _normalised(np.exp(-_squared_radius(size, sigma_x, sigma_y, angle) / 2))


def generalised_isotropic(size: int, sigma: float, beta: float) -> np.ndarray:
    """exp(-q^beta / 2), q the squared radius over sigma^2: peaked for beta < 1, flat for beta > 1 (arXiv 1302.6498)."""
    return generalised_anisotropic(size, sigma, sigma, 0.0, beta)


def generalised_anisotropic(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> np.ndarray:
    """exp(-q^beta / 2), q the squared radius in the axes of `anisotropic`."""
    return _normalised(np.exp(-(_squared_radius(size, sigma_x, sigma_y, angle) ** beta) / 2))


def plateau_isotropic(size: int, sigma: float, beta: float) -> np.ndarray:
    """1 / (1 + q^beta), q the squared radius over sigma^2."""
    return plateau_anisotropic(size, sigma, sigma, 0.0, beta)


def plateau_anisotropic(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> np.ndarray:
    """1 / (1 + q^beta), q the squared radius in the axes of `anisotropic`."""
    return _normalised(1 / (1 + _squared_radius(size, sigma_x, sigma_y, angle) ** beta))


def sinc(size: int, cutoff: float) -> np.ndarray:
    """The circular low-pass filter, c J1(c r) / (2 pi r), c = `cutoff` in radians a pixel (pi: nothing is cut along an
    axis); it rings, as sharpened and recompressed pictures do."""
    radius = np.sqrt(_squared_radius(size, 1.0, 1.0, 0.0))
    radius[size // 2, size // 2] = 1.0  # the limit at 0 stands apart
    kernel = cutoff * j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)


def _squared_radius(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    if size < 1 or size % 2 == 0:
        raise SpecError(f"a kernel of size {size}: sizes are odd.")
    y, x = np.mgrid[:size, :size] - size // 2
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


KERNELS: dict[str, Callable[..., np.ndarray]] = {
    "isotropic": isotropic,
    "anisotropic": anisotropic,
    "generalised-isotropic": generalised_isotropic,
    "generalised-anisotropic": generalised_anisotropic,
    "plateau-isotropic": plateau_isotropic,
    "plateau-anisotropic": plateau_anisotropic,
    "sinc": sinc,
}
FAMILIES = tuple(name for name in KERNELS if name != "sinc")


# Presets: what is drawn, and how often.


class Stage(Spec):
    """One of the two degradations in a row. Intervals are uniform, ends included where numbers are whole."""

    blur_probability: float = Field(ge=0, le=1)
    sinc_probability: float = Field(ge=0, le=1, description="of a sinc filter, where there is blur")
    families: tuple[float, float, float, float, float, float] = Field(
        description=f"probabilities of the other kernels: {', '.join(FAMILIES)}"
    )
    sigma: Interval = Field(description="kernel's deviation, pixels")
    generalised_beta: Interval = Field(description="half of the draws lie below 1, half above")
    plateau_beta: Interval = Field(description="half of the draws lie below 1 (or are 1), half above")
    directions: tuple[float, float, float] = Field(description="probabilities of resizing up, down, not at all")
    scale: Interval = Field(description="down: from the first to 1; up: from 1 to the second")
    gaussian_probability: float = Field(ge=0, le=1, description="of Gaussian noise; else it is Poisson's")
    gaussian: Interval = Field(description="deviation of the noise, of 255")
    poisson: Interval = Field(description="factor on Poisson noise")
    grey_probability: float = Field(ge=0, le=1, description="of one noise for the three channels")
    quality: tuple[int, int] = Field(description="JPEG")

    @field_validator("families", "directions")
    @classmethod
    def _sums_to_one(cls, probabilities: tuple[float, ...]) -> tuple[float, ...]:
        if min(probabilities) < 0 or not math.isclose(sum(probabilities), 1):
            raise ValueError("probabilities are not negative, and sum to 1")
        return probabilities


class Degradation(Spec):
    """The distribution that a `Draw` is drawn from."""

    first: Stage
    second: Stage
    final_sinc_probability: float = Field(ge=0, le=1)
    resize_first_probability: float = Field(ge=0, le=1, description="of [resize, sinc] before the last JPEG")


_REALESRGAN = Degradation(
    first=Stage(
        blur_probability=1.0,
        sinc_probability=0.1,
        families=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        sigma=(0.2, 3.0),
        generalised_beta=(0.5, 4.0),
        plateau_beta=(1.0, 2.0),
        directions=(0.2, 0.7, 0.1),
        scale=(0.15, 1.5),
        gaussian_probability=0.5,
        gaussian=(1.0, 30.0),
        poisson=(0.05, 3.0),
        grey_probability=0.4,
        quality=(30, 95),
    ),
    second=Stage(
        blur_probability=0.8,
        sinc_probability=0.1,
        families=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        sigma=(0.2, 1.5),
        generalised_beta=(0.5, 4.0),
        plateau_beta=(1.0, 2.0),
        directions=(0.3, 0.4, 0.3),
        scale=(0.3, 1.2),
        gaussian_probability=0.5,
        gaussian=(1.0, 25.0),
        poisson=(0.05, 2.5),
        grey_probability=0.4,
        quality=(30, 95),
    ),
    final_sinc_probability=0.8,
    resize_first_probability=0.5,
)
# arXiv 2305.07015, configs/stableSRNew/v2-finetune_text_T_512.yaml. Its `blur_kernel_size2: 11` is read by nothing; one
# image in a hundred is trained on undegraded, at full size, and none is here.
_STABLESR = Degradation(
    first=_REALESRGAN.first.model_copy(
        update={
            "sigma": (0.2, 1.5),
            "generalised_beta": (0.5, 2.0),
            "plateau_beta": (1.0, 1.5),
            "scale": (0.3, 1.5),
            "gaussian": (1.0, 15.0),
            "poisson": (0.05, 2.0),
            "quality": (60, 95),
        }
    ),
    second=_REALESRGAN.second.model_copy(
        update={
            "blur_probability": 0.5,
            "sigma": (0.2, 1.0),
            "generalised_beta": (0.5, 2.0),
            "plateau_beta": (1.0, 1.5),
            "scale": (0.6, 1.2),
            "gaussian": (1.0, 12.0),
            "poisson": (0.05, 1.0),
            "quality": (60, 100),
        }
    ),
    final_sinc_probability=0.8,
    resize_first_probability=0.5,
)
DEGRADATIONS: dict[str, Degradation] = {"realesrgan": _REALESRGAN, "stablesr": _STABLESR}


# Draws: what is done to one image.


@dataclass(frozen=True)
class Kernel:
    """`parameters`: those of `KERNELS[family]` after its size."""

    family: str
    size: int
    parameters: dict[str, float]

    def weights(self) -> np.ndarray:
        """float64 [size, size]."""
        return KERNELS[self.family](self.size, **self.parameters)


@dataclass(frozen=True)
class Noise:
    """`strength`: the deviation, of 255, of Gaussian noise; the factor on Poisson's. `grey`: the channels share it."""

    kind: Literal["gaussian", "poisson"]
    strength: float
    grey: bool


@dataclass(frozen=True)
class StageDraw:
    """`kernel`: None for no blur. `scale`: of the image's size in the first stage, of a quarter of it in the second."""

    kernel: Kernel | None
    direction: Direction
    scale: float
    interpolation: Interpolation
    noise: Noise
    quality: int


@dataclass(frozen=True)
class Draw:
    """Every choice for image `index`; its noise is drawn from (seed, index) once its size is known."""

    seed: int
    index: int
    first: StageDraw
    second: StageDraw
    sinc: Kernel | None
    interpolation: Interpolation
    resize_first: bool


def draw(degradation: Degradation, seed: int, index: int) -> Draw:
    """What `degradation` does to image `index`: a function of (seed, index) alone."""
    random = generator(seed, "degradation", index)
    return Draw(
        seed=seed,
        index=index,
        first=_draw_stage(degradation.first, random),
        second=_draw_stage(degradation.second, random),
        sinc=_draw_final_sinc(random) if random.random() < degradation.final_sinc_probability else None,
        interpolation=_pick(INTERPOLATIONS, random),
        resize_first=bool(random.random() < degradation.resize_first_probability),
    )


def _draw_stage(stage: Stage, random: np.random.Generator) -> StageDraw:
    kernel = _draw_kernel(stage, random) if random.random() < stage.blur_probability else None
    direction = _pick(DIRECTIONS, random, stage.directions)
    smallest, largest = stage.scale
    scale = {"up": random.uniform(1, largest), "down": random.uniform(smallest, 1), "keep": 1.0}[direction]
    interpolation = _pick(INTERPOLATIONS, random)
    gaussian = random.random() < stage.gaussian_probability
    noise = Noise(
        kind="gaussian" if gaussian else "poisson",
        strength=random.uniform(*(stage.gaussian if gaussian else stage.poisson)),
        grey=bool(random.random() < stage.grey_probability),
    )
    least, most = stage.quality
    return StageDraw(kernel, direction, scale, interpolation, noise, int(random.integers(least, most + 1)))


def _draw_kernel(stage: Stage, random: np.random.Generator) -> Kernel:
    size = _pick(KERNEL_SIZES, random)
    if random.random() < stage.sinc_probability:
        lowest = math.pi / (5 if size >= LONG_KERNEL else 3)
        return Kernel("sinc", size, {"cutoff": random.uniform(lowest, math.pi)})
    family = _pick(FAMILIES, random, stage.families)
    shape, _, symmetry = family.rpartition("-")
    if symmetry == "isotropic":
        parameters = {"sigma": random.uniform(*stage.sigma)}
    else:
        sigmas = {"sigma_x": random.uniform(*stage.sigma), "sigma_y": random.uniform(*stage.sigma)}
        parameters = {**sigmas, "angle": random.uniform(-math.pi, math.pi)}
    if shape:
        beta = stage.generalised_beta if shape == "generalised" else stage.plateau_beta
        parameters["beta"] = _draw_beta(beta, random)
    return Kernel(family, size, parameters)


def _draw_final_sinc(random: np.random.Generator) -> Kernel:
    return Kernel("sinc", _pick(KERNEL_SIZES, random), {"cutoff": random.uniform(math.pi / 3, math.pi)})


def _draw_beta(interval: Interval, random: np.random.Generator) -> float:
    """Below and above 1 in equal shares, however the interval lies around it."""
    least, most = interval
    return random.uniform(least, 1) if random.random() < 0.5 else random.uniform(1, most)


def _pick(options: Sequence[T], random: np.random.Generator, probabilities: Sequence[float] | None = None) -> T:
    return options[int(random.choice(len(options), p=probabilities))]


# What is done to pixels: float64 [H, W, 3] of 0 to 1.


def degrade(image: np.ndarray, draw: Draw) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H / 4, W / 4, 3], by what was drawn.

    Raises `DataError` for another type or shape, or a size that is under `SMALLEST` or no multiple of `SCALE`.
    """
    _check(image)
    height, width = image.shape[:2]
    low = (height // SCALE, width // SCALE)

    def finish(pixels: np.ndarray) -> np.ndarray:
        small = resize(pixels, low, draw.interpolation)
        return small if draw.sinc is None else blur(small, draw.sinc.weights())

    noises = [generator(draw.seed, f"noise of degradation {stage}", draw.index) for stage in (1, 2)]
    out = _stage(image / 255, draw.first, (height, width), noises[0])
    out = jpeg(to_bytes(out), draw.first.quality) / 255
    out = _stage(out, draw.second, low, noises[1])
    if draw.resize_first:
        return jpeg(to_bytes(finish(out)), draw.second.quality)
    return to_bytes(finish(jpeg(to_bytes(out), draw.second.quality) / 255))


def _check(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"degrade: expected a uint8 image [H, W, 3], found {image.dtype} {image.shape}.")
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST or height % SCALE or width % SCALE:
        raise DataError(
            f"degrade: {height} x {width} px: sides must be multiples of {SCALE}, of {SMALLEST} px or more: crop or "
            "enlarge the image first."
        )


def _stage(pixels: np.ndarray, stage: StageDraw, base: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Blur, resize to `scale` of the size `base`, noise; not yet JPEG."""
    if stage.kernel is not None:
        pixels = blur(pixels, stage.kernel.weights())
    height, width = (int(side * stage.scale) for side in base)
    pixels = resize(pixels, (height, width), stage.interpolation)
    return np.clip(pixels + NOISES[stage.noise.kind](pixels, stage.noise.strength, stage.noise.grey, random), 0, 1)


def blur(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation with a kernel of odd size, channel by channel; the image is mirrored about its outermost pixels."""
    from scipy.signal import fftconvolve  # a second to import

    margin = kernel.shape[0] // 2
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return fftconvolve(padded, kernel[::-1, ::-1, None], mode="valid", axes=(0, 1))


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """To (height, width), without antialiasing: pixel centres lie at (i + 1/2) / size, edges are repeated.

    As PyTorch's `interpolate` by size, and, but for "area", OpenCV's `resize`.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    taps = TAPS[interpolation]
    tall = _along_rows(pixels, size[0], taps)
    return _along_rows(tall.swapaxes(0, 1), size[1], taps).swapaxes(0, 1)


def _along_rows(pixels: np.ndarray, count: int, taps: Taps) -> np.ndarray:
    """[H, W, 3] -> [count, W, 3]."""
    places, weights = taps(len(pixels), count)
    targets = np.repeat(np.arange(count), places.shape[1])
    matrix = csr_array((weights.ravel(), (targets, places.ravel())), shape=(count, len(pixels)))
    return (matrix @ pixels.reshape(len(pixels), -1)).reshape(count, *pixels.shape[1:])


def _area(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean over all pixels that a target pixel touches, in equal parts (adaptive average pooling)."""
    target = np.arange(after)
    first, end = target * before // after, -(-(target + 1) * before // after)
    places = first[:, None] + np.arange((end - first).max())
    inside = places < end[:, None]
    return np.minimum(places, before - 1), inside / inside.sum(axis=1, keepdims=True)


def _bilinear(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    places, offset = _neighbours(before, after, np.arange(2))
    return places, np.concatenate([1 - offset, offset], axis=1)


def _bicubic(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys' kernel (1981) with a = -0.75, as PyTorch and OpenCV have it; Pillow has -0.5."""
    places, offset = _neighbours(before, after, np.arange(-1, 3))
    near = np.concatenate([offset, 1 - offset], axis=1)
    far = np.concatenate([1 + offset, 2 - offset], axis=1)
    inner = (CUBIC + 2) * near**3 - (CUBIC + 3) * near**2 + 1
    outer = CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
    return places, np.stack([outer[:, 0], inner[:, 0], inner[:, 1], outer[:, 1]], axis=1)


def _neighbours(before: int, after: int, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels lie around each target's centre, [after, len(steps)], and how far right of
    the one at step 0 it is, [after, 1]."""
    centre = (np.arange(after) + 0.5) * before / after - 0.5
    left = np.floor(centre)
    places = np.clip(left[:, None].astype(int) + steps, 0, before - 1)
    return places, (centre - left)[:, None]


Taps = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""(pixels before, pixels after) -> the places that each target pixel reads and their weights, both [after, taps]."""
TAPS: dict[str, Taps] = {"area": _area, "bilinear": _bilinear, "bicubic": _bicubic}


def gaussian_noise(pixels: np.ndarray, strength: float, grey: bool, random: np.random.Generator) -> np.ndarray:
    """What is to be added: deviation `strength` / 255; one value for the three channels where `grey`."""
    channels = 1 if grey else 3
    return random.standard_normal((*pixels.shape[:2], channels)) * strength / 255


def poisson_noise(pixels: np.ndarray, strength: float, grey: bool, random: np.random.Generator) -> np.ndarray:
    """What is to be added: `strength` (Poisson(v p) / v - p), p the 8-bit pixels or, where `grey`, their luma.

    v is the number of levels that occur in p, raised to a power of two: shot noise is weaker where a picture has more.
    """
    grounds = pixels @ LUMA[:, None] if grey else pixels
    rounded = to_bytes(grounds) / 255
    levels = 2 ** math.ceil(math.log2(len(np.unique(rounded))))
    return strength * (random.poisson(rounded * levels) / levels - rounded)


NOISES = {"gaussian": gaussian_noise, "poisson": poisson_noise}


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W, 3], written as a JPEG by Pillow (4:2:0) and read back."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(file))


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """0 to 1, what lies outside cut off -> uint8, rounded."""
    return np.clip(np.round(pixels * 255), 0, 255).astype(np.uint8)
