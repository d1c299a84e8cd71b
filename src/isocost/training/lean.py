"""The forward pass of a UNet in training, of small latents on a CPU: the same weights and gradients, in less time.

A network of a million weights spends its step on many small operations, so this makes fewer of them: keys and values
of all cross-attentions are one product, and so is what the timestep adds to all residual blocks, and so are the
queries, keys and values of a self-attention. Activations are channels-last, in which oneDNN's convolutions need no
reordering and tokens are a view; a convolution of 2x2 pixels is one product. Weights stay the module's own: gradients,
optimizer and checkpoints do not know of it. `benchmarks/training.py --changes` says what each of these brings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isocost.diffusion.denoiser import embedded_in


class LeanForward:
    """A `Network`: (x [N, C, H, W], timesteps [N], context [N, L, D][, scales [N]]) -> prediction [N, C, H, W].

    unet: a diffusers `UNet2DConditionModel` as `isocost.models.build` makes it for families `micro` and `sd`.
    """

    def __init__(self, unet: Any):
        self.unet = unet
        self.resnets = [block for level in _levels(unet) for block in level.resnets]
        attentions = [attention for level in _levels(unet) for attention in getattr(level, "attentions", ())]
        self.blocks = [block for attention in attentions for block in attention.transformer_blocks]

    def __call__(self, x: Tensor, timesteps: Tensor, context: Tensor, scales: Tensor | None = None) -> Tensor:
        unet = self.unet
        shifts, text = iter(self.shifts(timesteps, x.dtype, scales)), iter(self.keys_values(context))
        x = unet.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for level in unet.down_blocks:
            for resnet, attention in _pairs(level):
                x = _attend(attention, _residual(resnet, x, next(shifts)), text)
                skips.append(x)
            if level.downsamplers:
                x = level.downsamplers[0].conv(x)
                skips.append(x)
        x = _residual(unet.mid_block.resnets[0], x, next(shifts))
        for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
            x = _residual(resnet, _attend(attention, x, text), next(shifts))
        for level in unet.up_blocks:
            for resnet, attention in _pairs(level):
                x = _residual(resnet, torch.cat([x, skips.pop()], dim=1), next(shifts))
                x = _attend(attention, x, text)
            if level.upsamplers:
                x = level.upsamplers[0].conv(F.interpolate(x, size=skips[-1].shape[2:], mode="nearest"))
        return unet.conv_out(F.silu(unet.conv_norm_out(x)))

    def shifts(self, timesteps: Tensor, dtype: torch.dtype, scales: Tensor | None = None) -> Sequence[Tensor]:
        """What timesteps, and guidance scales where the UNet embeds them, add to each residual block: [N, C] each."""
        beside = None if scales is None else embedded_in(self.unet, scales).to(dtype)
        embedding = F.silu(self.unet.time_embedding(self.unet.time_proj(timesteps).to(dtype), beside))
        return _joined(embedding, [resnet.time_emb_proj for resnet in self.resnets])

    def keys_values(self, context: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each cross-attention: [N, heads, L, d] each."""
        parts = _joined(context, [part for block in self.blocks for part in (block.attn2.to_k, block.attn2.to_v)])
        for block, keys, values in zip(self.blocks, parts[::2], parts[1::2], strict=True):
            yield _by_head(keys, block.attn2.heads), _by_head(values, block.attn2.heads)


def _levels(unet: Any) -> list[Any]:
    """Blocks, in the order of the forward pass."""
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


def _pairs(level: Any) -> Iterator[tuple[Any, Any]]:
    """Each residual block with the attention that follows it, or None."""
    return zip(level.resnets, getattr(level, "attentions", None) or [None] * len(level.resnets), strict=True)


def _residual(block: Any, x: Tensor, shift: Tensor) -> Tensor:
    hidden = convolution(block.conv1, F.silu(block.norm1(x))) + shift[:, :, None, None]
    hidden = convolution(block.conv2, F.silu(block.norm2(hidden)))
    return hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def convolution(conv: Any, x: Tensor) -> Tensor:
    """3x3, padded. On 2x2 pixels each one sees all four, so it is a product with one matrix of the kernel's taps."""
    if x.shape[2:] != (2, 2):
        return conv(x)
    taps = conv.weight.permute(0, 2, 3, 1).flatten(1, 2).unbind(1)
    matrix = torch.cat([torch.cat([taps[place] for place in seen], dim=1) for seen in TAPS_OF_2X2])
    pixels = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix, conv.bias.repeat(4))
    return pixels.unflatten(1, (2, 2, -1)).permute(0, 3, 1, 2)


TAPS_OF_2X2 = [[4, 5, 7, 8], [3, 4, 6, 7], [1, 2, 4, 5], [0, 1, 3, 4]]
"""By pixel of the output: which of the kernel's nine taps lies on each pixel of the input."""


def _attend(transformer: Any, x: Tensor, text: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Transformer2DModel, or nothing; the keys and values of its blocks are next in `text`."""
    if transformer is None:
        return x
    tokens = _product(transformer.proj_in, transformer.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
    for block in transformer.transformer_blocks:
        heads = block.attn1.heads
        own = [_by_head(part, heads) for part in _joined(block.norm1(tokens), _qkv(block.attn1))]
        tokens = tokens + block.attn1.to_out[0](_attention(*own))
        queries = _by_head(block.attn2.to_q(block.norm2(tokens)), heads)
        tokens = tokens + block.attn2.to_out[0](_attention(queries, *next(text)))
        hidden, gate = block.ff.net[0].proj(block.norm3(tokens)).chunk(2, dim=-1)
        tokens = tokens + block.ff.net[2](hidden * F.gelu(gate))
    return x + _product(transformer.proj_out, tokens).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _qkv(attention: Any) -> list[Any]:
    return [attention.to_q, attention.to_k, attention.to_v]


def _product(projection: Any, tokens: Tensor) -> Tensor:
    """A linear layer, or a 1x1 convolution as the product that it is: [N, tokens, C]."""
    return F.linear(tokens, projection.weight.flatten(1), projection.bias)


def _joined(x: Tensor, linears: Sequence[Any]) -> Sequence[Tensor]:
    """What several linear layers make of one input, in one product."""
    weight = torch.cat([linear.weight for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return F.linear(x, weight, bias).split([linear.out_features for linear in linears], dim=-1)


def _by_head(projected: Tensor, heads: int) -> Tensor:
    """[N, tokens, C] -> [N, heads, tokens, d]."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[N, heads, tokens, d] each -> [N, tokens, C]."""
    mixed = F.scaled_dot_product_attention(queries, keys, values)
    return mixed.transpose(1, 2).flatten(2)
