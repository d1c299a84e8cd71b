"""The images of a super-resolution protocol as files: crops, and what a degradation left of them.

FOLDER/manifest.json      the protocol, the degradation, and of each pair its crop and the sha256 of its low pixels
FOLDER/high/KEY.png       the crop
FOLDER/low/KEY.png        a quarter the side, 8-bit

A degradation's last bits may hang on the versions of libraries; a low-resolution image that is kept does not. So it is
made once, and what is upscaled and scored is read from here.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isocost.data.degradation import DEGRADATIONS, degrade, draw
from isocost.data.images import decode_image
from isocost.errors import DataError, lookup
from isocost.files import atomic_write
from isocost.scoring.protocols import Crops
from isocost.scoring.sets import ImageSet, open_set

MANIFEST = "manifest.json"
DECODERS = 4


class LowResolution:
    """What `write_lowres` wrote. Raises `DataError` where there is none, or it is damaged."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_bytes())
            self._sha256 = {pair["key"]: pair["sha256"] for pair in self.manifest["pairs"]}
        except OSError:
            raise DataError(f"{path}: missing: not a folder of low-resolution images, or not a finished one") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged ({error!r}): delete {self.folder}, it is made again") from None

    @property
    def digest(self) -> str:
        """Of the protocol, the degradation and all low-resolution pixels."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()

    @cached_property
    def targets(self) -> ImageSet:
        """The crops as a set of images, by key."""
        return open_set(self.folder / "high", self.manifest["protocol"])

    def low(self, keys: Sequence[str]) -> np.ndarray:
        """uint8 [N, h, w, 3]. Raises `DataError` for an image whose pixels are not those that were written."""
        images = self._read("low", keys)
        for key, image in zip(keys, images, strict=True):
            if _sha256(image) != self._sha256[key]:
                raise DataError(f"{self.folder / 'low' / key}.png: changed: delete {self.folder}, it is made again")
        return images

    def high(self, keys: Sequence[str]) -> np.ndarray:
        """uint8 [N, 4 h, 4 w, 3]."""
        return self._read("high", keys)

    def _read(self, kind: str, keys: Sequence[str]) -> np.ndarray:
        return np.stack([_png(self.folder / kind / f"{key}.png") for key in keys])


def write_lowres(
    crops: Crops, degradation: str, folder: str | Path, report: Callable[[int, int], None] = lambda done, total: None
) -> LowResolution:
    """Cut and degrade every crop of a protocol, by its own seed; what is there already is kept.

    degradation: a name in `DEGRADATIONS`. Raises `DataError` for a photograph that cannot be read, `SpecError` for an
    unknown degradation.
    """
    folder = Path(folder)
    preset = lookup(DEGRADATIONS, degradation, "degradation")
    if not (folder / MANIFEST).is_file():

        def made(place: int) -> dict[str, Any]:
            crop = crops.crops[place]
            high = crops.read(place).pixels
            low = degrade(high, draw(preset, crop.degradation_seed, 0))
            for kind, image in (("high", high), ("low", low)):
                _write(folder / kind / f"{crop.key}.png", image)
            return {**vars(crop), "sha256": _sha256(low)}

        with ThreadPoolExecutor(DECODERS) as pool:
            pairs = []
            for pair in pool.map(made, range(len(crops.crops))):
                pairs.append(pair)
                report(len(pairs), len(crops.crops))
        manifest = {
            "protocol": crops.protocol,
            "degradation": degradation,
            "parameters": preset.canonical(),
            "pairs": pairs,
        }
        with atomic_write(folder / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode())
    return LowResolution(folder)


def _sha256(image: np.ndarray) -> str:
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _png(path: Path) -> np.ndarray:
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}: delete {path.parents[1]}, it is made again") from None


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
