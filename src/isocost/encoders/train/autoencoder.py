"""Train a small autoencoder whose latents come out standardised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from isocost.encoders.autoencoder import Autoencoder, load_autoencoder, standardise
from isocost.encoders.train.steps import Images, Settings, Tell, optimise, pixels, seeded, silent

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


@dataclass(frozen=True)
class AutoencoderSettings(Settings):
    """channels: at full resolution, then at each halving; so factor = 2 ** (len - 1)."""

    channels: tuple[int, ...] = (16, 24, 48)
    latent_channels: int = 4
    images: int = 36_000
    batch: int = 8
    lr: float = 2e-3
    muon_lr: float = 0.02
    kl_weight: float = 3e-4
    gradient_weight: float = 0.5
    statistics_images: int = 2048


def build_autoencoder(settings: AutoencoderSettings) -> AutoencoderKL:
    """A convolutional AutoencoderKL without attention, so of any image size that its factor divides; random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks = len(settings.channels)
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * blocks,  # type: ignore[arg-type]
        block_out_channels=settings.channels,  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=math.gcd(8, *settings.channels),
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    _calm(module)
    return module


@torch.no_grad()
def _calm(module: AutoencoderKL) -> None:
    """Begin with residual blocks that pass their input on and a posterior of little noise: learning starts at once."""
    for name, weight in module.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias")):
            weight.zero_()
    assert module.quant_conv is not None and module.quant_conv.bias is not None
    module.quant_conv.bias[module.config["latent_channels"] :] -= 6


def train_autoencoder(
    images: Images,
    settings: AutoencoderSettings,
    seed: int,
    folder: str | Path,
    *,
    work: Path | None = None,
    tell: Tell = silent,
) -> Autoencoder:
    """Train, standardise the latents and save as a diffusers folder; returns what was saved, loaded.

    Loss: L1 + L2 + `gradient_weight` L1 of finite differences (edges) + `kl_weight` KL, means over elements.
    `work` and `tell`, and what is raised: as `optimise`.
    """
    with seeded(seed):
        module = build_autoencoder(settings)

        def loss(step: int) -> torch.Tensor:
            wanted = pixels(images(settings.numbers(step)))
            posterior = module.encode(wanted).latent_dist  # type: ignore[union-attr]
            error = module.decode(posterior.sample()).sample - wanted  # type: ignore[union-attr]
            edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
            fit = error.abs().mean() + (error**2).mean()
            return fit + settings.gradient_weight * edges + settings.kl_weight * kl

        optimise(module, loss, settings, seed, work=work, tell=tell)
    sample = images(range(settings.images, settings.images + settings.statistics_images))
    latents = torch.from_numpy(Autoencoder(module).encode(sample)).transpose(0, 1).flatten(1).double()
    standardise(module, latents.mean(1).float(), latents.std(1).float())
    return load_autoencoder(Autoencoder(module).save(folder))
