"""Networks that score: uint8 images in, float32 features out, by name or from a folder.

An extractor's digest covers weights and preprocessing, since both move a score. An image's features do not depend on
which or how many others were asked for with it: what is computed in batches has batches of one size. A new extractor is
one loader and one line of `EXTRACTORS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from isocost.errors import DataError, SpecError, lookup
from isocost.specs import digest_of

if TYPE_CHECKING:
    from isocost.encoders.classifier import AttributeClassifier
    from isocost.encoders.text import ClipScorer

PROJECTION_VERSION = 1
PROJECTION_BATCH = 256
PREPROCESSING = "shorter side by antialiased bicubic, central crop, v1"  # of the networks in `encoders`


class Extractor(Protocol):
    """`name` and `digest` are its identity, `dims` is D; a call maps uint8 [N, H, W, 3] RGB to float32 [N, D]."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def dims(self) -> int: ...

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class ClipFeatures:
    """A CLIP's image features, with those of captions beside them for the CLIP score."""

    name: str
    clip: ClipScorer

    @property
    def digest(self) -> str:
        return digest_of({"clip": self.clip.digest, "preprocessing": PREPROCESSING})

    @property
    def dims(self) -> int:
        return self.clip.dims

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.clip.image_features(check_images(images))

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """Features of captions, float32 [N, D], in the space of the images' features."""
        return self.clip.text_features(list(captions))

    def count_truncated(self, captions: Sequence[str]) -> int:
        """How many captions are longer than the text tower reads; they score by their beginning."""
        return self.clip.count_truncated(list(captions))


@dataclass(frozen=True)
class Projected:
    """Features of another extractor in `dims` fixed random directions: fewer images give a valid Frechet distance."""

    base: Extractor
    dims: int

    def __post_init__(self) -> None:
        if not 0 < self.dims <= self.base.dims:
            raise SpecError(f"'{self.base.name}' has {self.base.dims} dims and cannot be projected to {self.dims}.")

    @property
    def name(self) -> str:
        return f"{self.base.name}-{self.dims}"

    @property
    def digest(self) -> str:
        return digest_of({"base": self.base.digest, "projection": PROJECTION_VERSION, "dims": self.dims})

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return project(self.base(images), self.dims)


@dataclass(frozen=True)
class AttributeLogits:
    """An attribute classifier's logits, those of all attributes side by side; `split` takes them apart."""

    name: str
    classifier: AttributeClassifier

    @property
    def digest(self) -> str:
        return digest_of({"classifier": self.classifier.digest, "preprocessing": PREPROCESSING})

    @property
    def attributes(self) -> dict[str, tuple[str | int, ...]]:
        """Attribute -> its K values, in the order of its logits."""
        return dict(self.classifier.attributes)

    @property
    def dims(self) -> int:
        return sum(len(values) for values in self.attributes.values())

    def __call__(self, images: np.ndarray) -> np.ndarray:
        logits = self.classifier.logits(check_images(images))
        return np.concatenate([logits[name] for name in self.attributes], axis=1)

    def split(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """[N, D] -> attribute -> [N, K]."""
        ends = np.cumsum([len(values) for values in self.attributes.values()])
        return dict(zip(self.attributes, np.split(logits, ends[:-1], axis=1), strict=True))


def check_images(images: np.ndarray) -> np.ndarray:
    """`images` as they are, or a `DataError` unless they are uint8 [N, H, W, 3] with N > 0."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise DataError(f"images: expected uint8 [N, H, W, 3], found {images.dtype} {list(images.shape)}.")
    return images


def projection(dims_in: int, dims_out: int) -> np.ndarray:
    """Orthonormal columns [dims_in, dims_out], float64, uniform among all such, the same at every call.

    The signs of QR's R are made positive, so that the draw is unique; fewer columns are the first of more.
    """
    generator = np.random.Generator(np.random.Philox(key=[PROJECTION_VERSION, dims_in]))
    q, r = np.linalg.qr(generator.standard_normal((dims_out, dims_in)).T)
    return q * np.sign(np.diag(r))


def project(features: np.ndarray, dims: int) -> np.ndarray:
    """Features [N, D] in `dims` fixed orthonormal directions, float32 [N, dims]."""
    directions = projection(features.shape[1], dims)
    whole = -len(features) % PROJECTION_BATCH
    padded = np.pad(features.astype(np.float64), ((0, whole), (0, 0)))
    batches = padded.reshape(-1, PROJECTION_BATCH, features.shape[1])
    projected = np.concatenate([batch @ directions for batch in batches])
    return projected[: len(features)].astype(np.float32)


# --- by name ---


def clip_features(ref: str | Path, device: str = "cpu") -> ClipFeatures:
    """A CLIP or OpenCLIP as extractor: `ref` is a shipped asset's name, a folder or a hub id."""
    from isocost.encoders.text import load_clip

    return ClipFeatures(name=Path(ref).name, clip=load_clip(ref, device))


def attribute_logits(ref: str | Path, device: str = "cpu") -> AttributeLogits:
    """An attribute classifier as extractor: `ref` is a shipped asset's name or a folder. Runs on the CPU."""
    from isocost.encoders.classifier import load_classifier

    return AttributeLogits(name=Path(ref).name, classifier=load_classifier(ref))


def _inception(ref: str, device: str = "cpu") -> Extractor:
    from isocost.scoring.inception import load_inception

    name, path = _split(ref)
    return load_inception(name, path or None, device)


def _efficientnet(ref: str, device: str = "cpu") -> Extractor:
    from isocost.scoring.pretrained import efficientnet_features

    return efficientnet_features(device)


def _dinov2(ref: str, device: str = "cpu") -> Extractor:
    from isocost.scoring.pretrained import dinov2_features

    return dinov2_features(ref, device)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "scenes-clip-score": clip_features,
    "scenes-attributes": attribute_logits,
    "fid-tf": _inception,
    "fid-clean": _inception,
    "efficientnet-lite0": _efficientnet,
}
BY_PATH = ("fid-tf", "fid-clean")
"""Extractors that take a file of weights: `fid-tf:FILE`."""

