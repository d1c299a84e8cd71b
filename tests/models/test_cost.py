from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from isocost.errors import SpecError
from isocost.models import cost
from isocost.models.build import build
from isocost.specs import ModelSpec

TINY = {
    "micro": (ModelSpec(family="micro", width=8, context_dim=64, num_heads=4), 8, 32),
    "sd": (ModelSpec(family="sd", width=32, context_dim=48), 16, 11),
}


def hand_count(module: torch.nn.Module, run) -> int:
    """2 x MACs from the shapes that pass through each convolution, linear layer and attention on real tensors."""
    total = 0

    def conv(layer, args, output):
        nonlocal total
        total += 2 * output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)

    def linear(layer, args, output):
        nonlocal total
        total += 2 * output.numel() * layer.in_features

    def attention(layer, args, kwargs, output):
        nonlocal total
        queries = args[0] if args else kwargs["hidden_states"]
        context = kwargs.get("encoder_hidden_states")
        context = queries if context is None else context
        tokens = [math.prod(t.shape[2:]) if t.ndim == 4 else t.shape[1] for t in (queries, context)]
        total += 2 * 2 * queries.shape[0] * tokens[0] * tokens[1] * layer.inner_dim  # Q K^T, and probabilities x V

    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(conv)
        elif isinstance(part, torch.nn.Linear):
            part.register_forward_hook(linear)
        elif isinstance(part, Attention):
            part.register_forward_hook(attention, with_kwargs=True)
    with torch.no_grad():
        run(module)
    return total


@pytest.mark.parametrize("family", TINY)
def test_forward_flops_equal_a_hand_count(family: str) -> None:
    spec, size, length = TINY[family]

    def run(unet):
        unet(torch.randn(1, 4, size, size), torch.zeros(1), torch.randn(1, length, spec.context_dim))

    assert cost.forward_flops(spec, size, length) == hand_count(build(spec), run)


def test_parameters_equal_the_real_module() -> None:
    spec = TINY["micro"][0]
    assert cost.parameters(spec) == sum(weight.numel() for weight in build(spec).parameters())


def test_flops_are_linear_in_batch() -> None:
    spec, size, length = TINY["micro"]
    unet = build(spec, "meta")
    one, five = (cost.count_flops(lambda b=b: unet(*cost._inputs(spec, size, length, b))) for b in (1, 5))
    assert five == 5 * one == 5 * cost.forward_flops(spec, size, length)


@pytest.mark.parametrize("family", TINY)
def test_training_flops_are_three_forwards_but_for_gradients_of_inputs(family: str) -> None:
    spec, size, length = TINY[family]
    unet, spared = build(spec), 0

    def spare(layer, args, output):
        nonlocal spared
        spared += 2 * output.numel() * layer.weight[0].numel()

    for name, part in unet.named_modules():
        if name in ("conv_in", "time_embedding.linear_1") or name.endswith(("attn2.to_k", "attn2.to_v")):
            part.register_forward_hook(spare)
    unet(torch.randn(1, 4, size, size), torch.zeros(1), torch.randn(1, length, spec.context_dim))
    forward = cost.forward_flops(spec, size, length)
    assert cost.training_flops(spec, size, length) == 3 * forward - spared


def test_norm_cost_of_the_reference_is_one() -> None:
    spec, size, length = TINY["micro"]
    wide = spec.model_copy(update={"width": 16})
    assert cost.norm_cost(spec, spec, size, length) == 1
    assert cost.norm_cost(wide, spec, size, length) > 3


CLIP = CLIPTextConfig(
    vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=12,
)  # fmt: skip
VAE = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2,
       "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4}  # fmt: skip


def test_text_encoder_flops_by_hand() -> None:
    length, width = 12, 16
    layer = 2 * length * (4 * width * width + 2 * width * 32) + 4 * length * length * width
    assert cost.text_encoder_flops(CLIP) == cost.text_encoder_flops(CLIPTextModel(CLIP)) == 2 * layer
    assert cost.text_encoder_flops(CLIP, 5) < cost.text_encoder_flops(CLIP)


def test_autoencoder_flops_equal_a_hand_count() -> None:
    vae = AutoencoderKL(**VAE)
    # Attention at the latent's 8x8, in one block of the encoder and one of the decoder; hooked as in a UNet.
    encoded = hand_count(vae, lambda module: module.encode(torch.randn(1, 3, 16, 16)))
    decoded = hand_count(AutoencoderKL(**VAE), lambda module: module.decode(torch.randn(1, 4, 8, 8)))
    assert cost.autoencoder_flops(vae, 8, "encode") == encoded
    assert cost.autoencoder_flops(vae, 8) == cost.autoencoder_flops(VAE, 8) == decoded


def test_image_cost_counts_every_part_once() -> None:
    guided = cost.image_cost(100, 10**9, 3 * 10**8, 4 * 10**9, guided=True)
    assert (guided.unet, guided.text_encoder, guided.decoder) == (100 * 10**9, 6 * 10**8, 4 * 10**9)
    assert guided.gflops == pytest.approx(104.6)
    assert cost.image_cost(50, 10**9, 3 * 10**8, guided=False).gflops == pytest.approx(50.3)


def test_paper_cost_ignores_guidance() -> None:
    assert cost.paper_cost(0.83, 4) == pytest.approx(3.32)


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
    assert kept * 0.98 <= cost.activation_bytes(spec, size, length, batch, "fp32", training=True) <= kept * 1.1


def test_sampling_needs_less_than_training_and_bf16_half() -> None:
    spec, size, length = TINY["micro"]
    training = cost.training_memory(spec, size, length, 4)
    sampling = cost.sampling_memory(spec, size, length, 4)
    assert training.weights + training.gradients + training.optimizer + training.ema == 20 * cost.parameters(spec)
    assert 0 < sampling.activations < training.activations / 3
    assert sampling.total == 4 * cost.parameters(spec) + sampling.activations
    half = cost.sampling_memory(spec, size, length, 4, "bf16")
    assert half.activations == pytest.approx(sampling.activations / 2, rel=0.1)


def test_activations_are_linear_in_tokens() -> None:
    """Fused attention: four times the tokens cost four times the bytes, not sixteen."""
    spec = TINY["micro"][0]
    small, large = (cost.activation_bytes(spec, size, 1, 1, "fp32", training=True) for size in (16, 32))
    assert large / small == pytest.approx(4, rel=0.1)


def test_errors() -> None:
    spec, size, length = TINY["micro"]
    with pytest.raises(SpecError, match=r"unknown dtype 'fp23'\. Did you mean 'fp32'"):
        cost.activation_bytes(spec, size, length, 1, "fp23", training=True)
    with pytest.raises(SpecError, match="12 tokens at most"):
        cost.text_encoder_flops(CLIP, 13)
    with pytest.raises(SpecError, match="found Linear"):
        cost.text_encoder_flops(torch.nn.Linear(1, 1))
    with pytest.raises(SpecError, match="found int"):
        cost.autoencoder_flops(3, 8)
    with pytest.raises(SpecError, match="Did you mean 'decode'"):
        cost.autoencoder_flops(VAE, 8, "decod")  # pyright: ignore[reportArgumentType]
