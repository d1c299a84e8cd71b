"""Images through networks, batch by batch: what is kept is features and one value an image, never the images.

Neither batch size nor how files are sharded moves a bit: images go in the order of their keys, and what an extractor
says of an image does not depend on the others in its batch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np

from isocost.data.images import Decoded
from isocost.errors import DataError
from isocost.scoring.sets import ImageSet

BATCH = 64  # images a call of a network, at most
BATCH_BYTES = 2**26  # of pixels held for it, at most (but for one image)
AHEAD = 16  # images decoded and waiting, at most
THREADS = 4

Report = Callable[[int, int], None]
"""report(done, total): called after each batch."""


def silent(done: int, total: int) -> None:
    """The default report: says nothing."""


@dataclass(frozen=True)
class Column:
    """What is computed of every image, by batches of one shape.

    `of` "images": `function(images)`, features [B, D]; "targets": the same of the images that they are to match;
    "pairs": `function(images, targets)`, one value an image [B].
    """

    name: str
    function: Callable[..., np.ndarray]
    of: Literal["images", "targets", "pairs"] = "images"


def arguments_of(column: Column, images: np.ndarray, targets: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """What a column's function is given of images [B, H, W, 3] and what they are to match."""
    if column.of == "images":
        return (images,)
    assert targets is not None
    return (targets,) if column.of == "targets" else (images, targets)


@dataclass
class Tally:
    """What was read: which rows, what was done to make images RGB, of which formats, and which could not be read."""

    rows: list[int] = field(default_factory=list)
    conversions: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    pixel_digests: list[bytes] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """sha256 of the images' pixels in order, whatever files they came in."""
        return hashlib.sha256(b"".join(self.pixel_digests)).hexdigest()

    def notices(self, name: str) -> list[str]:
        """What was converted and what was left out of the images called `name`, in sentences."""
        found = []
        if self.conversions:
            kinds = ", ".join(f"{kind} ({count:,})" for kind, count in sorted(self.conversions.items()))
            found.append(f"{name}: of {len(self.rows):,} images, brought to 8-bit RGB: {kinds}.")
        if self.skipped:
            shown = "; ".join(self.skipped[:3]) + ("; ..." if len(self.skipped) > 3 else "")
            found.append(f"{name}: {len(self.skipped):,} images cannot be read and are left out: {shown}")
        return found


def extract(
    images: ImageSet,
    columns: Sequence[Column],
    targets: ImageSet | None = None,
    *,
    skip_unreadable: bool = False,
    batch: int = BATCH,
    report: Report = silent,
) -> tuple[dict[str, np.ndarray], Tally]:
    """Every column of every image, in order of keys: features [N, D] in half precision, values [N] in float64.

    `targets`: the set whose row i image i is to match. Raises `DataError` naming an image that cannot be read (with
    `skip_unreadable` it is left out and tallied), whose features are not finite, or whose target has another size.
    """
    tally = Tally()
    parts = list(stream(images, columns, tally, targets, skip_unreadable=skip_unreadable, batch=batch, report=report))
    return {column.name: np.concatenate([part[column.name] for part in parts]) for column in columns}, tally


def stream(
    images: ImageSet,
    columns: Sequence[Column],
    tally: Tally,
    targets: ImageSet | None = None,
    *,
    skip_unreadable: bool = False,
    batch: int = BATCH,
    report: Report = silent,
) -> Iterator[dict[str, np.ndarray]]:
    """The columns of `extract`, one batch after another; `tally` is filled on the way."""
    if all(column.of == "images" for column in columns):
        targets = None
    for reads in _batches(_reads(images, targets, tally, skip_unreadable), batch):
        tally.rows.extend(read.row for read in reads)
        tally.pixel_digests.extend(read.digest for read in reads)
        tally.conversions.update(name for read in reads for name in read.image.conversions)
        tally.formats.update(read.image.format for read in reads)
        yield _computed(images, columns, reads)
        report(len(tally.rows) + len(tally.skipped), len(images))
    if not tally.rows:
        raise DataError(f"{images.name}: none of its {len(images)} images can be read ({tally.skipped[0]}).")


