"""Captioned images from tars and folders: opened by path, decoded when asked for, cut and resized to squares."""

from __future__ import annotations

import io
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from isocost.data.remote import Place, expand
from isocost.data.shards import Shards
from isocost.errors import DataError
from isocost.files import file_digest
from isocost.specs import digest_of

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")
SIDECAR_EXTENSIONS = ("txt", "json", "jsonl", "csv", "md")
ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that swap width and height


@dataclass(frozen=True)
class CaptionedImage:
    """`image`: uint8 RGB [H,W,3]. `metadata`: what the sample's .json, or its line of metadata.jsonl, says."""

    key: str
    image: np.ndarray
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)


class CaptionedImages(Sequence[CaptionedImage]):
    """Images with captions from several places, decoded when asked for; captions are read without decoding."""

    def __init__(self, parts: Sequence[_TarImages | _FolderImages], captions_required: bool = True):
        self._parts = parts
        self._starts = np.cumsum([0] + [len(part) for part in parts]).tolist()
        self._captions_required = captions_required

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> CaptionedImage:  # type: ignore[override]
        part, place = self._locate(index)
        image = decode_image(part.image_bytes(place), part.where(place))
        return CaptionedImage(part.key(place), image, self.caption(index), part.metadata(place))

    def decoded(self, index: int) -> Decoded:
        """An image with what was done to make it RGB; its caption is not read."""
        part, place = self._locate(index)
        return decode(part.image_bytes(place), part.where(place))

    def where(self, index: int) -> str:
        """The file of an image, or its shard and key, for messages."""
        part, place = self._locate(index)
        return part.where(place)

    def metadata(self, index: int) -> dict[str, Any]:
        """What the sample's .json, or its line of metadata.jsonl, says."""
        part, place = self._locate(index)
        return part.metadata(place)

    def caption(self, index: int) -> str:
        caption = self.find_caption(index)
        if caption is None and self._captions_required:
            raise DataError(
                f"{self.where(index)} has no caption: put it in a .txt beside it, or as 'caption' in a .json"
            )
        return caption or ""

    def find_caption(self, index: int) -> str | None:
        """The caption, None where there is none, whether captions are required or not."""
        part, place = self._locate(index)
        return part.caption(place)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the image that `decode` would give, by its header alone. Raises `DataError`."""
        part, place = self._locate(index)
        return size_of(part.image_bytes(place), part.where(place))

    @property
    def shards(self) -> list[int]:
        """Images in each shard, in order; a folder of image files counts as one."""
        return [size for part in self._parts for size in part.shards()]

    def prefetch(self, shards: Iterable[int]) -> None:
        """Bring these shards (by number, as in `shards`) here in the background, where they are remote."""
        starts = np.cumsum([0, *self.shards])
        for number in shards:
            if starts[number] < starts[number + 1]:
                part, place = self._locate(int(starts[number]))
                part.prefetch(place)

    def verify(self) -> None:
        """Compare every byte of the tars with their indexes. Raises `DataError` naming the shard that changed."""
        for part in self._parts:
            part.verify()

    @property
    def sources(self) -> list[dict[str, Any]]:
        """What was read: `place`, `samples` and `sha256` of every shard; of a folder of image files, its digest."""
        return [source for part in self._parts for source in part.sources()]

    @property
    def captions(self) -> list[str]:
        return [self.caption(index) for index in range(len(self))]

    @property
    def keys(self) -> list[str]:
        return [part.key(place) for part in self._parts for place in range(len(part))]

    @property
    def digest(self) -> str:
        """Content digest of images and captions (folders: keys and bytes; tars: the shards' bytes)."""
        return digest_of([part.digest() for part in self._parts])

    def _locate(self, index: int) -> tuple[_TarImages | _FolderImages, int]:
        index = range(len(self))[index]
        number = bisect_right(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]


def open_images(paths: Sequence[Place], captions_required: bool = True) -> CaptionedImages:
    """Captioned images of .tar shards, folders of shards, and folders of image files, in the order given.

    Shards and folders of shards may be remote: URLs, also with a range (`s3://bucket/x-{00000..00063}.tar`).
    Caption of a sample: its .txt, else `caption` (or `text`) in its .json, else in a `metadata.jsonl` with a
    `file_name` a line (folders). Raises `DataError` naming any other file that lies there; where a caption is missing,
    when it is asked for.
    """
    parts: list[_TarImages | _FolderImages] = []
    tars: list[Place] = []
    for place in [each for path in paths for each in expand(path)]:
        if str(place).endswith(".tar"):
            tars.append(place)
            continue
        if tars:
            parts.append(_TarImages(Shards(tars)))
            tars = []
        if isinstance(place, Path) and not place.is_dir():
            raise DataError(f"{place}: neither a .tar nor a folder")
        if isinstance(place, Path) and not any(place.glob("*.tar")):
            parts.append(_FolderImages(place))
        else:
            parts.append(_TarImages(Shards(place)))
    if tars:
        parts.append(_TarImages(Shards(tars)))
    return CaptionedImages(parts, captions_required)


class _TarImages:
    def __init__(self, shards: Shards):
        self._shards = shards
        self._extension = [self._image_extension(index) for index in range(len(shards))]

    def _image_extension(self, index: int) -> str:
        found = [name for name in self._shards.extensions(index) if name.lower() in IMAGE_EXTENSIONS]
        if len(found) != 1:
            raise DataError(
                f"{self._shards.where(index)} has {len(found)} images, not 1 ({', '.join(IMAGE_EXTENSIONS)})"
            )
        return found[0]

    def __len__(self) -> int:
        return len(self._shards)

    def key(self, index: int) -> str:
        return self._shards.keys[index]

    def where(self, index: int) -> str:
        return self._shards.where(index)

    def image_bytes(self, index: int) -> bytes:
        return self._shards.read(index, self._extension[index])

    def metadata(self, index: int) -> dict[str, Any]:
        if "json" not in self._shards.extensions(index):
            return {}
        return _json_object(self._shards.read(index, "json"), f"{self.where(index)}, .json")

    def caption(self, index: int) -> str | None:
        if "txt" in self._shards.extensions(index):
            return _text(self._shards.read(index, "txt"), f"{self.where(index)}, .txt")
        return _caption_of(self.metadata(index))

    def digest(self) -> str:
        return self._shards.digest

    def shards(self) -> list[int]:
        return self._shards.sizes

    def prefetch(self, index: int) -> None:
        self._shards.prefetch([index])

    def verify(self) -> None:
        self._shards.verify()

    def sources(self) -> list[dict[str, Any]]:
        shards = zip(self._shards.paths, self._shards.sizes, self._shards.digests, strict=True)
        return [{"place": str(path), "samples": size, "sha256": digest} for path, size, digest in shards]


class _FolderImages:
    def __init__(self, folder: Path):
        self._folder = folder
        self._files = image_files(folder)
        self._listed = _read_metadata(folder)
        unknown = set(self._listed) - {path.relative_to(folder).as_posix() for path in self._files}
        if unknown:
            raise DataError(f"{folder / 'metadata.jsonl'}: names '{min(unknown)}', which is not there")

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        return self._files[index].relative_to(self._folder).with_suffix("").as_posix()

    def where(self, index: int) -> str:
        return str(self._files[index])

    def image_bytes(self, index: int) -> bytes:
        return self._files[index].read_bytes()

    def metadata(self, index: int) -> dict[str, Any]:
        path = self._files[index]
        sidecar = path.with_suffix(".json")
        own = _json_object(sidecar.read_bytes(), str(sidecar)) if sidecar.is_file() else {}
        return {**self._listed.get(path.relative_to(self._folder).as_posix(), {}), **own}

    def caption(self, index: int) -> str | None:
        sidecar = self._files[index].with_suffix(".txt")
        if sidecar.is_file():
            return _text(sidecar.read_bytes(), str(sidecar))
        return _caption_of(self.metadata(index))

    def digest(self) -> str:
        return self._digest

    @cached_property  # every file is read for it
    def _digest(self) -> str:
        return digest_of([[self.key(i), file_digest(path), self.caption(i)] for i, path in enumerate(self._files)])

    def shards(self) -> list[int]:
        return [len(self)]

    def prefetch(self, index: int) -> None:
        """Image files are always here."""

    def verify(self) -> None:
        """Image files have no index to be compared with."""

    def sources(self) -> list[dict[str, Any]]:
        return [{"place": str(self._folder), "samples": len(self), "sha256": self.digest()}]


def image_files(folder: Path) -> list[Path]:
    """Image files under `folder`, sorted. All else but sidecars is refused: a file left unread is a lost image."""
    files, keys = [], {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        extension = path.suffix[1:].lower()
        if path.is_dir() or hidden or extension in SIDECAR_EXTENSIONS:
            continue
        if extension not in IMAGE_EXTENSIONS:
            raise DataError(f"{path}: not an image ({', '.join(IMAGE_EXTENSIONS)}): convert it, or move it away")
        if (other := keys.setdefault(path.with_suffix(""), path)) != path:
            raise DataError(f"{path}: {other.name} has the same key")
        files.append(path)
    if not files:
        raise DataError(f"{folder}: no images and no .tar shards in this folder")
    return files


def _read_metadata(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return {}
    lines = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            entry = _json_object(line, f"{path}, line {number}")
            if not isinstance(entry.get("file_name"), str):
                raise DataError(f"{path}, line {number}: no 'file_name'")
            lines[entry["file_name"]] = entry
    return lines


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {error}") from None


def _json_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _caption_of(metadata: Mapping[str, Any]) -> str | None:
    caption = metadata.get("caption", metadata.get("text"))
    return caption.strip() if isinstance(caption, str) else None


@dataclass(frozen=True)
class Decoded:
    """`pixels`: uint8 RGB [H,W,3]. `conversions`: what was done to the file's own pixels, none for plain 8-bit RGB.
    `format`: the file's, as Pillow calls it ("PNG", "JPEG"), "" where there is no file."""

    pixels: np.ndarray
    conversions: tuple[str, ...] = ()
    format: str = ""


def decode_image(data: bytes, where: str) -> np.ndarray:
    """The pixels of `decode`, uint8 RGB [H,W,3]."""
    return decode(data, where).pixels


def decode(data: bytes, where: str) -> Decoded:
    """Bytes of an image file -> RGB pixels, by one rule for every kind of file.

    The camera's orientation (EXIF) is applied; transparency is laid on white; grey is repeated to three channels;
    16-bit grey becomes round(v / 257), 16-bit colour its high byte; a palette is looked up; CMYK and other colour
    spaces are Pillow's conversion; an animation is its first frame. Raises `DataError`.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            whole = ["first frame"] if getattr(file, "is_animated", False) else []
            whole += ["turned upright"] if file.getexif().get(ORIENTATION, 1) != 1 else []
            whole += ["16-bit colour"] if _is_deep_png(data) and not file.mode.startswith("I") else []
            image, conversion = _to_rgb(ImageOps.exif_transpose(file), where)
            return Decoded(np.array(image), (*whole, *([conversion] if conversion else [])), file.format or "")
    except UnidentifiedImageError:
        raise DataError(f"{where}: not an image: its content is of no format that Pillow reads") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not an image that can be read: {' '.join(str(error).split())}") from None


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) of the image that `decode` would give, by the header alone. Raises `DataError`."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            turned = file.getexif().get(ORIENTATION, 1) in SIDEWAYS
            return (file.height, file.width) if turned else file.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not an image that can be read: {' '.join(str(error).split())}") from None


def _is_deep_png(data: bytes) -> bool:
    """Whether these are the bytes of a PNG with 16 bits a channel, which Pillow reads as 8 where it has colour."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"


def _to_rgb(image: Image.Image, where: str) -> tuple[Image.Image, str]:
    """The image in RGB, and the name of what was done ("" where nothing was)."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, ""
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips everything above 255 to white.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{where}: 32-bit pixel values; images have 8 or 16 bits a channel")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB"), "16-bit grey"
    if image.mode == "F":
        raise DataError(f"{where}: floating-point pixel values; images have 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB"), "transparency"
    return image.convert("RGB"), {"L": "grey", "1": "grey", "P": "palette"}.get(image.mode, image.mode)


def square(image: np.ndarray, resolution: int) -> np.ndarray:
    """The centre square of uint8 RGB [H,W,3], resized to uint8 [resolution,resolution,3].

    Of an odd remainder the extra row or column is cut at the bottom or right. Smaller: Pillow's LANCZOS, which widens
    its kernel by the scale and so does not alias; larger: Pillow's BICUBIC.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = image[top : top + side, left : left + side]
    if side == resolution:
        return np.ascontiguousarray(cut)
    kernel = Image.Resampling.LANCZOS if side > resolution else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(cut).resize((resolution, resolution), kernel))


def square_images(images: CaptionedImages, indices: Iterable[int], resolution: int) -> np.ndarray:
    """`square` of images `indices`: uint8 [N,resolution,resolution,3]."""
    squares = [square(images[index].image, resolution) for index in indices]
    return np.stack(squares) if squares else np.empty((0, resolution, resolution, 3), np.uint8)
