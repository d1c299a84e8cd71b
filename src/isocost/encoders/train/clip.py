"""Train a small CLIP with a tokenizer of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from isocost.encoders.text import ClipScorer, load_clip, tokenize, train_tokenizer
from isocost.encoders.train.steps import (
    Captions,
    Images,
    Settings,
    Tell,
    optimise,
    pixels,
    resized,
    seeded,
    silent,
)

if TYPE_CHECKING:
    from transformers import CLIPModel

LARGEST_LOGIT_SCALE = 100


@dataclass(frozen=True)
class ClipSettings(Settings):
    """Two towers meeting in a space of `projection` dimensions. patch: pixels a side.

    `spread_weight` is for a text tower that is to condition: see `train_clip`.
    """

    text_hidden: int = 64
    text_layers: int = 2
    image_hidden: int = 96
    image_layers: int = 3
    heads: int = 4
    patch: int = 4
    resolution: int = 32
    projection: int = 64
    vocabulary: int = 1024
    context_length: int = 24
    tokenizer_captions: int = 8192
    images: int = 65_536
    batch: int = 256
    lr: float = 2e-3
    muon_lr: float = 0.01
    words_weight: float = 1.0
    spread_weight: float = 0.0


def build_clip(settings: ClipSettings, vocabulary: int) -> CLIPModel:
    """A transformers CLIPModel with random weights; token `vocabulary` - 1 ends a text, - 2 starts it."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": settings.text_hidden,
        "intermediate_size": 4 * settings.text_hidden,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": settings.context_length,
        "projection_dim": settings.projection,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        "hidden_size": settings.image_hidden,
        "intermediate_size": 4 * settings.image_hidden,
        "num_hidden_layers": settings.image_layers,
        "num_attention_heads": settings.heads,
        "image_size": settings.resolution,
        "patch_size": settings.patch,
        "projection_dim": settings.projection,
    }
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection))


def train_clip(
    images: Images,
    captions: Captions,
    settings: ClipSettings,
    seed: int,
    folder: str | Path,
    *,
    work: Path | None = None,
    tell: Tell = silent,
) -> ClipScorer:
    """Train a tokenizer and a CLIP, save them as a transformers folder; returns what was saved, loaded.

    Loss: symmetric InfoNCE (CLIP, arXiv 2103.00020), equal captions of a batch not being each other's negatives, plus
    `words_weight` cross-entropy of the caption's tokens from the image tower (SuperClass, arXiv 2411.03313), which
    teaches a small image tower far faster than the contrast alone, plus `spread_weight` times `spread_loss` of the text
    tower's token states. `load_text_encoder` reads the text tower.
    `work` and `tell`, and what is raised: as `optimise`.
    """
    words_of = captions(range(settings.tokenizer_captions))
    tokenizer = train_tokenizer(words_of, settings.vocabulary, settings.context_length)
    with seeded(seed):
        module = build_clip(settings, len(tokenizer))
        words = torch.nn.Linear(settings.image_hidden, len(tokenizer))

        def loss(step: int) -> torch.Tensor:
            texts = captions(settings.numbers(step))
            ids = tokenize(tokenizer, texts, settings.context_length)
            seen = pixels(resized(images(settings.numbers(step)), settings.resolution))
            pooled = module.vision_model(pixel_values=seen).pooler_output
            image = functional.normalize(module.visual_projection(pooled), dim=1)
            read = module.text_model(input_ids=ids)
            text = module.text_projection(read.pooler_output)
            scale = module.logit_scale.clamp(max=math.log(LARGEST_LOGIT_SCALE)).exp()
            logits = scale * image @ functional.normalize(text, dim=1).T
            total = contrast(logits, texts) + settings.words_weight * words_loss(words(pooled), ids)
            if settings.spread_weight:
                total = total + settings.spread_weight * spread_loss(read.last_hidden_state)
            return total

        both = torch.nn.ModuleList([module, words])
        optimise(both, loss, settings, seed, work=work, tell=tell)
    with torch.no_grad():
        module.logit_scale.clamp_(max=math.log(LARGEST_LOGIT_SCALE))
    return load_clip(ClipScorer(module, tokenizer, (0.5,) * 3, (0.5,) * 3).save(folder))


def contrast(logits: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Symmetric InfoNCE of logits [B, B], images by texts."""
    number = {text: place for place, text in enumerate(texts)}
    same = torch.tensor([number[text] for text in texts])
    twins = (same[:, None] == same[None, :]) & ~torch.eye(len(texts), dtype=torch.bool)
    logits = logits.masked_fill(twins, -1e4)
    target = torch.arange(len(texts))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def words_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [B, V] against the caption's tokens, each once and of equal weight, marks left out."""
    target = torch.zeros_like(logits).scatter_(1, ids, 1.0)
    target[:, -2:] = 0
    target = target / target.sum(1, keepdim=True).clamp(min=1)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def spread_loss(tokens: torch.Tensor) -> torch.Tensor:
    """D times the mean squared distance from the identity of the covariance, over captions, of token states [B, L, D].

    The contrast trains one pooled token, while cross-attention reads them all: without this, a word that matters little
    to the contrast (left or right) hardly moves any token state, and a model that reads them learns it late.
    Decorrelation to unit variance is the regulariser of Barlow Twins (arXiv 2103.03230) and VICReg (arXiv 2105.04906).
    """
    varying = tokens - tokens.mean(0)
    covariance = torch.einsum("bld,ble->de", varying, varying) / varying[..., 0].numel()
    return (covariance - torch.eye(tokens.shape[2])).square().mean() * tokens.shape[2]
