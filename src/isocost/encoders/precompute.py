"""Images and captions -> shards of latents and text embeddings, once, before any training: encoders never train along.

What the shards hold is said in `isocost.encoders.latents`, which reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from isocost.data import scenes
from isocost.data.images import open_images, square_images
from isocost.encoders.latents import SCHEMA, LatentShards, open_shard, shard_header
from isocost.errors import DataError, SpecError
from isocost.files import atomic_write, file_digest
from isocost.specs import DataSource, digest_of

IMAGES_PER_SHARD = 4096
CAPTIONS_PER_CALL = 256
PIXELS_PER_CALL = 2**18  # of one call of the autoencoder: 256 images at 32 px, 1 at 512 px
UNIT_STD = (0.5, 2.0)


class ImageEncoder(Protocol):
    digest: str

    def encode(self, images: np.ndarray) -> Any: ...


class CaptionEncoder(Protocol):
    digest: str

    def encode(self, captions: list[str]) -> Any: ...


# ---------------------------------------------------------------------------------------------------------- sources


class _Scenes:
    """The procedural images of a source, drawn in batches. Held-out ones are drawn from a seed of their own."""

    def __init__(self, source: DataSource, split: str):
        if split != "train":
            raise SpecError(f"scenes are endless and have no split '{split}': draw held-out ones from another seed.")
        self._source = source
        self.resolution = source.resolution
        self.count = source.images or 0
        self.digest = digest_of([source.seed, source.scenes.canonical(), self.count])

    def captions(self) -> list[str]:
        described = scenes.describe_all(self._source.seed, range(self.count), self._source.scenes)
        return [caption for caption, _ in described]

    def images(self, indices: range) -> np.ndarray:
        return scenes.draw(self._source.seed, indices, self._source.resolution, self._source.scenes)


class _Files:
    """The captioned images of a source's folders or tars, cut and resized to squares."""

    def __init__(self, source: DataSource, split: str):
        paths = {"train": source.train, "val": source.val}.get(split)
        if not paths:
            raise SpecError(f"data.{split} names no folder or shard of captioned images.")
        self._images = open_images(paths)
        self.resolution = source.resolution
        self.count = len(self._images) if source.images is None or split != "train" else source.images
        if self.count > len(self._images):
            raise DataError(f"{paths[0]}: {self.count} images are asked for, but there are {len(self._images)}")
        self.digest = digest_of([self._images.digest, self.count])

    def captions(self) -> list[str]:
        return [self._images.caption(index) for index in range(self.count)]

    def images(self, indices: range) -> np.ndarray:
        return square_images(self._images, indices, self.resolution)


# ---------------------------------------------------------------------------------------------------------- encoding


def precompute(
    source: DataSource,
    autoencoder: ImageEncoder,
    text_encoder: CaptionEncoder,
    folder: str | Path,
    split: str = "train",
    progress: Callable[[int, int], None] | None = None,
    check_scale: bool = True,
) -> LatentShards:
    """Encode a source's images and distinct captions into `folder`; what is done already is kept.

    Shards appear whole or not at all, so a run that was stopped goes on where it was by calling again. `progress`:
    called with (images done, images in all) after each batch.
    Raises `DataError` for a broken image, an encoding that is not finite, latents whose deviation is outside 0.5..2 in
    every channel (a forgotten scaling factor; `check_scale=False` accepts them), and a folder that holds other data.
    """
    work = _Work(source, autoencoder, text_encoder, Path(folder), split)
    if work.finished:
        return _opened_for(work.folder, work.plan)
    work.encode(work.shards, progress, check_scale)
    moments = _Moments()
    for shard in work.shards:
        moments.add(open_shard(shard.path)["latents"])
    if check_scale:
        moments.check_unit(work.folder)
    _write_header(work, moments)
    return LatentShards(work.folder)


