"""A diffusers UNet's forward pass for sampling: the same weights and images (to 2e-4 in fp32), in less time.

What a trajectory repeats is computed once: keys and values of the text for every cross-attention, and what the timestep
adds to every residual block, which goes into the bias of its first convolution. Activations stay channels-last, which
oneDNN's and cuDNN's convolutions are fastest in and in which a latent is a row of tokens without copying; queries, keys
and values of self-attention are one product; and 3x3 convolutions of latents of 2x2, where over half of their taps see
nothing but padding, are one product too. benchmarks/sampling.py says what each of these brings.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isocost.diffusion.denoiser import embedded_in
from isocost.errors import SpecError

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

KeysValues = tuple[Tensor, Tensor]
"""Of one cross-attention: [N, heads, L, d] each."""
BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D"}
# Options of UNet2DConditionModel that this forward pass does not know, with the values that leave them out.
PLAIN = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
}


class LeanUNet(nn.Module):
    """Stable Diffusion's kind of UNet, from the modules of a diffusers one, whose weights it takes over.

    Raises:
        SpecError: the UNet has a part that this forward pass does not know.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        _require_plain(unet)
        self.config: Any = unet.config
        self.time_proj: Any = unet.time_proj
        self.time_embedding: Any = unet.time_embedding
        self.conv_in = Convolution(unet.conv_in)
        self.down: Any = nn.ModuleList(Level(block, "downsamplers") for block in unet.down_blocks)
        self.mid = Level(unet.mid_block, None)
        self.up: Any = nn.ModuleList(Level(block, "upsamplers") for block in unet.up_blocks)
        self.norm_out: Any = unet.conv_norm_out
        self.conv_out = Convolution(unet.conv_out)
        self.lay_out(torch.channels_last)

    def lay_out(self, layout: torch.memory_format) -> None:
        """Choose in which order weights and activations lie in memory."""
        self.layout = layout
        self.to(memory_format=layout)  # pyright: ignore[reportCallIssue]

    def keys_values(self, context: Tensor) -> list[KeysValues]:
        """Of every cross-attention, in the order of the forward pass: context [N, L, D]."""
        return [module.keys_values(context) for module in self.modules() if isinstance(module, TransformerBlock)]

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.conv.weight.dtype

    def shifts(self, t: int, scale: float | None = None) -> list[Tensor]:
        """Bias [C] of every residual block's first convolution at timestep t, in the order of the forward pass.

        `scale`: of guidance, where the UNet embeds it.
        """
        device = self.conv_in.conv.weight.device
        embedding = self.time_proj(torch.tensor([t], device=device)).to(self.dtype)
        beside = None if scale is None else embedded_in(self, torch.tensor([scale], device=device))
        activated = F.silu(self.time_embedding(embedding, beside))
        return [module.shift(activated) for module in self.modules() if isinstance(module, ResidualBlock)]

    def forward(self, x: Tensor, keys_values: Sequence[KeysValues], shifts: Sequence[Tensor]) -> Tensor:
        """x [N, C, H, W] -> prediction [N, C, H, W], with `keys_values` of N contexts and `shifts` of a timestep."""
        text, time = iter(keys_values), iter(shifts)
        x = self.conv_in(x.contiguous(memory_format=self.layout))
        skips = [x]
        for level in self.down:
            for residual, transformer in level.pairs():
                x = residual(x, next(time))
                x = x if transformer is None else transformer(x, text)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        first, *rest = self.mid.resnets
        x = first(x, next(time))
        for transformer, residual in zip(self.mid.transformers, rest, strict=True):
            x = residual(transformer(x, text), next(time))
        for level in self.up:
            for residual, transformer in level.pairs():
                x = residual(torch.cat([x, skips.pop()], dim=1), next(time))
                x = x if transformer is None else transformer(x, text)
            if level.resample is not None:
                x = level.resample(x, size=skips[-1].shape[2:])
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))


class Level(nn.Module):
    """The parts of one of diffusers' blocks, without its control flow."""

    def __init__(self, block: Any, resamplers: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(resnet) for resnet in block.resnets)
        self.transformers = nn.ModuleList(Transformer(attention) for attention in getattr(block, "attentions", ()))
        last = getattr(block, resamplers, None) if resamplers else None
        self.resample = Convolution(last[0].conv) if last else None

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Each residual block with the transformer that follows it, or None."""
        return zip(self.resnets, self.transformers or [None] * len(self.resnets), strict=True)


class Convolution(nn.Module):
    """A 3x3 convolution of padding 1, which on the smallest latents is one product with a matrix."""

    # Latents of up to 2x2: of the 36 taps of the four pixels 20 see padding, and the matrix has no entries for those.
    MATRIX_PIXELS: int = 4

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv: Any = conv
        self.matrices: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor, bias: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """x [N, C, H, W], brought to `size` (nearest neighbours) first; `bias` [C] instead of the convolution's."""
        added: Tensor = self.conv.bias if bias is None else bias
        if x.shape[2] * x.shape[3] > self.MATRIX_PIXELS or self.conv.stride != (1, 1):
            x = x if size is None else F.interpolate(x, size=size, mode="nearest")
            return F.conv2d(x, self.conv.weight, added, self.conv.stride, self.conv.padding)
        height, width = size or x.shape[2:]
        matrix = self.matrix(x.shape[2], x.shape[3], height, width)
        pixels = torch.addmm(added.repeat(height * width), x.permute(0, 2, 3, 1).flatten(1), matrix)
        return pixels.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)

    def matrix(self, height: int, width: int, height_out: int, width_out: int) -> Tensor:
        """[H W C, H' W' C'], pixels of an image [H, W, C] to those of the (enlarged and) convolved one."""
        key = (height, width, height_out, width_out)
        if key not in self.matrices:
            taps = self.conv.weight.permute(2, 3, 1, 0)
            matrix = taps.new_zeros(height, width, taps.shape[2], height_out, width_out, taps.shape[3])
            for y, x in itertools.product(range(height_out), range(width_out)):
                for i, j in itertools.product(range(3), range(3)):
                    seen_y, seen_x = y + i - 1, x + j - 1
                    if 0 <= seen_y < height_out and 0 <= seen_x < width_out:
                        source = seen_y * height // height_out, seen_x * width // width_out
                        matrix[*source, :, y, x] += taps[i, j]
            self.matrices[key] = matrix.flatten(3).flatten(0, 2)
        return self.matrices[key]


