"""What a model costs, counted on torch's `meta` device: no weights, no arithmetic, about a second for any size.

One convention everywhere: a multiply-add is 2 FLOPs; convolutions, linear layers and attention count, norms and
activation functions do not (together they are under 1%).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

from isocost.errors import SpecError, did_you_mean, lookup
from isocost.models.build import build
from isocost.specs import ModelSpec

if TYPE_CHECKING:
    import torch

BYTES = {"fp32": 4, "bf16": 2}

P = ParamSpec("P")
R = TypeVar("R")


def _cached(function: Callable[P, R]) -> Callable[P, R]:
    """`lru_cache` that keeps the signature. Specs are frozen, so hashable, which type checkers cannot see."""
    return cast(Callable[P, R], functools.lru_cache(maxsize=1024)(function))


@_cached
def parameters(spec: ModelSpec) -> int:
    """How many weights a member has."""
    return sum(weight.numel() for weight in build(spec, "meta").parameters())


@_cached
def forward_flops(spec: ModelSpec, latent_size: int, context_length: int) -> int:
    """FLOPs of one evaluation of one image: a latent of side `latent_size`, `context_length` text tokens."""
    unet = build(spec, "meta")
    return count_flops(lambda: unet(*_inputs(spec, latent_size, context_length, batch=1)))


@_cached
def training_flops(spec: ModelSpec, latent_size: int, context_length: int) -> int:
    """FLOPs of training on one image, once: a forward and a backward pass.

    A little under the usual 3 x forward, as latent, timestep and context need no gradient: under 1% at the sizes of
    Stable Diffusion, 9% for the smallest `micro`. The optimizer's step, shared by a batch, is left out.
    """
    unet = build(spec, "meta")
    return count_flops(lambda: unet(*_inputs(spec, latent_size, context_length, batch=1)).sample.sum().backward(), True)


def norm_cost(spec: ModelSpec, reference: ModelSpec, latent_size: int, context_length: int) -> float:
    """Forward FLOPs over those of `reference`: the paper's normalised cost (arXiv 2404.01367, Table 1)."""
    size = (latent_size, context_length)
    return forward_flops(spec, *size) / forward_flops(reference, *size)


def text_encoder_flops(encoder: Any, context_length: int | None = None) -> int:
    """FLOPs of encoding one prompt, padded to `context_length` tokens (None: the encoder's longest).

    `encoder`: a transformers CLIPTextModel, or the CLIPTextConfig of one.
    """
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    config = getattr(encoder, "config", encoder)
    if not isinstance(config, CLIPTextConfig):
        raise SpecError(f"text_encoder_flops: expected a CLIPTextModel or CLIPTextConfig, found {_kind(encoder)}.")
    length = context_length or config.max_position_embeddings
    if length > config.max_position_embeddings:
        raise SpecError(f"context_length {length}: this encoder reads {config.max_position_embeddings} tokens at most.")
    with torch.device("meta"):
        twin = CLIPTextModel(config).eval()
        tokens = torch.zeros(1, length, dtype=torch.long)
    return count_flops(lambda: twin(tokens))


def autoencoder_flops(autoencoder: Any, latent_size: int, part: Literal["encode", "decode"] = "decode") -> int:
    """FLOPs of encoding or decoding one image whose latent has side `latent_size`.

    `autoencoder`: a diffusers AutoencoderKL, or the config (a mapping) of one.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config = getattr(autoencoder, "config", autoencoder)
    if not isinstance(config, Mapping):
        raise SpecError(f"autoencoder_flops: expected an AutoencoderKL or its config, found {_kind(autoencoder)}.")
    if part not in ("encode", "decode"):
        raise SpecError(f"autoencoder_flops: unknown part '{part}'.{did_you_mean(part, ('encode', 'decode'))}")
    with torch.device("meta"):
        twin: Any = AutoencoderKL.from_config(dict(config))
        side = latent_size * 2 ** (len(twin.config.block_out_channels) - 1)
        if part == "encode":
            image = torch.empty(1, twin.config.in_channels, side, side)
            return count_flops(lambda: twin.encode(image))
        latent = torch.empty(1, twin.config.latent_channels, latent_size, latent_size)
        return count_flops(lambda: twin.decode(latent))


def count_flops(run: Callable[[], Any], grad: bool = False) -> int:
    """FLOPs of whatever `run` does on meta tensors; `grad`: with a graph, so that it may go backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # On meta, scaled_dot_product_attention falls apart into matrix products, which the counter knows: attention counts.
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@dataclass(frozen=True)
class ImageCost:
    """FLOPs of sampling one image, by part."""

    unet: int
    text_encoder: int
    decoder: int

    @property
    def total(self) -> int:
        return self.unet + self.text_encoder + self.decoder

    @property
    def gflops(self) -> float:
        return self.total / 1e9


