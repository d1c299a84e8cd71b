"""Autoencoder: exact standardisation, results that no batch size moves, folders that diffusers reads, clear errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from isocost.data import scenes
from isocost.encoders.autoencoder import Autoencoder, load_autoencoder, psnr, standardise
from isocost.errors import DataError
from isocost.specs import SceneOptions


def _tiny(seed: int = 0, **changes) -> AutoencoderKL:
    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "scaling_factor": 1.0,
    }
    return AutoencoderKL(**{**blocks, **changes})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return scenes.draw(9100, range(64), 32, SceneOptions())


@torch.no_grad()
def test_standardise_is_exact(images):
    """Against the plain arithmetic on the latents of the untouched module: mean, variance, and the decoded image."""
    pixels = torch.from_numpy(images[:4]).permute(0, 3, 1, 2).double() / 127.5 - 1
    module = _tiny().double()
    before = module.encode(pixels).latent_dist
    decoded = module.decode(before.mean).sample
    mean, deviation = torch.tensor([0.3, -2.0, 0.0, 5.0]).double(), torch.tensor([0.5, 3.0, 1.0, 0.01]).double()
    standardise(module, mean, deviation)
    after = module.encode(pixels).latent_dist
    shape = (1, 4, 1, 1)
    torch.testing.assert_close(after.mean, (before.mean - mean.view(shape)) / deviation.view(shape))
    torch.testing.assert_close(after.std, before.std / deviation.view(shape))
    torch.testing.assert_close(module.decode(after.mean).sample, decoded)


def test_rows_do_not_depend_on_how_many_are_passed(images):
    autoencoder = Autoencoder(_tiny())
    latents = autoencoder.encode(images[:37])
    decoded = autoencoder.decode(latents)
    assert latents.shape == (37, 4, 16, 16) and latents.dtype == np.float32
    assert decoded.shape == (37, 32, 32, 3) and decoded.dtype == np.uint8
    for rows in ([0], [36], [3, 1, 2], range(20)):
        assert np.array_equal(autoencoder.encode(images[list(rows)]), latents[list(rows)])
        assert np.array_equal(autoencoder.decode(latents[list(rows)]), decoded[list(rows)])


def test_matches_diffusers_with_a_scaling_factor_and_a_shift(images):
    module = _tiny(scaling_factor=0.18215, shift_factor=0.1)
    autoencoder = Autoencoder(module)
    with torch.no_grad():
        mode = module.encode(torch.from_numpy(images[:3]).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        back = ((module.decode(mode).sample / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    latents = autoencoder.encode(images[:3])
    np.testing.assert_allclose(latents, (mode.numpy() - 0.1) * 0.18215, atol=1e-5)
    assert np.abs(autoencoder.decode(latents).astype(int) - back).max() <= 1


def test_saved_folder_loads_here_and_in_diffusers(tmp_path, images):
    autoencoder = Autoencoder(_tiny())
    autoencoder.save(tmp_path / "pipeline" / "vae")
    for ref in (tmp_path / "pipeline" / "vae", tmp_path / "pipeline"):
        again = load_autoencoder(str(ref))
        assert again.digest == autoencoder.digest
        assert np.array_equal(again.encode(images[:2]), autoencoder.encode(images[:2]))
    theirs = AutoencoderKL.from_pretrained(tmp_path / "pipeline" / "vae")
    assert Autoencoder(theirs).digest == autoencoder.digest


def test_digest_follows_weights_and_config():
    digests = {
        Autoencoder(_tiny()).digest,
        Autoencoder(_tiny(seed=1)).digest,
        Autoencoder(_tiny(scaling_factor=2.0)).digest,
    }
    assert len(digests) == 3
    assert Autoencoder(_tiny()).digest in digests


def test_old_attention_names_are_read(tmp_path, images):
    """As in Stable Diffusion's published VAE: query, key, value, proj_attn, as 1x1 convolutions in the oldest."""
    module = _tiny(block_out_channels=(8, 8))
    autoencoder = Autoencoder(module)
    autoencoder.save(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        for name in [name for name in tensors if f".{new}." in name]:
            value = tensors.pop(name)
            value = value[:, :, None, None].contiguous() if value.ndim == 2 else value
            tensors[name.replace(f".{new}.", f".{old}.")] = value
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    assert load_autoencoder(tmp_path).digest == autoencoder.digest


def test_errors_say_where_and_what(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"found in .*assets.*Give a shipped name \(.*scenes-vae"):
        load_autoencoder("scenes-vea")
    with pytest.raises(DataError, match="hub's cache"):
        load_autoencoder("nobody/no-such-autoencoder")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(DataError, match="UNet2DModel"):
        load_autoencoder(tmp_path)
    Autoencoder(_tiny()).save(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"diffusion_pytorch_model\.safetensors"):
        load_autoencoder(tmp_path)


def test_shapes_that_do_not_fit_are_refused(images):
    autoencoder = Autoencoder(_tiny())
    with pytest.raises(DataError, match="factor 2"):
        autoencoder.encode(images[:, :31])
    with pytest.raises(DataError, match="uint8"):
        autoencoder.encode(images.astype(np.float32))
    with pytest.raises(DataError, match=r"\[N, 4, h, w\]"):
        autoencoder.decode(np.zeros((1, 3, 8, 8), np.float32))


def test_psnr():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, black + 255) == 0
    assert psnr(black, black + 51) == pytest.approx(20 * np.log10(5))


def test_shipped_autoencoder_reconstructs_and_standardises(images):
    autoencoder = load_autoencoder("scenes-vae")
    assert (autoencoder.factor, autoencoder.channels, autoencoder.scale) == (4, 4, 1.0)
    assert autoencoder.latent_shape(32) == (4, 8, 8)
    latents = autoencoder.encode(images)
    assert np.abs(latents.mean((0, 2, 3))).max() < 0.2
    assert np.abs(latents.std((0, 2, 3)) - 1).max() < 0.15
    assert psnr(images, autoencoder.decode(latents)) > 24.5
    large = scenes.draw(9100, range(16), 64, SceneOptions())
    assert psnr(large, autoencoder.decode(autoencoder.encode(large))) > 27.5
