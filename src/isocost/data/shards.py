"""Captioned images in WebDataset tars, read at random: a shard is a plain tar, and beside it lies an index of offsets.

WebDataset's convention: files that share a key (path up to the first dot of the file name) are one sample, and the rest
of the name is the extension. An iterable reader cannot resume exactly; an offset index makes every sample one seek.
Tars are written so that equal samples give equal bytes, and every write is temp file, fsync, rename.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from isocost.errors import DataError
from isocost.specs import digest_of

INDEX_SCHEMA = 1
BLOCK = 512  # a tar is made of blocks of this many bytes
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")
SIDECAR_EXTENSIONS = ("txt", "json", "jsonl", "csv", "md")
Member = tuple[str, int, int]  # extension, offset of the payload in the tar, size, in bytes


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` whole and on disk, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------- writing


def write_shards(
    samples: Iterable[Mapping[str, bytes | str]], folder: str | Path, prefix: str, per_shard: int = 1000
) -> list[Path]:
    """Write samples as `folder/prefix-00000.tar`, ... of `per_shard` samples each, with their indexes.

    A sample maps `__key__` to its key and each extension ("png", "txt", "json") to bytes, or to text, written as UTF-8.
    Raises `DataError` for a key that is missing, repeated, or not a safe relative path.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    seen: set[str] = set()
    waiting: list[Mapping[str, bytes | str]] = []

    def flush() -> None:
        paths.append(folder / f"{prefix}-{len(paths):05d}.tar")
        _write_shard(paths[-1], waiting, seen)
        waiting.clear()

    for sample in samples:
        waiting.append(sample)
        if len(waiting) == per_shard:
            flush()
    if waiting:
        flush()
    return paths


def _write_shard(path: Path, samples: Sequence[Mapping[str, bytes | str]], seen: set[str]) -> None:
    index: dict[str, list[Member]] = {}
    digest = hashlib.sha256()
    with atomic_write(path) as file:

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        for sample in samples:
            key = str(sample.get("__key__", ""))
            if not key or key in seen or _split_name(path, f"{key}.x")[0] != key:
                fault = "was written before" if key in seen else "is empty, or has a dot in its last part"
                raise DataError(f"{path}: sample key '{key}' {fault}: keys must be unique relative paths without dots")
            seen.add(key)
            index[key] = []
            for extension in sorted(set(sample) - {"__key__"}):
                value = sample[extension]
                payload = value.encode() if isinstance(value, str) else bytes(value)
                put(_tar_header(f"{key}.{extension}", len(payload)))
                index[key].append((extension, file.tell(), len(payload)))
                put(payload + bytes(-len(payload) % BLOCK))
        put(bytes(2 * BLOCK))  # two empty blocks end a tar
        size = file.tell()
    _write_index(path, size, digest.hexdigest(), index)


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)  # owner 0, mode 0644 and time 0 by default: nothing of the machine gets in
    info.size = size
    return info.tobuf(format=tarfile.PAX_FORMAT)


# ---------------------------------------------------------------------------------------------------------- the index


def _index_path(tar: Path) -> Path:
    return tar.with_name(tar.name + ".index.json")


def _write_index(tar: Path, size: int, digest: str, members: Mapping[str, Sequence[Member]]) -> dict[str, Any]:
    index = {"schema": INDEX_SCHEMA, "size": size, "sha256": digest, "samples": members}
    with atomic_write(_index_path(tar)) as file:
        file.write(json.dumps(index, separators=(",", ":")).encode())
    return index


def _read_index(tar: Path) -> dict[str, Any]:
    """The index beside a tar; built, and kept there if the folder can be written, when it is missing or out of date."""
    if not tar.is_file():
        raise DataError(f"{tar}: this shard is missing")
    path, status = _index_path(tar), tar.stat()
    if path.is_file() and path.stat().st_mtime_ns >= status.st_mtime_ns:
        try:
            index = json.loads(path.read_bytes())
            if index["schema"] == INDEX_SCHEMA and index["size"] == status.st_size:
                return index
        except (ValueError, KeyError, TypeError):
            pass  # a damaged index holds nothing that the tar does not say: build it again
    members, digest = _scan(tar), file_digest(tar)
    try:
        return _write_index(tar, status.st_size, digest, members)
    except OSError:  # a read-only folder: the index lives in memory
        return {"schema": INDEX_SCHEMA, "size": status.st_size, "sha256": digest, "samples": members}


