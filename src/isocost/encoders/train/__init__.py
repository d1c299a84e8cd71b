"""Training encoders: autoencoder, CLIP pairs and the attribute classifier; small enough for one CPU core each.

`python -m isocost.encoders.train` rebuilds every asset that ships with the package (`assets`). The same functions train
a study's own encoders on its own images: a caller passes functions that give images and captions by number. All are
deterministic in their seed on one machine and thread count, stopped and resumed or not.
"""

from isocost.encoders.train.assets import train_assets
from isocost.encoders.train.autoencoder import AutoencoderSettings, train_autoencoder
from isocost.encoders.train.classifier import ClassifierSettings, train_classifier
from isocost.encoders.train.clip import ClipSettings, train_clip

__all__ = [
    "AutoencoderSettings",
    "ClassifierSettings",
    "ClipSettings",
    "train_assets",
    "train_autoencoder",
    "train_classifier",
    "train_clip",
]
