"""Which batch each cell is sampled at: the study's, or where memory ran out, a half of it, a quarter, and so on.

A smaller batch is another engine, so a cell that goes on with one has another sample key and begins at its first chunk:
images of two engines never share a cell. The store remembers it under the key that was too large.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from isocost.specs import SampleKey
from isocost.study.grid import Cell
from isocost.study.store import Store


@dataclass(frozen=True)
class OutOfMemory:
    """What became of a task. `reason` is what the allocator said, "" where another task of the cell met it first."""

    batch: int
    reason: str = ""

    @property
    def goes_on_at(self) -> int:
        """0: there is no smaller batch."""
        return self.batch // 2


def settled(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """Cells with the batches that they are sampled at in this store."""
    batches = store.smaller_batches()
    return [_settled(cell, batches) for cell in cells] if batches else list(cells)


def _settled(cell: Cell, batches: dict[str, int]) -> Cell:
    while (batch := batches.get(cell.sample_key)) is not None:
        engine = cell.key.engine.model_copy(update={"batch": batch})
        cell = replace(cell, key=cell.key.model_copy(update={"engine": engine}))
    return cell


def halving(function: Callable[[], None], key: SampleKey, store: Store) -> OutOfMemory | None:
    """Call `function`, which makes images of `key`. Where memory runs out, the store is told of the smaller batch."""
    batch, digest = key.engine.batch, key.digest
    if store.smaller_batch(digest) is not None:
        return OutOfMemory(batch)
    try:
        function()
        return None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        found = OutOfMemory(batch, " ".join(str(error).split())[:200])
    _free()  # out here the error, and with it the tensors of its frames, is gone
    if found.goes_on_at:
        store.write_smaller_batch(digest, found.goes_on_at)
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left. Torch's CPU allocator raises a plain RuntimeError."""
    import torch

    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in said or "not enough memory" in said
    )


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
