from __future__ import annotations

import resource
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from isocost.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        np.ones(2**20, np.float64)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again_without_page_faults():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "default")
    }
    pages_of_one_array = 2**23 // resource.getpagesize()
    assert faults["keep"] < pages_of_one_array


HOLES = """
import sys
from pathlib import Path
import numpy as np
from isocost import allocator
assert getattr(allocator, sys.argv[1])()
arrays = [np.ones(2**17, np.uint8) for _ in range(800)]
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1])
before = resident()
del arrays[::2]
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_memory_between_live_blocks_is_kept_or_given_back():
    pages = {
        how: int(subprocess.run([sys.executable, "-c", HOLES, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep_freed_memory", "give_back_freed_memory")
    }
    freed = 400 * 2**17 // resource.getpagesize()
    assert pages["give_back_freed_memory"] > 0.9 * freed and pages["keep_freed_memory"] < 0.1 * freed
