"""Which networks isocost can use, whether their weights are here, where they were looked for, and what would provide
them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE

from isocost.encoders.weights import ASSETS, cached_file
from isocost.files import atomic_write, file_digest
from isocost.scoring import inception, perceptual, pretrained
from isocost.scoring.weights import Published, folders

DIGESTS = Path("~/.cache/isocost/digests.json")
SAFETENSORS = "model.safetensors"
VAE = "diffusion_pytorch_model.safetensors"

SHIPPED = (
    ("data.autoencoder", "scenes-vae", VAE),
    ("data.text_encoder", "scenes-clip-condition", SAFETENSORS),
    ("evaluation.extractor", "scenes-clip-score", SAFETENSORS),
    ("evaluation.classifier", "scenes-attributes", SAFETENSORS),
)
ON_THE_HUB = (
    ("data.autoencoder", "stabilityai/sd-vae-ft-mse", VAE),
    ("data.text_encoder", "openai/clip-vit-large-patch14", SAFETENSORS),
    ("data.text_encoder", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", SAFETENSORS),
    ("evaluation.extractor", "openai/clip-vit-large-patch14", SAFETENSORS),
    ("evaluation.extractor", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", SAFETENSORS),
    ("evaluation.extractor", "facebook/dinov2-base", SAFETENSORS),
    ("evaluation.extractor", "facebook/dinov2-large", SAFETENSORS),
)
"""Examples: any id of the same kinds of network does."""


@dataclass(frozen=True)
class Known:
    """A network that a spec's field, or a metric, may name. `find`: its file of weights, where that is here."""

    field: str
    name: str
    find: Callable[[], Path | None]
    looked: str
    what_to_do: str

    def row(self) -> dict[str, Any]:
        path = self.find()
        return {
            "field": self.field,
            "name": self.name,
            "found": path is not None,
            "where": from_home(path) if path else self.looked,
            "sha256": cached_digest(path)[:12] if path else "",
            "what to do": "" if path else self.what_to_do,
        }


def inventory() -> list[dict[str, Any]]:
    """A row a network: field, name, found, where it is (or was looked for), sha256 of the weights (12 digits), what to
    do. Paths in the user's home start with ~."""
    return [known.row() for known in known_networks()]


def known_networks() -> Iterator[Known]:
    for field, name, weights in SHIPPED:
        path = ASSETS / name / weights
        again = "part of the package: install isocost again"
        yield Known(field, name, _if_file(path), from_home(path), again)
    for field, name, weights in ON_THE_HUB:
        fetch = f"hf download {name}"
        yield Known(field, name, _in_hub_cache(name, weights), from_home(Path(HF_HUB_CACHE)), fetch)
    for name in inception.PREPROCESSING:
        yield _published("evaluation.extractor", name, inception.WEIGHTS)
    package = f"package {pretrained.EFFICIENTNET_PACKAGES[1]}"
    name, find = pretrained.EFFICIENTNET, pretrained.efficientnet_file
    yield Known("evaluation.extractor", name, find, package, pretrained.INSTALL)
    for name, net in perceptual.NETS.items():
        yield _published("metric", f"lpips-{name}: trunk", net.trunk_weights)
        yield _published("metric", f"lpips-{name}: heads", net.head_weights)


def _published(field: str, name: str, weights: Published) -> Known:
    return Known(field, name, weights.find, ", ".join(map(from_home, folders())), weights.command)


def _if_file(path: Path) -> Callable[[], Path | None]:
    return lambda: path if path.is_file() else None


def _in_hub_cache(repo: str, weights: str) -> Callable[[], Path | None]:
    return lambda: cached_file(repo, weights)


def from_home(path: Path) -> str:
    """A path as text, with ~ for the user's home."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def cached_digest(path: Path) -> str:
    """sha256 of a file, computed once: remembered by path, size and time of change, in the user's cache.

    The hub's cache names its large files by their sha256, which is taken as it is.
    """
    real = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    status = real.stat()
    state = [status.st_size, status.st_mtime_ns]
    store = DIGESTS.expanduser()
    known = _remembered(store)
    if known.get(str(real), [])[:2] != state:
        known[str(real)] = [*state, file_digest(real)]
        _remember(known, store)
    return known[str(real)][2]


def _remembered(store: Path) -> dict[str, list]:
    try:
        return json.loads(store.read_text())
    except (OSError, ValueError):
        return {}  # none yet, or damaged: they are computed anew


def _remember(known: dict[str, list], store: Path) -> None:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(store) as file:
            file.write(json.dumps(known, indent=1).encode())
    except OSError:
        return  # a home that cannot be written to costs time at the next call, and nothing else
