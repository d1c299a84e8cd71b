"""Images and captions -> shards of latents and text embeddings, once, before any training: encoders never train along.

What the shards hold is said in `isocost.encoders.latents`, which reads them. Any number of processes may make them, on
any machines that see the folder:

FOLDER/latents-00000.safetensors    a shard, whole: its work is a function of its number, so anyone may do it again
FOLDER/latents-00000.json           what the header will say of it; written after it, gone when the header stands
FOLDER/filtered.safetensors         which images passed the filters, where there are any
FOLDER/header.json                  written by whoever finds all shards done, last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from isocost.data.images import open_images
from isocost.encoders.latents import EACH_FILE, ONCE, LatentShards, open_shard, read_header, shard_header
from isocost.encoders.sources import Photographs, Source, open_source
from isocost.errors import DataError, SpecError
from isocost.files import atomic_write, file_digest
from isocost.specs import DataSource, digest_of

IMAGES_PER_SHARD = 4096
CAPTIONS_PER_CALL = 256
PIXELS_PER_CALL = 2**18  # of one call of the autoencoder: 256 images at 32 px, 1 at 512 px
UNIT_STD = (0.5, 2.0)
Progress = Callable[[int, int], None]


class ImageEncoder(Protocol):
    digest: str

    def encode(self, images: np.ndarray) -> Any: ...


class CaptionEncoder(Protocol):
    digest: str

    def encode(self, captions: list[str]) -> Any: ...


# ---------------------------------------------------------------------------------------------------------- encoding


def precompute(
    source: DataSource,
    autoencoder: ImageEncoder,
    text_encoder: CaptionEncoder,
    folder: str | Path,
    split: str = "train",
    progress: Progress | None = None,
    check_scale: bool = True,
) -> LatentShards:
    """Encode a source's images and distinct captions into `folder`; what is done already is kept.

    Shards appear whole or not at all, so a run that was stopped goes on where it was by calling again. `progress`:
    called with (images done, images in all) after each batch.
    Raises `DataError` for a broken image, an encoding that is not finite, latents whose deviation is outside 0.5..2 in
    every channel (a forgotten scaling factor; `check_scale=False` accepts them), and a folder that holds other data.
    """
    work = _Work(source, autoencoder, text_encoder, Path(folder), split)
    if not work.finished:
        work.encode(work.shards, progress, check_scale)
        work.finish(check_scale)
    return _opened_for(work.folder, work.header)


class Share(NamedTuple):
    """What `encode_share` came to: shards done and in all, by anyone, and whether the set is finished."""

    done: int
    shards: int
    finished: bool


def encode_share(
    source: DataSource,
    autoencoder: ImageEncoder,
    text_encoder: CaptionEncoder,
    folder: str | Path,
    share: int,
    shares: int,
    split: str = "train",
    progress: Progress | None = None,
    check_scale: bool = True,
) -> Share:
    """Write every `shares`-th shard from number `share` on, and the header if then all shards are there.

    Several processes, each with a share of its own, encode a set together, in any order and without waiting for each
    other; one that died is run again, and how many shares there are may change between runs. Raises as `precompute`;
    `SpecError` for a share that is none.
    """
    if not 0 <= share < shares:
        raise SpecError(f"share {share}/{shares}: {shares} shares are numbered 0 to {shares - 1}.")
    work = _Work(source, autoencoder, text_encoder, Path(folder), split)
    if not work.finished:
        work.encode(work.shards[share::shares], progress, check_scale)
        done = sum(_is_shard_of(shard.path, work.plan) for shard in work.shards)
        if done < len(work.shards):
            return Share(done, len(work.shards), False)
        work.finish(check_scale)
    _opened_for(work.folder, work.header)
    return Share(len(work.shards), len(work.shards), True)


def refuse_changed(
    source: DataSource, autoencoder: ImageEncoder, text_encoder: CaptionEncoder, folders: Iterable[Path]
) -> None:
    """Raise `DataError` where one of `folders` was encoded from this very source before its files changed.

    What a study is does not depend on paths, so that without this, files that were cut short or replaced between two
    runs would quietly be another data set.
    """
    now = {
        "source_spec": source.model_dump(mode="json"),
        "autoencoder": autoencoder.digest,
        "text_encoder": text_encoder.digest,
    }
    for folder in folders:
        before = read_header(folder) if (folder / "header.json").is_file() else {}
        same = all(before.get(name) == value for name, value in now.items())
        if (
            same
            and before.get("sources")
            and (changed := _changed(before["sources"], open_images(source.train).sources))
        ):
            raise DataError(
                f"{changed}: bring the old files back; if the change is meant, take another store, or delete {folder}"
            )


def described(
    source: DataSource, autoencoder: ImageEncoder, text_encoder: CaptionEncoder, images: Source, split: str
) -> dict[str, Any]:
    """What is known of encoded data before anything is encoded: the first fields of a header."""
    return {
        "schema": EACH_FILE if source.embeddings == "each_file" else ONCE,
        "source": images.digest,
        "resolution": source.resolution,
        "autoencoder": autoencoder.digest,
        "text_encoder": text_encoder.digest,
        "images": images.count,
        "per_shard": IMAGES_PER_SHARD,
        "split": split,
        "source_spec": source.model_dump(mode="json"),
        "sources": images.sources,
        "filters": images.report,
        "degradation": source.degradation,
        "instances": source.instances,
    }


PLAN = ("schema", "source", "resolution", "autoencoder", "text_encoder", "images", "per_shard")
"""The fields of a header that shards are a function of."""


def _changed(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str:
    """The first source that is not what it was, in words; "" where all are."""
    there = {source["place"]: source for source in now}
    for old in before:
        new = there.get(old["place"])
        if new is None:
            return f"{old['place']}: this shard was read when the data were encoded, and is not there now"
        if new["sha256"] != old["sha256"]:
            return (
                f"{old['place']}: changed since it was encoded: {new['samples']} samples, were {old['samples']}; "
                f"sha256 {new['sha256'][:12]}, was {old['sha256'][:12]}"
            )
    added = [place for place in there if place not in {old["place"] for old in before}]
    return f"{added[0]}: was not there when the data were encoded" if added else ""


class _Shard(NamedTuple):
    """A shard to be: where, and which images."""

    path: Path
    images: range

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".json")


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
        self.folder = folder
        self.autoencoder, self.text_encoder = autoencoder, text_encoder
        self.images = open_source(source, split, folder)
        self.header = described(source, autoencoder, text_encoder, self.images, split)
        self.plan = {name: self.header[name] for name in PLAN}
        starts = range(0, self.images.count, IMAGES_PER_SHARD)
        self.shards = [
            _Shard(folder / f"latents-{number:05d}.safetensors", range(start, min(start + starts.step, starts.stop)))
            for number, start in enumerate(starts)
        ]

    @property
    def finished(self) -> bool:
        return (self.folder / "header.json").exists()

    @cached_property
    def _all_captions(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Distinct captions of the set; int64 [N]: which one each image has, and how many there were before it."""
        distinct, caption_of = _number_captions(self.images.captions(range(self.images.count)))
        met = np.maximum.accumulate(caption_of) + 1
        return distinct, caption_of, np.concatenate([[0], met])

    def captions_of(self, shard: _Shard) -> tuple[list[str], np.ndarray]:
        """The captions whose embeddings a shard holds, and int64 [n]: the number of each of its images' caption."""
        if self.header["schema"] == EACH_FILE:
            return _number_captions(self.images.captions(shard.images))
        distinct, caption_of, met = self._all_captions
        first, end = shard.images.start, shard.images.stop
        return distinct[met[first] : met[end]], caption_of[first:end]

    def encode(self, shards: Sequence[_Shard], progress: Progress | None, check_scale: bool) -> None:
        """Write those of `shards` that are not there."""
        for place, shard in enumerate(shards):
            if not _is_shard_of(shard.path, self.plan):
                self.images.prefetch([number for ahead in shards[place : place + 2] for number in self._read_by(ahead)])
                captions, caption_of = self.captions_of(shard)
                latents = encode_images(self.images, self.autoencoder, shard.images, progress)
                if check_scale and shard is shards[0]:  # at once, not after hours
                    Moments.of(latents).check_unit(self.folder)
                tensors = {"latents": latents, "caption": caption_of}
                tensors["contexts"] = encode_captions(self.text_encoder, captions)
                if isinstance(self.images, Photographs):
                    tensors["conditions"] = encode_conditions(self.images, self.autoencoder, shard.images)
                shard.note.unlink(missing_ok=True)
                _write(shard.path, tensors, self.plan)
                self._note(shard, captions)
            elif progress:
                progress(shard.images.stop, self.images.count)

    def _read_by(self, shard: _Shard) -> range:
        """The source's shards, by number, that hold a shard's images."""
        ends = np.cumsum(self.images.shards)
        first, last = np.searchsorted(ends, [shard.images.start, shard.images.stop - 1], side="right").tolist()
        return range(first, last + 1)

    def _note(self, shard: _Shard, captions: Sequence[str]) -> dict[str, Any]:
        """Leave beside a shard what its header will say of it, so that nobody has to read it again for that."""
        note = {
            "plan": digest_of(self.plan),
            "shard": {
                "file": shard.path.name,
                "images": len(shard.images),
                "contexts": len(captions),
                "bytes": shard.path.stat().st_size,
                "sha256": file_digest(shard.path),
            },
            "moments": Moments.of(open_shard(shard.path)["latents"]).as_lists(),
            "captions": list(captions),
        }
        with atomic_write(shard.note) as file:
            file.write(json.dumps(note, ensure_ascii=False).encode())
        return note

    def _noted(self, shard: _Shard) -> dict[str, Any]:
        """What was left beside a shard; made again where it is not there, as when a process died before it wrote it."""
        try:
            note = json.loads(shard.note.read_bytes())
            if note["plan"] == digest_of(self.plan) and note["shard"]["bytes"] == shard.path.stat().st_size:
                return note
        except (OSError, ValueError, KeyError):
            pass  # the shard itself says it all
        return self._note(shard, self.captions_of(shard)[0])

    def finish(self, check_scale: bool) -> None:
        """Write the header of a set whose shards are all there. Two that do so at once write the same."""
        notes = [self._noted(shard) for shard in self.shards]
        moments = Moments.together([Moments.from_lists(note["moments"]) for note in notes])
        if check_scale:
            moments.check_unit(self.folder)
        captions = [caption for note in notes for caption in note["captions"]]
        with atomic_write(self.folder / "captions.jsonl") as file:
            file.writelines((json.dumps(caption, ensure_ascii=False) + "\n").encode() for caption in captions)
        first = open_shard(self.shards[0].path)
        header = {
            **self.header,
            "latent_shape": list(first["latents"].shape[1:]),
            "context_shape": list(first["contexts"].shape[1:]),
            "captions": len(captions),
            "mean": moments.mean.tolist(),
            "std": moments.std.tolist(),
            "shards": [note["shard"] for note in notes],
            "digest": digest_of([self.plan, [note["shard"]["sha256"] for note in notes]]),
        }
        with atomic_write(self.folder / "header.json") as file:
            file.write(json.dumps(header, indent=1).encode())
        for shard in self.shards:
            shard.note.unlink(missing_ok=True)


