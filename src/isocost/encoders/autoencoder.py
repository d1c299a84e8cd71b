"""Images to latents and back: diffusers' AutoencoderKL behind uint8 arrays, with a content digest.

Latents come out standardised (mean 0, deviation 1 a channel) for autoencoders trained here: `standardise` folds the
statistics into the 1x1 convolutions at the bottleneck, so that any pipeline with scaling_factor 1 does the same.

diffusers takes seconds to import, so it is imported when a network is loaded, not with this file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from isocost.encoders.weights import (
    content_digest,
    load_into,
    locate,
    quiet_random,
    read_config,
    read_weights,
    write_weights,
)
from isocost.errors import DataError

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Pixels a network call, by device. The batch follows from the image size alone, so that no result depends on how many
# images were passed.
PIXELS_A_CALL = {"cpu": 2**14, "cuda": 2**20}


class Autoencoder:
    """A frozen AutoencoderKL.

    digest: sha256 of config and weights. factor: pixels a latent cell, along one side. channels: of the latent.
    module: the AutoencoderKL itself.
    """

    def __init__(self, module: AutoencoderKL, device: str = "cpu"):
        self.module = module.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.device = torch.device(device)
        self.digest = content_digest(module.config, module)
        self.factor = 2 ** (len(module.config["block_out_channels"]) - 1)
        self.channels = int(module.config["latent_channels"])
        self.scale = float(module.config["scaling_factor"])
        self.shift = float(module.config.get("shift_factor") or 0.0)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a square image."""
        return self.channels, resolution // self.factor, resolution // self.factor

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> fp32 [N, C, h, w]: the posterior's mode, scaled by the config's scaling_factor.

        Raises `DataError` unless H and W are multiples of `factor`.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"encode: expected uint8 images [N, H, W, 3], found {images.dtype} {images.shape}.")
        height, width = images.shape[1:3]
        if height % self.factor or width % self.factor:
            raise DataError(f"encode: {height} x {width} px: not multiples of the factor {self.factor}; resize first.")

        def network(batch: torch.Tensor) -> torch.Tensor:
            pixels = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
            return (self.module.encode(pixels).latent_dist.mode() - self.shift) * self.scale  # type: ignore[union-attr]

        shape = (self.channels, height // self.factor, width // self.factor)
        return self._in_fixed_batches(network, images, height * width, np.empty((len(images), *shape), np.float32))

    def decode(self, latents: np.ndarray | torch.Tensor) -> np.ndarray:
        """fp32 [N, C, h, w] -> uint8 [N, H, W, 3]."""
        latents = latents.detach().cpu().numpy() if isinstance(latents, torch.Tensor) else latents
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise DataError(f"decode: expected latents [N, {self.channels}, h, w], found {latents.shape}.")

        def network(batch: torch.Tensor) -> torch.Tensor:
            pixels = self.module.decode(batch / self.scale + self.shift).sample  # type: ignore[union-attr]
            return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

        height, width = (side * self.factor for side in latents.shape[2:])
        latents = np.ascontiguousarray(latents, dtype=np.float32)
        out = np.empty((len(latents), height, width, 3), np.uint8)
        return self._in_fixed_batches(network, latents, height * width, out)

    @torch.no_grad()
    def _in_fixed_batches(
        self, network: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray, pixels: int, out: np.ndarray
    ) -> np.ndarray:
        """Fill `out` with `network` of batches of one size; the last is padded by repeating its first row."""
        size = max(1, PIXELS_A_CALL[self.device.type] // pixels)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            count = len(batch)
            padded = np.concatenate([batch, np.repeat(batch[:1], size - count, axis=0)])
            out[start : start + count] = network(torch.from_numpy(padded).to(self.device))[:count].cpu().numpy()
        return out

    def save(self, folder: str | Path) -> Path:
        """Write as a diffusers folder, loadable by `AutoencoderKL.from_pretrained` and `load_autoencoder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.module.save_config(folder)
        write_weights(self.module.state_dict(), folder / WEIGHTS)
        return folder


def load_autoencoder(ref: str | Path, device: str = "cpu") -> Autoencoder:
    """Load a shipped asset ("scenes-vae"), a diffusers folder (or a pipeline's, at `vae/`), or a hub id.

    Raises `DataError` that says where it looked, or which file is corrupt.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = locate(ref, "vae", ("config.json", WEIGHTS))
    config = read_config(folder)
    if config.get("_class_name") != "AutoencoderKL":
        raise DataError(f"{folder}: config.json is of {config.get('_class_name')}, not of an AutoencoderKL.")
    with quiet_random():
        module: Any = AutoencoderKL.from_config(config)
    load_into(module, _old_attention_names(read_weights(folder / WEIGHTS)), folder / WEIGHTS)
    return Autoencoder(module, device)


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _old_attention_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stable Diffusion's published VAEs name the attention of the mid block as diffusers did before 0.17."""
    renamed = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if ".attentions." in name and parts[-2] in _OLD_ATTENTION:
            parts[-2] = _OLD_ATTENTION[parts[-2]]
            value = value.squeeze(-1).squeeze(-1) if value.ndim == 4 else value
        renamed[".".join(parts)] = value
    return renamed


@torch.no_grad()
def standardise(module: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Fold (z - mean) / deviation, per channel [C], into the bottleneck's 1x1 convolutions, in place; exact.

    Afterwards `encode` gives standardised latents, with the posterior's variance scaled to match, and `decode` takes
    them; what the two do in a row is unchanged.
    """
    channels = len(mean)
    quant, post = module.quant_conv, module.post_quant_conv
    assert quant is not None and post is not None and quant.bias is not None and post.bias is not None
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()  # log variance
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation[None, :, None, None]


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over two uint8 arrays of one shape, from their overall mean squared error."""
    error = np.mean((images.astype(np.float64) - others.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