def _scan(tar: Path) -> dict[str, list[Member]]:
    """Every file in a tar, by key. Raises `DataError` for damage, links, unsafe paths and repeated names."""
    samples: dict[str, list[Member]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                key, extension = _split_name(tar, member.name)
                if not member.isreg():
                    raise DataError(
                        f"{tar}: member '{member.name}' is a link or a device; shards hold plain files only"
                    )
                if any(extension == other for other, _, _ in samples.get(key, ())):
                    raise DataError(f"{tar}: key '{key}' has two members '.{extension}'")
                samples.setdefault(key, []).append((extension, member.offset_data, member.size))
            end = archive.offset  # type: ignore[attr-defined]  # of the first block that tarfile took for no header
    except tarfile.TarError as error:
        what = "not a plain tar (unpack .tar.gz first), or truncated"
        raise DataError(f"{tar}: {what} after key '{_last(samples)}': {error}") from None
    with tar.open("rb") as file:  # tarfile stops without a word at half a header, or where the file just ends
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise DataError(f"{tar}: damaged or truncated after key '{_last(samples)}': no mark that ends a tar")
    return samples


def _last(samples: dict[str, Any]) -> str:
    return next(reversed(samples), "")


def _split_name(tar: Path, name: str) -> tuple[str, str]:
    """(key, extension) of a member, by WebDataset's rule."""
    plain = name.removeprefix("./")
    parts = plain.split("/")
    if plain.startswith("/") or ".." in parts or "\\" in plain:
        raise DataError(f"{tar}: member '{name}' points outside its folder")
    match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", plain)
    if match is None:
        raise DataError(f"{tar}: member '{name}' has no extension: a sample's files are named KEY.EXTENSION")
    return match[1], match[2]


# ---------------------------------------------------------------------------------------------------------- reading


class Shards(Sequence[dict[str, bytes]]):
    """Samples of one or more tars, in the order of shards and members: `shards[i]` -> {extension: bytes}.

    `source`: a folder of .tar files (sorted; a gap in their numbers is an error) or the tars themselves.
    Nothing is decoded or cached; each read is a slice of a memory map. Can be sent to another process.
    """

    def __init__(self, source: str | Path | Sequence[str | Path]):
        self.paths = _tars(source)
        indexes = [_read_index(path) for path in self.paths]
        self.keys: list[str] = [key for index in indexes for key in index["samples"]]
        self.digests: list[str] = [index["sha256"] for index in indexes]
        self._sizes = [index["size"] for index in indexes]
        self._members: list[list[Member]] = [members for index in indexes for members in index["samples"].values()]
        self._starts = np.cumsum([0] + [len(index["samples"]) for index in indexes]).tolist()
        self._maps: dict[int, mmap.mmap] = {}
        self._refuse_repeated_keys()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, bytes]:  # type: ignore[override]
        return {extension: self.read(index, extension) for extension in self.extensions(index)}

    def extensions(self, index: int) -> list[str]:
        return [extension for extension, _, _ in self._members[index]]

    def read(self, index: int, extension: str) -> bytes:
        """One file of one sample. Raises `DataError` naming shard, key and extension where it is not there."""
        index = range(len(self))[index]
        number = self.shard_of(index)
        for name, offset, size in self._members[index]:
            if name == extension:
                return self._map(number)[offset : offset + size]
        raise DataError(f"{self.paths[number]}: key '{self.keys[index]}' has no '.{extension}'")

    def shard_of(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1

    def where(self, index: int) -> str:
        """Shard and key of a sample, for messages."""
        return f"{self.paths[self.shard_of(index)]}: key '{self.keys[index]}'"

    @property
    def digest(self) -> str:
        """Content digest: of the shards' bytes in order, whatever their names and place."""
        return digest_of(self.digests)

    def verify(self) -> None:
        """Read every byte and compare with the indexes. Raises `DataError` naming the shard that changed."""
        for path, digest in zip(self.paths, self.digests, strict=True):
            if file_digest(path) != digest:
                raise DataError(f"{path}: its bytes are not those that were indexed: damaged, or rewritten")

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            path = self.paths[number]
            if not path.is_file() or path.stat().st_size != self._sizes[number]:
                raise DataError(
                    f"{path}: this shard is missing, or not the size its index says: truncated or rewritten"
                )
            with path.open("rb") as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[number]

    def _refuse_repeated_keys(self) -> None:
        if len(set(self.keys)) == len(self.keys):
            return
        first: dict[str, int] = {}
        for index, key in enumerate(self.keys):
            if key in first:
                raise DataError(f"{self.where(index)} is also in {self.paths[self.shard_of(first[key])]}")
            first[key] = index

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def _tars(source: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(source, str | Path):
        return [Path(path) for path in source]
    source = Path(source)
    if not source.is_dir():
        return [source]
    tars = sorted(source.glob("*.tar"))
    if not tars:
        raise DataError(f"{source}: no .tar shards in this folder")
    _refuse_gaps(tars)
    return tars


def _refuse_gaps(tars: Sequence[Path]) -> None:
    """In a numbered series prefix-00000.tar, ... every number up to the last must be there."""
    series: dict[str, set[int]] = {}
    for tar in tars:
        if match := re.fullmatch(r"(.*-)(\d{5})", tar.stem):
            series.setdefault(match[1], set()).add(int(match[2]))
    for prefix, numbers in series.items():
        missing = set(range(min(numbers), max(numbers) + 1)) - numbers
        if missing:
            raise DataError(f"{tars[0].parent / f'{prefix}{min(missing):05d}.tar'}: this shard is missing")


# ---------------------------------------------------------------------------------------------------------- images


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

    def caption(self, index: int) -> str:
        part, place = self._locate(index)
        caption = part.caption(place)
        if caption is None and self._captions_required:
            raise DataError(
                f"{part.where(place)} has no caption: put it in a .txt beside it, or as 'caption' in a .json"
            )
        return caption or ""

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


def open_images(paths: Sequence[str | Path], captions_required: bool = True) -> CaptionedImages:
    """Captioned images of .tar shards, folders of shards, and folders of image files, in the order given.

    Caption of a sample: its .txt, else `caption` (or `text`) in its .json, else in a `metadata.jsonl` with a
    `file_name` a line (folders). Raises `DataError` naming any other file that lies there; where a caption is missing,
    when it is asked for.
    """
    parts: list[_TarImages | _FolderImages] = []
    tars: list[str | Path] = []
    for path in map(Path, paths):
        if path.suffix == ".tar":
            tars.append(path)
            continue
        if tars:
            parts.append(_TarImages(Shards(tars)))
            tars = []
        if not path.is_dir():
            raise DataError(f"{path}: neither a .tar nor a folder")
        parts.append(_TarImages(Shards(path)) if any(path.glob("*.tar")) else _FolderImages(path))
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


class _FolderImages:
    def __init__(self, folder: Path):
        self._folder = folder
        self._files = _image_files(folder)
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
        return digest_of([[self.key(i), file_digest(path), self.caption(i)] for i, path in enumerate(self._files)])


def _image_files(folder: Path) -> list[Path]:
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


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Bytes of an image file -> uint8 RGB [H,W,3], by one rule for every kind of file.

    The camera's orientation (EXIF) is applied; transparency is laid on white; grey is repeated to three channels;
    16-bit grey becomes round(v / 257); a palette is looked up; an animation is its first frame. Raises `DataError`.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = ImageOps.exif_transpose(file)
            return np.array(_to_rgb(image, where))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not an image that can be read: {' '.join(str(error).split())}") from None


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips everything above 255 to white.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{where}: 32-bit pixel values; images have 8 or 16 bits a channel")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{where}: floating-point pixel values; images have 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
