from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from isocost.encoders.autoencoder import load_autoencoder, psnr
from isocost.encoders.train import train_autoencoder


def test_training_repeats_in_its_seed_whatever_the_global_generator(small, tmp_path):
    digests = []
    for seed in (0, 0, 1):
        torch.rand(7)
        digests.append(train_autoencoder(small.images, small.autoencoder, seed, tmp_path / "a").digest)
    assert digests[0] == digests[1] != digests[2]


def test_it_learns_and_standardises(small, tmp_path):
    settings = replace(small.autoencoder, images=960, statistics_images=64)
    one = train_autoencoder(small.images, settings, 0, tmp_path / "one")
    images = small.images(range(1000, 1064))
    latents = one.encode(images)
    assert np.abs(latents.mean((0, 2, 3))).max() < 0.25 and np.abs(latents.std((0, 2, 3)) - 1).max() < 0.25
    mean_image = np.broadcast_to(images.mean((0, 1, 2)).round().astype(np.uint8), images.shape)
    assert psnr(images, one.decode(latents)) > psnr(images, mean_image) + 2
    assert load_autoencoder(tmp_path / "one").digest == one.digest
