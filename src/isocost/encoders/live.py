"""Encoded images and captions without files: encoded when training asks for them, the next batch while it computes.

The same encoders, the same fp16 in between: what comes out is what `isocost.encoders.precompute` would have stored.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isocost.encoders.latents import LatentShards, data_spec, read_header
from isocost.encoders.precompute import (
    CaptionEncoder,
    ImageEncoder,
    Moments,
    described,
    encode_captions,
    encode_conditions,
    encode_images,
    refuse_changed,
)
from isocost.encoders.sources import Photographs, Source, open_source
from isocost.errors import DataError
from isocost.files import atomic_write
from isocost.specs import DataSource, DataSpec, digest_of

LIVE = "live"  # the schema of a header without shards
IMAGES_TRIED = 64
CONTENT = ("source", "resolution", "autoencoder", "text_encoder", "images")


class LiveLatents:
    """A data set like `LatentShards`, each row of which is encoded when it is asked for.

    One thread does all encoding, so that neither encoders nor caches need be safe; reading and decoding of images is
    spread over several. Rows are independent of what else is encoded with them, as far as the encoders' are: ours call
    their networks with batches of one size.
    """

    def __init__(
        self,
        header: dict[str, Any],
        images: Source,
        autoencoder: ImageEncoder,
        text_encoder: CaptionEncoder,
        folder: Path,
    ):
        self.header, self.folder = header, folder
        self.latent_shape: tuple[int, ...] = tuple(header["latent_shape"])
        self.context_shape: tuple[int, ...] = tuple(header["context_shape"])
        self._images, self._autoencoder, self._text_encoder = images, autoencoder, text_encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="isocost-encode")
        self._batches: deque[_Batch] = deque(maxlen=2)  # the one in use, and the next

    def __len__(self) -> int:
        return self._images.count

    @property
    def shards(self) -> tuple[int, ...]:
        """Images in each shard of the source."""
        return self._images.shards

    @property
    def spec(self) -> DataSpec:
        """The data by content, for a `TrainSpec`."""
        return data_spec(self.header)

    def latents(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,C,h,w] of images `indices`. Raises `DataError` for an image that is broken or cannot be read."""
        return self._rows(indices).latents

    def contexts(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,L,D]: the embeddings of the captions of images `indices`."""
        return self._rows(indices).contexts

    def conditions(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [B,C,h,w] of the low-resolution images of pairs `indices`, where the source has a degradation."""
        conditions = self._rows(indices).conditions
        assert conditions is not None
        return conditions

    @cached_property
    def null_context(self) -> np.ndarray:
        """fp32 [L,D]: the embedding of the empty caption."""
        return self._thread.submit(encode_captions, self._text_encoder, [""]).result()[0].astype(np.float32)

    @property
    def captions(self) -> list[str]:
        """The caption of every image."""
        return self._images.captions(range(len(self)))

    def prefetch(self, indices: Sequence[int] | np.ndarray = (), shards: Iterable[int] = ()) -> None:
        """Begin to encode images `indices`, this batch or the next, and to fetch remote `shards`, by number.

        The last two batches are kept. One that is there, or on its way, is not encoded again.
        """
        self._images.prefetch(shards)
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and self._batch_of(wanted) is None:
            self._begin(wanted)

    def _batch_of(self, indices: np.ndarray) -> _Batch | None:
        """The batch that holds all of these images."""
        wanted = set(indices.tolist())
        return next((batch for batch in self._batches if batch.places.keys() >= wanted), None)

    def _begin(self, indices: np.ndarray) -> _Batch:
        places = {index: place for place, index in enumerate(indices.tolist())}
        self._batches.append(_Batch(places, self._thread.submit(self._encode, indices)))
        return self._batches[-1]

    def _rows(self, indices: Sequence[int] | np.ndarray) -> _Rows:
        """Rows out of a batch that is encoded, or being encoded; else they become one."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} of {len(self)}")
        if not wanted.size:
            return _Rows(np.empty((0, *self.latent_shape), np.float32), np.empty((0, *self.context_shape), np.float32))
        batch = self._batch_of(wanted) or self._begin(wanted)
        rows = batch.rows.result()
        places = [batch.places[index] for index in wanted.tolist()]
        conditions = None if rows.conditions is None else rows.conditions[places].astype(np.float32)
        return _Rows(rows.latents[places].astype(np.float32), rows.contexts[places].astype(np.float32), conditions)

    def _encode(self, indices: np.ndarray) -> _Rows:
        captions = self._images.captions(indices.tolist())
        distinct = list(dict.fromkeys(captions))
        contexts = encode_captions(self._text_encoder, distinct)
        number = {caption: row for row, caption in enumerate(distinct)}
        latents = encode_images(self._images, self._autoencoder, indices.tolist())
        conditions = None
        if isinstance(self._images, Photographs):
            conditions = encode_conditions(self._images, self._autoencoder, indices.tolist())
        return _Rows(latents, contexts[[number[caption] for caption in captions]], conditions)


class _Rows(NamedTuple):
    """[B,C,h,w], [B,L,D], and of pairs [B,C,h,w]."""

    latents: np.ndarray
    contexts: np.ndarray
    conditions: np.ndarray | None = None


class _Batch(NamedTuple):
    """Rows that are encoded or being encoded, and at which of them each image is."""

    places: dict[int, int]
    rows: Future[_Rows]


def encode_live(
    source: DataSource,
    autoencoder: ImageEncoder,
    text_encoder: CaptionEncoder,
    folder: str | Path,
    refs: tuple[str, str] = ("", ""),
    check_scale: bool = True,
) -> LiveLatents:
    """A source's training images, to be encoded as they are asked for. `folder` is left with a header that says so, for
    `open_data`, which loads the encoders by `refs` (autoencoder, text encoder).

    Some images are encoded at once. Raises as `precompute`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = open_source(source, "train", folder)
    header = described(source, autoencoder, text_encoder, images, "train")
    tried = encode_images(images, autoencoder, range(min(IMAGES_TRIED, images.count)))
    if check_scale:
        Moments.of(tried).check_unit(folder)
    header |= {
        "schema": LIVE,
        "encoders": list(refs),
        "latent_shape": list(tried.shape[1:]),
        "context_shape": list(encode_captions(text_encoder, [""]).shape[1:]),
        "digest": digest_of([LIVE, {name: header[name] for name in CONTENT}]),
    }
    with atomic_write(folder / "header.json") as file:
        file.write(json.dumps(header, indent=1).encode())
    return LiveLatents(header, images, autoencoder, text_encoder, folder)


def open_data(folder: str | Path, device: str = "cpu") -> LatentShards | LiveLatents:
    """Encoded data in `folder` (or at a URL), whether in shards or to be encoded on `device` as it is asked for.

    Raises `DataError` where there is none, where encoders or images are not those that the header names.
    """
    header = read_header(folder)
    if header.get("schema") != LIVE:
        return LatentShards(folder)
    from isocost.encoders.autoencoder import load_autoencoder
    from isocost.encoders.text import load_text_encoder

    autoencoder = load_autoencoder(header["encoders"][0], device)
    text_encoder = load_text_encoder(header["encoders"][1], device)
    source = DataSource.parse(header["source_spec"], f"{folder}/header.json")
    refuse_changed(source, autoencoder, text_encoder, [Path(folder)])
    images = open_source(source, "train", Path(folder))
    now = described(source, autoencoder, text_encoder, images, "train")
    if different := [name for name in CONTENT if header[name] != now[name]]:
        raise DataError(f"{folder}: not what its header says ({', '.join(different)} differ): encode it again")
    return LiveLatents(header, images, autoencoder, text_encoder, Path(folder))
