"""Encoded images and captions, read at random from memory maps.

A folder holds `latents-00000.safetensors`, ... and `header.json`. Each shard has `latents` fp16 [n,C,h,w], `caption`
int64 [n] and `contexts` fp16 [u,L,D], embeddings of captions; data for super-resolution has `conditions` too, latents
[n,C,h,w] of the low-resolution images. All payloads have a fixed size, so that a sample is read from the memory map
without parsing. Where an image's embedding is depends on the schema in the header:

    1   `caption` numbers the distinct captions of the whole set; a shard holds those that it is the first to use
    2   `caption` numbers the captions of its own shard, which is all that is needed to read it

Caption 0 is the empty one, whose embedding replaces dropped captions.
The folder may lie in a remote store: shards are then fetched when they are first read (`isocost.data.cache`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isocost.data import remote
from isocost.data.cache import OpenFiles, RemoteFile, the_cache
from isocost.data.remote import Place, beside, is_url, place_of
from isocost.errors import DataError
from isocost.files import file_digest
from isocost.specs import DataSpec

ONCE, EACH_FILE = 1, 2  # schemas, by where a caption's embedding lies
SCHEMAS = (ONCE, EACH_FILE)
DTYPES = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8")}
Arrays = dict[str, np.ndarray]


def read_header(folder: Place) -> dict[str, Any]:
    """`header.json` of a folder of latents. Raises `DataError` where there is none, or it is damaged."""
    path = beside(folder, "header.json")
    try:
        data = path.read_bytes() if isinstance(path, Path) else remote.read(path)
    except OSError:
        data = None
    if data is None:
        raise DataError(f"{path}: missing: not a folder of latents, or one whose encoding has not ended")
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None


def data_spec(header: dict[str, Any]) -> DataSpec:
    """The data that a header describes, by content, for a `TrainSpec`."""
    return DataSpec(
        digest_of_shards=header["digest"],
        images=header["images"],
        resolution=header["resolution"],
        latent_shape=header["latent_shape"],
        context_shape=header["context_shape"],
        autoencoder=header["autoencoder"],
        text_encoder=header["text_encoder"],
        degradation=header.get("degradation"),
        instances=header.get("instances"),
    )


class LatentShards:
    """What `precompute` wrote. Processes on one machine share the pages of its memory maps.

    `header`: encoders' digests, shapes, counts, and the latents' mean and deviation by channel. `shards`: images in
    each shard. Raises `DataError` when a shard is missing, truncated, or of another shape than the header says: of a
    remote folder, when it is fetched (that it is there, and of its size, is seen at once).
    """

    def __init__(self, folder: Place):
        self.folder: Any = place_of(folder)
        self.header = read_header(self.folder)
        if self.header.get("schema") not in SCHEMAS:
            raise DataError(
                f"{beside(self.folder, 'header.json')}: schema {self.header.get('schema')}; this release reads "
                f"{', '.join(map(str, SCHEMAS))}: precompute again"
            )
        self.latent_shape: tuple[int, ...] = tuple(self.header["latent_shape"])
        self.context_shape: tuple[int, ...] = tuple(self.header["context_shape"])
        self.shards: tuple[int, ...] = tuple(shard["images"] for shard in self.header["shards"])
        self._remote = OpenFiles(_remote_files(self.folder, self.header["shards"]), open_shard)
        self._arrays: dict[int, Arrays] = {}
        contexts = [shard["contexts"] for shard in self.header["shards"]]
        self._first_context = np.cumsum(contexts) - contexts
        self._latents = _Rows(self.shards, lambda number: self._open(number)["latents"], self.latent_shape)
        self._conditions = _Rows(self.shards, lambda number: self._open(number)["conditions"], self.latent_shape)
        self._captions = _Rows(self.shards, lambda number: self._open(number)["caption"], ())
        self._contexts = _Rows(contexts, lambda number: self._open(number)["contexts"], self.context_shape)
        if not is_url(self.folder):
            self._check_captions()

    def __len__(self) -> int:
        return len(self._latents)

    @property
    def spec(self) -> DataSpec:
        """The data by content, for a `TrainSpec`."""
        return data_spec(self.header)

    def latents(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,C,h,w] of images `indices`."""
        return self._latents.take(indices)

    def contexts(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,L,D]: the embeddings of the captions of images `indices`."""
        return self._contexts.take(self._context_rows(indices))

    def conditions(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,C,h,w] of the low-resolution images of pairs `indices`, where the header names a degradation."""
        return self._conditions.take(indices)

    @cached_property
    def null_context(self) -> np.ndarray:
        """fp32 [L,D]: the embedding of the empty caption."""
        return self._contexts.take([0])[0]

    @property
    def caption_of(self) -> np.ndarray:
        """int64 [N]: which of the embeddings, counted over all shards, is that of each image's caption."""
        return self._context_rows(np.arange(len(self)))

    @property
    def captions(self) -> list[str]:
        """The caption of every image."""
        path = beside(self.folder, "captions.jsonl")
        try:
            data = path.read_bytes() if isinstance(path, Path) else remote.read(path) or b""
            texts = [json.loads(line) for line in data.splitlines()]
            return [texts[number] for number in self.caption_of]
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{path}: cannot be read, or does not fit the shards: {error}") from None

    def prefetch(self, indices: Sequence[int] | np.ndarray = (), shards: Iterable[int] = ()) -> None:
        """Bring remote shards here in the background: those of images `indices`, then `shards`, by number."""
        if self._remote.files:
            first = dict.fromkeys(self._latents.part_of(np.asarray(indices, dtype=np.int64)).tolist())
            self._remote.prefetch(first | dict.fromkeys(shards))

    def verify(self) -> None:
        """Read every byte and compare with the header. Raises `DataError` naming the shard that changed."""
        for number, shard in enumerate(self.header["shards"]):
            if number in self._remote.files:
                the_cache().verify(self._remote.files[number])
            elif file_digest(self.folder / shard["file"]) != shard["sha256"]:
                raise DataError(f"{self.folder / shard['file']}: damaged: delete the folder and precompute again")

    def _context_rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of all shards' embeddings together, of the captions of images."""
        numbers = self._captions.take(indices, np.int64)
        if self.header["schema"] == ONCE:
            return numbers
        return numbers + self._first_context[self._latents.part_of(np.asarray(indices, dtype=np.int64))]

    def _open(self, number: int) -> Arrays:
        """A shard's arrays, of the shapes that the header says."""
        if number in self._arrays:
            return self._arrays[number]
        shard = self.header["shards"][number]
        path = beside(self.folder, shard["file"])
        arrays = self._remote[number] if number in self._remote.files else open_shard(Path(path))
        expected = {
            "latents": (shard["images"], *self.latent_shape),
            "caption": (shard["images"],),
            "contexts": (shard["contexts"], *self.context_shape),
        }
        if self.spec.degradation is not None:
            expected["conditions"] = expected["latents"]
        for name, shape in expected.items():
            found = arrays[name].shape if name in arrays else None
            if found != shape:
                raise DataError(f"{path}: '{name}' has shape {found}; the header says {shape}")
        if number not in self._remote.files:
            self._arrays[number] = arrays
        return arrays

    def _check_captions(self) -> None:
        rows = self.caption_of
        if rows.min() < 0 or rows.max() >= len(self._contexts):
            raise DataError(f"{self.folder}: an image's caption has no embedding: the shards are not of one set")


