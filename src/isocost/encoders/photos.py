"""photo-vae: an autoencoder for photographs, which the one of the scenes has never seen.

FOLDER/        the autoencoder, its metrics.json, its card and the log of its training (see `isocost.encoders.own`)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isocost.data.degradation import DEGRADATIONS, SCALE, degrade, draw
from isocost.data.images import CaptionedImages, open_images
from isocost.data.pairs import enlarged
from isocost.data.photos import Crops
from isocost.data.remote import Place
from isocost.encoders.autoencoder import Autoencoder, psnr
from isocost.encoders.own import METRICS, train_once
from isocost.encoders.train import AutoencoderSettings, train_autoencoder
from isocost.encoders.train.steps import Tell, silent
from isocost.errors import DataError, SpecError, lookup

ROOM_DB = 3.0
"""What a super-resolved photograph must be able to gain over bicubic, or a study of it has nothing to measure."""
LARGEST = 768
"""Pixels a side of what is measured of a held-out photograph, from its middle: memory stays bounded."""


@dataclass(frozen=True)
class PhotoSettings(AutoencoderSettings):
    """Four latent channels, as those of the members that start from another autoencoder's latents.

    side: of a crop, pixels. photographs: digest of those that are trained on, so that a stopped training goes on with
    no others.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    images: int = 60_000
    side: int = 64
    photographs: str = ""

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.channels) - 1)
        if self.side < factor or self.side % factor:
            raise SpecError(f"photo-vae: crops of {self.side} px: sides are multiples of {factor}.")
        if self.latent_channels < 1:
            raise SpecError(f"photo-vae: {self.latent_channels} latent channels: 1 at least.")
        if self.images < self.batch:
            raise SpecError(f"photo-vae: {self.images} images do not fill a batch of {self.batch}.")


def photo_settings(chosen: Mapping[str, Any]) -> PhotoSettings:
    """The settings with some fields chosen. Raises `SpecError` for another field, or a value that cannot be."""
    known = {field.name: None for field in fields(PhotoSettings) if field.name != "photographs"}
    for name in chosen:
        lookup(known, name, "setting of photo-vae")
    return PhotoSettings(**chosen)


def train_photo_vae(
    train: Sequence[Place],
    held_out: Sequence[Place],
    folder: str | Path,
    settings: PhotoSettings | None = None,
    seed: int = 0,
    degradation: str = "realesrgan",
    tell: Tell = silent,
) -> dict[str, Any]:
    """Train on crops of photographs in folders or tars; what was measured on held-out ones, as in metrics.json.

    What lies in `folder` already is kept; a training that was stopped goes on from its last state.

    Raises `DataError` naming a photograph that is broken, or smaller than a crop; `SpecError` for an unknown
    degradation; `TrainingError` where another process trains the same autoencoder.
    """
    lookup(DEGRADATIONS, degradation, "degradation")
    folder = Path(folder)
    settings = settings or PhotoSettings()

    def into(made: Path, work: Path) -> dict[str, Any]:
        photographs, others = (open_images(places, captions_required=False) for places in (train, held_out))
        for index in range(len(others)):  # a broken one is found before training
            _middle(others, index)
        crops = Crops(photographs, settings.side, seed, mirror=True)
        chosen = replace(settings, photographs=photographs.digest)
        autoencoder = train_autoencoder(crops.images, chosen, seed, made, work=work, tell=tell)
        metrics = {**measure(autoencoder, others, degradation), "licences": _licences(photographs)}
        (made / "README.md").write_text(_card(chosen, seed, len(photographs), metrics))
        return metrics

    return json.loads((train_once(folder, into) / METRICS).read_text())


def measure(
    autoencoder: Autoencoder, photographs: CaptionedImages, degradation: str = "realesrgan", seed: int = 0
) -> dict[str, Any]:
    """PSNR of reconstructions, beside what needs no network; means over photographs, in dB.

    psnr_bicubic_clean: of a fourfold reduction without any other harm, enlarged again. psnr_bicubic_degraded: of the
    low-resolution input that super-resolution is given, enlarged. room: the reconstruction's lead over that.
    """
    preset = lookup(DEGRADATIONS, degradation, "degradation")
    ways: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "psnr_held_out": lambda image, _: autoencoder.decode(autoencoder.encode(image[None]))[0],
        "psnr_bicubic_clean": lambda image, _: enlarged(reduce(image)),
        "psnr_bicubic_degraded": lambda image, index: enlarged(degrade(image, draw(preset, seed, index))),
    }
    images = [_middle(photographs, index) for index in range(len(photographs))]
    found: dict[str, Any] = {
        name: float(np.mean([psnr(image, way(image, index)) for index, image in enumerate(images)]))
        for name, way in ways.items()
    }
    room = found["psnr_held_out"] - found["psnr_bicubic_degraded"]
    return {
        **found,
        "room": room,
        "enough_room": room >= ROOM_DB,
        "degradation": degradation,
        "images": len(images),
        "held_out": photographs.digest,
    }


def reduce(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H / 4, W / 4, 3] by Pillow's BICUBIC, which does not alias."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width // SCALE, height // SCALE), Image.Resampling.BICUBIC))


def _middle(photographs: CaptionedImages, index: int) -> np.ndarray:
    """At most `LARGEST` pixels a side, and a multiple of 16, so that every factor in use divides it."""
    image = photographs.decoded(index).pixels
    sides = [min(side, LARGEST) // 16 * 16 for side in image.shape[:2]]
    if not all(sides):
        raise DataError(f"{photographs.where(index)}: smaller than 16 px: move it away.")
    top, left = ((side - kept) // 2 for side, kept in zip(image.shape[:2], sides, strict=True))
    return image[top : top + sides[0], left : left + sides[1]]


def _licences(photographs: CaptionedImages) -> dict[str, int]:
    """How many photographs say which `license` in their json."""
    said = [str(photographs.metadata(index).get("license", "not said")) for index in range(len(photographs))]
    return {licence: said.count(licence) for licence in sorted(set(said))}


def _card(settings: PhotoSettings, seed: int, photographs: int, metrics: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in asdict(settings).items())
    licences = ", ".join(f"{licence} ({count})" for licence, count in metrics["licences"].items())
    rows = [f"| {name} | {value:.2f} dB |" for name, value in metrics.items() if isinstance(value, float)]
    return "\n".join(
        [
            "# photo-vae",
            "",
            f"An AutoencoderKL trained by `isocost recipe photo-vae` on crops of {photographs} photographs, of these "
            f"licences: {licences}. Where one is share-alike, pass these weights on under it, or not at all.",
            "",
            f"Settings: {values}. Seed {seed}.",
            "",
            f"On {metrics['images']} held-out photographs (degradation: {metrics['degradation']}):",
            "",
            "| figure | value |",
            "|---|---|",
            *rows,
            "",
        ]
    )
