"""Encoded images and captions, read at random from memory maps.

A folder holds `latents-00000.safetensors`, ... and `header.json`. Each shard has `latents` fp16 [n,C,h,w], `caption`
int64 [n] (which of the set's distinct captions an image has) and `contexts` fp16 [u,L,D], the embeddings of the
captions that this shard is the first to use. Caption 0 is the empty one, whose embedding replaces dropped captions.
All payloads have a fixed size, so that a sample is read from the memory map without parsing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isocost.errors import DataError
from isocost.files import file_digest
from isocost.specs import DataSpec

SCHEMA = 1
DTYPES = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8")}


class LatentShards:
    """What `precompute` wrote. Processes on one machine share the pages of its memory maps.

    `header`: encoders' digests, shapes, counts, and the latents' mean and deviation by channel.
    Raises `DataError` when a shard is missing, truncated, or of another shape than the header says.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.header = self._read_header()
        self.latent_shape: tuple[int, ...] = tuple(self.header["latent_shape"])
        self.context_shape: tuple[int, ...] = tuple(self.header["context_shape"])
        shards = [self._open(shard) for shard in self.header["shards"]]
        self._latents = _Rows([shard["latents"] for shard in shards])
        self._contexts = _Rows([shard["contexts"] for shard in shards])
        self.caption_of = np.concatenate([shard["caption"] for shard in shards])
        if self.caption_of.min() < 0 or self.caption_of.max() >= len(self._contexts):
            raise DataError(f"{self.folder}: an image's caption has no embedding: the shards are not of one set")

    def __len__(self) -> int:
        return len(self._latents)

    @property
    def spec(self) -> DataSpec:
        """The data by content, for a `TrainSpec`."""
        return DataSpec(
            digest_of_shards=self.header["digest"],
            images=len(self),
            resolution=self.header["resolution"],
            latent_shape=self.latent_shape,  # type: ignore[arg-type]
            context_shape=self.context_shape,  # type: ignore[arg-type]
            autoencoder=self.header["autoencoder"],
            text_encoder=self.header["text_encoder"],
        )

    def latents(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,C,h,w] of images `indices`."""
        return self._latents.take(indices)

    def contexts(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,L,D]: the embeddings of the captions of images `indices`."""
        return self._contexts.take(self.caption_of[np.asarray(indices)])

    @property
    def null_context(self) -> np.ndarray:
        """fp32 [L,D]: the embedding of the empty caption."""
        return self._contexts.take([0])[0]

    @property
    def captions(self) -> list[str]:
        """The caption of every image."""
        path = self.folder / "captions.jsonl"
        try:
            distinct = [json.loads(line) for line in path.read_text().splitlines()]
            return [distinct[number] for number in self.caption_of]
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{path}: cannot be read, or does not fit the shards: {error}") from None

    def verify(self) -> None:
        """Read every byte and compare with the header. Raises `DataError` naming the shard that changed."""
        for shard in self.header["shards"]:
            if file_digest(self.folder / shard["file"]) != shard["sha256"]:
                raise DataError(f"{self.folder / shard['file']}: damaged: delete the folder and precompute again")

    def _read_header(self) -> dict[str, Any]:
        path = self.folder / "header.json"
        try:
            header = json.loads(path.read_bytes())
        except OSError:
            raise DataError(f"{path}: missing: not a folder of latents, or one whose encoding has not ended") from None
        except ValueError as error:
            raise DataError(f"{path}: not JSON: {error}") from None
        if header.get("schema") != SCHEMA:
            raise DataError(f"{path}: schema {header.get('schema')}; this release reads {SCHEMA}: precompute again")
        return header

    def _open(self, shard: dict[str, Any]) -> dict[str, np.ndarray]:
        path = self.folder / shard["file"]
        arrays = open_shard(path)
        expected = {
            "latents": (shard["images"], *self.latent_shape),
            "caption": (shard["images"],),
            "contexts": (shard["contexts"], *self.context_shape),
        }
        for name, shape in expected.items():
            found = arrays[name].shape if name in arrays else None
            if found != shape:
                raise DataError(f"{path}: '{name}' has shape {found}; the header says {shape}")
        return arrays


class _Rows:
    """The rows of several arrays as if they were one."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 copies of `rows`, in their order. Raises `IndexError` out of range."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} of {len(self)}")
        taken = np.empty((len(wanted), *self._parts[0].shape[1:]), np.float32)
        number = np.searchsorted(self._ends, wanted, side="right")
        for part in np.unique(number):
            here = number == part
            start = self._ends[part] - len(self._parts[part])
            # torch casts fp16 several times as fast as numpy.
            taken[here] = torch.from_numpy(self._parts[part][wanted[here] - start]).float().numpy()
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
