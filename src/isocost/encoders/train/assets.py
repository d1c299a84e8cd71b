"""What ships with the package: seeds, settings, and how each encoder is rebuilt, measured and described."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isocost.data import scenes
from isocost.encoders.autoencoder import Autoencoder, load_autoencoder, psnr
from isocost.encoders.classifier import AttributeClassifier
from isocost.encoders.text import ClipScorer, load_text_encoder
from isocost.encoders.train.autoencoder import AutoencoderSettings, train_autoencoder
from isocost.encoders.train.classifier import ClassifierSettings, train_classifier
from isocost.encoders.train.clip import ClipSettings, train_clip
from isocost.encoders.train.steps import Attributes, Captions, Images, Tell, to_stderr
from isocost.errors import lookup
from isocost.models.cost import count_flops
from isocost.specs import SceneOptions

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
        settings=ClipSettings(
            text_hidden=64, image_hidden=64, image_layers=2, images=98_304, batch=128, spread_weight=5.0
        ),
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


def _build_autoencoder(asset: Asset, folder: Path, tell: Tell) -> dict[str, Any]:
    assert isinstance(asset.settings, AutoencoderSettings)
    images = _mixed(asset.scene_seed, asset.settings.batch)
    return measure_autoencoder(train_autoencoder(images, asset.settings, asset.seed, folder, tell=tell))


def measure_autoencoder(autoencoder: Autoencoder) -> dict[str, Any]:
    """What a scenes autoencoder's card says: PSNR on held-out scenes, latent statistics, FLOPs, parameters."""
    found: dict[str, Any] = {"parameters": _parameters(autoencoder.module)}
    module: Any = autoencoder.module
    for resolution, count in ((32, 1024), (64, 256)):
        images = _draw(HELD_OUT, resolution)(range(count))
        latents = autoencoder.encode(images)
        shape = autoencoder.latent_shape(resolution)
        found[f"psnr_db_{resolution}px"] = round(psnr(images, autoencoder.decode(latents)), 2)
        found[f"latent_mean_{resolution}px"] = [round(float(value), 3) for value in latents.mean((0, 2, 3))]
        found[f"latent_deviation_{resolution}px"] = [round(float(value), 3) for value in latents.std((0, 2, 3))]
        found[f"encode_mflops_{resolution}px"] = _mflops(module.encode, (1, 3, resolution, resolution))
        found[f"decode_mflops_{resolution}px"] = _mflops(module.decode, (1, *shape))
    return found


def _build_text(asset: Asset, folder: Path, tell: Tell) -> dict[str, Any]:
    """A whole CLIP, of which the text tower is kept."""
    assert isinstance(asset.settings, ClipSettings)
    images, captions = _draw(asset.scene_seed), _captions(asset.scene_seed)
    with tempfile.TemporaryDirectory() as whole:
        clip = train_clip(images, captions, asset.settings, asset.seed, whole, tell=tell)
        encoder = load_text_encoder(whole)
    encoder.save(folder)
    kept = {"parameters": _parameters(encoder.module), "text_mflops": round(encoder.flops / 1e6, 2)}
    return kept | {"tokens": len(encoder.tokenizer), "context_shape": list(encoder.context_shape)} | measure_clip(clip)


def _build_clip(asset: Asset, folder: Path, tell: Tell) -> dict[str, Any]:
    assert isinstance(asset.settings, ClipSettings)
    images, captions = _draw(asset.scene_seed), _captions(asset.scene_seed)
    clip = train_clip(images, captions, asset.settings, asset.seed, folder, tell=tell)
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


def _build_classifier(asset: Asset, folder: Path, tell: Tell) -> dict[str, Any]:
    assert isinstance(asset.settings, ClassifierSettings)
    beside = folder.parent / "scenes-vae"
    autoencoder = load_autoencoder(beside if beside.exists() else "scenes-vae")
    images, attributes = _draw(asset.scene_seed), _attributes(asset.scene_seed)

    def partly_decoded(numbers: range) -> np.ndarray:
        drawn = images(numbers)
        drawn[::3] = autoencoder.decode(autoencoder.encode(drawn[::3]))
        return drawn

    settings, values = asset.settings, scenes.ATTRIBUTES
    classifier = train_classifier(partly_decoded, attributes, values, settings, asset.seed, folder, tell=tell)
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


_BUILDERS: dict[str, Callable[[Asset, Path, Tell], dict[str, Any]]] = {
    "autoencoder": _build_autoencoder,
    "text": _build_text,
    "clip": _build_clip,
    "classifier": _build_classifier,
}


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _mflops(network: Callable[[torch.Tensor], Any], shape: tuple[int, ...]) -> float:
    """Forward MFLOPs (2 a multiply-add) on an input of this shape."""
    return round(count_flops(lambda: network(torch.zeros(shape))) / 1e6, 2)


def train_assets(folder: str | Path, only: Sequence[str] | None = None, tell: Tell = to_stderr) -> None:
    """Train the shipped encoders (all, or those named) into `folder`/NAME, each with metrics.json and a README.md card.

    The classifier sees reconstructions by the autoencoder in `folder`, or else by the shipped one. Raises `SpecError`
    for a name that is not an asset's.
    """
    for name in only or ASSETS:
        asset, place = lookup(ASSETS, name, "asset"), Path(folder) / name
        began = time.monotonic()
        metrics = _BUILDERS[asset.kind](asset, place, partial(_named, tell, name))
        tell(f"{name}: {metrics}")
        (place / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        (place / "README.md").write_text(card(name, asset, metrics, time.monotonic() - began))


def _named(tell: Tell, name: str, line: str) -> None:
    tell(f"{name}: {line}")


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
