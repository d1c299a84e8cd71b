"""Noise v1: a function of (prompt id, replicate, stream), whatever the batch, order, worker or device.

`numpy.random.Generator(Philox(key))`, float32 standard normal. The key is the first 16 bytes, read as a little-endian
integer, of sha256 over the canonical JSON of [prompt id, replicate, "x_T"] or [prompt id, replicate, ["step", k]]: JSON
quotes strings, so no two triples share an encoding. Golden values are held by a test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from isocost.errors import SpecError
from isocost.specs import canonical_json

NOISE_VERSION = 1
Stream = Literal["x_T"] | tuple[Literal["step"], int]


def noise(prompt_id: str, replicate: int, stream: Stream, shape: Sequence[int]) -> np.ndarray:
    """Standard normal noise, float32 of `shape`. `stream`: "x_T", or ("step", k) for the noise of step k >= 0.

    Raises `SpecError` for another stream or a negative replicate.
    """
    if replicate < 0:
        raise SpecError(f"replicate {replicate} is negative.")
    key = canonical_json([prompt_id, int(replicate), _plain_stream(stream)]).encode()
    philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(key).digest()[:16], "little"))
    return np.random.Generator(philox).standard_normal(tuple(shape), dtype=np.float32)


def batch_noise(ids: Sequence[tuple[str, int]], stream: Stream, shape: Sequence[int]) -> np.ndarray:
    """`noise` of each (prompt id, replicate), stacked: float32 [B, *shape]."""
    return np.stack([noise(prompt_id, replicate, stream, shape) for prompt_id, replicate in ids])


def _plain_stream(stream: Stream) -> str | list[str | int]:
    if stream == "x_T":
        return "x_T"
    if isinstance(stream, tuple) and len(stream) == 2 and stream[0] == "step" and stream[1] >= 0:
        return ["step", int(stream[1])]
    raise SpecError(f"noise stream {stream!r} is neither 'x_T' nor ('step', k) with k >= 0.")
