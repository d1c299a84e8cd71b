from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isocost.cli import main
from isocost.data.degradation import DEGRADATIONS, degrade, draw
from isocost.data.images import open_images
from isocost.data.pairs import enlarged
from isocost.data.photos import Crops
from isocost.encoders.autoencoder import load_autoencoder, psnr
from isocost.encoders.own import images_seen
from isocost.encoders.photos import PhotoSettings, measure, photo_settings, reduce, train_photo_vae
from isocost.errors import DataError, SpecError

TINY = PhotoSettings(channels=(4, 4, 8), images=48, batch=4, side=16, statistics_images=8)


def photographs(folder: Path, count: int, height: int = 40, width: int = 56, seed: int = 0) -> Path:
    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng((seed, number)).integers(0, 256, (5, 7, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "0.json").write_text(json.dumps({"license": "CC0-1.0"}))
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of photographs: to train on, and held out."""
    folder = tmp_path_factory.mktemp("photographs")
    return photographs(folder / "train", 6), photographs(folder / "held-out", 3, seed=1)


@pytest.fixture(scope="module")
def trained(places, tmp_path_factory) -> Path:
    train, held_out = places
    folder = tmp_path_factory.mktemp("trained") / "photo-vae"
    train_photo_vae([train], [held_out], folder, TINY)
    return folder


def test_it_appears_with_what_was_measured_and_a_card(trained, places):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["images"] == 3 and metrics["licences"] == {"CC0-1.0": 1, "not said": 5}
    assert metrics["room"] == pytest.approx(metrics["psnr_held_out"] - metrics["psnr_bicubic_degraded"])
    assert metrics["enough_room"] == (metrics["room"] >= 3)
    card = (trained / "README.md").read_text()
    assert "CC0-1.0 (1)" in card and f"{metrics['psnr_held_out']:.2f} dB" in card
    autoencoder = load_autoencoder(trained)
    assert (autoencoder.factor, autoencoder.channels, autoencoder.scale) == (4, 4, 1.0)
    assert images_seen(trained) == 48 and [path.name for path in trained.parent.iterdir()] == ["photo-vae"]


def test_latents_are_standardised_inside(trained, places):
    images = np.stack([image.image[:40, :56] for image in open_images([places[0]], captions_required=False)])
    latents = load_autoencoder(trained).encode(images)
    assert np.abs(latents.mean((0, 2, 3))).max() < 0.5 and np.abs(latents.std((0, 2, 3)) - 1).max() < 0.5


def test_it_is_measured_beside_bicubic(trained, places):
    held_out = open_images([places[1]], captions_required=False)
    autoencoder = load_autoencoder(trained)
    found = measure(autoencoder, held_out, "stablesr", seed=2)
    images = [image.image[4:36, 4:52] for image in held_out]  # the middle, in multiples of 16
    degraded = [degrade(image, draw(DEGRADATIONS["stablesr"], 2, index)) for index, image in enumerate(images)]
    wanted = {
        "psnr_held_out": [autoencoder.decode(autoencoder.encode(image[None]))[0] for image in images],
        "psnr_bicubic_clean": [enlarged(reduce(image)) for image in images],
        "psnr_bicubic_degraded": [enlarged(low) for low in degraded],
    }
    for name, others in wanted.items():
        assert found[name] == pytest.approx(np.mean([psnr(*pair) for pair in zip(images, others, strict=True)]))
    assert found["psnr_bicubic_clean"] > found["psnr_bicubic_degraded"]


def test_a_stopped_training_goes_on_to_the_same_bits(trained, places, tmp_path, monkeypatch):
    train, held_out = places
    given = Crops.images

    def interrupted(self: Crops, numbers: range) -> np.ndarray:
        if numbers.start == 24:
            raise KeyboardInterrupt
        return given(self, numbers)

    monkeypatch.setattr(Crops, "images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_photo_vae([train], [held_out], tmp_path / "photo-vae", TINY)
    assert images_seen(tmp_path / "photo-vae") == 24 and not (tmp_path / "photo-vae").exists()
    monkeypatch.setattr(Crops, "images", given)
    train_photo_vae([train], [held_out], tmp_path / "photo-vae", TINY)
    assert load_autoencoder(tmp_path / "photo-vae").digest == load_autoencoder(trained).digest


def test_other_photographs_make_another_training(trained, places, tmp_path):
    other = photographs(tmp_path / "other", 6, seed=2)
    train_photo_vae([other], [places[1]], tmp_path / "photo-vae", TINY)
    assert load_autoencoder(tmp_path / "photo-vae").digest != load_autoencoder(trained).digest
    assert json.loads((trained / "metrics.json").read_text())["room"] != pytest.approx(
        json.loads((tmp_path / "photo-vae" / "metrics.json").read_text())["room"]
    )


def test_the_command_trains_and_says_how_much_room_there_is(places, tmp_path, capsys, monkeypatch):
    from isocost.encoders import photos

    monkeypatch.setattr(photos, "photo_settings", lambda chosen: TINY)
    train, held_out = map(str, places)
    main(["recipe", "photo-vae", str(tmp_path / "a"), "--train", train, "--held-out", held_out])
    said = capsys.readouterr().out
    assert "measured on 3 held-out photographs" in said and "bicubic, of the degraded input" in said
    assert "too little room" in said  # of 12 steps of training
    main(["recipe", "photo-vae", str(tmp_path / "a"), "--train", train, "--held-out", held_out, "--json"])
    assert json.loads(capsys.readouterr().out)["degradation"] == "realesrgan"


def test_bad_photographs_are_named_before_training(places, tmp_path):
    train, held_out = places
    with pytest.raises(DataError, match=r"0\.png: 56 x 40 pixels, smaller than a crop of 64"):
        train_photo_vae([train], [held_out], tmp_path / "a")
    small = photographs(tmp_path / "small", 1, height=12)
    with pytest.raises(DataError, match=r"0\.png: smaller than 16 px"):
        train_photo_vae([train], [small], tmp_path / "a", TINY)
    (small / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png: not an image"):
        train_photo_vae([train], [small], tmp_path / "a", TINY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        train_photo_vae([tmp_path / "empty"], [held_out], tmp_path / "a", TINY)
    assert images_seen(tmp_path / "a") == 0 and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"side": 30}, "crops of 30 px: sides are multiples of 4"),
        ({"latent_channels": 0}, "0 latent channels"),
        ({"images": 3}, "3 images do not fill a batch of 8"),
        ({"latent_chanels": 8}, r"unknown setting of photo-vae 'latent_chanels'\. Did you mean 'latent_channels'"),
        ({"photographs": "x"}, "unknown setting"),
    ],
)
def test_settings_that_cannot_be_are_refused(chosen, said):
    with pytest.raises(SpecError, match=said):
        photo_settings(chosen)


def test_an_unknown_degradation_is_refused_before_training(places, tmp_path):
    with pytest.raises(SpecError, match="Did you mean 'realesrgan'"):
        train_photo_vae([places[0]], [places[1]], tmp_path / "a", TINY, degradation="realesrgn")
