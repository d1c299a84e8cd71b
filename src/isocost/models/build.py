"""From a `ModelSpec` to a module. A family is one function: all that `width` does not say, the family fixes.

diffusers takes seconds to import, so it is imported when a module is built, not with this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isocost.errors import SpecError, lookup
from isocost.specs import ModelSpec

if TYPE_CHECKING:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def build(spec: ModelSpec, device: str | torch.device | None = None) -> UNet2DConditionModel:
    """A freshly initialised UNet: (x [B,C,H,W], timestep [B], context [B,L,context_dim]) -> [B,C,H,W].

    Initial weights follow from `torch.manual_seed`, whatever the device: they are drawn on the CPU and moved. On `meta`
    (by `device` or a `with torch.device("meta")` around the call) nothing is drawn or stored. `device` None: torch's
    default device. Raises `SpecError` for an unknown family, and for a width that the family cannot divide.
    """
    import torch

    family = lookup(FAMILIES, spec.family, "model family")
    target = torch.device(device) if device is not None else torch.get_default_device()
    with torch.device("meta" if target.type == "meta" else "cpu"):
        unet: Any = family(spec)  # diffusers' `to` is typed wrongly
    return unet.to(target)


def sd(spec: ModelSpec) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet (arXiv 2112.10752) at widths (c, 2c, 4c, 4c): c = 320 is the original.

    Only c changes along the ladder (arXiv 2404.01367, Figure 2). Latents of a side that 8 divides.
    """
    _require_multiple(spec, math.lcm(32, spec.num_heads), f"32 norm groups and {spec.num_heads} heads")
    return _unet(spec, multiples=(1, 2, 4, 4), attention=(True, True, True, False), layers=2, groups=32, latent_size=64)


def micro(spec: ModelSpec) -> UNet2DConditionModel:
    """The same kind of UNet for latents of 8x8 to 16x16: widths (c, 2c, 4c), one residual block a level.

    The first level, the costliest on a CPU, has no attention. A norm group is four channels of the first level, at any
    width: in a group of one the norm would erase what the timestep embedding adds. Latents of a side that 4 divides.
    """
    heads_divide = spec.num_heads // math.gcd(spec.num_heads, 2)  # heads start at the second level, of 2c channels
    _require_multiple(spec, math.lcm(4, heads_divide), f"norm groups of 4 channels and {spec.num_heads} heads")
    groups = spec.width // 4
    return _unet(spec, multiples=(1, 2, 4), attention=(False, True, True), layers=1, groups=groups, latent_size=8)


FAMILIES: dict[str, Callable[[ModelSpec], UNet2DConditionModel]] = {"sd": sd, "micro": micro}


def _unet(
    spec: ModelSpec, multiples: tuple[int, ...], attention: tuple[bool, ...], layers: int, groups: int, latent_size: int
) -> UNet2DConditionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        block_out_channels=tuple(multiple * spec.width for multiple in multiples),
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        layers_per_block=layers,
        norm_num_groups=groups,
        cross_attention_dim=spec.context_dim,
        attention_head_dim=spec.num_heads,  # diffusers' name is wrong: it is the number of heads (its issue 6873)
    )


def _require_multiple(spec: ModelSpec, step: int, parts: str) -> None:
    if spec.width % step:
        below, above = spec.width // step * step, (spec.width // step + 1) * step
        nearest = f"{below} or {above}" if below else f"{above}"
        raise SpecError(
            f"ModelSpec: width {spec.width} of family '{spec.family}' does not split into {parts}: "
            f"use a multiple of {step}, such as {nearest}."
        )
