"""`isocost upscale`: an image file in, one four times as large out, with a page; and what it says of bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from isocost import api
from isocost.cli import main
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.precompute import precompute
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError
from isocost.recipes.scenes import micro_members
from isocost.specs import DataSource, TrainSpec
from isocost.training.loop import train


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(2):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(photographs, tmp_path_factory):
    """Trained for 16 images at 32 pixels, on the latents of the shipped autoencoder."""
    source = DataSource(kind="images", resolution=32, images=16, train=(str(photographs),), degradation="stablesr")
    encoders = load_autoencoder("scenes-vae"), load_text_encoder("scenes-clip-condition")
    data = precompute(source, *encoders, tmp_path_factory.mktemp("latents"), check_scale=False)
    spec = TrainSpec(
        model=micro_members(8)[0].conditioned,
        data=data.spec,
        images=16,
        batch=8,
        objective="superres",
        caption_dropout=0.0,
    )
    return train(spec, data, tmp_path_factory.mktemp("run"))


def upscaled(capsys, *arguments: object) -> tuple[list[dict], str]:
    main(["upscale", *map(str, arguments), "--steps", "1", "--json"])
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def test_a_file_is_upscaled_with_a_page(photographs, checkpoint, tmp_path, capsys):
    made = api.upscale(photographs / "0.png", checkpoint, steps=1)
    assert made.image.shape == made.bicubic.shape == (144, 160, 3) and made.conversions == ()
    (files,), said = upscaled(capsys, photographs / "0.png", "--checkpoint", checkpoint, "--out", tmp_path)
    assert np.array_equal(np.asarray(Image.open(files["image"])), made.image) and said == ""
    page = (tmp_path / "0.html").read_text()
    assert page.count("data:image/png") == 2 and "http" not in page.replace("http-equiv", "")
    assert "0.png, 40 x 36 pixels" in page


def test_a_folder_is_upscaled_image_by_image(photographs, checkpoint, tmp_path, capsys):
    files, _ = upscaled(capsys, photographs, "--checkpoint", checkpoint, "--out", tmp_path)
    assert [entry["image"] for entry in files] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("alpha", "transparency"), ("grey", "grey"), ("deep", "16-bit grey"), ("tiny", "")],
)
def test_other_kinds_of_images_are_taken_and_said(checkpoint, tmp_path, capsys, kind, said):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 4), np.uint8)
    image = {
        "alpha": lambda: Image.fromarray(pixels, "RGBA"),
        "grey": lambda: Image.fromarray(pixels[..., 0]),
        "deep": lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "tiny": lambda: Image.fromarray(pixels[:4, :5, :3]),
    }[kind]()
    path = tmp_path / f"{kind}.png"
    image.save(path)
    (files,), shown = upscaled(capsys, path, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert np.asarray(Image.open(files["image"])).shape[:2] == (4 * image.height, 4 * image.width)
    assert (f"brought to 8-bit RGB ({said})" in shown) == bool(said)


def test_bad_input_is_one_line_that_says_what_and_where(photographs, checkpoint, tmp_path, capsys):
    (tmp_path / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"junk" * 20)
    Image.fromarray(np.zeros((3, 30, 3), np.uint8)).save(tmp_path / "thin.png")
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("corrupt.jpg", "corrupt.jpg: not an image"),
        ("thin.png", "thin: 30 x 3 pixels: too small to be upscaled"),
        ("missing.png", "no such image"),
        ("empty", "no images"),
    ]:
        with pytest.raises(SystemExit):
            main(["upscale", str(tmp_path / name), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")])
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1


def test_a_checkpoint_that_upscales_neither_draws_nor_is_exported(checkpoint, tmp_path):
    with pytest.raises(SpecError, match="`isocost upscale`"):
        api.sample(checkpoint, ["a red circle"])
    with pytest.raises(SpecError, match="cannot be exported"):
        api.export(checkpoint, tmp_path / "exported")