# --- reading ---


@dataclass(frozen=True, eq=False)
class _Read:
    row: int
    image: Decoded
    target: np.ndarray | None
    digest: bytes

    @property
    def pixels(self) -> np.ndarray:
        return self.image.pixels


def _reads(images: ImageSet, targets: ImageSet | None, tally: Tally, skip_unreadable: bool) -> Iterator[_Read]:
    """Images in order, decoded by a few threads a little ahead of the network."""

    def read(row: int) -> _Read:
        decoded = images.read(row)
        target = targets.read(row).pixels if targets else None
        if target is not None and target.shape != decoded.pixels.shape:
            raise _WrongSize(
                f"{images.where(row)} is {_size(decoded.pixels)}, its target {_size(target)}: metrics of pairs never "
                "resize, so bring one to the other's size first."
            )
        return _Read(row, decoded, target, _digest(decoded.pixels))

    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    rows = iter(range(len(images)))
    waiting: deque[Future[_Read]] = deque(pool.submit(read, row) for row in islice(rows, AHEAD))
    try:
        while waiting:
            future = waiting.popleft()
            error = future.exception()
            if skip_unreadable and isinstance(error, DataError) and not isinstance(error, _WrongSize):
                tally.skipped.append(str(error))
            else:
                yield future.result()
            waiting.extend(pool.submit(read, row) for row in islice(rows, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _WrongSize(DataError):
    """An image that can be read, but not compared with its target."""


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]} pixels"


def _batches(reads: Iterator[_Read], size: int) -> Iterator[list[_Read]]:
    """Consecutive images, at most `size` of them and `BATCH_BYTES` of pixels."""
    batch: list[_Read] = []
    held = 0
    for read in reads:
        if batch and (len(batch) == size or held + read.pixels.nbytes > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(read)
        held += read.pixels.nbytes
    if batch:
        yield batch


# --- computing ---


def _computed(images: ImageSet, columns: Sequence[Column], reads: Sequence[_Read]) -> dict[str, np.ndarray]:
    """The columns of one batch; images of one shape go through a network together."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, read in enumerate(reads):
        shapes.setdefault(read.pixels.shape, []).append(place)
    back = np.argsort(np.concatenate([np.array(places) for places in shapes.values()]))
    groups = [_stacked([reads[place] for place in places]) for places in shapes.values()]
    found = {}
    for column in columns:
        rows = np.concatenate([column.function(*group[column.of]) for group in groups])[back]
        found[column.name] = rows.astype(np.float64) if column.of == "pairs" else _finite(images, column, rows, reads)
    return found


def _stacked(reads: Sequence[_Read]) -> dict[str, tuple[np.ndarray, ...]]:
    """Arguments of a column's function, by what it is of."""
    pixels = np.stack([read.pixels for read in reads])
    targets = [read.target for read in reads if read.target is not None]
    if not targets:
        return {"images": (pixels,)}
    return {"images": (pixels,), "targets": (np.stack(targets),), "pairs": (pixels, np.stack(targets))}


def _finite(images: ImageSet, column: Column, rows: np.ndarray, reads: Sequence[_Read]) -> np.ndarray:
    """Features in half precision, or a `DataError` that names the first image whose features are not finite."""
    kept = half(rows)
    bad = ~np.isfinite(kept).all(axis=1)
    if bad.any():
        what = "do not fit half precision" if np.isfinite(rows[bad]).all() else "are NaN or infinite"
        raise DataError(
            f"{images.where(reads[int(np.argmax(bad))].row)}: its features by '{column.name.partition('@')[0]}' {what}:"
            " look at this image, or at the extractor's weights."
        )
    return kept


def half(features: np.ndarray) -> np.ndarray:
    """Features in half precision, as stores and references keep them: so the score of a store's cell, of its images and
    of features in a file is one number."""
    with np.errstate(over="ignore"):
        return features.astype(np.float16)
