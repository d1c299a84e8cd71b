"""Networks of full size, with random weights, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.scoring.random_weights import random_weights

from isocost.scoring.inception import Inception, InceptionV3, load_inception


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Random weights of Inception under the published names."""
    with torch.device("meta"):
        shapes = InceptionV3().state_dict()
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(random_weights(shapes), path)
    return path


@pytest.fixture(scope="session")
def fid_tf(inception_file) -> Inception:
    return load_inception("fid-tf", inception_file)
