"""What malloc does with freed memory: keeps it, which is fast, or gives it back, where memory is scarce."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters (glibc, malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1
LARGEST_FROM_HEAP = 2**30
SMALLEST_MAPPED, TRIMMED_ABOVE = 2**16, 2**17


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, large blocks too; False where there is no glibc.

    A training step on CPU allocates and frees tens of megabytes. By default glibc maps such blocks and unmaps them
    again, and each step pays for thousands of page faults: where those are dear (virtual machines, sandboxes), more
    than for the arithmetic. The process keeps its peak size instead.
    """
    return _set(LARGEST_FROM_HEAP, NEVER)


def give_back_freed_memory() -> bool:
    """Tell glibc's malloc to return what is freed to the system, block by block; False where there is no glibc.

    The process then holds its live tensors and little more. A heap keeps holes: with FSDP, which gathers and frees each
    block's weights twice a step, half as much again as its tensors (83M parameters on two ranks). Page faults cost a
    fifth of such a member's step (measured unsharded, on a virtual machine).
    """
    return _set(SMALLEST_MAPPED, TRIMMED_ABOVE)


def _set(mapped_from: int, trimmed_above: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, mapped_from) and mallopt(M_TRIM_THRESHOLD, trimmed_above))