def encode_share(
    source: DataSource,
    autoencoder: ImageEncoder,
    text_encoder: CaptionEncoder,
    folder: str | Path,
    share: int,
    shares: int,
    split: str = "train",
    check_scale: bool = True,
) -> None:
    """Write every `shares`-th shard from number `share` on, and no header: several processes, each with a share of its
    own, encode a set together, and `precompute` then finds their shards and finishes it."""
    work = _Work(source, autoencoder, text_encoder, Path(folder), split)
    if not work.finished:
        work.encode(work.shards[share::shares], None, check_scale)


class _Shard(NamedTuple):
    """A shard to be: where, which images, and which of the distinct captions it is the first to use."""

    path: Path
    images: range
    contexts: range


class _Work:
    """What there is to encode, and what of it each shard holds: the same for every process that takes part."""

    def __init__(
        self,
        source: DataSource,
        autoencoder: ImageEncoder,
        text_encoder: CaptionEncoder,
        folder: Path,
        split: str,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.source, self.split, self.folder = source, split, folder
        self.autoencoder, self.text_encoder = autoencoder, text_encoder
        self.images = _Scenes(source, split) if source.kind == "scenes" else _Files(source, split)
        self.plan = {
            "schema": SCHEMA,
            "source": self.images.digest,
            "resolution": source.resolution,
            "autoencoder": autoencoder.digest,
            "text_encoder": text_encoder.digest,
            "images": self.images.count,
            "per_shard": IMAGES_PER_SHARD,
        }

    @property
    def finished(self) -> bool:
        return (self.folder / "header.json").exists()

    @cached_property
    def captions(self) -> tuple[list[str], np.ndarray]:
        """Distinct captions, and int64 [N]: which one each image has."""
        return _number_captions(self.images.captions())

    @cached_property
    def shards(self) -> list[_Shard]:
        shards, contexts_done = [], 0
        for number, start in enumerate(range(0, self.images.count, IMAGES_PER_SHARD)):
            images = range(start, min(start + IMAGES_PER_SHARD, self.images.count))
            contexts_end = max(contexts_done, int(self._captions_of(images).max()) + 1)
            path = self.folder / f"latents-{number:05d}.safetensors"
            shards.append(_Shard(path, images, range(contexts_done, contexts_end)))
            contexts_done = contexts_end
        return shards

    def _captions_of(self, images: range) -> np.ndarray:
        return self.captions[1][images.start : images.stop]

    def encode(self, shards: Sequence[_Shard], progress: Callable[[int, int], None] | None, check_scale: bool) -> None:
        """Write those of `shards` that are not there."""
        distinct = self.captions[0]
        for shard in shards:
            if not _is_shard_of(shard.path, self.plan):
                latents = _encode_images(self.images, self.autoencoder, shard.images, progress, self.images.count)
                captions = distinct[shard.contexts.start : shard.contexts.stop]
                contexts = _encode_captions(self.text_encoder, captions)
                if check_scale and shard is shards[0]:  # at once, not after hours
                    moments = _Moments()
                    moments.add(latents)
                    moments.check_unit(self.folder)
                _write(shard.path, latents, self._captions_of(shard.images), contexts, self.plan)
            elif progress:
                progress(shard.images.stop, self.images.count)


def _number_captions(captions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct captions in order of first use, after the empty one, and int64 [N]: which one each image has."""
    numbers = {"": 0}
    caption_of = np.array([numbers.setdefault(caption, len(numbers)) for caption in captions], dtype=np.int64)
    return list(numbers), caption_of


def _encode_images(
    source: _Scenes | _Files, autoencoder: ImageEncoder, indices: range, progress: Any, total: int
) -> np.ndarray:
    """fp16 [n,C,h,w]."""
    batches: list[np.ndarray] = []
    per_call = max(1, PIXELS_PER_CALL // source.resolution**2)
    for start in range(0, len(indices), per_call):
        batch = indices[start : start + per_call]
        batches.append(_half(autoencoder.encode(source.images(batch)), f"latents of images {batch[0]} to {batch[-1]}"))
        if progress:
            progress(batch[-1] + 1, total)
    return np.concatenate(batches)


def _encode_captions(text_encoder: CaptionEncoder, captions: Sequence[str]) -> np.ndarray:
    """fp16 [u,L,D]; u may be 0. The shape comes from one call even where there is nothing to encode."""
    if not captions:
        return _half(text_encoder.encode([""]), "the empty caption")[:0]
    batches = []
    for start in range(0, len(captions), CAPTIONS_PER_CALL):
        batch = list(captions[start : start + CAPTIONS_PER_CALL])
        batches.append(_half(text_encoder.encode(batch), f"embeddings of captions from '{batch[0]}'"))
    return np.concatenate(batches)


def _half(values: Any, what: str) -> np.ndarray:
    """To fp16, refusing what fp16 cannot hold."""
    with np.errstate(over="ignore"):
        half = np.asarray(values, dtype=np.float32).astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError(f"{what}: not finite in fp16: the encoder's output is broken or not standardised")
    return half


class _Moments:
    """Mean and standard deviation of latents by channel, merged shard by shard in float64 (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(1)
        self._squares: np.ndarray = np.zeros(1)

    def add(self, latents: np.ndarray) -> None:
        values = latents.astype(np.float64)
        count = values.size // values.shape[1]
        mean = values.mean(axis=(0, 2, 3))
        squares = ((values - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3))
        gap, both = mean - self.mean, self.count + count
        self._squares = self._squares + squares + gap**2 * (self.count * count / both)
        self.mean = self.mean + gap * (count / both)
        self.count = both

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self._squares / self.count)

    def check_unit(self, folder: Path) -> None:
        low, high = UNIT_STD
        if ((self.std < low) | (self.std > high)).all():
            found = ", ".join(f"{value:.3g}" for value in self.std)
            raise DataError(
                f"{folder}: the latents' standard deviation by channel is {found}, not about 1: was the autoencoder's "
                "scaling factor forgotten?"
            )


# ---------------------------------------------------------------------------------------------------------- files


def _write(path: Path, latents: np.ndarray, captions: np.ndarray, contexts: np.ndarray, plan: dict[str, Any]) -> None:
    from safetensors.numpy import save

    tensors = {"latents": latents, "caption": captions, "contexts": contexts}
    tensors = {
        name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()
    }  # `save` writes memory as it lies
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"plan": digest_of(plan)}))


