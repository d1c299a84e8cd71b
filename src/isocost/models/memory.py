"""What a step keeps in memory on one device, followed tensor by tensor on torch's `meta` device, without weights."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from isocost.errors import lookup
from isocost.models.build import blocks, build, is_hidden_matrix
from isocost.models.cost import cached, meta_inputs, parameters
from isocost.specs import ModelSpec

if TYPE_CHECKING:
    import torch

BYTES = {"fp32": 4, "bf16": 2}
Precision = Literal["fp32", "bf16"]
Sharding = Literal["none", "fsdp", "hsdp"]


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device, by part. Allocator, workspaces and the framework itself come on top.

    weights, gradients, optimizer, ema: what of them this device holds from step to step. activations: the most that is
    alive on top of these at one moment of a step.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


@dataclass(frozen=True)
class Spread:
    """How training is spread over devices: as `isocost.training.parallel.Layout`.

    ranks: devices. shard_ranks: with "hsdp", how many share a copy of the weights; with "fsdp" all do.
    checkpoint_activations: blocks keep their inputs only, and compute the rest again.
    """

    sharding: Sharding = "none"
    ranks: int = 1
    shard_ranks: int = 8
    checkpoint_activations: bool = False

    @property
    def shards(self) -> int:
        """Into how many parts weights, gradients, moments and averages are split."""
        return {"none": 1, "fsdp": self.ranks, "hsdp": min(self.shard_ranks, self.ranks)}[self.sharding]


ALONE = Spread()


@cached
def training_memory(
    spec: ModelSpec,
    latent_size: int,
    context_length: int,
    batch: int,
    precision: Precision = "fp32",
    *,
    spread: Spread = ALONE,
    accumulate: bool = False,
    ema: bool = True,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> Memory:
    """Bytes a device for training on micro-batches of `batch` images a device.

    Weights, gradients, AdamW's two moments (Muon's one) and the EMA are fp32, split over `spread.shards` devices. On
    top: what the forward pass keeps for the backward pass, with gradients growing while it shrinks; with "bf16"
    autocast's copies of the weights, and norms in fp32, as on GPUs; where weights are sharded, those of the blocks that
    are gathered at the time; where they are whole on several devices, the message that sums the gradients.
    `accumulate`: the step has several micro-batches, so that gradients are all there from the second on.
    """
    count = parameters(spec)
    share = -(-count // spread.shards)
    on_top = _step_bytes(spec, latent_size, context_length, batch, precision, spread, accumulate)
    if not accumulate:
        on_top -= 4 * share  # which gradients come to
    if spread.sharding != "none":
        on_top += _gathered_bytes(spec, BYTES[precision])
    elif spread.ranks > 1:
        on_top = max(on_top, 4 * count)
    moments = 8 * share if optimizer == "adamw" else (8 * count - 4 * _muon_weights(spec)) // spread.shards
    return Memory(4 * share, 4 * share, moments, 4 * share if ema else 0, on_top)


def sampling_memory(
    spec: ModelSpec, latent_size: int, context_length: int, batch: int, dtype: Precision = "fp32"
) -> Memory:
    """Bytes for one network call on `batch` rows (guidance doubles the rows: count them). Decoder not included."""
    activations = activation_bytes(spec, latent_size, context_length, batch, dtype, training=False)
    return Memory(BYTES[dtype] * parameters(spec), 0, 0, 0, activations)


@cached
def activation_bytes(
    spec: ModelSpec, latent_size: int, context_length: int, batch: int, dtype: str, *, training: bool
) -> int:
    """Most bytes of tensors, weights aside, alive at one moment of a forward pass; training keeps the graph's.

    Attention is taken as fused (flash): it keeps its inputs and output, never the L x L table of probabilities.
    """
    import torch

    network = build(spec, "meta").train(training)
    latent, timestep, context = meta_inputs(spec, latent_size, context_length, batch)
    if lookup(BYTES, dtype, "dtype") == 2:
        network, latent, context = network.bfloat16(), latent.bfloat16(), context.bfloat16()
    peak = _peak_bytes_mode()
    with torch.set_grad_enabled(training), _fused_attention_mode(), peak:
        network(latent, timestep, context)
    return peak.most


@cached
def _step_bytes(
    spec: ModelSpec, latent_size: int, context_length: int, batch: int, precision: str, spread: Spread, accumulate: bool
) -> int:
    """Most bytes alive in a forward and a backward pass, weights aside: with gradients from none to all of them, or, to
    `accumulate`, without those that are added to earlier ones."""
    network = build(spec, "meta").train()
    if precision == "bf16" and spread.sharding != "none":
        network = network.bfloat16()  # as gathered
    autocast = _autocast_mode(precision == "bf16")
    if spread.checkpoint_activations:
        _checkpoint_blocks(network, lambda: _as_on_a_gpu(autocast))
    peak = _peak_bytes_mode()
    for weight in network.parameters():
        weight.register_post_accumulate_grad_hook(
            functools.partial(_keep_share, peak, 0 if accumulate else spread.shards)
        )
    latent, timestep, context = meta_inputs(spec, latent_size, context_length, batch)
    with peak:
        with _as_on_a_gpu(autocast):
            loss = network(latent, timestep, context).sample.float().square().mean()
        autocast.copies.clear()  # what the backward pass needs of them, the graph holds
        loss.backward()
    return peak.most


def _keep_share(peak: Any, shards: int, weight: torch.Tensor) -> None:
    """A gradient is done: of a sharded one its share stays, in fp32, and with `shards` 0 nothing."""
    if shards != 1:
        weight.grad = None
    if shards > 1:
        peak.add(4 * weight.numel() // shards)


def _checkpoint_blocks(network: torch.nn.Module, modes: Callable[[], AbstractContextManager]) -> None:
    """Have blocks recomputed under `modes`, which the backward pass leaves."""
    from torch.utils.checkpoint import checkpoint

    for block in blocks(network):
        block.forward = functools.partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), modes()),
        )


@contextmanager
def _as_on_a_gpu(autocast: Any) -> Iterator[None]:
    """Autocast and attention as a GPU's, for meta tensors."""
    with autocast, _fused_attention_mode():
        yield


