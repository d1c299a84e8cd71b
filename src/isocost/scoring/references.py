"""References as artifacts: what generated images are compared with, built once, and kept with what it is.

A reference's digest covers its images (their pixels, however they are stored), the extractor and the protocol: two
scores of one digest were compared with the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from isocost.errors import DataError, SpecError
from isocost.scoring.extractors import Extractor, Projected, project, projection
from isocost.scoring.feature_files import count, read_features, to_bytes, values_digest
from isocost.scoring.measures import base_of
from isocost.scoring.sets import ImageSet, identity
from isocost.scoring.statistics import Moments, Reference, moments
from isocost.scoring.streaming import Column, Report, Tally, extract, silent, stream
from isocost.specs import digest_of

ABOUT_IT = ("extractor", "extractor_digest", "digest", "source", "protocol", "keys", "notices")


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """A reference with what it is.

    `values`: features [n, D], or their moments. `digest`: of its images, extractor and protocol. `protocol`: how its
    images were chosen, "" where that has no name. `source`: what its images were called. `keys`: one an image, where
    known. `notices`: what was converted or left out when it was built.
    """

    values: np.ndarray | Moments
    extractor: str
    extractor_digest: str
    digest: str
    source: str
    protocol: str = ""
    keys: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return count(self.values)

    @property
    def made_by(self) -> tuple[str, str] | None:
        """Name and digest of its extractor, where known."""
        return (self.extractor, self.extractor_digest) if self.extractor else None

    @property
    def identity(self) -> str:
        """name@digest of its extractor."""
        return identity(self.extractor or "an unknown extractor", self.extractor_digest)

    @cached_property
    def reference(self) -> Reference:
        """Its statistics. Raises `DataError` for features that are not finite, or fewer than 2."""
        if isinstance(self.values, Moments):
            return Reference(self.values)
        return Reference.of(self.values.astype(np.float32))

    def of(self, extractor: Extractor) -> Reference:
        """The reference in an extractor's features, or in a projection's of that extractor.

        Raises `SpecError` naming both extractors where it holds features of another.
        """
        base = base_of(extractor)
        if self.extractor_digest not in ("", base.digest):
            raise SpecError(
                f"'{self.source}' is a reference by {self.identity}, and {identity(base.name, base.digest)} is asked "
                f"for: isocost reference build IMAGES --extractor {base.name} --out FILE makes one."
            )
        return self._projected(extractor.dims) if isinstance(extractor, Projected) else self.reference

    def _projected(self, dims: int) -> Reference:
        if not isinstance(self.values, Moments):
            return Reference.of(project(self.reference.require_features(), dims))
        directions = projection(self.values.dims, dims)
        mean, m2 = self.values.mean @ directions, directions.T @ self.values.m2 @ directions
        return Reference(Moments(self.n, mean, m2))

    def describe(self) -> dict[str, Any]:
        """What it is, in plain values."""
        return {
            "digest": self.digest,
            "extractor": self.identity,
            "protocol": self.protocol or "none",
            "n": self.n,
            "dims": self.values.shape[1] if isinstance(self.values, np.ndarray) else self.values.dims,
            "holds": "features" if isinstance(self.values, np.ndarray) else "moments",
            "source": self.source,
            "notices": list(self.notices),
        }

    def to_bytes(self) -> bytes:
        """The content of its file: a safetensors of features or moments, with what it is as JSON."""
        return to_bytes(self.values, {name: getattr(self, name) for name in ABOUT_IT})


def load_reference(path: str | Path) -> ReferenceSet:
    """Read a reference that was built here, or the features or moments of another program (then of unknown extractor).

    Raises `DataError` naming a file that is missing, corrupt, or neither.
    """
    file = read_features(path)
    return ReferenceSet(
        values=file.values,
        extractor=file.about.get("extractor", ""),
        extractor_digest=file.about.get("extractor_digest", ""),
        digest=file.about.get("digest") or values_digest(file.values),
        source=file.about.get("source") or Path(path).name,
        protocol=file.about.get("protocol", ""),
        keys=tuple(file.about.get("keys", ())),
        notices=tuple(file.about.get("notices", ())),
    )


def build(
    images: ImageSet,
    extractors: Sequence[Extractor],
    *,
    moments_only: bool = False,
    skip_unreadable: bool = False,
    report: Report = silent,
) -> list[ReferenceSet]:
    """A reference by each extractor, from one pass over a set of images. That of a projection is its whole extractor's,
    which serves every projection.

    `moments_only` keeps the mean and covariance of one extractor's features: a small file whatever the number of
    images, that serves Frechet distances alone. Raises `DataError` for an image that cannot be read, or fewer than 2.
    """
    extractors = [base_of(extractor) for extractor in extractors]
    columns = [Column(identity(extractor.name, extractor.digest), extractor) for extractor in extractors]
    found: dict[str, np.ndarray | Moments] = {}
    if moments_only:
        tally, (column,) = Tally(), columns
        parts = stream(images, columns, tally, skip_unreadable=skip_unreadable, report=report)
        found[column.name] = moments(part[column.name] for part in parts)
    else:
        arrays, tally = extract(images, columns, skip_unreadable=skip_unreadable, report=report)
        found |= arrays
    if len(tally.rows) < 2:
        raise DataError(f"{images.name}: {len(tally.rows)} image, and a reference needs at least 2.")
    return [
        ReferenceSet(
            values=found[column.name],
            extractor=extractor.name,
            extractor_digest=extractor.digest,
            digest=digest_of([tally.digest, extractor.digest, images.protocol]),
            source=images.name,
            protocol=images.protocol,
            keys=tuple(images.keys[row] for row in tally.rows) if images.keys else (),
            notices=tuple(tally.notices(images.name)),
        )
        for extractor, column in zip(extractors, columns, strict=True)
    ]
