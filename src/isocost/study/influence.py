"""Influence values of many scores in one file: what a finished cell keeps, small and quick to read.

A pack is a safetensors file of scores that share a ScoreSpec: `values` [scores, n] in half precision, each row divided
by its largest magnitude, `scales` [scores] in float32, and the scores' keys in the header. It is immutable, and named
by its content.

Half precision keeps each value to 2^-11 of itself, and errs at random: a standard error of n images moves by about
4e-4 / sqrt(n) of itself, that of a paired difference of two cells of correlation rho by 4e-4 / sqrt(n (1 - rho)), and
both are too large by a share of 4e-8 / (1 - rho).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from isocost.errors import DataError
from isocost.files import file_digest

SCORES_A_PACK = 1024


def encode(values: Mapping[str, np.ndarray]) -> tuple[str, bytes]:
    """Name and content of the pack of scores with these influence values: score key -> [n], one n for all."""
    from safetensors.numpy import save

    keys = sorted(values)
    scales = np.array([np.abs(values[key]).max(initial=0) or 1.0 for key in keys], dtype=np.float32)
    rows = np.stack([values[key] / scale for key, scale in zip(keys, scales, strict=True)]).astype(np.float16)
    content = save({"values": rows, "scales": scales}, metadata={"keys": json.dumps(keys)})
    return f"{hashlib.sha256(content).hexdigest()}.safetensors", content


class Pack:
    """A pack on disk. Raises `DataError` naming a file that is corrupt."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def rows(self) -> dict[str, int]:
        """Score key -> row."""
        with self._open() as file:
            return {key: row for row, key in enumerate(json.loads(file.metadata()["keys"]))}

    def __getitem__(self, key: str) -> np.ndarray:
        """Influence values [n] of a score, float64."""
        row, (start, n, scales) = self.rows[key], self._layout
        with self.path.open("rb") as file:
            file.seek(start + 2 * n * row)
            values = np.fromfile(file, np.dtype("<f2"), n)
        if len(values) < n:
            raise self._corrupt("it ends too early")
        return values.astype(np.float64) * float(scales[row])

    @cached_property
    def _layout(self) -> tuple[int, int, np.ndarray]:
        """Where `values` begins in the file, the length of a row, and `scales`: safetensors would read the header anew,
        and the names of all scores with it, for every row."""
        with self._open() as file:
            _, n = file.get_slice("values").get_shape()
            scales = file.get_tensor("scales")
        with self.path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
            begin, _ = json.loads(raw.read(header))["values"]["data_offsets"]
        return 8 + header + begin, n, scales

    def verify(self) -> None:
        """Read all of it, and compare it with its name."""
        if file_digest(self.path) != self.path.stem:
            raise self._corrupt("its content does not match its name")

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                yield file
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._corrupt(str(error)) from None

    def _corrupt(self, reason: str) -> DataError:
        return DataError(
            f"{self.path}: corrupt influence values ({reason}). Delete this file: differences of its scores are then "
            "unpaired, until those scores are deleted too and the sweep is run again."
        )