MODEL_TYPES: dict[str, Callable[..., Extractor]] = {
    "clip": clip_features,
    "dinov2": _dinov2,
    "isocost_attributes": attribute_logits,
}
"""How a folder or hub id is loaded, by the `model_type` of its config.json."""


def load_extractor(ref: str | Path, dims: int | None = None, device: str = "cpu") -> Extractor:
    """The extractor that `ref` means, projected to `dims` where given.

    `ref`: a name of `EXTRACTORS`, `fid-tf:FILE` or `fid-clean:FILE` for weights that lie elsewhere, or the folder or
    hub id of a CLIP, an OpenCLIP or a DINOv2. Any of these with `-32` at its end says dims=32. Raises `SpecError` for
    an unknown name or too many dims, `DataError` for weights that are missing or corrupt.
    """
    name = str(ref)
    if dims is None and not _known(name) and (match := re.fullmatch(r"(.+)-(\d+)", name)) and _known(match[1]):
        name, dims = match[1], int(match[2])
    extractor = _load(name, device)
    return extractor if dims is None else Projected(extractor, dims)


def _load(ref: str, device: str) -> Extractor:
    name, _ = _split(ref)
    if name in EXTRACTORS:
        return EXTRACTORS[name](ref, device=device)
    from isocost.encoders.weights import is_hub_id, locate, read_config

    if not Path(ref).expanduser().is_dir() and not is_hub_id(ref):
        lookup(EXTRACTORS, ref, "extractor")
    folder = locate(ref, "clip", ("*.json", "model.safetensors", "merges.txt"))
    kind = read_config(folder).get("model_type")
    if kind not in MODEL_TYPES:
        raise DataError(f"{folder}: config.json is of '{kind}'; known as extractors: {', '.join(MODEL_TYPES)}.")
    return MODEL_TYPES[kind](ref, device=device)


def _known(ref: str) -> bool:
    """Whether `ref` means an extractor as it stands, so that a number at its end is no projection."""
    name, path = _split(ref)
    if name in EXTRACTORS:
        return not path or Path(path).expanduser().is_file()
    return Path(ref).expanduser().is_dir() or _is_cached(ref)


def _is_cached(ref: str) -> bool:
    from isocost.encoders.weights import cached_file, is_hub_id

    return is_hub_id(ref) and cached_file(ref, "config.json") is not None


def _split(ref: str) -> tuple[str, str]:
    """`fid-tf:FILE` -> ("fid-tf", FILE); any other ref with no file."""
    name, _, path = ref.partition(":")
    return (name, path) if name in BY_PATH else (ref, "")
