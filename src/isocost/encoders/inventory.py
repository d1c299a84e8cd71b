"""Which networks isocost can use, whether their weights are here, and what to do where they are not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocost.encoders.weights import ASSETS
from isocost.files import file_digest


@dataclass(frozen=True)
class Known:
    """A network that a spec's field may name. `weights`: the file that must be there."""

    field: str
    name: str
    weights: str


KNOWN = (
    Known("data.autoencoder", "scenes-vae", "diffusion_pytorch_model.safetensors"),
    Known("data.text_encoder", "scenes-clip-condition", "model.safetensors"),
    Known("evaluation.extractor", "scenes-clip-score", "model.safetensors"),
    Known("evaluation.classifier", "scenes-attributes", "model.safetensors"),
    Known("data.autoencoder", "stabilityai/sd-vae-ft-mse", "diffusion_pytorch_model.safetensors"),
    Known("data.text_encoder", "openai/clip-vit-large-patch14", "model.safetensors"),
    Known("data.text_encoder", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "model.safetensors"),
    Known("evaluation.extractor", "openai/clip-vit-large-patch14", "model.safetensors"),
)


def inventory() -> list[dict[str, Any]]:
    """A row a network: field, name, found, where it was looked for, sha256 of the weights (12 digits), what to do."""
    return [_row(known) for known in KNOWN]


def _row(known: Known) -> dict[str, Any]:
    shipped = "/" not in known.name
    path = ASSETS / known.name / known.weights if shipped else _cached(known)
    found = path is not None and path.is_file()
    if found:
        what = ""
    elif shipped:
        what = "part of the package: install isocost again"
    else:
        what = f"give a folder saved by save_pretrained as {known.field}, or once online: hf download {known.name}"
    return {
        "field": known.field,
        "name": known.name,
        "found": found,
        "where": "with isocost" if shipped else "Hugging Face cache",
        "sha256": file_digest(path)[:12] if found and path else "",
        "what to do": what,
    }


def _cached(known: Known) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(known.name, known.weights)
    return Path(path) if isinstance(path, str) else None
