"""A study's own encoders: an autoencoder and two CLIPs, for pictures that the shipped ones have never seen."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isocost.data.images import open_images, square_images
from isocost.encoders.autoencoder import load_autoencoder, psnr
from isocost.encoders.text import load_clip
from isocost.encoders.train import (
    AutoencoderSettings,
    ClipSettings,
    train_autoencoder,
    train_clip,
)
from isocost.errors import SpecError
from isocost.specs import DataSource

KINDS = ("autoencoder", "text_encoder", "extractor")
"""What a study can train. The text encoder is the text tower of a CLIP that conditions; the extractor is a CLIP."""

LARGEST_SHIFT = 1 / 16
NAMES_A_SIDE = re.compile(r"\b(left|right|(counter|anti)?clockwise)\b", re.IGNORECASE)


def to_stderr(line: str) -> None:
    """Progress of a training: never on stdout, which may be read as JSON."""
    print(line, file=sys.stderr, flush=True)


def train_own(kind: str, source: DataSource, folder: Path, log: Callable[[str], None] = to_stderr) -> Path:
    """Train one of `KINDS` on a source's training images; what lies in `folder` already is kept.

    The folder appears when training is done, with metrics.json: PSNR on held-out images, or retrieval top-1 of
    held-out images and captions. The CLIP that scores differs from the one that conditions in seed and width.
    Raises `SpecError` for a source without `encoder_training`, or of scenes, whose encoders ship.
    """
    if (folder / "metrics.json").is_file():
        return folder
    if source.encoder_training is None or source.kind != "images":
        raise SpecError("encoders 'own' need data.kind 'images' and data.encoder_training.")
    training = _Augmented.of(source, seed=source.encoder_training.seed)
    held_out = open_images(source.val, captions_required=kind != "autoencoder")
    images = square_images(held_out, range(len(held_out)), source.resolution)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if kind == "autoencoder":
        metrics = _autoencoder(source, training, images, temporary, log)
    else:
        metrics = _clip(kind, source, training, images, held_out.captions, temporary, log)
    (temporary / "metrics.json").write_text(json.dumps(metrics, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)
    return folder


def _autoencoder(
    source: DataSource, training: _Augmented, held_out: np.ndarray, folder: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    asked = source.encoder_training
    assert asked is not None
    settings = AutoencoderSettings(
        channels=(asked.channels, 2 * asked.channels, 2 * asked.channels),
        latent_channels=asked.latent_channels,
        images=asked.autoencoder_images,
        batch=min(asked.batch, 32),
    )
    train_autoencoder(training.images, settings, asked.seed, folder, log)
    rebuilt = load_autoencoder(folder)
    return {"psnr_held_out": psnr(held_out, rebuilt.decode(rebuilt.encode(held_out))), "images": len(held_out)}


def _clip(
    kind: str,
    source: DataSource,
    training: _Augmented,
    held_out: np.ndarray,
    captions: list[str],
    folder: Path,
    log: Callable[[str], None],
) -> dict[str, Any]:
    asked = source.encoder_training
    assert asked is not None
    scores = kind == "extractor"
    settings = ClipSettings(
        text_hidden=asked.hidden + 32 * scores,
        image_hidden=96 + 32 * scores,
        vocabulary=asked.vocabulary,
        context_length=asked.context_length,
        tokenizer_captions=training.count,
        resolution=32,
        images=asked.clip_images,
        batch=min(4 * asked.batch, 256),
    )
    train_clip(training.images, training.captions, settings, asked.seed + 1 + scores, folder, log)
    clip = load_clip(folder)
    image, text = clip.image_features(held_out, normalised=True), clip.text_features(captions, normalised=True)
    found = (image @ text.T).argmax(axis=1)
    right = np.mean([captions[place] == captions[row] for row, place in enumerate(found)])
    return {
        "retrieval_top1_held_out": float(right),
        "images": len(held_out),
        "truncated": clip.count_truncated(captions),
    }


@dataclass(frozen=True)
class _Augmented:
    """Training images and captions by number, without end: shuffled each epoch, shifted a little, half mirrored.

    An image whose caption names a side is never mirrored.

    Image number i is a function of (seed, i).
    """

    pixels: np.ndarray
    texts: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, source: DataSource, seed: int) -> _Augmented:
        images = open_images(source.train)
        return cls(square_images(images, range(len(images)), source.resolution), tuple(images.captions), seed)

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
