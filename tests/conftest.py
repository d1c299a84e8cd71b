"""Settings of every test process, made before anything imports torch: one thread, no hub, no display."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from isocost.allocator import keep_freed_memory

keep_freed_memory()


@pytest.fixture(scope="session")
def synthetic():
    """The module analysis/synthetic.py, loaded by path so that any import mode of pytest works."""
    path = Path(__file__).parent / "analysis" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("isocost_synthetic", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world(synthetic):
    """A study's table with a known truth."""
    return synthetic.World()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Captioned pictures in folders, 24 and 6 held out, whose own encoders train in seconds: a `DataSource`."""
    from isocost.specs import DataSource, EncoderTraining

    folder = tmp_path_factory.mktemp("pictures")
    return DataSource(
        kind="images",
        resolution=16,
        train=(_write_pictures(folder / "train", range(24)),),
        val=(_write_pictures(folder / "val", range(24, 30)),),
        autoencoder="own",
        text_encoder="own",
        encoder_training=EncoderTraining(
            autoencoder_images=160, clip_images=160, channels=8, hidden=16, vocabulary=560, context_length=16, batch=8
        ),
    )


def _write_pictures(folder: Path, numbers: range) -> str:
    """Scenes as PNG files with a .txt beside each."""
    from PIL import Image

    from isocost.data import scenes
    from isocost.specs import SceneOptions

    folder.mkdir()
    for number in numbers:
        scene = scenes.scene(7, number, 32, SceneOptions(groups=1))
        Image.fromarray(scene.image).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(scene.caption)
    return str(folder)
