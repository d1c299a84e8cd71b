"""Train the encoders: autoencoder, CLIP pairs and the attribute classifier; small enough for one CPU core each.

`python -m isocost.encoders.train` rebuilds every asset that ships with the package, from the seeds and settings at the
end of this file. The same functions train a study's own encoders on its own images: a caller passes functions that
give images and captions by number. All are deterministic in their seed on one machine and thread count.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from isocost.data import scenes
from isocost.encoders.autoencoder import Autoencoder, load_autoencoder, psnr, standardise
from isocost.encoders.classifier import AttributeClassifier, AttributeNet, load_classifier
from isocost.encoders.text import ClipScorer, load_clip, load_text_encoder, resize, tokenize, train_tokenizer
from isocost.encoders.weights import quiet_random
from isocost.errors import TrainingError, lookup
from isocost.optim import MuonAdamW
from isocost.specs import SceneOptions

Images = Callable[[range], np.ndarray]
"""Training images number start..stop-1 as uint8 [N, H, W, 3]; numbers run on without end, the caller wraps or draws."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class AutoencoderSettings:
    """channels: at full resolution, then at each halving; so factor = 2 ** (len - 1). images: seen in training."""

    channels: tuple[int, ...] = (16, 24, 48)
    latent_channels: int = 4
    images: int = 36_000
    batch: int = 8
    lr: float = 2e-3
    muon_lr: float = 0.02
    kl_weight: float = 3e-4
    gradient_weight: float = 0.5
    statistics_images: int = 2048


def build_autoencoder(settings: AutoencoderSettings) -> AutoencoderKL:
    """A convolutional AutoencoderKL without attention, so of any image size that its factor divides; random weights."""
    blocks = len(settings.channels)
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * blocks,  # type: ignore[arg-type]
        block_out_channels=settings.channels,  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=math.gcd(8, *settings.channels),
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    _calm(module)
    return module


@torch.no_grad()
def _calm(module: AutoencoderKL) -> None:
    """Begin with residual blocks that pass their input on and a posterior of little noise: learning starts at once."""
    for name, weight in module.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias")):
            weight.zero_()
    assert module.quant_conv is not None and module.quant_conv.bias is not None
    module.quant_conv.bias[module.config["latent_channels"] :] -= 6


def train_autoencoder(
    images: Images, settings: AutoencoderSettings, seed: int, folder: str | Path, log: Log = print
) -> Autoencoder:
    """Train, standardise the latents and save as a diffusers folder; returns what was saved, loaded.

    Loss: L1 + L2 + `gradient_weight` L1 of finite differences (edges) + `kl_weight` KL, means over elements.
    Raises `TrainingError` where the loss stops being finite.
    """
    with _seeded(seed):
        module = build_autoencoder(settings)

        def loss(step: int) -> torch.Tensor:
            numbers = range(step * settings.batch, (step + 1) * settings.batch)
            pixels = _pixels(images(numbers))
            posterior = module.encode(pixels).latent_dist  # type: ignore[union-attr]
            error = module.decode(posterior.sample()).sample - pixels  # type: ignore[union-attr]
            edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
            fit = error.abs().mean() + (error**2).mean()
            return fit + settings.gradient_weight * edges + settings.kl_weight * kl

        _optimise(module, loss, settings.images // settings.batch, settings.lr, log, settings.muon_lr)
    sample = images(range(settings.images, settings.images + settings.statistics_images))
    latents = torch.from_numpy(Autoencoder(module).encode(sample)).transpose(0, 1).flatten(1).double()
    standardise(module, latents.mean(1).float(), latents.std(1).float())
    return load_autoencoder(Autoencoder(module).save(folder))


Captions = Callable[[range], list[str]]
"""The captions of the images of the same numbers."""


@dataclass(frozen=True)
class ClipSettings:
    """Two towers meeting in a space of `projection` dimensions. images: seen in training. patch: pixels a side."""

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
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection))