class ResidualBlock(nn.Module):
    """ResnetBlock2D, given the sum of its first convolution's bias and what the timestep adds."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, Convolution(block.conv1)
        self.norm2, self.conv2 = block.norm2, Convolution(block.conv2)
        self.project, self.shortcut = block.time_emb_proj, block.conv_shortcut

    def shift(self, activated: Tensor) -> Tensor:
        """[C] from the timestep's embedding [1, D], after its activation."""
        return self.project(activated)[0] + self.conv1.conv.bias

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x), inplace=True), shift)
        hidden = self.conv2(F.silu(self.norm2(hidden), inplace=True))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class Transformer(nn.Module):
    """Transformer2DModel: tokens are pixels, and its 1x1 convolutions products."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.norm = transformer.norm
        self.inward, self.outward = _as_linear(transformer.proj_in), _as_linear(transformer.proj_out)
        self.blocks = nn.ModuleList(TransformerBlock(block) for block in transformer.transformer_blocks)

    def forward(self, x: Tensor, text: Iterator[KeysValues]) -> Tensor:
        """x [N, C, H, W], with the keys and values of its blocks next in `text`."""
        tokens = self.inward(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in self.blocks:
            tokens = block(tokens, *next(text))
        return x + self.outward(tokens).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class TransformerBlock(nn.Module):
    """BasicTransformerBlock, given the keys and values of its text."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.heads: int = block.attn1.heads
        self.to_qkv = _fused(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        self.to_q, self.to_kv = block.attn2.to_q, _fused(block.attn2.to_k, block.attn2.to_v)
        self.out1, self.out2 = block.attn1.to_out[0], block.attn2.to_out[0]
        self.widen, self.narrow = block.ff.net[0].proj, block.ff.net[2]

    def keys_values(self, context: Tensor) -> KeysValues:
        """[N, heads, L, d] each, of context [N, L, D]."""
        keys, values = self._by_head(self.to_kv(context), 2)
        return keys.contiguous(), values.contiguous()

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x [N, tokens, C] -> [N, tokens, C]."""
        x = x + self.out1(_attention(*self._by_head(self.to_qkv(self.norm1(x)), 3)))
        (queries,) = self._by_head(self.to_q(self.norm2(x)), 1)
        x = x + self.out2(_attention(queries, keys, values))
        hidden, gate = self.widen(self.norm3(x)).chunk(2, dim=-1)
        return x + self.narrow(hidden * F.gelu(gate))

    def _by_head(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[N, tokens, parts C] as `parts` of [N, heads, tokens, d]."""
        return projected.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[N, heads, tokens, d] each -> [N, tokens, C]."""
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def _fused(*linears: nn.Linear) -> nn.Linear:
    """Several products of one input as one."""
    weights = torch.cat([linear.weight for linear in linears])
    with torch.device("meta"):
        fused = nn.Linear(weights.shape[1], weights.shape[0], bias=linears[0].bias is not None)
    fused.weight = nn.Parameter(weights, requires_grad=False)
    if fused.bias is not None:
        fused.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return fused


def _as_linear(projection: nn.Module) -> nn.Linear:
    """A 1x1 convolution as the product that it is (later Stable Diffusions have a linear layer there to begin with)."""
    if isinstance(projection, nn.Linear):
        return projection
    weights: Any = projection.weight
    with torch.device("meta"):
        linear = nn.Linear(weights.shape[1], weights.shape[0])
    linear.weight = nn.Parameter(weights.flatten(1), requires_grad=False)
    linear.bias = projection.bias  # pyright: ignore[reportAttributeAccessIssue]
    return linear


def _require_plain(unet: UNet2DConditionModel) -> None:
    """Raise `SpecError`, naming what it is, unless this module knows every part of the UNet."""
    config: Any = unet.config
    types = {config["mid_block_type"], *config["down_block_types"], *config["up_block_types"]}
    strange = [name for name, plain in PLAIN.items() if config.get(name, plain) != plain]
    strange += sorted(str(name) for name in types - BLOCKS)
    if strange:
        raise SpecError(f"engine.network 'lean' does not know this UNet's {', '.join(strange)}: use 'diffusers'.")
