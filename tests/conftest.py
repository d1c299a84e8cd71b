"""Settings of every test process, made before anything imports torch: one thread, no hub, no display."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from isocost.allocator import keep_freed_memory

keep_freed_memory()
