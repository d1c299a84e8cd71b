"""What a device says of itself: that it is done, the joules it has taken, and the memory that was used at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isocost.environment import environment


def device_name(device: str) -> str:
    """The processor's model name, or the GPU's."""
    return torch.cuda.get_device_name() if device == "cuda" else environment()["cpu"]


def seconds_of(run: Callable[[], object], times: int, device: str) -> float:
    """Wall seconds of `times` calls in a row, until the device has finished them."""
    _finish(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def joules_meter(device: str) -> Callable[[], float] | None:
    """A function that reads the joules which the GPU has taken so far, of whichever process.

    None on a processor, without the package nvidia-ml-py, and for GPUs that NVML has no counter of (before Volta).
    """
    if device != "cuda":
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # NVML counts millijoules


class PeakMemory:
    """Bytes that a device needs beyond what was in use when this was made.

    On a GPU those of torch's tensors; on a processor the growth of this process's resident memory. The kernel keeps
    one peak a process: make this early in a process of its own, or an earlier peak hides later ones.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.before = self._now("VmRSS")

    def __call__(self) -> int | None:
        """None where the system does not tell (processors outside Linux)."""
        peak = self._now("VmHWM", peak=True)
        return None if peak is None or self.before is None else max(0, peak - self.before)

    def _now(self, field: str, peak: bool = False) -> int | None:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return _of_this_process(field)


def _of_this_process(field: str) -> int | None:
    """A field of Linux's /proc/self/status in bytes. Not getrusage: its peak begins at the parent process's."""
    status = Path("/proc/self/status")
    lines: Any = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
