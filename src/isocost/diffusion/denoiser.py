"""The denoiser contract: whatever a network predicts, a sampler sees `denoised = D(x, t)`, and evaluations are counted.

With x_t = alpha x0 + sigma eps (alpha^2 = alpha_cumprod, sigma^2 = 1 - alpha_cumprod) a network predicts one of
    epsilon       eps                            (DDPM, arXiv 2006.11239)
    v_prediction  v = alpha eps - sigma x0       (arXiv 2202.00512, appendix D)
    sample        x0
`alpha_cumprod` is a float, or a tensor [B] with one value for each row; coefficients are computed in float64 and
applied in the dtype of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isocost.diffusion.schedule import alpha_cumprod_at
from isocost.errors import SpecError, did_you_mean
from isocost.specs import NoiseSchedule

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

PREDICTIONS = ("epsilon", "v_prediction", "sample")
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [N, C, H, W], timesteps int64 [N], context [N, L, D]) -> prediction [N, C, H, W]."""


def add_noise(x0: Tensor, noise: Tensor, alpha_cumprod: float | Tensor) -> Tensor:
    """x_t = alpha x0 + sigma noise, all [B, C, H, W]."""
    alpha, sigma = _coefficients(alpha_cumprod, x0)
    return alpha * x0 + sigma * noise


def target(prediction: str, x0: Tensor, noise: Tensor, alpha_cumprod: float | Tensor) -> Tensor:
    """What the network should predict for x_t = add_noise(x0, noise, alpha_cumprod): [B, C, H, W]."""
    _check_prediction(prediction)
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    alpha, sigma = _coefficients(alpha_cumprod, x0)
    return alpha * noise - sigma * x0


def to_x0(prediction: str, output: Tensor, x_t: Tensor, alpha_cumprod: float | Tensor) -> Tensor:
    """Denoised image [B, C, H, W] from a network's output [B, C, H, W] at x_t [B, C, H, W].

    Raises `SpecError` for epsilon at alpha_cumprod 0: x_t is pure noise there, and eps = x_t says nothing of x0.
    """
    _check_prediction(prediction)
    if prediction == "sample":
        return output
    alpha, sigma = _coefficients(alpha_cumprod, x_t)
    if prediction == "v_prediction":
        return alpha * x_t - sigma * output
    if _any_zero(alpha_cumprod):
        raise SpecError("prediction 'epsilon' gives no image at alpha_cumprod 0 (zero SNR): use 'v_prediction'.")
    return (x_t - sigma * output) / alpha


def to_epsilon(prediction: str, output: Tensor, x_t: Tensor, alpha_cumprod: float | Tensor) -> Tensor:
    """Predicted noise [B, C, H, W] from a network's output [B, C, H, W] at x_t [B, C, H, W].

    Raises `SpecError` for sample at alpha_cumprod 1: x_t holds no noise there.
    """
    _check_prediction(prediction)
    if prediction == "epsilon":
        return output
    alpha, sigma = _coefficients(alpha_cumprod, x_t)
    if prediction == "v_prediction":
        return sigma * x_t + alpha * output
    if _any_zero(1 - alpha_cumprod):
        raise SpecError("prediction 'sample' gives no noise at alpha_cumprod 1: a clean image holds none.")
    return (x_t - alpha * output) / sigma


class Denoiser:
    """A network, its schedule and what it predicts, as D(x, t, context) -> denoised x0.

    `evaluations` counts network evaluations an image since the denoiser was made: a call in which each image has one
    row adds 1; guidance puts each image twice in a call, and adds 2. Gradients are left to the caller.
    Raises `SpecError` for epsilon on a schedule with zero terminal SNR.
    """

    def __init__(self, network: Network, schedule: NoiseSchedule, prediction: str) -> None:
        _check_prediction(prediction)
        if prediction == "epsilon" and schedule.zero_terminal_snr:
            raise SpecError(
                "prediction 'epsilon' cannot denoise pure noise, where a zero_terminal_snr schedule starts: "
                "use 'v_prediction' (arXiv 2305.08891), or a schedule without it."
            )
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.evaluations = 0

    def __call__(self, x: Tensor, t: int, context: Tensor, rows_per_image: int = 1) -> Tensor:
        """x [N, C, H, W] at timestep t (0..T-1), context [N, L, D] -> x0 [N, C, H, W] in the dtype of x.

        One network call on N rows, which are N / rows_per_image images.
        """
        timesteps = torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)
        output = self.network(x, timesteps, context).to(x.dtype)
        self.evaluations += rows_per_image
        return to_x0(self.prediction, output, x, alpha_cumprod_at(self.schedule, t))


def from_unet(unet: UNet2DConditionModel) -> Network:
    """A diffusers conditional module as a `Network`; x and context are cast to the module's dtype."""

    def network(x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return unet(x.to(unet.dtype), timesteps, context.to(unet.dtype), return_dict=False)[0]

    return network


def _check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise SpecError(f"unknown prediction '{prediction}'.{did_you_mean(prediction, PREDICTIONS)}")


def _coefficients(alpha_cumprod: float | Tensor, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """(alpha, sigma): floats, or tensors [B, 1, 1, 1] with the dtype and device of `like`."""
    if isinstance(alpha_cumprod, Tensor) and alpha_cumprod.ndim:
        rows = alpha_cumprod.double().reshape(-1, *[1] * (like.ndim - 1))
        return rows.sqrt().to(like), (1 - rows).sqrt().to(like)
    value = float(alpha_cumprod)
    return math.sqrt(value), math.sqrt(1 - value)


def _any_zero(value: float | Tensor) -> bool:
    return bool((value == 0).any()) if isinstance(value, Tensor) else value == 0
