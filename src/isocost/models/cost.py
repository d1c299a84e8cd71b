"""What a model costs, counted on torch's `meta` device: no weights, no arithmetic, about a second for any size.

One convention everywhere: a multiply-add is 2 FLOPs; convolutions, linear layers and attention count, norms and
activation functions do not (together they are under 1%).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

from isocost.errors import SpecError, did_you_mean
from isocost.models.build import build
from isocost.specs import ModelSpec, TrainSettings

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
R = TypeVar("R")


def cached(function: Callable[P, R]) -> Callable[P, R]:
    """`lru_cache` that keeps the signature. Specs are frozen, so hashable, which type checkers cannot see."""
    return cast(Callable[P, R], functools.lru_cache(maxsize=1024)(function))


@cached
def parameters(spec: ModelSpec) -> int:
    """How many weights a member has."""
    return sum(weight.numel() for weight in build(spec, "meta").parameters())


@cached
def forward_flops(spec: ModelSpec, latent_size: int, context_length: int) -> int:
    """FLOPs of one evaluation of one image: a latent of side `latent_size`, `context_length` text tokens."""
    unet = build(spec, "meta")
    return count_flops(lambda: unet(*meta_inputs(spec, latent_size, context_length, batch=1)))


@cached
def training_flops(spec: ModelSpec, latent_size: int, context_length: int) -> int:
    """FLOPs of training on one image, once: a forward and a backward pass.

    A little under the usual 3 x forward, as latent, timestep and context need no gradient: under 1% at the sizes of
    Stable Diffusion, 9% for the smallest `micro`. The optimizer's step, shared by a batch, is left out.
    """
    unet = build(spec, "meta")
    return count_flops(
        lambda: unet(*meta_inputs(spec, latent_size, context_length, batch=1)).sample.sum().backward(), True
    )


def objective_flops(
    spec: ModelSpec, settings: TrainSettings, latent_size: int, context_length: int, teacher_embeds: bool = False
) -> int:
    """`training_flops` of an objective: with what a student's teacher, and its own average, evaluate for each image."""
    size = (latent_size, context_length)
    others = settings.other_evaluations(teacher_embeds)
    return training_flops(spec, *size) + (others * forward_flops(spec, *size) if others else 0)


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


def autoencoder_flops(
    autoencoder: Any, latent_size: int | tuple[int, int], part: Literal["encode", "decode"] = "decode"
) -> int:
    """FLOPs of encoding or decoding one image whose latent has side `latent_size`, or is that high and wide.

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
        factor = 2 ** (len(twin.config.block_out_channels) - 1)
        height, width = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
        if part == "encode":
            image = torch.empty(1, twin.config.in_channels, height * factor, width * factor)
            return count_flops(lambda: twin.encode(image))
        latent = torch.empty(1, twin.config.latent_channels, height, width)
        return count_flops(lambda: twin.decode(latent))


def clip_flops(clip: Any) -> tuple[int, int]:
    """FLOPs of one image's features and of one caption's, padded to the longest, by a transformers CLIPModel."""
    import torch
    from transformers import CLIPModel

    with torch.device("meta"):
        twin: Any = CLIPModel(clip.config).eval()
        side, length = clip.config.vision_config.image_size, clip.config.text_config.max_position_embeddings
        pixels, tokens = torch.empty(1, 3, side, side), torch.zeros(1, length, dtype=torch.long)
    image = count_flops(lambda: twin.visual_projection(twin.vision_model(pixel_values=pixels).pooler_output))
    caption = count_flops(lambda: twin.text_projection(twin.text_model(input_ids=tokens).pooler_output))
    return image, caption


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
    """FLOPs of sampling one image, by part: `scorer` is what best-of-n takes to choose, `encoder` what a low-resolution
    image takes to become a latent."""

    unet: int
    text_encoder: int
    decoder: int
    scorer: int = 0
    encoder: int = 0

    @property
    def total(self) -> int:
        return self.unet + self.text_encoder + self.decoder + self.scorer + self.encoder

    @property
    def gflops(self) -> float:
        return self.total / 1e9


def paper_cost(norm_cost: float, steps: int) -> float:
    """The paper's sampling cost: norm. cost x steps. Guidance's second evaluation, text and VAE are left out."""
    return norm_cost * steps


def meta_inputs(spec: ModelSpec, latent_size: int, context_length: int, batch: int) -> tuple[torch.Tensor, ...]:
    """(latent [B,C,H,W], timestep [B], context [B,L,D]) on meta."""
    import torch

    with torch.device("meta"):
        latent = torch.empty(batch, spec.in_channels, latent_size, latent_size)
        return latent, torch.empty(batch), torch.empty(batch, context_length, spec.context_dim)


def _kind(value: Any) -> str:
    return type(value).__name__
