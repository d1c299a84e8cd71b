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
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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
Predict = Callable[[Tensor, int], Tensor]
"""(x [B, C, H, W], timestep) -> prediction [R * B, C, H, W], for R contexts an image that were bound before."""


@runtime_checkable
class BindingNetwork(Protocol):
    """A network that computes what follows from the contexts alone once, for a whole trajectory."""

    def bind(self, context: Tensor, rows_per_image: int) -> Predict:
        """context [R * B, L, D]: the B images under each of R = rows_per_image contexts, one after the other."""
        ...


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
    """A network, its schedule and what it predicts, as D(x, t) -> denoised x0 for contexts that were bound.

    `evaluations` counts network evaluations an image since the denoiser was made: a call in which each image has one
    row adds 1; guidance gives each image two rows in a call, and adds 2. Gradients are left to the caller.
    Raises `SpecError` for epsilon on a schedule with zero terminal SNR.
    """

    def __init__(self, network: Network | BindingNetwork, schedule: NoiseSchedule, prediction: str) -> None:
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

    def bind(self, context: Tensor, rows_per_image: int = 1) -> Predict:
        """D(x, t) under contexts [R * B, L, D], R = rows_per_image: the images under the first, then the next.

        D takes x [B, C, H, W] and a timestep 0..T-1, and gives x0 [R * B, C, H, W] in the dtype of x, by one call.
        """
        predict = _bind(self.network, context, rows_per_image)

        def denoise(x: Tensor, t: int) -> Tensor:
            output = predict(x, t).to(x.dtype)
            self.evaluations += rows_per_image
            rows = x.repeat(rows_per_image, 1, 1, 1)
            return to_x0(self.prediction, output, rows, alpha_cumprod_at(self.schedule, t))

        return denoise


def _bind(network: Network | BindingNetwork, context: Tensor, rows_per_image: int) -> Predict:
    """`network.bind`, or for a network that has none a function that gives it the contexts at each call."""
    if isinstance(network, BindingNetwork):
        return network.bind(context, rows_per_image)

    def predict(x: Tensor, t: int) -> Tensor:
        timesteps = torch.full((context.shape[0],), t, dtype=torch.int64, device=x.device)
        return network(x.repeat(rows_per_image, 1, 1, 1), timesteps, context)

    return predict


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