def _number_captions(captions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct captions in order of first use, after the empty one, and int64 [N]: which one each image has."""
    numbers = {"": 0}
    caption_of = np.array([numbers.setdefault(caption, len(numbers)) for caption in captions], dtype=np.int64)
    return list(numbers), caption_of


def encode_images(
    source: Source, autoencoder: ImageEncoder, indices: Sequence[int], progress: Progress | None = None
) -> np.ndarray:
    """fp16 [n,C,h,w] of images `indices`, at least one."""
    return _encoded(source.images, source, autoencoder, indices, progress)


def encode_conditions(source: Photographs, autoencoder: ImageEncoder, indices: Sequence[int]) -> np.ndarray:
    """fp16 [n,C,h,w] of the low-resolution images of pairs `indices`, enlarged; at least one."""
    return _encoded(source.conditions, source, autoencoder, indices)


def _encoded(
    read: Callable[[Sequence[int]], np.ndarray],
    source: Source,
    autoencoder: ImageEncoder,
    indices: Sequence[int],
    progress: Progress | None = None,
) -> np.ndarray:
    """fp16 [n,C,h,w] of what `read` gives for `indices`."""
    batches: list[np.ndarray] = []
    per_call = max(1, PIXELS_PER_CALL // source.resolution**2)
    for start in range(0, len(indices), per_call):
        batch = indices[start : start + per_call]
        batches.append(half(autoencoder.encode(read(batch)), f"latents of images {batch[0]} to {batch[-1]}"))
        if progress:
            progress(batch[-1] + 1, source.count)
    return np.concatenate(batches)


def encode_captions(text_encoder: CaptionEncoder, captions: Sequence[str]) -> np.ndarray:
    """fp16 [u,L,D]; u may be 0. The shape comes from one call even where there is nothing to encode."""
    if not captions:
        return half(text_encoder.encode([""]), "the empty caption")[:0]
    batches = []
    for start in range(0, len(captions), CAPTIONS_PER_CALL):
        batch = list(captions[start : start + CAPTIONS_PER_CALL])
        batches.append(half(text_encoder.encode(batch), f"embeddings of captions from '{batch[0]}'"))
    return np.concatenate(batches)


def half(values: Any, what: str) -> np.ndarray:
    """To fp16, refusing what fp16 cannot hold."""
    with np.errstate(over="ignore"):
        half = np.asarray(values, dtype=np.float32).astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError(f"{what}: not finite in fp16: the encoder's output is broken or not standardised")
    return half


class Moments(NamedTuple):
    """Count of values by channel, their mean, and the sum of squared differences from it, all float64."""

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, latents: np.ndarray) -> Moments:
        """Of latents [N,C,h,w], by channel."""
        values = latents.astype(np.float64)
        mean = values.mean(axis=(0, 2, 3))
        squares = ((values - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3))
        return cls(values.size // values.shape[1], mean, squares)

    @classmethod
    def together(cls, parts: Sequence[Moments]) -> Moments:
        """Of all parts, merged one after the other (Chan et al., 1979)."""
        count, mean, squares = 0, np.zeros(1), np.zeros(1)
        for part in parts:
            gap, both = part.mean - mean, count + part.count
            squares = squares + part.squares + gap**2 * (count * part.count / both)
            mean = mean + gap * (part.count / both)
            count = both
        return cls(count, mean, squares)

    def as_lists(self) -> list[Any]:
        return [self.count, self.mean.tolist(), self.squares.tolist()]

    @classmethod
    def from_lists(cls, lists: list[Any]) -> Moments:
        return cls(lists[0], np.array(lists[1]), np.array(lists[2]))

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self.squares / self.count)

    def check_unit(self, folder: Path) -> None:
        low, high = UNIT_STD
        if ((self.std < low) | (self.std > high)).all():
            found = ", ".join(f"{value:.3g}" for value in self.std)
            raise DataError(
                f"{folder}: the latents' standard deviation by channel is {found}, not about 1: was the autoencoder's "
                "scaling factor forgotten?"
            )


# ---------------------------------------------------------------------------------------------------------- files


def _write(path: Path, tensors: dict[str, np.ndarray], plan: dict[str, Any]) -> None:
    from safetensors.numpy import save

    tensors = {
        name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()
    }  # `save` writes memory as it lies
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"plan": digest_of(plan)}))


def _is_shard_of(path: Path, plan: dict[str, Any]) -> bool:
    """Whether a whole shard of this very plan lies at `path`; one of another plan is written anew."""
    if not path.exists():
        return False
    try:
        return shard_header(path)[0].get("__metadata__", {}).get("plan") == digest_of(plan)
    except DataError:
        return False


def _opened_for(folder: Path, header: dict[str, Any]) -> LatentShards:
    data = LatentShards(folder)
    different = [name for name in PLAN if data.header.get(name) != header[name]]
    if different:
        changed = _changed(data.header.get("sources") or (), header["sources"]) if "source" in different else ""
        raise DataError(
            f"{folder}: holds other data ({', '.join(different)} differ): give another folder, or move it"
            + (f". {changed}" if changed else "")
        )
    return data
