"""A study's own encoders: an autoencoder and two CLIPs, for pictures that the shipped ones have never seen.

FOLDER/                      an encoder, its metrics.json and the log of its training: appears when all of it is done
.FOLDER.part/                until then: log and state (`isocost.encoders.train.steps`), held by the one that trains
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isocost import runlog
from isocost.data.images import open_images, square_images
from isocost.encoders.autoencoder import load_autoencoder, psnr
from isocost.encoders.sources import open_source
from isocost.encoders.text import load_clip
from isocost.encoders.train import AutoencoderSettings, ClipSettings, train_autoencoder, train_clip
from isocost.errors import SpecError, lookup
from isocost.files import replace_folder
from isocost.processes import only_trainer
from isocost.specs import DataSource, EncoderTraining

METRICS = "metrics.json"
LARGEST_SHIFT = 1 / 16
NAMES_A_SIDE = re.compile(r"\b(left|right|(counter|anti)?clockwise)\b", re.IGNORECASE)


def _autoencoder_settings(asked: EncoderTraining) -> AutoencoderSettings:
    settings = AutoencoderSettings(
        channels=(asked.channels, 2 * asked.channels, 2 * asked.channels),
        latent_channels=asked.latent_channels,
        images=asked.autoencoder_images,
        batch=min(asked.batch, 32),
    )
    return replace(settings, statistics_images=min(settings.statistics_images, settings.images))


def latent_shape(source: DataSource) -> tuple[int, int, int]:
    """(C, h, w) of the latents that a source's own autoencoder will make."""
    assert source.encoder_training is not None
    settings = _autoencoder_settings(source.encoder_training)
    side = source.resolution // 2 ** (len(settings.channels) - 1)
    return settings.latent_channels, side, side


def _conditioning_settings(asked: EncoderTraining) -> ClipSettings:
    return ClipSettings(
        text_hidden=asked.hidden,
        vocabulary=asked.vocabulary,
        context_length=asked.context_length,
        images=asked.clip_images,
        batch=min(4 * asked.batch, 256),
    )


def _scoring_settings(asked: EncoderTraining) -> ClipSettings:
    """Another width than the CLIP that conditions: no score comes from the network that a model was shown."""
    conditioning = _conditioning_settings(asked)
    return replace(conditioning, text_hidden=asked.hidden + 32, image_hidden=conditioning.image_hidden + 32)


SETTINGS = {
    "autoencoder": _autoencoder_settings,
    "text_encoder": _conditioning_settings,
    "extractor": _scoring_settings,
}
"""What a study can train. The text encoder is the text tower of a CLIP that conditions; the extractor is a CLIP."""
KINDS = tuple(SETTINGS)


def train_own(kind: str, source: DataSource, folder: Path) -> Path:
    """Train one of `KINDS` on a source's training images; what lies in `folder` already is kept.

    A training that was stopped goes on from its last state, to the same bits. The folder appears when training is done,
    with metrics.json: PSNR on held-out images, or retrieval top-1 of held-out images and captions. The CLIP that scores
    differs from the one that conditions in seed and width.

    Raises `SpecError` for a source without `encoder_training`, or of scenes, whose encoders ship; `TrainingError` where
    another process trains the same encoder.
    """
    if source.encoder_training is None or source.kind != "images":
        raise SpecError("encoders 'own' need data.kind 'images' and data.encoder_training.")
    lookup(SETTINGS, kind, "kind of encoder")
    asked = source.encoder_training
    return train_once(folder, lambda made, work: _train(kind, source, asked, made, work))


def train_once(folder: Path, train: Callable[[Path, Path], dict[str, Any]]) -> Path:
    """`folder`, which appears when `train(made, work)` has trained an encoder into `made`; what lies there is kept.

    train: gives what is measured, for metrics.json; it keeps its log and state in `work`, to go on from after a stop.
    Raises `TrainingError` where another process trains the same encoder.
    """
    if is_trained(folder):
        return folder
    work = _workplace(folder)
    work.mkdir(parents=True, exist_ok=True)
    with only_trainer(work):
        if not is_trained(folder):  # another process may just have finished it
            made = work / "made"
            shutil.rmtree(made, ignore_errors=True)
            metrics = train(made, work)
            (made / METRICS).write_text(json.dumps(metrics, indent=1))
            shutil.copy(work / runlog.NAME, made)
            replace_folder(made, folder)
        shutil.rmtree(work)
    return folder