def train_clip(
    images: Images, captions: Captions, settings: ClipSettings, seed: int, folder: str | Path, log: Log = print
) -> ClipScorer:
    """Train a tokenizer and a CLIP, save them as a transformers folder; returns what was saved, loaded.

    Loss: symmetric InfoNCE (CLIP, arXiv 2103.00020), equal captions of a batch not being each other's negatives, plus
    `words_weight` cross-entropy of the caption's tokens from the image tower (SuperClass, arXiv 2411.03313), which
    teaches a small image tower far faster than the contrast alone. `load_text_encoder` reads the text tower.
    """
    words_of = captions(range(settings.tokenizer_captions))
    tokenizer = train_tokenizer(words_of, settings.vocabulary, settings.context_length)
    with _seeded(seed):
        module = build_clip(settings, len(tokenizer))
        words = torch.nn.Linear(settings.image_hidden, len(tokenizer))

        def loss(step: int) -> torch.Tensor:
            numbers = range(step * settings.batch, (step + 1) * settings.batch)
            texts = captions(numbers)
            ids = tokenize(tokenizer, texts, settings.context_length)
            pixels = _pixels(resized(images(numbers), settings.resolution))
            seen = module.vision_model(pixel_values=pixels).pooler_output
            image = functional.normalize(module.visual_projection(seen), dim=1)
            text = module.text_projection(module.text_model(input_ids=ids).pooler_output)
            logits = module.logit_scale.clamp(max=math.log(100)).exp() * image @ functional.normalize(text, dim=1).T
            return _contrast(logits, texts) + settings.words_weight * _words_loss(words(seen), ids)

        both = torch.nn.ModuleList([module, words])
        _optimise(both, loss, settings.images // settings.batch, settings.lr, log, settings.muon_lr)
    with torch.no_grad():
        module.logit_scale.clamp_(max=math.log(100))
    return load_clip(ClipScorer(module, tokenizer, (0.5,) * 3, (0.5,) * 3).save(folder))


def _contrast(logits: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Symmetric InfoNCE of logits [B, B], images by texts."""
    number = {text: place for place, text in enumerate(texts)}
    same = torch.tensor([number[text] for text in texts])
    twins = (same[:, None] == same[None, :]) & ~torch.eye(len(texts), dtype=torch.bool)
    logits = logits.masked_fill(twins, -1e4)
    target = torch.arange(len(texts))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def _words_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [B, V] against the caption's tokens, each once and of equal weight, marks left out."""
    target = torch.zeros_like(logits).scatter_(1, ids, 1.0)
    target[:, -2:] = 0
    target = target / target.sum(1, keepdim=True).clamp(min=1)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def resized(images: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 [N, H, W, 3] at `resolution`, as `ClipScorer` resizes."""
    if images.shape[1:3] == (resolution, resolution):
        return images
    smaller = resize(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255, resolution)
    return (smaller * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


Attributes = Callable[[range], list[dict]]
"""The attributes of the images of the same numbers: name -> value, those it has."""


@dataclass(frozen=True)
class ClassifierSettings:
    """width: channels at full resolution. images: seen in training."""

    width: int = 24
    resolution: int = 32
    images: int = 80_000
    batch: int = 64
    lr: float = 3e-3
    muon_lr: float = 0.02
    noise: float = 0.08


def train_classifier(
    images: Images,
    attributes: Attributes,
    values: Mapping[str, Sequence[str | int]],
    settings: ClassifierSettings,
    seed: int,
    folder: str | Path,
    log: Log = print,
) -> AttributeClassifier:
    """Train one network with a head for each attribute, mean cross-entropy where an image has it; save and return it.

    `values`: attribute -> its possible values. Noise of a random deviation up to `noise` (of a range of 2) on half of
    each batch keeps it from leaning on the last bits of clean drawings.
    """
    with _seeded(seed):
        classes = {name: len(options) for name, options in values.items()}
        module = AttributeNet(classes, settings.width, settings.resolution)
        noise = torch.Generator().manual_seed(seed)

        def loss(step: int) -> torch.Tensor:
            numbers = range(step * settings.batch, (step + 1) * settings.batch)
            pixels = _pixels(resized(images(numbers), settings.resolution))
            strength = settings.noise * torch.rand(len(pixels), 1, 1, 1, generator=noise)
            strength[::2] = 0
            pixels = pixels + strength * torch.randn(pixels.shape, generator=noise)
            rows, total = attributes(numbers), torch.zeros(())
            for name, logits in module(pixels).items():
                wanted = [values[name].index(row[name]) if name in row else -1 for row in rows]
                each = functional.cross_entropy(logits, torch.tensor(wanted), ignore_index=-1, reduction="sum")
                total = total + each / max(1, sum(code >= 0 for code in wanted))
            return total / len(values)

        _optimise(module, loss, settings.images // settings.batch, settings.lr, log, settings.muon_lr)
    return load_classifier(AttributeClassifier(module, values, settings.width, settings.resolution).save(folder))


def _pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> fp32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's global generator, which initialisers and dropout draw from, seeded inside and restored after."""
    with quiet_random():
        torch.manual_seed(seed)
        yield


def _optimise(
    module: torch.nn.Module,
    loss: Callable[[int], torch.Tensor],
    steps: int,
    lr: float,
    log: Log,
    muon_lr: float | None = None,
) -> None:
    """AdamW, and Muon for hidden matrices where `muon_lr` is given; linear warm-up over 5% of the steps, cosine to 0.

    Gradients are clipped to norm 1. Raises `TrainingError` where the loss stops being finite.
    """
    module.train()
    matrices = [weight for name, weight in module.named_parameters() if _is_hidden_matrix(name, weight)]
    by_muon = {id(weight) for weight in matrices} if muon_lr else set()
    rest = [weight for weight in module.parameters() if id(weight) not in by_muon]
    hidden = matrices if muon_lr else []
    optimizer = MuonAdamW(hidden, rest, muon_lr=muon_lr or lr, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    warmup = max(1, steps // 20)
    began, recent = time.monotonic(), []
    for step in range(steps):
        share = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        value = loss(step)
        if not torch.isfinite(value):
            raise TrainingError(f"training an encoder: loss is {value.item()} at step {step}; lower lr={lr}.")
        module.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], value.item()]
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log(f"step {step + 1}/{steps} loss {sum(recent) / len(recent):.4f} {time.monotonic() - began:.0f} s")
    module.eval()


def _is_hidden_matrix(name: str, weight: torch.nn.Parameter) -> bool:
    """A convolution between features or a matrix of a transformer's layer, but nothing next to pixels or tokens."""
    return (weight.ndim == 4 and min(weight.shape[:2]) > 3) or (weight.ndim == 2 and ".layers." in name)


# --- what ships with the package: seeds, settings, and the command that rebuilds it ---

SCENES = SceneOptions(groups=2)
HELD_OUT = 9100
"""Scene seed of every figure on a card. Scene seeds 9000 to 9999 belong to the encoders; studies use others."""


@dataclass(frozen=True)
class Asset:
    """One shipped encoder: what it is (a line for its card), its seed, its scenes' seed and how it is trained."""

    title: str
    kind: str
    seed: int
    scene_seed: int
    settings: AutoencoderSettings | ClipSettings | ClassifierSettings
    note: str = ""


_APART = "**The CLIP that conditions never scores:** {} Both ship here; they share neither seed, width nor data."
ASSETS: dict[str, Asset] = {
    "scenes-vae": Asset(
        "a small AutoencoderKL for procedural scenes, factor 4, 4 latent channels",
        "autoencoder",
        seed=0,
        scene_seed=9001,
        settings=AutoencoderSettings(),
        note="Latents are standardised inside (mean 0, deviation 1 a channel), so `scaling_factor` is 1. No attention: "
        "any image size that 4 divides. Two batches in three are 32 px scenes, the third 32 px crops of 64 px scenes.",
    ),
    "scenes-clip-condition": Asset(
        "the text tower of a small CLIP, which conditions diffusion models of scenes",
        "text",
        seed=1,
        scene_seed=9002,
        settings=ClipSettings(text_hidden=64, image_hidden=64, image_layers=2, images=65_536, batch=128),
        note=_APART.format("this one conditions, so no score may use it; `scenes-clip-score` scores."),
    ),
    "scenes-clip-score": Asset(
        "a small CLIP that scores scenes: image features for distances, and caption agreement",
        "clip",
        seed=2,
        scene_seed=9003,
        settings=ClipSettings(text_hidden=96, image_hidden=96, images=81_920, batch=128),
        note=_APART.format("this one scores, so it may condition no model; `scenes-clip-condition` conditions."),
    ),
    "scenes-attributes": Asset(
        "a classifier of the attributes of a scene, for exact caption accuracy of generated images",
        "classifier",
        seed=3,
        scene_seed=9004,
        settings=ClassifierSettings(),
        note="Every third image it was trained on is a reconstruction by `scenes-vae`. A scene's attributes follow "
        "from the image alone (with two groups, the left or upper one is the first).",
    ),
}


def _draw(seed: int, resolution: int = 32) -> Images:
    return lambda numbers: scenes.draw(seed, numbers, resolution, SCENES)


def _mixed(seed: int, batch: int) -> Images:
    """Two batches of 32 px scenes, then one of random 32 px crops of 64 px scenes."""

    def images(numbers: range) -> np.ndarray:
        if (numbers.start // batch) % 3 < 2:
            return scenes.draw(seed, numbers, 32, SCENES)
        large = scenes.draw(seed, numbers, 64, SCENES)
        corners = np.random.default_rng((seed, numbers.start)).integers(0, 33, (len(large), 2))
        return np.stack([image[y : y + 32, x : x + 32] for image, (y, x) in zip(large, corners, strict=True)])

    return images


def _captions(seed: int) -> Captions:
    return lambda numbers: [caption for caption, _ in scenes.describe_all(seed, numbers, SCENES)]


def _attributes(seed: int) -> Attributes:
    return lambda numbers: [attributes for _, attributes in scenes.describe_all(seed, numbers, SCENES)]


def _build_autoencoder(asset: Asset, folder: Path, log: Log) -> dict[str, Any]:
    assert isinstance(asset.settings, AutoencoderSettings)
    images = _mixed(asset.scene_seed, asset.settings.batch)
    return measure_autoencoder(train_autoencoder(images, asset.settings, asset.seed, folder, log))


def measure_autoencoder(autoencoder: Autoencoder) -> dict[str, Any]:
    """What a scenes autoencoder's card says: PSNR on held-out scenes, latent statistics, FLOPs, parameters."""
    found: dict[str, Any] = {"parameters": _parameters(autoencoder.module)}
    for resolution, count in ((32, 1024), (64, 256)):
        images = _draw(HELD_OUT, resolution)(range(count))
        latents = autoencoder.encode(images)
        shape = autoencoder.latent_shape(resolution)
        found[f"psnr_db_{resolution}px"] = round(psnr(images, autoencoder.decode(latents)), 2)
        found[f"latent_mean_{resolution}px"] = [round(float(value), 3) for value in latents.mean((0, 2, 3))]
        found[f"latent_deviation_{resolution}px"] = [round(float(value), 3) for value in latents.std((0, 2, 3))]
        found[f"encode_mflops_{resolution}px"] = _mflops(autoencoder.module.encode, (1, 3, resolution, resolution))
        found[f"decode_mflops_{resolution}px"] = _mflops(autoencoder.module.decode, (1, *shape))  # type: ignore[arg-type]
    return found


def _build_text(asset: Asset, folder: Path, log: Log) -> dict[str, Any]:
    """A whole CLIP, of which the text tower is kept."""
    assert isinstance(asset.settings, ClipSettings)
    images, captions = _draw(asset.scene_seed), _captions(asset.scene_seed)
    with tempfile.TemporaryDirectory() as whole:
        clip = train_clip(images, captions, asset.settings, asset.seed, whole, log)
        encoder = load_text_encoder(whole)
    encoder.save(folder)
    kept = {"parameters": _parameters(encoder.module), "text_mflops": round(encoder.flops / 1e6, 2)}
    return kept | {"tokens": len(encoder.tokenizer), "context_shape": list(encoder.context_shape)} | measure_clip(clip)


def _build_clip(asset: Asset, folder: Path, log: Log) -> dict[str, Any]:
    assert isinstance(asset.settings, ClipSettings)
    images, captions = _draw(asset.scene_seed), _captions(asset.scene_seed)
    clip = train_clip(images, captions, asset.settings, asset.seed, folder, log)
    size = {"parameters": _parameters(clip.module), "tokens": len(clip.tokenizer), "dims": clip.dims}
    return size | {"text_mflops": round(load_text_encoder(folder).flops / 1e6, 2)} | measure_clip(clip)


def measure_clip(clip: ClipScorer) -> dict[str, Any]:
    """Share of 1,024 held-out scenes whose own caption is the nearest of 1,024, and the other way round."""
    numbers = range(1024)
    image = clip.image_features(_draw(HELD_OUT)(numbers), normalised=True)
    text = clip.text_features(_captions(HELD_OUT)(numbers), normalised=True)
    cosine, own = image @ text.T, np.arange(len(numbers))
    return {
        "retrieval_top1_of_1024_text_by_image": round(float((cosine.argmax(1) == own).mean()), 4),
        "retrieval_top1_of_1024_image_by_text": round(float((cosine.argmax(0) == own).mean()), 4),
        "clip_score_own_caption": round(100 * float(cosine[own, own].mean()), 2),
        "clip_score_other_caption": round(100 * float(cosine[own, np.roll(own, 1)].mean()), 2),
        "logit_scale": round(clip.logit_scale, 3),
    }


def _build_classifier(asset: Asset, folder: Path, log: Log) -> dict[str, Any]:
    assert isinstance(asset.settings, ClassifierSettings)
    beside = folder.parent / "scenes-vae"
    autoencoder = load_autoencoder(beside if beside.exists() else "scenes-vae")
    images, attributes = _draw(asset.scene_seed), _attributes(asset.scene_seed)

    def partly_decoded(numbers: range) -> np.ndarray:
        drawn = images(numbers)
        drawn[::3] = autoencoder.decode(autoencoder.encode(drawn[::3]))
        return drawn

    settings, values = asset.settings, scenes.ATTRIBUTES
    classifier = train_classifier(partly_decoded, attributes, values, settings, asset.seed, folder, log)
    return measure_classifier(classifier, autoencoder)


def measure_classifier(classifier: AttributeClassifier, autoencoder: Autoencoder) -> dict[str, Any]:
    """Accuracy by attribute on 2,048 held-out scenes and on their reconstructions, beside the chance level."""
    numbers = range(2048)
    images, attributes = _draw(HELD_OUT)(numbers), _attributes(HELD_OUT)(numbers)
    decoded = autoencoder.decode(autoencoder.encode(images))
    found: dict[str, Any] = {"parameters": _parameters(classifier.module)}
    found["mflops"] = _mflops(classifier.module, (1, 3, classifier.resolution, classifier.resolution))
    for name, seen in (("accuracy", images), ("accuracy_on_reconstructions", decoded)):
        right = classifier.correct(seen, attributes)
        found[name] = {attribute: round(float(np.nanmean(values)), 4) for attribute, values in right.items()}
    found["chance"] = {attribute: round(level, 4) for attribute, level in scenes.chance(SCENES).items()}
    return found


_BUILDERS: dict[str, Callable[[Asset, Path, Log], dict[str, Any]]] = {
    "autoencoder": _build_autoencoder,
    "text": _build_text,
    "clip": _build_clip,
    "classifier": _build_classifier,
}


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _mflops(network: Callable[[torch.Tensor], Any], shape: tuple[int, ...]) -> float:
    """Forward MFLOPs (2 a multiply-add) on an input of this shape."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(shape))
    return round(counter.get_total_flops() / 1e6, 2)


def train_assets(folder: str | Path, only: Sequence[str] | None = None, log: Log = print) -> None:
    """Train the shipped encoders (all, or those named) into `folder`/NAME, each with metrics.json and a README.md card.

    The classifier sees reconstructions by the autoencoder in `folder`, or else by the shipped one. Raises `SpecError`
    for a name that is not an asset's.
    """
    for name in only or ASSETS:
        asset, place = lookup(ASSETS, name, "asset"), Path(folder) / name
        began = time.monotonic()
        metrics = _BUILDERS[asset.kind](asset, place, partial(_named, log, name))
        log(f"{name}: {metrics}")
        (place / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        (place / "README.md").write_text(card(name, asset, metrics, time.monotonic() - began))


def _named(log: Log, name: str, line: str) -> None:
    log(f"{name}: {line}")


def card(name: str, asset: Asset, metrics: Mapping[str, Any], seconds: float) -> str:
    """The README of an asset: what it is, how it was made, and what was measured."""
    rows = [f"| {key} | {value} |" for key, value in metrics.items() if not isinstance(value, dict)]
    tables = {key: value for key, value in metrics.items() if isinstance(value, dict)}
    if tables:
        rows += ["", f"| attribute | {' | '.join(tables)} |", "|---" * (1 + len(tables)) + "|"]
        for attribute in next(iter(tables.values())):
            rows.append(f"| {attribute} | {' | '.join(str(table.get(attribute, '')) for table in tables.values())} |")
    settings = ", ".join(f"{key} {value}" for key, value in asdict(asset.settings).items())
    lines = [
        f"# {name}",
        "",
        f"This is {asset.title}. {asset.note}".strip(),
        "",
        f"- Made by `OMP_NUM_THREADS=1 python -m isocost.encoders.train FOLDER {name}`, on one CPU core in "
        f"{seconds / 60:.0f} minutes.",
        f"- Seed {asset.seed}; data: procedural scenes of seed {asset.scene_seed}, drawn by `isocost.data.scenes` "
        f"version {SCENES.version}, at most {SCENES.groups} groups. Nothing else was seen.",
        f"- Settings: {settings}.",
        "- Licence: Apache-2.0, weights included. Format: safetensors, fp32.",
        f"- Figures (`metrics.json`): measured by the same command on held-out scenes of seed {HELD_OUT}.",
        "",
        "| figure | value |",
        "|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m isocost.encoders.train", description=train_assets.__doc__)
    parser.add_argument("folder", help="where to write; each asset gets a folder of its name inside")
    parser.add_argument("only", nargs="*", help=f"which ones (all): {', '.join(ASSETS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_assets(arguments.folder, arguments.only or None, log=partial(print, flush=True))


if __name__ == "__main__":
    main()
