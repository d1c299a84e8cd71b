"""From a `ModelSpec` to a module. A family is one function: all that `width` does not say, the family fixes.

diffusers takes seconds to import, so it is imported when a module is built, not with this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from isocost.errors import SpecError, lookup
from isocost.specs import ModelSpec

if TYPE_CHECKING:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from isocost.models.dit import DiT


def build(spec: ModelSpec, device: str | torch.device | None = None) -> UNet2DConditionModel | DiT:
    """A freshly initialised network: (x [B,C,H,W], timestep [B], context [B,L,context_dim]) -> `.sample` [B,C,H,W].

    Initial weights follow from `torch.manual_seed`, whatever the device: they are drawn on the CPU and moved. On `meta`
    (by `device` or a `with torch.device("meta")` around the call) nothing is drawn or stored. `device` None: torch's
    default device. Raises `SpecError` for an unknown family, and for a width that the family cannot divide.
    """
    import torch

    family = lookup(FAMILIES, spec.family, "model family")
    target = torch.device(device) if device is not None else torch.get_default_device()
    with torch.device("meta" if target.type == "meta" else "cpu"):
        network: Any = family(spec)  # diffusers' `to` is typed wrongly
    return network if target.type in ("cpu", "meta") else network.to(target)


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


def dit(spec: ModelSpec) -> DiT:
    """A diffusion transformer of the PixArt class (arXiv 2310.00426) on patches of 2x2, for latents of 32x32 or 64x64.

    Depth grows with width: 2 (c // 80) blocks, which are DiT-L's 24 at c = 1024, and the 28 of DiT-XL and PixArt at
    1152. Latents of an even side.
    """
    _require_multiple(spec, math.lcm(128, spec.num_heads), f"{spec.num_heads} heads, and its depth follows from it")
    return _dit(spec, depth=2 * (spec.width // 80), latent_size=32)


def dit_micro(spec: ModelSpec) -> DiT:
    """The same kind of transformer for latents of 8x8 to 16x16: a block for every 16 channels of its width."""
    _require_multiple(spec, math.lcm(16, spec.num_heads), f"{spec.num_heads} heads and blocks of 16 channels")
    return _dit(spec, depth=spec.width // 16, latent_size=8)


FAMILIES: dict[str, Callable[[ModelSpec], UNet2DConditionModel | DiT]] = {
    "sd": sd,
    "micro": micro,
    "dit": dit,
    "dit-micro": dit_micro,
}
# A network's parts that are trained, sharded or recomputed as one: the outermost modules of these classes.
BLOCKS = {"ResnetBlock2D", "Transformer2DModel", "BasicTransformerBlock"}


# Layers next to the latent, of UNets and DiTs.
OUTER = ("conv_in.", "conv_out.", "pos_embed.", "proj_out.")


def blocks(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """A network's blocks, in order: residual blocks and transformers of a UNet, transformer blocks of a DiT."""
    for child in network.children():
        if type(child).__name__ in BLOCKS:
            yield child
        else:
            yield from blocks(child)


def is_matrix(name: str, weight: torch.Tensor) -> bool:
    """Whether a parameter is a matrix or convolution; a DiT's tables of shifts are vectors that lie together."""
    return weight.ndim >= 2 and name.endswith(".weight")


def is_hidden_matrix(name: str, weight: torch.Tensor) -> bool:
    """Whether it lies between hidden features: those that touch the latent do not."""
    return is_matrix(name, weight) and not name.startswith(OUTER)


# What the latent goes into: the weight's second dimension is the latent's channels.
INWARD = ("conv_in.weight", "pos_embed.proj.weight")
# By what a UNet weights the embedding of a guidance scale.
GUIDANCE = "time_embedding.cond_proj.weight"


def widened(weights: Mapping[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Weights of a member for the same member with more `in_channels`, or that embeds guidance: new weights are 0.

    So before the first step of training the widened network does what the narrow one did, to the bit, whatever it is
    given beside the noise and the timestep.
    """
    import torch

    found = dict(weights)
    if spec.guidance_dim and GUIDANCE not in found:
        found[GUIDANCE] = torch.zeros(spec.width, spec.guidance_dim)
    for name in INWARD:
        if name in found and (more := spec.in_channels - found[name].shape[1]) > 0:
            narrow = found[name]
            found[name] = torch.cat([narrow, narrow.new_zeros(len(narrow), more, *narrow.shape[2:])], dim=1)
    return found


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
        time_cond_proj_dim=spec.guidance_dim,
        attention_head_dim=spec.num_heads,  # diffusers' name is wrong: it is the number of heads (its issue 6873)
    )


def _dit(spec: ModelSpec, depth: int, latent_size: int) -> DiT:
    from isocost.models.dit import DiT

    if spec.guidance_dim:
        raise SpecError(f"family '{spec.family}' embeds no guidance: leave guidance_dim out, or distil a UNet.")
    return DiT(spec, depth, latent_size)


def _require_multiple(spec: ModelSpec, step: int, parts: str) -> None:
    if spec.width % step:
        below, above = spec.width // step * step, (spec.width // step + 1) * step
        nearest = f"{below} or {above}" if below else f"{above}"
        raise SpecError(
            f"ModelSpec: width {spec.width} of family '{spec.family}' does not split into {parts}: "
            f"use a multiple of {step}, such as {nearest}."
        )