def image_cost(
    evaluations: int, unet_flops: int, text_encoder_flops: int = 0, decoder_flops: int = 0, *, guided: bool
) -> ImageCost:
    """The honest cost of one image: every evaluation, the prompt (and the empty one when guided), and the decoder.

    `evaluations` counts network evaluations: a guided step is two. The other arguments are FLOPs of one evaluation,
    one prompt and one decoded image.
    """
    return ImageCost(evaluations * unet_flops, (2 if guided else 1) * text_encoder_flops, decoder_flops)


def paper_cost(norm_cost: float, steps: int) -> float:
    """The paper's sampling cost: norm. cost x steps. Guidance's second evaluation, text and VAE are left out."""
    return norm_cost * steps


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device, by part. Allocator, workspaces and the framework itself come on top."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


def training_memory(
    spec: ModelSpec, latent_size: int, context_length: int, batch: int, precision: Literal["fp32", "bf16"] = "fp32"
) -> Memory:
    """Bytes for a step of AdamW with an EMA on a micro-batch of `batch` images.

    Weights, gradients, both moments and the EMA are fp32; "bf16" adds a bf16 copy of the weights and counts every
    activation at two bytes (autocast keeps norms in fp32, so the truth lies somewhat above).
    """
    count = parameters(spec)
    return Memory(
        weights=4 * count if precision == "fp32" else (4 + BYTES[precision]) * count,
        gradients=4 * count,
        optimizer=8 * count,
        ema=4 * count,
        activations=activation_bytes(spec, latent_size, context_length, batch, precision, training=True),
    )


def sampling_memory(
    spec: ModelSpec, latent_size: int, context_length: int, batch: int, dtype: Literal["fp32", "bf16"] = "fp32"
) -> Memory:
    """Bytes for one network call on `batch` rows (guidance doubles the rows: count them). Decoder not included."""
    return Memory(
        weights=BYTES[dtype] * parameters(spec),
        gradients=0,
        optimizer=0,
        ema=0,
        activations=activation_bytes(spec, latent_size, context_length, batch, dtype, training=False),
    )


@_cached
def activation_bytes(
    spec: ModelSpec, latent_size: int, context_length: int, batch: int, dtype: str, *, training: bool
) -> int:
    """Most bytes of tensors, weights aside, alive at one moment of a forward pass; training keeps the graph's.

    Attention is taken as fused (flash): it keeps its inputs and output, never the L x L table of probabilities.
    """
    import torch

    unet = build(spec, "meta").train(training)
    latent, timestep, context = _inputs(spec, latent_size, context_length, batch)
    if lookup(BYTES, dtype, "dtype") == 2:
        unet, latent, context = unet.bfloat16(), latent.bfloat16(), context.bfloat16()
    peak = _peak_bytes_mode()
    with torch.set_grad_enabled(training), _fused_attention_mode(), peak:
        unet(latent, timestep, context)
    return peak.most


def _inputs(spec: ModelSpec, latent_size: int, context_length: int, batch: int) -> tuple[torch.Tensor, ...]:
    """(latent [B,C,H,W], timestep [B], context [B,L,D]) on meta."""
    import torch

    with torch.device("meta"):
        latent = torch.empty(batch, spec.in_channels, latent_size, latent_size)
        return latent, torch.empty(batch), torch.empty(batch, context_length, spec.context_dim)


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
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, key, size)

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


def _kind(value: Any) -> str:
    return type(value).__name__
