"""How much of a machine's arithmetic a training makes use of: MFU, model FLOPs utilisation (arXiv 2204.02311, app. B).

Its FLOPs a second, over those of one large matrix product on the same device.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from isocost.environment import environment
from isocost.files import atomic_write

PEAKS = Path("~/.cache/isocost/peaks.json")
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
TURNS = 5


def matmul_peak(device: str = "cpu", precision: str = "fp32") -> float:
    """FLOPs a second of a square matrix product, the best of some, by one process with torch's threads as they are.

    device: "cpu", "cuda" or "cuda:1". precision: "fp32" or "bf16". Measured once on a machine and then read from
    ~/.cache/isocost/peaks.json: delete that where the machine was busy.
    """
    found = environment()
    kind, _, number = device.partition(":")
    name = found["gpus"][int(number or 0)] if kind == "cuda" else f"{found['cpu']}, {found['threads']} threads"
    key = f"{name}, {precision}, torch {found['torch']}"
    if key not in _known():
        _remember(_known() | {key: _measured(device, precision)})
    return _known()[key]


_in_process: dict[str, float] = {}


def _known() -> dict[str, float]:
    try:
        return {**json.loads(PEAKS.expanduser().read_bytes()), **_in_process}
    except (OSError, ValueError):  # not measured yet, or damaged: measured again
        return dict(_in_process)


def _remember(peaks: dict[str, float]) -> None:
    _in_process.update(peaks)
    path = PEAKS.expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(peaks, indent=1).encode())
    except OSError:  # a home that cannot be written: it is measured again by the next process
        return


def _measured(device: str, precision: str) -> float:
    import torch

    kind = torch.device(device).type
    side = SIDE[kind]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(TURNS):
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        if kind == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * side**3 / min(seconds)