@cached
def _gathered_bytes(spec: ModelSpec, weight_bytes: int) -> int:
    """FSDP2's weights that are whole at one moment: what is in no block, the block at work, the next one on its way,
    and the gradients of a block before they are shared out, in fp32."""
    network = build(spec, "meta")
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks(network)]
    outside = parameters(spec) - sum(sizes)
    return weight_bytes * (outside + 2 * max(sizes)) + 4 * max(sizes)


@cached
def _muon_weights(spec: ModelSpec) -> int:
    weights = build(spec, "meta").named_parameters()
    return sum(weight.numel() for name, weight in weights if is_hidden_matrix(name, weight))


def _peak_bytes_mode() -> Any:
    """A mode that follows the bytes of live storages made inside it; `most` is their highest sum."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def storages(tree: Any) -> dict[int, torch.UntypedStorage]:
        tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
        return {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}

    class PeakBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.most = 0
            self.alive: set[int] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            # An output that shares an input's storage is a view, or was changed in place: nothing new.
            given = storages((args, kwargs))
            result = func(*args, **(kwargs or {}))
            for key, storage in storages(result).items():
                if key not in given and key not in self.alive:
                    self.follow(key, storage)
            return result

        def follow(self, key: int, storage: torch.UntypedStorage) -> None:
            size = storage.nbytes()
            self.alive.add(key)
            self.add(size)
            weakref.finalize(storage, self.forget, key, size)

        def add(self, size: int) -> None:
            self.now += size
            self.most = max(self.most, self.now)

        def forget(self, key: int, size: int) -> None:
            self.alive.discard(key)
            self.now -= size

    return PeakBytes()


def _fused_attention_mode() -> Any:
    """A mode in which attention on meta makes, and keeps for the backward pass, what a fused kernel does."""
    import torch
    from torch.overrides import TorchFunctionMode

    class FusedAttention(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if func is torch.nn.functional.scaled_dot_product_attention:
                query, key, value = args[:3] if len(args) > 2 else (kwargs[name] for name in ("query", "key", "value"))
                return _fused_attention().apply(query, key, value)
            return func(*args, **kwargs)

    return FusedAttention()


@functools.cache
def _fused_attention() -> Any:
    import torch

    class Attention(torch.autograd.Function):
        """Shapes alone: query, key, value [B,H,L,D] -> [B,H,L,D], with the log-sum-exp [B,H,L] kept in fp32."""

        @staticmethod
        def forward(ctx, query, key, value):
            output = torch.empty_like(query)
            ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
            return output

        @staticmethod
        def backward(ctx, *grads):
            return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])

    return Attention


def _autocast_mode(enabled: bool) -> Any:
    """torch.autocast on meta, where there is none: products in bf16, by copies of weights; norms in fp32."""
    import torch
    from torch.nn import functional as F
    from torch.overrides import TorchFunctionMode

    products, norms = {F.conv2d, F.linear}, {F.group_norm, F.layer_norm}

    class Autocast(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.copies: dict[int, torch.Tensor] = {}

        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if not enabled or func not in products | norms:
                return func(*args, **kwargs)
            cast = self.half if func in products else torch.Tensor.float
            args = [cast(given) if isinstance(given, torch.Tensor) else given for given in args]
            return func(*args, **{name: cast(v) if isinstance(v, torch.Tensor) else v for name, v in kwargs.items()})

        def half(self, tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_leaf or tensor.dtype == torch.bfloat16:
                return tensor.bfloat16()
            return self.copies.setdefault(id(tensor), tensor.bfloat16())

    return Autocast()
