"""Tensors that may be sharded over ranks (torch's `DTensor`) or not: one way to handle both."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; it shares the tensor's memory."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one gathered from its ranks, so all of them have to ask."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def like(tensor: Tensor, full: Tensor) -> Tensor:
    """`full` laid out as `tensor` is: a shard, where that is sharded. Nothing is sent, as every rank has `full`."""
    full = full.to(tensor.device, tensor.dtype)
    if not _is_sharded(tensor):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)


def _is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    module = sys.modules.get("torch.distributed.tensor")  # a second to import; until somebody has, none is sharded
    return module is not None and isinstance(tensor, module.DTensor)