def _remote_files(folder: Place, shards: Sequence[dict[str, Any]]) -> dict[int, RemoteFile]:
    """The shards of a remote folder, by number. Raises `DataError` for one that is missing or not of its size."""
    if not isinstance(folder, str):
        return {}
    there = {found.url: found for found in remote.files_in(folder)}
    files = {}
    for number, shard in enumerate(shards):
        url = f"{folder}/{shard['file']}"
        if url not in there:
            raise DataError(f"{url}: this shard is missing")
        size, wanted = there[url].size, shard.get("bytes")
        if None not in (size, wanted) and size != wanted:
            raise DataError(f"{url}: {size} bytes, not {wanted}: truncated, or rewritten: bring the old file back")
        files[number] = RemoteFile(url, wanted or size, shard["sha256"], shard["sha256"])
    return files


class _Rows:
    """The rows of several arrays as if they were one. lengths: rows in each. part: the array of a number."""

    def __init__(self, lengths: Sequence[int], part: Callable[[int], np.ndarray], shape: tuple[int, ...]):
        self._lengths, self._part, self._shape = lengths, part, shape
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def part_of(self, rows: np.ndarray) -> np.ndarray:
        """int64: the number of the array that holds each row."""
        return np.searchsorted(self._ends, rows, side="right")

    def take(self, rows: Sequence[int] | np.ndarray, dtype: Any = np.float32) -> np.ndarray:
        """Copies of `rows`, in their order. Raises `IndexError` out of range."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} of {len(self)}")
        taken = np.empty((len(wanted), *self._shape), dtype)
        numbers = self.part_of(wanted)
        for number in np.unique(numbers):
            here = numbers == number
            start = self._ends[number] - self._lengths[number]
            # torch casts fp16 several times as fast as numpy.
            found = torch.from_numpy(self._part(int(number))[wanted[here] - start])
            taken[here] = (found.float() if dtype == np.float32 else found).numpy()
        return taken


def open_shard(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a shard as read-only arrays in a memory map."""
    header, start = shard_header(path)
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        empty = math.prod(shape) == 0  # which a memory map cannot be
        offset = start + entry["data_offsets"][0]
        arrays[name] = np.empty(shape, dtype) if empty else np.asarray(np.memmap(path, dtype, "r", offset, shape))
    return arrays


def shard_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header and the offset of its payload. Raises `DataError` when it is damaged or truncated."""
    size = path.stat().st_size if path.is_file() else -1
    if size < 0:
        raise DataError(f"{path}: this shard is missing")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a safetensors file, or damaged: delete it and precompute again") from None
    if size != 8 + length + end:
        raise DataError(f"{path}: {size} bytes, not {8 + length + end}: truncated; delete it and precompute again")
    return header, 8 + length
