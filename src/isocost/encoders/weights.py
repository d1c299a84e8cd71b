"""Where encoder weights lie, and what identifies them: one rule for autoencoders, text encoders, CLIPs, classifiers."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from isocost.errors import DataError
from isocost.specs import canonical_json

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def shipped() -> list[str]:
    """Names of the encoders that come with the package."""
    return sorted(folder.name for folder in ASSETS.iterdir() if (folder / "config.json").is_file())


def locate(ref: str | Path, subfolder: str, files: tuple[str, ...]) -> Path:
    """The folder that `ref` means: a shipped asset's name, a local folder, or a hub id.

    A folder of a whole pipeline is taken at its `subfolder`. Of a hub id only `files` (glob patterns) are fetched;
    when offline (`HF_HUB_OFFLINE=1`) only the local cache is looked at. Raises `DataError` naming each place looked at.
    """
    looked = []
    for folder in (ASSETS / str(ref), Path(ref).expanduser()):
        for place in (folder, folder / subfolder):
            if (place / "config.json").is_file():
                return place
        looked.append(str(folder))
    if is_hub_id(ref) and not Path(ref).exists():
        place = _from_hub(str(ref), subfolder, files)
        if place is not None:
            return place
        looked.append(f"the Hugging Face hub's {'cache (offline)' if _offline() else 'cache and site'}")
    raise DataError(
        f"encoder '{ref}': no config.json found in {', '.join(looked)}. Give a shipped name "
        f"({', '.join(shipped())}), a folder saved by `save_pretrained`, or a hub id that is cached or reachable."
    )


def is_hub_id(ref: str | Path) -> bool:
    """Whether `ref` has the form of a hub id, OWNER/NAME."""
    return _HUB_ID.fullmatch(str(ref)) is not None


def cached_file(repo: str, name: str) -> Path | None:
    """A file of a hub repository in the local cache, where it is there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name)
    return Path(path) if isinstance(path, str) else None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _from_hub(repo: str, subfolder: str, files: tuple[str, ...]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [pattern for name in files for pattern in (name, f"{subfolder}/{name}")]
    # A cache may hold the config alone, which other programs fetch by itself.
    needed = ["config.json", *(name for name in files if name.endswith(".safetensors"))]
    for cached_only in (True,) if _offline() else (True, False):
        try:
            folder = Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=cached_only))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
            continue  # not cached, no such repository, or no network: the caller reports all places together
        for place in (folder, folder / subfolder):
            if all((place / name).is_file() for name in needed):
                return place
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder. Raises `DataError` naming the file."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); fetch or build it again.") from None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file, or its fp16 variant where that alone is there; floats as fp32.

    Raises `DataError` naming the file.
    """
    half = path.with_name(f"{path.stem}.fp16{path.suffix}")
    path = half if half.is_file() and not path.is_file() else path
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}); fetch or build it again.") from None
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Save as safetensors, as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


@contextmanager
def quiet_random() -> Iterator[None]:
    """Inside, torch's global generator may be drawn from or seeded; after, it is as it was before."""
    with torch.random.fork_rng(devices=[]):
        yield


def load_into(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Strict `load_state_dict`, but for position ids, which old files carry and new modules do not store."""
    tensors = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    try:
        found = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise DataError(f"{where}: weights do not fit its config.json: {str(error).splitlines()[-1].strip()}") from None
    missing = [name for name in found.missing_keys if not name.endswith("position_ids")]
    if missing or found.unexpected_keys:
        wrong = (missing or found.unexpected_keys)[0]
        raise DataError(f"{where}: weights do not fit its config.json (first wrong name: {wrong}).")


def content_digest(
    config: Mapping[str, Any], weights: torch.nn.Module | Mapping[str, torch.Tensor], extra: Any = None
) -> str:
    """sha256 over the config (private keys, dtype and library version left out), `extra`, and all weights as fp32.

    So a moved or renamed folder keeps its digest, and so does one saved by another version of the library.
    """
    passing = {"dtype", "torch_dtype", "transformers_version", "architectures"}
    kept = {name: value for name, value in config.items() if not name.startswith("_") and name not in passing}
    digest = hashlib.sha256(canonical_json([json.loads(json.dumps(kept, default=str)), extra]).encode())
    tensors = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    for name, value in sorted(tensors.items()):
        array = value.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        digest.update(f"{name} {tuple(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array.numpy()).tobytes())
    return digest.hexdigest()
