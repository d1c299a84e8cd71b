"""A study on pictures of one's own, from shards to the report, as the emoji recipe goes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from isocost.api import load_study, report, sweep
from isocost.data import scenes
from isocost.data.shards import write_shards
from isocost.specs import SceneOptions, StudySpec

SMALL = {
    "data.encoder_training": {
        "autoencoder_images": 320, "clip_images": 192, "channels": 8, "vocabulary": 560, "context_length": 16,
        "batch": 16,
    },
    "train.images": 128,
    "train.checkpoints": [64],
    "train.batch": 32,
    "grid.steps": [1, 2],
    "grid.guidance": [1.0, 2.0],
    "extra_grids": [],
    "curve.steps": [2],
    "evaluation.images": 12,
    "evaluation.references": 12,
    "engine.batch": 12,
}  # fmt: skip


def shards(folder: Path) -> Path:
    """emoji-0-train-00000.tar and emoji-0-val ... of captioned scenes."""
    for split, numbers in (("train", range(40)), ("val", range(40, 52))):
        samples = []
        for number in numbers:
            scene, file = scenes.scene(7, number, 32, SceneOptions(groups=1)), io.BytesIO()
            Image.fromarray(scene.image).save(file, "PNG")
            samples.append({"__key__": f"{number:04d}", "png": file.getvalue(), "txt": scene.caption})
        (path,) = write_shards(samples, folder, f"emoji-{split}")
        path.rename(folder / f"emoji-00-{split}.tar")
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudySpec:
    folder = shards(tmp_path_factory.mktemp("emoji"))
    whole = load_study("emoji", data=str(folder))
    return load_study(whole, {**SMALL, "members": [whole.members[0].model_dump(mode="json")]})


def test_own_encoders_members_scores_and_report(study, tmp_path):
    told: dict[str, list[tuple[float, float]]] = {}

    def progress(stage, done, total, note=""):
        told.setdefault(stage, []).append((done, total))

    table = sweep(study, tmp_path, workers=1, progress=progress)
    assert told["train encoders"][0][0] == 0 and len(set(told["train encoders"][-1])) == 1
    (folder,) = (tmp_path / "encoders").iterdir()
    assert {path.name for path in folder.iterdir()} == {"autoencoder", "text_encoder", "extractor"}
    for kind in ("autoencoder", "text_encoder", "extractor"):
        assert json.loads((folder / kind / "metrics.json").read_text())["images"] == 12
    scored = table[(table["split"] == "report") & ~table["curve"]]
    assert {metric.partition("[")[0] for metric in scored["metric"]} == {"kid", "fd", "clip"}
    assert scored["sample_key"].nunique() == 4 and scored["value"].notna().all()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = sweep(study, tmp_path, workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert again["value"].tolist() == table["value"].tolist()

    page = report(tmp_path).read_text(encoding="utf-8")
    assert "KID" in page and "guidance" in page
