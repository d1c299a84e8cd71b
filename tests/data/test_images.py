from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from isocost.data.images import decode, decode_image, open_images

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colour, uint16 [H, W, 3], which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


RGB = Image.fromarray(COLOURS)
GREY = Image.fromarray(COLOURS[..., 0])
DEEP = np.arange(30, dtype=np.uint16).reshape(6, 5) * 2184


@pytest.mark.parametrize(
    ("data", "pixels", "conversions"),
    [
        (encoded(RGB), COLOURS, ()),
        (encoded(GREY), np.repeat(COLOURS[..., :1], 3, axis=2), ("grey",)),
        (encoded(RGB.convert("RGBA")), COLOURS, ("transparency",)),
        (encoded(RGB.quantize(256)), None, ("palette",)),
        (encoded(RGB.convert("CMYK"), "TIFF"), None, ("CMYK",)),
        (encoded(Image.fromarray(DEEP)), np.repeat(np.round(DEEP / 257)[..., None], 3, axis=2), ("16-bit grey",)),
        (deep_png(COLOURS.astype(np.uint16) * 256 + 200), COLOURS, ("16-bit colour",)),
        (encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]), None, ("first frame", "palette")),
    ],
    ids=["RGB", "grey", "RGBA", "palette", "CMYK", "16-bit grey", "16-bit colour", "animation"],
)
def test_every_kind_of_image_becomes_rgb_and_says_how(data, pixels, conversions):
    found = decode(data, "x")
    assert found.pixels.shape == (6, 5, 3) and found.pixels.dtype == np.uint8
    assert found.conversions == conversions
    assert pixels is None or np.array_equal(found.pixels, pixels)
    assert np.array_equal(decode_image(data, "x"), found.pixels)


def test_a_turned_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(RGB, exif=exif), "x")
    assert found.conversions == ("turned upright",) and found.format == "PNG"
    assert np.array_equal(found.pixels, np.rot90(COLOURS, -1))


def test_an_image_of_a_set_is_read_without_its_caption(tmp_path):
    RGB.save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"attributes": {"colour": "red"}}')
    images = open_images([tmp_path])
    assert np.array_equal(images.decoded(0).pixels, COLOURS)
    assert images.where(0) == str(tmp_path / "a.png")
    assert images.metadata(0) == {"attributes": {"colour": "red"}}
