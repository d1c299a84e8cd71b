"""What a number was measured with: versions, processor, devices, threads, and the commit of the code."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from isocost import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "scipy")


def environment() -> dict[str, Any]:
    """Plain values, fit for JSON; a new dict each call. Names no host, user or path.

    Keys: `isocost`, `python` and each of `LIBRARIES` (version, None where not installed), `platform` ("Linux x86_64"),
    `cpu`, `cores` (those this process may use), `gpus` (names), `threads` (of a torch operation), `dtype` (torch's
    default), `commit` and `dirty` of the checkout the package runs from (None outside one). The first call takes
    two runs of git, and torch's import where nothing imported it before; `threads` and `dtype` are read at each call.
    """
    import torch

    return {
        **_fixed(),
        "gpus": list(_gpus()),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


@functools.cache
def _fixed() -> dict[str, Any]:
    """What cannot change while the process lives."""
    commit, dirty = checkout(Path(__file__).parent)
    return {
        "isocost": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": _cores(),
        "commit": commit,
        "dirty": dirty,
    }


def checkout(package: Path) -> tuple[str | None, bool | None]:
    """(commit, whether the package's files differ from it) of the git checkout whose `src/` holds `package`.

    (None, None) without git or without a commit, and for an installed copy, also one in a virtual environment that
    happens to lie inside some other project's checkout.
    """
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None or Path(root) / "src" / package.name != package.resolve():
        return None, None
    commit = _git(package, "rev-parse", "--verify", "--quiet", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return (commit, bool(changes)) if commit else (None, None)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    try:
        found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's model name; where the system does not tell, its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: a container or batch job may get fewer than there are
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@functools.cache
def _gpus() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
