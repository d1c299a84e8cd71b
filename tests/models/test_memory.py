from __future__ import annotations

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from isocost.errors import SpecError
from isocost.models.build import blocks, build
from isocost.models.cost import parameters
from isocost.models.memory import Spread, activation_bytes, sampling_memory, training_memory
from isocost.specs import ModelSpec

TINY = {
    "micro": (ModelSpec(family="micro", width=8, context_dim=64, num_heads=4), 8, 32),
    "dit-micro": (ModelSpec(family="dit-micro", width=32, context_dim=48, num_heads=2), 8, 11),
}


def saved_bytes(spec: ModelSpec, size: int, length: int, batch: int) -> int:
    """Bytes that autograd keeps for the backward pass on the CPU, whose attention is fused; weights left out."""
    unet, kept = build(spec), {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        context = torch.randn(batch, length, spec.context_dim)
        output = unet(torch.randn(batch, 4, size, size), torch.zeros(batch), context)
    weights = {weight.untyped_storage().data_ptr() for weight in unet.parameters()}
    assert output is not None
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


@pytest.mark.parametrize("batch", [1, 4])
def test_training_activations_are_what_autograd_keeps(batch: int) -> None:
    spec, size, length = TINY["micro"]
    kept = saved_bytes(spec, size, length, batch)
    assert kept * 0.98 <= activation_bytes(spec, size, length, batch, "fp32", training=True) <= kept * 1.1


def test_sampling_needs_less_than_training_and_bf16_half() -> None:
    spec, size, length = TINY["micro"]
    training = training_memory(spec, size, length, 4)
    sampling = sampling_memory(spec, size, length, 4)
    assert training.weights + training.gradients + training.optimizer + training.ema == 20 * parameters(spec)
    assert 0 < sampling.activations < training.activations / 2
    assert sampling.total == 4 * parameters(spec) + sampling.activations
    half = sampling_memory(spec, size, length, 4, "bf16")
    assert half.activations == pytest.approx(sampling.activations / 2, rel=0.1)


def test_activations_are_linear_in_tokens() -> None:
    """Fused attention: four times the tokens cost four times the bytes, not sixteen."""
    spec = TINY["micro"][0]
    small, large = (activation_bytes(spec, size, 1, 1, "fp32", training=True) for size in (16, 32))
    assert large / small == pytest.approx(4, rel=0.1)


def forward_and_backward(spec: ModelSpec, size: int, length: int, batch: int, recompute: bool) -> int:
    """Bytes that autograd keeps between the passes, weights left out; with real tensors on the CPU."""
    network, kept = build(spec), {}
    if recompute:
        for block in blocks(network):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.randn(batch, 4, size, size), torch.zeros(batch), torch.randn(batch, length, spec.context_dim))
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


@pytest.mark.parametrize("family", TINY)
def test_recomputing_keeps_what_enters_a_block_and_one_block_at_work(family: str) -> None:
    spec, size, length = TINY[family]
    kept, recomputed = (
        training_memory(spec, size, length, 16, spread=Spread(checkpoint_activations=on), accumulate=True).activations
        for on in (False, True)
    )
    assert recomputed < 0.75 * kept
    assert recomputed > forward_and_backward(spec, size, length, 16, recompute=True)


@pytest.mark.parametrize("family", TINY)
def test_parts_are_split_over_shards(family: str) -> None:
    spec, size, length = TINY[family]
    count = parameters(spec)
    alone = training_memory(spec, size, length, 4)
    for spread, shards in ((Spread("fsdp", 16), 16), (Spread("hsdp", 16, shard_ranks=4), 4), (Spread("none", 16), 1)):
        memory = training_memory(spec, size, length, 4, spread=spread)
        share = -(-count // shards)
        assert (memory.weights, memory.gradients, memory.ema) == (4 * share,) * 3 and memory.optimizer == 8 * share
        assert memory.activations > alone.activations or spread.sharding == "none"


def test_whole_gradients_are_summed_in_one_message() -> None:
    spec, size, length = TINY["micro"]
    memory = training_memory(spec, size, length, 1, spread=Spread("none", 2))
    assert memory.activations == max(4 * parameters(spec), training_memory(spec, size, length, 1).activations)


def test_gradients_grow_while_activations_shrink() -> None:
    """So a step needs less than both at their most, but for later micro-batches."""
    spec, size, length = TINY["micro"]
    one, several = (training_memory(spec, size, length, 4, accumulate=later) for later in (False, True))
    kept = activation_bytes(spec, size, length, 4, "fp32", training=True)
    assert one.activations < several.activations
    assert kept <= several.activations <= 1.3 * kept
    assert one.total >= several.total - several.gradients


def test_muon_has_one_moment_where_adamw_has_two() -> None:
    spec, size, length = TINY["dit-micro"]
    network = build(spec, "meta")
    outer = ("pos_embed.proj.weight", "proj_out.weight")
    matrices = [w for name, w in network.named_parameters() if name.endswith("weight") and w.ndim == 2]
    matrices = [weight for weight in matrices if weight is not network.get_parameter(outer[1])]
    memory = training_memory(spec, size, length, 1, optimizer="muon")
    assert memory.optimizer == 8 * parameters(spec) - 4 * sum(weight.numel() for weight in matrices)


def test_no_ema_no_bytes() -> None:
    spec, size, length = TINY["dit-micro"]
    without, with_one = (training_memory(spec, size, length, 1, ema=ema) for ema in (False, True))
    assert with_one.total - without.total == 4 * parameters(spec)


def test_bf16_keeps_norms_in_fp32_and_copies_of_the_weights() -> None:
    spec, size, length = TINY["micro"]
    small, large = (
        [training_memory(spec, size, length, batch, p, accumulate=True).activations for p in ("fp32", "bf16")]
        for batch in (1, 65)
    )
    an_image = [(b - a) / 64 for a, b in zip(small, large, strict=True)]
    assert 0.5 < an_image[1] / an_image[0] < 1  # norms and what they read stay at four bytes
    assert small[1] - an_image[1] >= 2 * 0.9 * parameters(spec)


def test_unknown_dtype() -> None:
    spec, size, length = TINY["micro"]
    with pytest.raises(SpecError, match=r"unknown dtype 'fp23'\. Did you mean 'fp32'"):
        activation_bytes(spec, size, length, 1, "fp23", training=True)
