"""Diffusion transformers of the PixArt class, called as a UNet is.

diffusers' own, but for three things: the order of the arguments, positions that are computed once a latent's shape
rather than at each call, and weights that are drawn as DiT and PixArt draw theirs (diffusers' classes are for loading).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn

from isocost.specs import ModelSpec

PATCH = 2


class DiT(PixArtTransformer2DModel):
    """PixArt-alpha's transformer (arXiv 2310.00426) without its conditions on resolution and aspect ratio.

    Self-attention over patches, cross-attention to the text and a feed-forward layer in every block; the timestep acts
    by adaLN-single, one projection that all blocks share. No mask: the text encoder's padding is read as text, as in
    Stable Diffusion.
    """

    def __init__(self, spec: ModelSpec, depth: int, latent_size: int) -> None:
        """`depth`: blocks. `latent_size`: side of the latents whose patches are one unit of position apart."""
        super().__init__(
            num_attention_heads=spec.num_heads,
            attention_head_dim=spec.width // spec.num_heads,
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            num_layers=depth,
            cross_attention_dim=spec.width,
            caption_channels=spec.context_dim,
            sample_size=latent_size,
            patch_size=PATCH,
            interpolation_scale=1,  # pyright: ignore[reportArgumentType]
            use_additional_conditions=False,
        )
        self.pos_embed: nn.Module = Patches(spec, latent_size)
        _initialise(self)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> Any:
        """(x [B, C, H, W], timestep [B] or one for all, context [B, L, D]) -> `.sample` [B, C, H, W]; H, W even."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        (output,) = super().forward(
            sample,
            encoder_hidden_states=encoder_hidden_states,
            timestep=timesteps,  # pyright: ignore[reportArgumentType]
            return_dict=False,
        )
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


class Patches(PatchEmbed):
    """Latents to tokens [B, H W / 4, width] with sine-cosine positions, which span the same range at every size.

    Positions are kept by shape, and in no state dict.
    """

    def __init__(self, spec: ModelSpec, latent_size: int) -> None:
        super().__init__(latent_size, latent_size, PATCH, spec.in_channels, spec.width, pos_embed_type=None)  # pyright: ignore[reportArgumentType]
        self.positions: dict[Any, Tensor] = {}

    def forward(self, latent: Tensor) -> Tensor:
        height, width = (side // self.patch_size for side in latent.shape[2:])
        key = (height, width, latent.device)
        if key not in self.positions:
            self.positions[key] = get_2d_sincos_pos_embed(
                self.proj.out_channels,
                (height, width),
                base_size=self.base_size,
                device=latent.device,
                output_type="pt",
            ).float()  # pyright: ignore[reportAttributeAccessIssue]
        tokens = self.proj(latent).flatten(2).transpose(1, 2)
        return (tokens + self.positions[key]).to(tokens.dtype)


def _initialise(dit: DiT) -> None:
    """DiT's and PixArt's initial weights: the output, and what the text adds, start at 0 (arXiv 2212.09748, 3.2)."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches: Any = dit.pos_embed
    nn.init.xavier_uniform_(patches.proj.weight.data.flatten(1))
    embedder: Any = dit.adaln_single.emb.timestep_embedder
    captions: Any = dit.caption_projection
    for linear in (
        *(embedder.linear_1, embedder.linear_2, dit.adaln_single.linear),
        *(captions.linear_1, captions.linear_2),
    ):
        nn.init.normal_(linear.weight, std=0.02)
    transformers: Any = dit.transformer_blocks
    for linear in (*(block.attn2.to_out[0] for block in transformers), dit.proj_out):
        nn.init.zeros_(linear.weight)
