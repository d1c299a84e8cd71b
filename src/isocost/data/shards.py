"""Captioned images in WebDataset tars, read at random: a shard is a plain tar, and beside it lies an index of offsets.

WebDataset's convention: files that share a key (path up to the first dot of the file name) are one sample, and the rest
of the name is the extension. An iterable reader cannot resume exactly; an offset index makes every sample one seek.
Tars are written so that equal samples give equal bytes, and every write is temp file, fsync, rename.

A shard may also lie in a remote store, by its URL: it is then read from this machine's cache (`isocost.data.cache`),
and its index, where none lies beside it, is made once and kept there.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from isocost.data import remote
from isocost.data.cache import OpenFiles, RemoteFile, the_cache
from isocost.data.remote import Found, Place
from isocost.errors import DataError
from isocost.files import atomic_write, file_digest
from isocost.specs import digest_of

INDEX_SCHEMA = 1
BLOCK = 512  # a tar is made of blocks of this many bytes
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")
SIDECAR_EXTENSIONS = ("txt", "json", "jsonl", "csv", "md")
Member = tuple[str, int, int]  # extension, offset of the payload in the tar, size, in bytes


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


INDEX_SUFFIX = ".index.json"
INDEXES_AT_ONCE = 16


def _index_path(tar: Path) -> Path:
    return tar.with_name(tar.name + INDEX_SUFFIX)


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
    is_newer = path.is_file() and path.stat().st_mtime_ns >= status.st_mtime_ns
    if is_newer and (index := _index_of(path.read_bytes(), status.st_size)):
        return index
    members, digest = _scan(tar, tar), file_digest(tar)
    try:
        return _write_index(tar, status.st_size, digest, members)
    except OSError:  # a read-only folder: the index lives in memory
        return {"schema": INDEX_SCHEMA, "size": status.st_size, "sha256": digest, "samples": members}


def _read_remote_index(tar: Found) -> dict[str, Any]:
    """The index beside a remote tar, else one made of it; kept with the cache either way."""
    kept = the_cache().folder / "indexes" / (RemoteFile(*tar).name + INDEX_SUFFIX)
    if kept.is_file() and (index := _index_of(kept.read_bytes(), tar.size)):
        return index
    index = _index_of(remote.read(tar.url + INDEX_SUFFIX) or b"", tar.size)
    if index is None:
        held = the_cache().hold(RemoteFile(*tar))
        members = _scan(held.path, tar.url)
        size, digest = held.path.stat().st_size, file_digest(held.path)
        index = {"schema": INDEX_SCHEMA, "size": size, "sha256": digest, "samples": members}
    kept.parent.mkdir(exist_ok=True)
    with atomic_write(kept) as file:
        file.write(json.dumps(index, separators=(",", ":")).encode())
    return index


def _index_of(data: bytes, size: int | None) -> dict[str, Any] | None:
    """An index that is whole, of a tar of this size; a damaged or outdated one holds nothing that the tar does not."""
    try:
        index = json.loads(data)
        fits = index["schema"] == INDEX_SCHEMA and size in (None, index["size"])
        return index if fits and len(index["sha256"]) == 64 and index["samples"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _scan(path: Path, tar: Place) -> dict[str, list[Member]]:
    """Every file in the tar at `path`, by key. Raises `DataError`, which calls it `tar`, for damage, links, unsafe
    paths and repeated names."""
    samples: dict[str, list[Member]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
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
    with path.open("rb") as file:  # tarfile stops without a word at half a header, or where the file just ends
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise DataError(f"{tar}: damaged or truncated after key '{_last(samples)}': no mark that ends a tar")
    return samples


def _last(samples: dict[str, Any]) -> str:
    return next(reversed(samples), "")


def _split_name(tar: Place, name: str) -> tuple[str, str]:
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

    `source`: a folder of .tar files (sorted; a gap in their numbers is an error), or the tars, by path or URL.
    Nothing is decoded or kept; each read is a slice of a memory map. Can be sent to another process, and used by
    several threads.
    """

    def __init__(self, source: Place | Sequence[Place]):
        self.paths = _tars(source)
        indexes, self._remote = _indexes(self.paths)
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

    @property
    def sizes(self) -> list[int]:
        """Samples a shard."""
        return np.diff(self._starts).tolist()

    @property
    def bytes(self) -> int:
        """Of all shards together."""
        return sum(self._sizes)

    def prefetch(self, indices: Iterable[int]) -> None:
        """Bring the shards of these samples here in the background, where they are remote; the first is first."""
        if self._remote.files:
            self._remote.prefetch(dict.fromkeys(self.shard_of(index) for index in indices))

    def verify(self) -> None:
        """Read every byte and compare with the indexes. Raises `DataError` naming the shard that changed.

        A remote shard is fetched if it is not in the cache; a damaged copy in the cache is dropped.
        """
        for number, (path, digest) in enumerate(zip(self.paths, self.digests, strict=True)):
            if isinstance(path, Path):
                if file_digest(path) != digest:
                    raise DataError(f"{path}: its bytes are not those that were indexed: damaged, or rewritten")
            else:
                the_cache().verify(self._remote.files[number])

    def _map(self, number: int) -> mmap.mmap:
        path = self.paths[number]
        if not isinstance(path, Path):
            return self._remote[number]
        if number not in self._maps:
            if not path.is_file() or path.stat().st_size != self._sizes[number]:
                raise DataError(
                    f"{path}: this shard is missing, or not the size its index says: truncated or rewritten"
                )
            self._maps[number] = _mapped(path)
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


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _indexes(tars: Sequence[Place]) -> tuple[list[dict[str, Any]], OpenFiles[mmap.mmap]]:
    """The index of every tar, and the remote ones among them by number."""

    def one(tar: Place) -> tuple[dict[str, Any], Found | None]:
        if isinstance(tar, Path):
            return _read_index(tar), None
        found = remote.find(tar)
        return _read_remote_index(found), found

    # A store answers many questions at once; files here are read one after the other.
    with ThreadPoolExecutor(INDEXES_AT_ONCE if any(map(remote.is_url, tars)) else 1) as pool:
        pairs = list(pool.map(one, tars))
    files = {i: RemoteFile(*found, index["sha256"]) for i, (index, found) in enumerate(pairs) if found}
    return [index for index, _ in pairs], OpenFiles(files, _mapped)


def _tars(source: Place | Sequence[Place]) -> list[Place]:
    if not isinstance(source, str | Path):
        return [tar for place in source for tar in remote.expand(place)]
    places = remote.expand(source)
    if len(places) > 1 or str(places[0]).endswith(".tar"):
        return places
    folder = places[0]
    if isinstance(folder, str):
        tars: list[Place] = [found.url for found in remote.files_in(folder) if found.url.endswith(".tar")]
    else:
        tars = [*sorted(folder.glob("*.tar"))]
    if not tars:
        raise DataError(f"{folder}: no .tar shards in this folder")
    _refuse_gaps(tars)
    return tars


def _refuse_gaps(tars: Sequence[Place]) -> None:
    """In a numbered series prefix-00000.tar, ... every number up to the last must be there."""
    series: dict[str, set[int]] = {}
    for tar in tars:
        if match := re.fullmatch(r"(.*-)(\d{5})\.tar", str(tar)):
            series.setdefault(match[1], set()).add(int(match[2]))
    for prefix, numbers in series.items():
        missing = set(range(min(numbers), max(numbers) + 1)) - numbers
        if missing:
            raise DataError(f"{prefix}{min(missing):05d}.tar: this shard is missing")
