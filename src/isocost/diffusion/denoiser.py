"""The denoiser contract: whatever a network predicts, a sampler sees `denoised = D(x, t)`, and evaluations are counted.

With x_t = alpha x0 + sigma eps a network predicts one of
    epsilon       eps                            (DDPM, arXiv 2006.11239)
    v_prediction  v = alpha eps - sigma x0       (arXiv 2202.00512, appendix D; where alpha^2 + sigma^2 = 1)
    sample        x0
    flow          eps - x0                       (rectified flow, arXiv 2209.03003, as in arXiv 2403.03206)
A noise level is one for all rows, or one for each; coefficients are float64 and applied in the dtype of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from isocost.diffusion.schedule import Level, ends_in_noise, level, level_table
from isocost.errors import SpecError, did_you_mean
from isocost.specs import NoiseSchedule, Prediction

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

PREDICTIONS: tuple[str, ...] = get_args(Prediction)
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [N, C, H, W], timesteps int64 [N], context [N, L, D]) -> prediction [N, C, H, W].

One that embeds guidance takes scales [N] as a fourth.
"""
Predict = Callable[[Tensor, int], Tensor]
"""(x [B, C, H, W], timestep) -> prediction [R * B, C, H, W], for R contexts an image that were bound before."""


@runtime_checkable
class BindingNetwork(Protocol):
    """A network that computes what follows from the contexts alone once, for a whole trajectory."""

    def bind(self, context: Tensor, rows_per_image: int) -> Predict:
        """context [R * B, L, D]: the B images under each of R = rows_per_image contexts, one after the other."""
        ...


class Levels(NamedTuple):
    """A noise level for each row: alpha and sigma, float64 [B]."""

    alpha: Tensor
    sigma: Tensor


def levels(schedule: NoiseSchedule, timesteps: Tensor) -> Levels:
    """The schedule's levels at timesteps int64 [B], 0..T-1, on their device."""
    return Levels(*torch.tensor(level_table(schedule), device=timesteps.device)[:, timesteps])


def add_noise(x0: Tensor, noise: Tensor, at: Level | Levels) -> Tensor:
    """x_t = alpha x0 + sigma noise, all [B, C, H, W]."""
    alpha, sigma = _coefficients(at, x0)
    return alpha * x0 + sigma * noise


def target(prediction: str, x0: Tensor, noise: Tensor, at: Level | Levels) -> Tensor:
    """What the network should predict for x_t = add_noise(x0, noise, at): [B, C, H, W]."""
    _check_prediction(prediction)
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "flow":
        return noise - x0
    alpha, sigma = _coefficients(at, x0)
    return alpha * noise - sigma * x0


def to_x0(prediction: str, output: Tensor, x_t: Tensor, at: Level | Levels) -> Tensor:
    """Denoised image [B, C, H, W] from a network's output [B, C, H, W] at x_t [B, C, H, W].

    Raises `SpecError` for epsilon at alpha 0: x_t is pure noise there, and eps = x_t says nothing of x0.
    """
    _check_prediction(prediction)
    if prediction == "sample":
        return output
    alpha, sigma = _coefficients(at, x_t)
    if prediction == "v_prediction":
        return alpha * x_t - sigma * output
    if prediction == "flow":
        return (x_t - sigma * output) / (alpha + sigma)
    if _any_zero(at.alpha):
        raise SpecError("prediction 'epsilon' gives no image at alpha 0 (zero SNR): use 'v_prediction' or 'flow'.")
    return (x_t - sigma * output) / alpha


def to_epsilon(prediction: str, output: Tensor, x_t: Tensor, at: Level | Levels) -> Tensor:
    """Predicted noise [B, C, H, W] from a network's output [B, C, H, W] at x_t [B, C, H, W].

    Raises `SpecError` for sample at sigma 0: x_t holds no noise there.
    """
    _check_prediction(prediction)
    if prediction == "epsilon":
        return output
    alpha, sigma = _coefficients(at, x_t)
    if prediction == "v_prediction":
        return sigma * x_t + alpha * output
    if prediction == "flow":
        return (x_t + alpha * output) / (alpha + sigma)
    if _any_zero(at.sigma):
        raise SpecError("prediction 'sample' gives no noise at sigma 0: a clean image holds none.")
    return (x_t - alpha * output) / sigma


def check_prediction(prediction: str, schedule: NoiseSchedule) -> None:
    """Raise `SpecError` for a prediction that is unknown, or that means nothing somewhere on the schedule."""
    _check_prediction(prediction)
    if prediction == "v_prediction" and schedule.kind == "flow":
        raise SpecError(
            "prediction 'v_prediction' is for alpha^2 + sigma^2 = 1, and a flow has alpha + sigma = 1: use 'flow'."
        )
    if prediction == "epsilon" and ends_in_noise(schedule):
        raise SpecError(
            "prediction 'epsilon' cannot denoise pure noise, where a zero_terminal_snr schedule and a flow start: use "
            "'v_prediction' (arXiv 2305.08891), on a flow 'flow', or a schedule without it."
        )


