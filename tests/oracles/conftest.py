"""Parity with the libraries of the field, which `make oracles` installs beside the pinned environment and runs.

Without them these tests are skipped, each with the library that it lacks; nothing else depends on them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.scoring.random_weights import random_weights

from isocost.scoring.inception import InceptionV3

SCRIPT = Path(__file__).parents[2] / "scripts" / "oracles.py"
spec = importlib.util.spec_from_file_location("oracles", SCRIPT)
assert spec and spec.loader
oracles = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracles)


@pytest.fixture(scope="session")
def library() -> Callable[[str], ModuleType]:
    """library("torchmetrics.image.kid") is that module, or the test is skipped."""

    def load(name: str) -> ModuleType:
        try:
            oracles.import_torchvision()
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name.partition('.')[0]} is not installed here ({error}): `make oracles` runs this test")

    return load


@pytest.fixture(scope="session")
def cells() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features whose statistics differ, float64 [600, 48] and [500, 48]."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((48, 48)) / 7
    generated = np.maximum(rng.standard_normal((600, 48)) @ mixing + 0.1, 0)
    references = np.maximum(rng.standard_normal((500, 48)) @ mixing * 1.2, 0)
    return generated, references


@pytest.fixture(scope="session")
def inception_weights(library) -> dict[str, torch.Tensor]:
    """Random weights of Inception under the published names."""
    library("torchvision")  # they take a while: not for a test that is skipped
    with torch.device("meta"):
        shapes = InceptionV3().state_dict()
    return random_weights(shapes)


@pytest.fixture(scope="session")
def inception_file(inception_weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_weights, path)
    return path
