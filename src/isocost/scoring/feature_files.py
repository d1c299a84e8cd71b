"""Features in files: safetensors that say what they are, and the .npz and .npy files of other programs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isocost.errors import DataError
from isocost.scoring.statistics import Moments

SUFFIXES = (".safetensors", ".npz", ".npy")
ABOUT = "isocost"  # the key of safetensors' metadata under which `about` stands, as JSON


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """`values`: features [N, D] in the order of their images, or their moments. `about`: what the file says of them
    (`extractor`, `extractor_digest`, `digest`, `protocol`, `source`, `keys`), nothing where another program wrote it.
    """

    values: np.ndarray | Moments
    about: Mapping[str, Any] = field(default_factory=dict)


def count(values: np.ndarray | Moments) -> int:
    """Of how many images these are features or moments."""
    return len(values) if isinstance(values, np.ndarray) else values.n


def values_digest(values: np.ndarray | Moments) -> str:
    """sha256 of features, or of moments."""
    digest = hashlib.sha256()
    for tensor in _tensors(values).values():
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _tensors(values: np.ndarray | Moments) -> dict[str, np.ndarray]:
    return {"features": values} if isinstance(values, np.ndarray) else {"mean": values.mean, "m2": values.m2}


def to_bytes(values: np.ndarray | Moments, about: Mapping[str, Any]) -> bytes:
    """The content of a safetensors file of features [N, D], or of moments, with what they are."""
    from safetensors.numpy import save

    about = {**about, "n": count(values), "sha256": values_digest(values)}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in _tensors(values).items()}
    return save(tensors, metadata={ABOUT: json.dumps(about, sort_keys=True)})


def read_features(path: str | Path) -> FeatureFile:
    """Read a features file: our safetensors; a .npy [N, D]; a .npz of one such array, of `features` (and `keys`), or of
    `mu`, `sigma` and `n`.

    Raises `DataError` naming a file that is missing or corrupt, or that holds none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_numpy(path)


def _read_safetensors(path: Path) -> FeatureFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: corrupt features ({error}): copy or build it again.") from None
    if "features" in tensors:
        values = _features(tensors["features"], path)
    elif {"mean", "m2"} <= set(tensors) and "n" in about:
        values = Moments(int(about["n"]), tensors["mean"], tensors["m2"])
    else:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise DataError(f"{path}: holds {held}; expected a tensor 'features' [N, D].")
    if "sha256" in about and about["sha256"] != values_digest(values):
        raise DataError(f"{path}: its values are not those that were written: copy or build it again.")
    return FeatureFile(values, about)


def _read_numpy(path: Path) -> FeatureFile:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"features": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array that can be read ({' '.join(str(error).split())}).") from None
    if {"mu", "sigma"} <= set(arrays):
        return FeatureFile(_moments(arrays, path))
    features = arrays.get("features", next(iter(arrays.values())) if len(arrays) == 1 else None)
    if features is None:
        raise DataError(f"{path}: holds {', '.join(sorted(arrays))}; expected 'features' [N, D], or 'mu' and 'sigma'.")
    keys = [str(key) for key in arrays["keys"]] if "keys" in arrays else []
    if keys and len(keys) != len(features):
        raise DataError(f"{path}: {len(keys)} keys for {len(features)} rows of features.")
    return FeatureFile(_features(features, path), {"keys": keys})


def _features(features: np.ndarray, path: Path) -> np.ndarray:
    if features.ndim != 2 or features.dtype.kind != "f" or not features.size:
        raise DataError(f"{path}: expected float features [N, D], found {features.dtype} {list(features.shape)}.")
    return features


def _moments(arrays: Mapping[str, np.ndarray], path: Path) -> Moments:
    """Moments of another program's statistics, where they say of how many images."""
    if "n" not in arrays:
        raise DataError(
            f"{path}: 'mu' and 'sigma', but not of how many images: save it again with n=..., or neither bias "
            "nor error can be told."
        )
    n, mean, covariance = int(arrays["n"]), arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or n < 2:
        found = f"{list(mean.shape)}, {list(covariance.shape)} and {n}"
        raise DataError(f"{path}: expected mu [D], sigma [D, D] and n of 2 or more, found {found}.")
    return Moments(n, mean, covariance * (n - 1))
