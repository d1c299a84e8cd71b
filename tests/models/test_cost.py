from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from isocost.errors import SpecError
from isocost.models import cost
from isocost.models.build import build
from isocost.specs import ModelSpec

TINY = {
    "micro": (ModelSpec(family="micro", width=8, context_dim=64, num_heads=4), 8, 32),
    "sd": (ModelSpec(family="sd", width=32, context_dim=48), 16, 11),
    "dit-micro": (ModelSpec(family="dit-micro", width=32, context_dim=48, num_heads=2), 8, 11),
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


@pytest.mark.parametrize(("width", "heads", "depth"), [(384, 6, 8), (1152, 18, 28)])
def test_dit_flops_and_parameters_by_formula(width: int, heads: int, depth: int) -> None:
    """With N patches and L tokens of text; a block has 16 c^2 weights in matrices and 8 c^2 for what it reads."""
    spec = ModelSpec(family="dit", width=width, context_dim=1024, num_heads=heads)
    n, text = 32 * 32, 77
    block = n * (4 + 2 + 8) * width**2 + text * 2 * width**2 + 2 * width * (n * n + n * text)
    around = n * (16 + 16) * width + text * (1024 + width) * width + (256 + width + 6 * width) * width
    assert cost.forward_flops(spec, 64, text) == 2 * (depth * block + around)
    of_block = 16 * width**2 + (8 + 4 + 1) * width + 6 * width
    outside = (
        (16 + 1) * width + (width + 1) * 16 + 2 * width + (256 + 1 + 7 * (width + 1) + 1024 + 1 + width + 1) * width
    )
    assert cost.parameters(spec) == depth * of_block + outside


def test_parameters_equal_the_real_module() -> None:
    spec = TINY["micro"][0]
    assert cost.parameters(spec) == sum(weight.numel() for weight in build(spec).parameters())


def test_flops_are_linear_in_batch() -> None:
    spec, size, length = TINY["micro"]
    unet = build(spec, "meta")
    one, five = (cost.count_flops(lambda b=b: unet(*cost.meta_inputs(spec, size, length, b))) for b in (1, 5))
    assert five == 5 * one == 5 * cost.forward_flops(spec, size, length)


@pytest.mark.parametrize("family", TINY)
def test_training_flops_are_three_forwards_but_for_gradients_of_inputs(family: str) -> None:
    spec, size, length = TINY[family]
    unet, spared = build(spec), 0

    def spare(layer, args, output):
        nonlocal spared
        spared += 2 * output.numel() * layer.weight[0].numel()

    for name, part in unet.named_modules():
        first = ("conv_in", "time_embedding.linear_1", "pos_embed.proj", "caption_projection.linear_1")
        reads_text = name.endswith(("attn2.to_k", "attn2.to_v")) and family != "dit-micro"  # which projects it first
        if name in first or name.endswith("timestep_embedder.linear_1") or reads_text:
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


def test_image_cost_adds_every_part_once() -> None:
    image = cost.ImageCost(unet=100 * 10**9, text_encoder=6 * 10**8, decoder=4 * 10**9)
    assert image.gflops == pytest.approx(104.6)
    assert dataclasses.replace(image, scorer=2 * 10**9).gflops == pytest.approx(106.6)


def test_clip_flops_are_those_of_the_towers() -> None:
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"text_config": text | {"max_position_embeddings": 8, "vocab_size": 32}, "projection_dim": 10}
    vision = text | {"image_size": 8, "patch_size": 4}
    image, caption = cost.clip_flops(CLIPModel(CLIPConfig(**sizes, vision_config=vision)))

    def layer(tokens: int) -> int:
        return 2 * tokens * (4 * 16 * 16 + 2 * 16 * 24) + 2 * 2 * tokens * tokens * 16

    assert image == layer(5) + 2 * 4 * (3 * 4 * 4) * 16 + 2 * 16 * 10  # 4 patches and the class token
    assert caption == layer(8) + 2 * 16 * 10


def test_paper_cost_ignores_guidance() -> None:
    assert cost.paper_cost(0.83, 4) == pytest.approx(3.32)


def test_errors() -> None:
    with pytest.raises(SpecError, match="12 tokens at most"):
        cost.text_encoder_flops(CLIP, 13)
    with pytest.raises(SpecError, match="found Linear"):
        cost.text_encoder_flops(torch.nn.Linear(1, 1))
    with pytest.raises(SpecError, match="found int"):
        cost.autoencoder_flops(3, 8)
    with pytest.raises(SpecError, match="Did you mean 'decode'"):
        cost.autoencoder_flops(VAE, 8, "decod")  # pyright: ignore[reportArgumentType]
