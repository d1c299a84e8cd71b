"""Many processes, one run. All of it is applied from outside: no model, objective or optimizer knows of ranks.

`Ranks` is what a process knows of its fellows and how they agree; `Layout` says how a run is spread over them. Neither
moves a random number: only the order in which floating-point sums are taken differs from one process's.

FSDP takes seconds to import, so it is imported when a module is sharded, not with this file.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.utils.checkpoint import checkpoint

from isocost.allocator import give_back_freed_memory
from isocost.dtensors import local
from isocost.errors import IsocostError, SpecError, TrainingError
from isocost.models.build import blocks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")
Sharding = Literal["none", "fsdp", "hsdp"]

# Rank 0 may prepare data for hours while the others wait; a rank that dies is noticed at once, by its connection.
LONGEST_WAIT = timedelta(days=1)
# gloo's handshake may go wrong on a busy machine, and would then be waited for as long: it is tried again.
LONGEST_HANDSHAKE, HANDSHAKES = timedelta(minutes=1), 5


@dataclass(frozen=True)
class Layout:
    """How a run is spread over ranks and memory. No part of a spec: results are the same up to rounding.

    sharding: where weights, gradients, moments and averages lie. "none": whole on every rank. "fsdp": a part on each
        (FSDP2). "hsdp": a part on each of `shard_ranks` ranks, and as many copies as there are such groups.
    shard_ranks: of "hsdp"; None: the ranks of one machine.
    checkpoint_activations: a block's activations are computed again in the backward pass instead of kept.
    compile_blocks: blocks go through torch.compile.
    """

    sharding: Sharding = "none"
    shard_ranks: int | None = None
    checkpoint_activations: bool = False
    compile_blocks: bool = False


PLAIN = Layout()


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them. `ALONE` is a run of one process."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @cached_property
    def background(self) -> Any:
        """A group for a thread that writes a checkpoint: threads' messages must not mix. All ranks have to ask."""
        return dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0: the one that writes what all have in common."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This rank's images of a global batch."""
        share = batch // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over ranks, in float64."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)  # of a CPU's tensor: by gloo
        return summed.tolist()

    def first(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, on every rank; so is an error that it raises there."""
        if self.world == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.leads:
            outcome = list(_outcome(function))
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        result, error = outcome
        if error is not None:
            raise error
        return result

    def first_only(self, function: Callable[[], T]) -> T | None:
        """Call `function` on rank 0 alone, for what cannot be sent; others get None, or the error that it raises."""
        return self.together(lambda: function() if self.leads else None)

    def together(self, function: Callable[[], T]) -> T:
        """Call `function` on every rank. Where it fails on one, all raise that error, with the rank's number."""
        if self.world == 1:
            return function()
        result, error = _outcome(function)
        if not self.total([error is not None])[0]:
            return result
        errors = enumerate(self.gather(error))
        number, first = next((number, error) for number, error in errors if error is not None)
        raise type(first)(f"rank {number} of {self.world}: {first}")

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


def _outcome(function: Callable[[], Any]) -> tuple[Any, IsocostError | None]:
    try:
        return function(), None
    except IsocostError as error:
        return None, error


def leads() -> bool:
    """Whether this process is rank 0 of torchrun's, or alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def torchrun_ranks(device: str | None = None) -> Iterator[Ranks]:
    """The ranks that torchrun started this process among, or this process alone.

    device: "cpu" (gloo) or "cuda" (nccl, a GPU a rank). None: GPUs where torchrun started us and torch sees them.

    Raises:
        TrainingError: another rank ended, so that this one cannot go on.
    """
    if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks(device=device or "cpu")
        return
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    here = f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind
    if kind == "cuda":
        torch.cuda.set_device(here)
    _join("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), here)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            f"rank {os.environ['RANK']}: another rank ended (its own message says why). What was saved is whole: run "
            "the same command again to go on."
        ) from None
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Make torchrun's processes one group. A rank that has joined waits for those that could not: all try again."""
    store, rank, world = next(iter(dist.rendezvous("env://", timeout=LONGEST_WAIT)))  # pyright: ignore[reportPrivateImportUsage]
    # torchrun's store outlives the processes that it starts again: the addresses of those before must not be taken.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    outcome = ""
    for number in range(HANDSHAKES):
        meeting = dist.PrefixStore(f"start {start}, handshake {number}", store)  # pyright: ignore[reportPrivateImportUsage]
        if meeting.add("here", 1) == world:
            meeting.set("all here", "")
        meeting.wait(["all here"], LONGEST_WAIT)
        try:
            dist.init_process_group(backend, store=meeting, rank=rank, world_size=world, timeout=LONGEST_HANDSHAKE)
            if meeting.add("joined", 1) == world:
                meeting.set("outcome", "a group")
        except RuntimeError as error:
            meeting.set("outcome", f"rank {rank}: {error}")
        meeting.wait(["outcome"], LONGEST_WAIT)
        outcome = meeting.get("outcome").decode()
        if outcome == "a group":
            _set_pg_timeout(LONGEST_WAIT)
            return
        if dist.is_initialized():
            dist.destroy_process_group()
    raise TrainingError(f"no connection between the {world} ranks, tried {HANDSHAKES} times: {outcome}")


# ------------------------------------------------------------------------------------------------------------- modules


def check(layout: Layout, ranks: Ranks, batch: int, accumulation: int) -> None:
    """Raise `SpecError` where a global batch does not split over ranks, or a layout does not fit them."""
    if batch % (ranks.world * accumulation):
        raise SpecError(
            f"batch {batch} in {accumulation} parts does not split over {ranks.world} ranks: use a number of them that "
            f"divides {batch // accumulation}"
        )
    if layout.sharding != "none" and not dist.is_initialized():
        raise SpecError(f"sharding '{layout.sharding}' is for several ranks: start them with torchrun")
    if layout.sharding == "hsdp" and ranks.world % _shard_ranks(layout):
        raise SpecError(f"{ranks.world} ranks are not a multiple of the {_shard_ranks(layout)} that share the weights")


def apply(module: nn.Module, layout: Layout, ranks: Ranks, precision: str = "fp32") -> nn.Module:
    """Checkpoint, compile and shard a module's blocks, in place; names of parameters stay.

    With "bf16" gathered weights are bf16 and gradients are summed in fp32; autocast, which the caller keeps on, then
    casts no weights, and norms stay fp32.
    """
    parts = list(blocks(module))
    for block in parts:
        if layout.checkpoint_activations:
            # No rank's forward pass draws random numbers.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        if layout.compile_blocks:
            block.forward = torch.compile(block.forward)
    if layout.sharding == "none":
        return module
    if torch.device(ranks.device).type == "cpu":
        give_back_freed_memory()  # whoever shards does so for memory's sake
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = _mesh(layout, ranks)
    for part in (*parts, module):
        sharded: Any = fully_shard(part, mesh=mesh, mp_policy=policy)
        # Sums, as losses are divided by the global batch already (gloo takes averages for sums, too).
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    return module


def _mesh(layout: Layout, ranks: Ranks) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    kind = torch.device(ranks.device).type
    if layout.sharding == "fsdp":
        return init_device_mesh(kind, (ranks.world,), mesh_dim_names=("shard",))
    shards = _shard_ranks(layout)
    return init_device_mesh(kind, (ranks.world // shards, shards), mesh_dim_names=("replicate", "shard"))


def _shard_ranks(layout: Layout) -> int:
    return layout.shard_ranks or int(os.environ["LOCAL_WORLD_SIZE"])


# --------------------------------------------------------------------------------------------------------------- steps


def communicate(module: nn.Module, now: bool) -> None:
    """Whether the next backward pass of a sharded module sums gradients over ranks, or only adds them up here."""
    if is_sharded(module):
        module.set_requires_gradient_sync(now)


@torch.no_grad()
def settle_gradients(module: nn.Module, most: float | None, ranks: Ranks, flat: Tensor | None = None) -> float:
    """Make gradients those of the global batch, of a norm of `most` at most; returns the norm that they had.

    flat: one tensor, of which weights' gradients are views; None: each is a tensor of its own.
    """
    limit = math.inf if most is None else most
    if flat is not None:
        if ranks.world > 1:
            dist.all_reduce(flat)
        norm = float(torch.linalg.vector_norm(flat))
        flat.mul_(_share(limit, norm))
        return norm
    gradients = [local(weight.grad) for weight in module.parameters() if weight.grad is not None]
    if is_sharded(module):  # which summed them in the backward pass
        norm = _norm_of_shards(gradients, next(module.parameters()).device_mesh.shape[-1], ranks)  # type: ignore
        torch._foreach_mul_(gradients, _share(limit, norm))  # pyright: ignore[reportPrivateImportUsage]
        return norm
    if ranks.world == 1:
        return float(torch.nn.utils.clip_grad_norm_(module.parameters(), limit))
    # One message, of gradients as they lie in memory: their layout is their weight's, the same on every rank.
    gradients = [gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients]
    flat = torch.cat(gradients)
    dist.all_reduce(flat)
    norm = float(torch.linalg.vector_norm(flat))
    parts = flat.mul_(_share(limit, norm)).split([part.numel() for part in gradients])
    torch._foreach_copy_(gradients, parts)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def _norm_of_shards(gradients: list[Tensor], shards: int, ranks: Ranks) -> float:
    """Of all gradients, from this rank's parts; with copies of the weights, each part is that of several ranks."""
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    squares = torch.stack(norms).double().square().sum()
    return math.sqrt(ranks.total([float(squares)])[0] * shards / ranks.world)


def _share(limit: float, norm: float) -> float:
    return min(limit / (norm + 1e-6), 1.0)  # as torch's clip_grad_norm_


def is_sharded(module: nn.Module) -> TypeGuard[FSDPModule]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)
