from __future__ import annotations

import json

import pytest

from isocost.encoders.train import train_assets
from isocost.encoders.train.assets import ASSETS as DESCRIBED
from isocost.encoders.weights import ASSETS, shipped
from isocost.errors import SpecError


def test_cards_tell_what_was_measured():
    assert set(DESCRIBED) == set(shipped())
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size < 8e6
    for name in DESCRIBED:
        metrics = json.loads((ASSETS / name / "metrics.json").read_text())
        card = (ASSETS / name / "README.md").read_text()
        assert "Apache-2.0" in card and f"isocost.encoders.train FOLDER {name}" in card
        assert f"| parameters | {metrics['parameters']} |" in card
    for name in ("scenes-clip-condition", "scenes-clip-score"):
        assert "The CLIP that conditions never scores" in (ASSETS / name / "README.md").read_text()


def test_a_wrong_asset_name_is_refused(tmp_path):
    with pytest.raises(SpecError, match="Did you mean 'scenes-vae'"):
        train_assets(tmp_path, ["scenes-va"])