def images_seen(folder: Path) -> int:
    """How far the training of the encoder in `folder` is; another process may be at it."""
    return max(runlog.images_seen(folder), runlog.images_seen(_workplace(folder)))


def images_to_see(kind: str, asked: EncoderTraining) -> int:
    """What `images_seen` comes to in the end."""
    settings = SETTINGS[kind](asked)
    return settings.steps * settings.batch


def is_trained(folder: Path) -> bool:
    """Whether an encoder stands in `folder`."""
    return (folder / METRICS).is_file()


def _workplace(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _train(kind: str, source: DataSource, asked: EncoderTraining, made: Path, work: Path) -> dict[str, Any]:
    """Train into the folder `made`; what is measured on held-out images."""
    settings = SETTINGS[kind](asked)
    seed = asked.seed + KINDS.index(kind)
    training = _Augmented.of(source, seed=asked.seed)
    held_out = open_images(source.val, captions_required=kind != "autoencoder")
    images = square_images(held_out, range(len(held_out)), source.resolution)  # a broken one is found before training
    if isinstance(settings, AutoencoderSettings):
        train_autoencoder(training.images, settings, seed, made, work=work)
        return _reconstruction(made, images)
    captions = held_out.captions
    settings = replace(settings, tokenizer_captions=training.count)
    train_clip(training.images, training.captions, settings, seed, made, work=work)
    return _retrieval(made, images, captions)


def _reconstruction(folder: Path, images: np.ndarray) -> dict[str, Any]:
    autoencoder = load_autoencoder(folder)
    return {"psnr_held_out": psnr(images, autoencoder.decode(autoencoder.encode(images))), "images": len(images)}


def _retrieval(folder: Path, images: np.ndarray, captions: list[str]) -> dict[str, Any]:
    clip = load_clip(folder)
    image, text = clip.image_features(images, normalised=True), clip.text_features(captions, normalised=True)
    found = (image @ text.T).argmax(axis=1)
    right = np.mean([captions[place] == captions[row] for row, place in enumerate(found)])
    truncated = clip.count_truncated(captions)
    return {"retrieval_top1_held_out": float(right), "images": len(images), "truncated": truncated}


@dataclass(frozen=True)
class _Augmented:
    """Training images and captions by number, without end: shuffled each epoch, shifted a little, half mirrored.

    An image whose caption names a side is never mirrored. Image number i is a function of (seed, i).
    """

    pixels: np.ndarray
    texts: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, source: DataSource, seed: int) -> _Augmented:
        found = open_source(source.model_copy(update={"images": None}))
        everything = range(found.count)
        return cls(found.images(everything), tuple(found.captions(everything)), seed)

    @property
    def count(self) -> int:
        return len(self.pixels)

    def images(self, numbers: range) -> np.ndarray:
        return np.stack([self._image(number) for number in numbers])

    def captions(self, numbers: range) -> list[str]:
        return [self.texts[self._place(number)] for number in numbers]

    def _place(self, number: int) -> int:
        epoch, place = divmod(number, self.count)
        return int(_order(self.seed, epoch, self.count)[place])

    def _image(self, number: int) -> np.ndarray:
        image = self.pixels[self._place(number)]
        random = np.random.Generator(np.random.Philox(key=[self.seed + 1, number]))
        side = image.shape[0]
        most = round(side * LARGEST_SHIFT)
        down, right = random.integers(0, 2 * most + 1, size=2)
        padded = np.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
        shifted = padded[down : down + side, right : right + side]
        mirrored = random.random() < 0.5 and not NAMES_A_SIDE.search(self.texts[self._place(number)])
        return shifted[:, ::-1] if mirrored else shifted


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
