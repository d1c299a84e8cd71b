"""Keeping freed memory in the process, so that tensors made anew each step do not fault their pages in each time."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters (glibc, malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1
LARGEST_FROM_HEAP = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, large blocks too; False where there is no glibc.

    A training step on CPU allocates and frees tens of megabytes. By default glibc maps such blocks and unmaps them
    again, and each step pays for thousands of page faults: where those are dear (virtual machines, sandboxes), more
    than for the arithmetic. The process keeps its peak size instead.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP) and mallopt(M_TRIM_THRESHOLD, NEVER))