class Denoiser:
    """A network, its schedule and what it predicts, as D(x, t) -> denoised x0 for contexts that were bound.

    `evaluations` counts network evaluations an image since the denoiser was made: a call in which each image has one
    row adds 1; guidance gives each image two rows in a call, and adds 2. Gradients are left to the caller.
    Raises `SpecError` for a prediction that the schedule does not go with.
    """

    def __init__(self, network: Network | BindingNetwork, schedule: NoiseSchedule, prediction: str) -> None:
        check_prediction(prediction, schedule)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.evaluations = 0

    def bind(self, context: Tensor, rows_per_image: int = 1) -> Predict:
        """D(x, t) under contexts [R * B, L, D], R = rows_per_image: the images under the first, then the next.

        D takes x [B, C, H, W] and a timestep 0..T-1, and gives x0 [R * B, C, H, W] in the dtype of x, by one call.
        """
        predict = bound(self.network, context, rows_per_image)

        def denoise(x: Tensor, t: int) -> Tensor:
            output = predict(x, t).to(x.dtype)
            self.evaluations += rows_per_image
            rows = x.repeat(rows_per_image, 1, 1, 1)
            return to_x0(self.prediction, output, rows, level(self.schedule, t))

        return denoise


def bound(network: Network | BindingNetwork, context: Tensor, rows_per_image: int) -> Predict:
    """`network.bind`, or for a network that has none a function that gives it the contexts at each call."""
    if isinstance(network, BindingNetwork):
        return network.bind(context, rows_per_image)

    def predict(x: Tensor, t: int) -> Tensor:
        timesteps = torch.full((context.shape[0],), t, dtype=torch.int64, device=x.device)
        return network(x.repeat(rows_per_image, 1, 1, 1), timesteps, context)

    return predict


class GuidanceEmbedded:
    """A network that takes a guidance scale beside the timestep, bound for a trajectory as contexts are.

    network: takes it as the fourth argument of a call, or of `bind` the third.
    """

    def __init__(self, network: Any, scale: float) -> None:
        self.network, self.scale = network, scale

    def bind(self, context: Tensor, rows_per_image: int) -> Predict:
        if isinstance(self.network, BindingNetwork):
            return self.network.bind(context, rows_per_image, self.scale)  # pyright: ignore[reportCallIssue]
        scales = torch.full((context.shape[0],), self.scale, device=context.device)
        return bound(lambda x, t, c: self.network(x, t, c, scales), context, rows_per_image)


def guidance_embedding(scales: Tensor, dim: int) -> Tensor:
    """Guidance scales [N] as [N, dim]: sines and cosines of 1000 (scale - 1), as Latent Consistency Models have them.

    It is `get_guidance_scale_embedding` of diffusers' pipelines, whose w is scale - 1 (arXiv 2310.04378, appendix F).
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=scales.device) * (-math.log(10_000) / (half - 1)))
    angles = 1000 * (scales.float() - 1)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Conditioned:
    """A network that is given a condition [B, C', H, W] beside x, bound for a trajectory as contexts are.

    network: takes both, [N, C + C', H, W]. A denoiser and a sampler see x alone.
    """

    def __init__(self, network: Network | BindingNetwork, condition: Tensor) -> None:
        self.network, self.condition = network, condition

    def bind(self, context: Tensor, rows_per_image: int) -> Predict:
        predict = bound(self.network, context, rows_per_image)
        return lambda x, t: predict(torch.cat([x, self.condition], dim=1), t)


def from_unet(unet: UNet2DConditionModel) -> Network:
    """A diffusers conditional module as a `Network`; x and context are cast to the module's dtype."""

    def network(x: Tensor, timesteps: Tensor, context: Tensor, scales: Tensor | None = None) -> Tensor:
        more = {} if scales is None else {"timestep_cond": embedded_in(unet, scales)}
        return unet(x.to(unet.dtype), timesteps, context.to(unet.dtype), return_dict=False, **more)[0]

    return network


def embedded_in(unet: Any, scales: Tensor) -> Tensor:
    """What a UNet that embeds guidance is given of scales [N], in its dtype."""
    return guidance_embedding(scales, unet.config["time_cond_proj_dim"]).to(unet.dtype)


def _check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise SpecError(f"unknown prediction '{prediction}'.{did_you_mean(prediction, PREDICTIONS)}")


def _coefficients(at: Level | Levels, like: Tensor) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """(alpha, sigma): floats, or tensors [B, 1, 1, 1] with the dtype and device of `like`."""
    if isinstance(at, Level):
        return at.alpha, at.sigma
    shape = (-1, *[1] * (like.ndim - 1))
    return at.alpha.reshape(shape).to(like), at.sigma.reshape(shape).to(like)


def _any_zero(value: float | Tensor) -> bool:
    return bool((value == 0).any()) if isinstance(value, Tensor) else value == 0