def _write_header(work: _Work, moments: _Moments) -> None:
    shards = [
        {
            "file": shard.path.name,
            "images": len(shard.images),
            "contexts": len(shard.contexts),
            "sha256": file_digest(shard.path),
        }
        for shard in work.shards
    ]
    distinct = work.captions[0]
    captions = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in distinct).encode()
    with atomic_write(work.folder / "captions.jsonl") as file:
        file.write(captions)
    first = open_shard(work.shards[0].path)
    header = {
        **work.plan,
        "split": work.split,
        "source_spec": work.source.model_dump(mode="json"),
        "latent_shape": list(first["latents"].shape[1:]),
        "context_shape": list(first["contexts"].shape[1:]),
        "captions": len(distinct),
        "mean": moments.mean.tolist(),
        "std": moments.std.tolist(),
        "shards": shards,
        "digest": digest_of([work.plan, [shard["sha256"] for shard in shards]]),
    }
    with atomic_write(work.folder / "header.json") as file:
        file.write(json.dumps(header, indent=1).encode())


def _is_shard_of(path: Path, plan: dict[str, Any]) -> bool:
    """Whether a whole shard of this very plan lies at `path`; one of another plan is written anew."""
    if not path.exists():
        return False
    try:
        return shard_header(path)[0].get("__metadata__", {}).get("plan") == digest_of(plan)
    except DataError:
        return False


def _opened_for(folder: Path, plan: dict[str, Any]) -> LatentShards:
    data = LatentShards(folder)
    different = [name for name, value in plan.items() if data.header.get(name) != value]
    if different:
        raise DataError(f"{folder}: holds other data ({', '.join(different)} differ): give another folder, or move it")
    return data
